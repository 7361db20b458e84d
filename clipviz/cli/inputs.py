"""From the arguments of a command to models, data sets, and what their user should know about them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from clipviz.backbone import Backbone, load_backbone, usable_device
from clipviz.cli.progress import opening
from clipviz.data import load_dataset
from clipviz.data.base import ImageDataset
from clipviz.data.batches.features import FeatureDataset
from clipviz.data.images.pixel_cache import DiskCache
from clipviz.data.sources.layout import NoSuchSplit
from clipviz.errors import listed
from clipviz.parallel import ONE, Ranks
from clipviz.prompts.check import check_descriptions

_SKIPPED_SHOWN = 5

T = TypeVar("T")


def load_model(
    name: str | None, pretrained: str | None, args: argparse.Namespace, ranks: Ranks = ONE
) -> tuple[Backbone | None, list[str]]:
    """A model if one is named, and what the user should know about it; on the device of this process."""
    if name is None:
        if pretrained is not None:
            raise ValueError(f"the weights {pretrained!r} need an architecture; name the model, too")
        return None, []
    return told(load_backbone, name, pretrained, ranks.device or _device(args.device), args.precision)


def told(function: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, list[str]]:
    """What a function returns, and its warnings to the user, which are lines of ours here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = function(*arguments, **options)
    return result, [str(w.message) for w in caught if w.category is UserWarning]


def backbone_for(data: ImageDataset, loaded: Backbone | None) -> Backbone:
    """What looks at the data: the model, or, where the data are embeddings, their classifier or its text tower."""
    if isinstance(data, FeatureDataset):
        return data.backbone(loaded)
    if loaded is None:
        raise ValueError(f"{data.name} needs a model to look at it; give --model birds, or an open_clip architecture")
    return loaded


def open_data(args: argparse.Namespace, notes: list[str]) -> ImageDataset:
    """The images of --data to learn from, or all of them; their class names are known afterwards."""
    data, said = told(load_dataset, args.data, "train", seed=args.seed, **data_options(args))
    notes += said
    if data.class_names:
        return data
    if isinstance(data, FeatureDataset):
        raise ValueError(
            f"{args.data} holds embeddings without class names; add an array classifier or class_names to it, or give "
            "--classes FILE (one a line) with a --model that reads them"
        )
    if args.model != "birds":
        raise ValueError(
            f"{args.data} has no class folders, so its class names are not known; give --classes FILE (one a line), "
            "--descriptions FILE, or a classes.txt in the folder"
        )
    from clipviz.birds.world import SPECIES

    notes.append("no class names given: using the 24 bird species of the bundled model")
    args.classes = [species.name for species in SPECIES]
    return load_dataset(args.data, "train", seed=args.seed, **data_options(args))


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a command that are arguments of `load_dataset`."""
    names = ("classes", "descriptions", "root", "download", "allow_outside")
    if args.cache_dir is not None and "disk_cache" not in args:  # one for all the images of a command
        args.disk_cache = DiskCache(args.cache_dir, args.cache_gb, args.cache_side)
    cache = getattr(args, "disk_cache", None)
    return {**{name: getattr(args, name) for name in names}, "disk_cache": cache, "progress": opening()}


def refuse_among_images(folder: str | Path, *specs: str | None) -> None:
    """Refuse to make a folder in a folder of images: from then on it would be taken for one of their classes.

    Raises:
        ValueError: naming both.
    """
    place = Path(folder).resolve()
    for spec in filter(None, specs):
        images = Path(spec).expanduser()
        if images.is_dir() and place.is_relative_to(images.resolve()):
            raise ValueError(
                f"{str(folder)!r} lies in the folder of images {spec!r}, where it would be taken for a class; "
                "choose another place for --out"
            )


def cache_note(args: argparse.Namespace) -> list[str]:
    """One line if the cache on disk does not take any more; none otherwise."""
    cache = getattr(args, "disk_cache", None)
    return [cache.trouble] if cache is not None and cache.trouble is not None else []


def open_eval_data(args: argparse.Namespace, data: ImageDataset, notes: list[str]) -> ImageDataset:
    """What --eval-data says; else the test split of the data; else, transductively, the data itself."""
    if args.eval_data is not None:
        evaluation, said = told(load_dataset, args.eval_data, "test", seed=args.seed, **data_options(args))
        notes += said
        if evaluation.has_pixels != data.has_pixels:
            raise ValueError("--data and --eval-data must both be images or both be embeddings")
        if isinstance(evaluation, FeatureDataset) and evaluation.is_numbered:
            options = {**data_options(args), "classes": data.class_names}
            evaluation, _ = told(load_dataset, args.eval_data, "test", seed=args.seed, **options)
        _check_same_classes(args, data, evaluation)
        notes += _classifier_note(data, evaluation)
        return evaluation
    try:
        return load_dataset(args.data, "test", seed=args.seed, **data_options(args)) if data.split != "all" else data
    except NoSuchSplit:
        return data  # measured on the images it learns from, and named so


def _check_same_classes(args: argparse.Namespace, data: ImageDataset, evaluation: ImageDataset) -> None:
    """Refuse an evaluation set of other classes, with the first that differs."""
    here, there = data.class_names, evaluation.class_names
    if here == there:
        return
    pairs = enumerate(zip(here, there, strict=False))
    first = next((f"class {i} is {b!r} there and {a!r} here" for i, (a, b) in pairs if a != b), "")
    numbers = f"{len(there)} against {len(here)}"
    raise ValueError(
        f"--eval-data {args.eval_data} has other classes than --data {args.data} ({first or numbers}); "
        "both need the same class names in the same order"
    )


def _classifier_note(data: ImageDataset, evaluation: ImageDataset) -> list[str]:
    """One line if a file to measure on brings a classifier that the method does not use; none otherwise."""
    if not isinstance(data, FeatureDataset) or not isinstance(evaluation, FeatureDataset):
        return []
    own, other = data.classifier, evaluation.classifier
    if other is None or (own is not None and torch.equal(own, other)):
        return []
    used = "the text tower's" if own is None else f"that of {data.name}"
    return [f"{evaluation.name} brings another classifier, which is not used: all is measured with {used}"]


def skipped_note(dataset: ImageDataset, listed_in: Path | None = None) -> list[str]:
    """One line about the files that could not be read; none where all could.

    Names the first of them; fewer if all are listed in a file.
    """
    if not dataset.skipped:
        return []
    n = len(dataset.skipped)
    shown = n if listed_in is None else _SKIPPED_SHOWN
    names = listed((f"{_ending(s.path)!r}: {s.reason}" for s in dataset.skipped[:shown]), "; ")
    more = f"; and {n - shown} more, all listed in {listed_in}" if n > shown else ""
    return [f"skipped {n} files: {names}{more}"]


def _ending(path: str, longest: int = 80) -> str:
    """A path that fits into a line: of a long one the end, which says more."""
    return path if len(path) <= longest else f"...{path[3 - longest :]}"


def description_notes(data: ImageDataset, backbone: Backbone | None) -> list[str]:
    """One line about descriptions that are cut or do not name their class; none if all is well."""
    tokenizer = backbone.tokenizer if backbone is not None else None
    check = check_descriptions(data.prompts.descriptions, data.class_names, tokenizer)
    return [f"descriptions: {check.counts()}; {'; '.join(notices)}"] if (notices := check.notices()) else []


def _device(name: str | None) -> torch.device:
    return usable_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
