"""The options of every command of the command line, in the words of their users: meaning, unit, default.

Nothing here needs torch, so `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

_RECOMMENDED = "default: what the method recommends (the run's config.json says)"


class Command(NamedTuple):
    """What a command does in one line, in a few sentences, an example of it, and its options."""

    purpose: str
    more: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]


def _demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", default="clipviz-demo", metavar="DIR", help="folder to write, default: %(default)s")
    command.add_argument(
        "--domain", default="fog", metavar="NAME",
        help="how the birds differ from those that the model knows: clutter, night, fog, small, blur, mix, or source "
        "for not at all; default: %(default)s",
    )  # fmt: skip
    command.add_argument(
        "--epochs", type=positive, metavar="N",
        help="times that each method that trains sees every image; default: few, so that all of it takes minutes",
    )  # fmt: skip
    _add_seed(command)
    command.add_argument(
        "--methods", metavar="A,B", help="methods with commas between them, such as zero_shot,dpa; default: all of them"
    )


def _adapt(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "method", metavar="METHOD",
        help="zero_shot, descriptions, wca and tip_adapter do not train; nor do transclip and stata, which see all "
        "images together, and tda and oga, which see one after the other; ntua trains a cache of embeddings; dpa and "
        "microclip train the image tower",
    )  # fmt: skip
    _add_model(command)
    data = _add_data(command)
    data.add_argument(
        "--eval-data", metavar="SPEC",
        help="images to measure on; default: the test split of --data (val, if it has no test), else the same images",
    )  # fmt: skip
    method = command.add_argument_group("method")
    method.add_argument(
        "--preset", metavar="NAME",
        help="a set of constants: official or paper (the authors'), birds, or a benchmark's name such as eurosat, as "
        "far as the method has them; default: the method's own choice",
    )  # fmt: skip
    method.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="one constant, such as gamma=0.3; may be repeated; a wrong name gets the list of them",
    )  # fmt: skip
    method.add_argument("--teacher", metavar="NAME", help="ntua only: a larger --model that refines the cache")
    method.add_argument("--teacher-pretrained", metavar="TAG_OR_FILE", help="ntua only: the teacher's weights")
    method.add_argument(
        "--allow-labels", action="store_true",
        help="ntua only: permit --set selection=oracle_balanced, which looks at the labels; for comparisons",
    )  # fmt: skip
    training = command.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help=f"passes over the images (tda, oga: slices of the stream); {_RECOMMENDED}",
    )
    training.add_argument("--batch-size", type=positive, metavar="N", help="images in a step; default: as --epochs")
    training.add_argument("--lr", type=float, metavar="X", help="learning rate, above 0; default: as --epochs")
    _add_seed(training)
    out = command.add_argument_group("result")
    out.add_argument(
        "--out", required=True, metavar="DIR", help="run folder to write; not among the images; made if it is not there"
    )
    out.add_argument(
        "--resume", action="store_true",
        help="go on with the interrupted run in --out, to the same numbers; wants the same options as before",
    )  # fmt: skip
    machine = _add_machine(command)
    machine.add_argument(
        "--workers", type=natural, default=0, metavar="N",
        help="processes that load images beside the one that trains; default: %(default)s, none",
    )  # fmt: skip


def _embed(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    data = _add_data(command)
    data.add_argument(
        "--split", default="train", choices=("train", "val", "test"),
        help="which images, if the data have splits; default: %(default)s",
    )  # fmt: skip
    _add_seed(data)
    out = command.add_argument_group("result")
    out.add_argument("--out", required=True, metavar="FILE", help="file to write, .npz or .safetensors")
    _add_machine(command)


def _describe(command: argparse.ArgumentParser) -> None:
    classes = command.add_argument_group("classes, from one of")
    classes.add_argument(
        "--data", metavar="SPEC", help="data whose classes they are, as for clipviz adapt; default: none"
    )
    classes.add_argument("--classes", metavar="FILE", help="text file with the names, one a line; default: of --data")
    _add_root(classes)
    what = command.add_argument_group("file, one of").add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="FILE.json", help="file to write; sentences that are in it already are kept")
    what.add_argument("--check", metavar="FILE.json", help="say all that is wrong with a file, and write nothing")
    command.add_argument(
        "--model", metavar="NAME",
        help="with --check: the model whose text tower will read it, to count what is too long; default: ViT-B-32",
    )  # fmt: skip
    llm = command.add_argument_group("language model that writes them")
    llm.add_argument(
        "--endpoint", metavar="URL",
        help="address of an OpenAI-compatible server, up to /v1; default: $OPENAI_BASE_URL, else nobody is asked and "
        "the lists stay empty for you to fill; a key is taken from $OPENAI_API_KEY",
    )  # fmt: skip
    llm.add_argument("--llm", metavar="NAME", help="what the server calls the model; default: $OPENAI_MODEL")
    llm.add_argument(
        "--sentences", type=positive, default=20, metavar="N", help="sentences for each class; default: %(default)s"
    )
    llm.add_argument(
        "--kind", metavar="NOUN", help="what the classes are kinds of, such as bird; default: the question says nothing"
    )
    llm.add_argument("--yes", action="store_true", help="make the calls without asking first; their number is printed")


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="folder that clipviz adapt wrote; several share a page"
    )
    command.add_argument("--out", required=True, metavar="FILE.html", help="page to write, on its own; - is stdout")


def _compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder of a finished run, of clipviz adapt")


def _lab(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", default="clipviz-notebooks", metavar="DIR",
        help="folder for your copy of the notebooks; those that are there stay as they are; default: %(default)s",
    )  # fmt: skip
    command.add_argument(
        "--port", type=positive, metavar="N", help="of JupyterLab; default: its own choice, 8888 if free"
    )
    command.add_argument("--no-browser", action="store_true", help="open no browser; the address is printed")
    command.add_argument(
        "jupyter",
        nargs="*",
        metavar="-- OPTION",
        help="options of JupyterLab after two hyphens, such as -- --allow-root",
    )


_Options = argparse.ArgumentParser | argparse._ArgumentGroup


def _add_model(command: argparse.ArgumentParser) -> None:
    model = command.add_argument_group("model")
    model.add_argument(
        "--model", metavar="NAME",
        help="birds (comes along), an architecture of open_clip such as ViT-B-32, hf-hub:OWNER/NAME, or a folder with "
        "open_clip_config.json; needed unless --data are embeddings",
    )  # fmt: skip
    model.add_argument(
        "--pretrained", metavar="TAG_OR_FILE",
        help="weights for an architecture: a tag of open_clip such as openai, which is downloaded once, or a "
        ".safetensors or .pt file; default: random weights, which know nothing",
    )  # fmt: skip


def _add_data(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    data = command.add_argument_group("images and classes")
    data.add_argument(
        "--data", required=True, metavar="SPEC",
        help="folder of images (class folders, or none; with or without train/ and test/), table (.csv, .parquet with "
        "the columns path, label, split), split_zhou_*.json, benchmark (dtd, eurosat, ...), birds, birds/DOMAIN, or a "
        "file of embeddings (.npz, .safetensors)",
    )  # fmt: skip
    data.add_argument(
        "--classes", metavar="FILE",
        help="text file with the class names, one a line, where there are no class folders; the first is number 0",
    )  # fmt: skip
    data.add_argument(
        "--descriptions", metavar="FILE.json",
        help="sentences for each class, {name: [sentence, ...]}, as clipviz describe writes; default: templates such "
        "as 'a photo of a NAME.'",
    )  # fmt: skip
    _add_root(data)
    data.add_argument("--download", action="store_true", help="let torchvision download a benchmark that is not there")
    data.add_argument(
        "--allow-outside",
        action="store_true",
        help="let a table name images outside of its own folder; if you trust it",
    )
    data.add_argument(
        "--cache-dir", metavar="DIR",
        help="keep decoded images there, so that later epochs and runs open large ones faster; default: in memory only",
    )  # fmt: skip
    data.add_argument(
        "--cache-gb", type=gigabytes, default=10.0, metavar="X",
        help="size of --cache-dir in GB, at most; default: %(default)g",
    )  # fmt: skip
    data.add_argument(
        "--cache-side", type=positive, default=512, metavar="N",
        help="short side in pixels that --cache-dir shrinks larger images to; default: %(default)s",
    )  # fmt: skip
    return data


def _add_root(command: _Options) -> None:
    command.add_argument(
        "--root", metavar="DIR",
        help="folder that holds the benchmarks, default: $CLIPVIZ_DATA, else data; or the images of a "
        "split_zhou_*.json, default: that beside it",
    )  # fmt: skip


def _add_seed(command: _Options) -> None:
    command.add_argument(
        "--seed", type=natural, default=0, metavar="N",
        help="of everything random; the same seed gives the same numbers; default: %(default)s",
    )  # fmt: skip


def _add_machine(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    machine = command.add_argument_group("machine")
    machine.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: cuda if there is one, else cpu"
    )
    machine.add_argument(
        "--devices", type=positive, metavar="N", help="devices that share each batch, one process for each; default: 1"
    )
    machine.add_argument(
        "--num-nodes",
        type=positive,
        metavar="N",
        help="machines with so many --devices each; default: 1, or torchrun's",
    )
    machine.add_argument(
        "--precision", default="32", choices=("32", "bf16-mixed"),
        help="numbers of the image tower: 32 bits, or 16 where that is safe (faster on a GPU); default: %(default)s",
    )  # fmt: skip
    return machine


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "adapt the bundled CLIP to shifted birds and write a report",
        "Needs no download, no data and no GPU. Writes a run folder for each method, results.csv and report.html.",
        "clipviz demo --domain night --methods zero_shot,dpa",
        _demo,
    ),
    "adapt": Command(
        "adapt a CLIP to unlabelled images",
        "One method on one set of images into one run folder. Labels, where there are any, only measure. "
        "docs/your_data.md has a line for each kind of data and model.",
        "clipviz adapt microclip --model ViT-B-32 --pretrained openai --data PHOTOS --out runs/photos",
        _adapt,
    ),
    "embed": Command(
        "write the embeddings of images to a file that adapt can work on",
        "For methods that need embeddings only (all but wca and microclip): the images are looked at once.",
        "clipviz embed --model ViT-B-32 --pretrained openai --data PHOTOS --out photos.npz",
        _embed,
    ),
    "describe": Command(
        "write the file of class descriptions, fill it by a language model, or check it",
        "Sentences on how a class looks say more to a CLIP than its name. The file is {name: [sentence, ...]}.",
        "clipviz describe --data PHOTOS --out photos.json",
        _describe,
    ),
    "report": Command(
        "write one HTML page from run folders",
        "Tables and figures of one run, or of several that were measured on the same images.",
        "clipviz report runs/photos --out photos.html",
        _report,
    ),
    "compare": Command(
        "print the results of run folders as one table",
        "Runs that were measured on different images or splits are refused: their accuracies cannot be compared.",
        "clipviz compare runs/dpa runs/microclip",
        _compare,
    ),
    "lab": Command(
        "open the tutorials in JupyterLab",
        "Copies the notebooks into a folder and serves it until Ctrl-C; needs pip install 'clipviz[lab]'. What follows "
        "-- is for JupyterLab: clipviz lab -- --allow-root.",
        "clipviz lab --no-browser --port 8890",
        _lab,
    ),
}  # fmt: skip
"""By name, in the order of the help."""


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole_number(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole_number(text, 0)


def gigabytes(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number of gigabytes above 0, got {text!r}")
    return value


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least {least}, got {text!r}")
    return int(text)
