"""`clipviz describe`: the file of descriptions, as a skeleton, filled by a language model, or checked."""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from clipviz.backbone import load_tokenizer
from clipviz.data import load_dataset
from clipviz.data.sources.image_files import given_classes
from clipviz.errors import inert
from clipviz.files import prepare_folder, write_json
from clipviz.prompts.check import check_descriptions
from clipviz.prompts.llm import BASE_URL_VARIABLE, KEY_VARIABLE, MODEL_VARIABLE, Endpoint, fill, open_skeleton


def describe(args: argparse.Namespace) -> None:
    """`clipviz describe`: the file of descriptions: a skeleton, filled where there is an endpoint, or checked."""
    if args.check is not None:
        names = _class_names(args) if args.data or args.classes else None
        print(inert(check_descriptions(args.check, names, load_tokenizer(args.model or "ViT-B-32")).require().report()))
        return
    names, out = _class_names(args), Path(args.out)
    if out.suffix.lower() != ".json":
        raise ValueError(f"descriptions go into a .json file, got {args.out!r}")
    prepare_folder(out.parent)
    filled = open_skeleton(out, names)
    write_json(out, filled)
    empty = [name for name, sentences in filled.items() if not sentences]
    url = args.endpoint or os.environ.get(BASE_URL_VARIABLE)
    if not empty:
        print(f"{inert(out)}: all {len(filled)} classes have sentences")
    elif not url:
        print(
            f"wrote {inert(out)}: {len(empty)} of {len(filled)} classes have no sentences yet; add some to each "
            f"list, or name an OpenAI-compatible endpoint that writes them (--endpoint, ${BASE_URL_VARIABLE})"
        )
    else:
        endpoint = Endpoint(url, args.llm or os.environ.get(MODEL_VARIABLE, ""), os.environ.get(KEY_VARIABLE))
        _confirm(endpoint, len(empty), args.sentences, args.yes)
        done = fill(out, filled, endpoint, n=args.sentences, kind=args.kind, progress=_tell)
        print(inert(check_descriptions(done, names).report().replace("descriptions", f"wrote {out}", 1)))


def _class_names(args: argparse.Namespace) -> tuple[str, ...]:
    """The classes of --data, of which one image is opened, or those of --classes."""
    if args.data is None:
        names = given_classes(args.classes)
        if names is None:
            raise ValueError("which classes? give --data SPEC or --classes FILE (one name per line)")
        return names
    data = load_dataset(args.data, classes=args.classes, root=args.root, n=1)
    if not data.class_names:
        raise ValueError(f"the class names of {args.data} are not known; give --classes FILE (one per line)")
    return data.class_names


def _confirm(endpoint: Endpoint, calls: int, n: int, yes: bool) -> None:
    cost = f"{calls} calls to {endpoint}, {n} sentences each: about {calls * (100 + 30 * n):,} tokens"
    if yes:
        print(inert(cost))
        return
    if not sys.stdin.isatty():
        raise ValueError(f"{cost}; add --yes to make them")
    answer = ""
    with suppress(EOFError):  # Ctrl-D
        answer = input(f"{inert(cost)}. Continue? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError("no call was made; fill in the list of each class in the file by hand")


def _tell(name: str, n: int) -> None:
    print(f"{inert(name)}: {n} sentence{'s' * (n != 1)}" if n else f"{inert(name)}: no answer", flush=True)
