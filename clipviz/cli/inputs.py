"""From the arguments of a command to models and data sets; what their user should know is a warning."""

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
from clipviz.parallel import Ranks
from clipviz.prompts.check import check_descriptions

_SKIPPED_SHOWN = 5

T = TypeVar("T")


def load_model(name: str | None, pretrained: str | None, args: argparse.Namespace, ranks: Ranks) -> Backbone | None:
    """A model if one is named, on the device of this process."""
    if name is None:
        if pretrained is not None:
            raise ValueError(f"the weights {pretrained!r} need an architecture; name the model as well")
        return None
    device = ranks.device or usable_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return load_backbone(name, pretrained, device, args.precision)


def told(function: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, list[str]]:
    """What a function returns, and its warnings to the user: said once nothing can be refused any more."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = function(*arguments, **options)
    return result, [str(w.message) for w in caught if w.category is UserWarning]


def backbone_for(data: ImageDataset, loaded: Backbone | None) -> Backbone:
    """What looks at the data: the model, or, where the data are embeddings, their classifier or its text tower."""
    if isinstance(data, FeatureDataset):
        return data.backbone(loaded)
    if loaded is None:
        raise ValueError(f"{data.name} needs a model; give --model birds, or an open_clip architecture")
    return loaded


def open_data(args: argparse.Namespace) -> ImageDataset:
    """The images of --data to learn from, or all of them; their class names are known afterwards."""
    data = load_dataset(args.data, "train", seed=args.seed, **data_options(args))
    if data.class_names:
        return data
    if isinstance(data, FeatureDataset):
        raise ValueError(
            f"{args.data} holds embeddings without class names; add an array classifier or class_names to it, or give "
            "--classes FILE (one per line) with a --model that reads them"
        )
    if args.model != "birds":
        raise ValueError(
            f"{args.data} has no class folders, so its class names are not known; give --classes FILE (one per line), "
            "--descriptions FILE, or a classes.txt in the folder"
        )
    from clipviz.birds.world import SPECIES

    warnings.warn("no class names given: using the 24 bird species of the bundled model", stacklevel=2)
    args.classes = [species.name for species in SPECIES]
    return load_dataset(args.data, "train", seed=args.seed, **data_options(args))


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a command that are arguments of `load_dataset`."""
    names = ("classes", "descriptions", "root", "download", "allow_outside")
    if args.cache_dir is not None and "disk_cache" not in args:  # one for all the images of a command
        refuse_among_images(args.cache_dir, args.data, getattr(args, "eval_data", None), option="--cache-dir")
        args.disk_cache = DiskCache(args.cache_dir, args.cache_gb, args.cache_side)
    cache = getattr(args, "disk_cache", None)
    return {**{name: getattr(args, name) for name in names}, "disk_cache": cache, "progress": opening()}


def refuse_among_images(folder: str | Path, *specs: str | None, option: str = "--out") -> None:
    """Refuse to make a folder in a folder of images: from then on it would be taken for one of their classes."""
    place = Path(folder).resolve()
    for spec in filter(None, specs):
        images = Path(spec).expanduser()
        if images.is_dir() and place.is_relative_to(images.resolve()):
            raise ValueError(
                f"{str(folder)!r} lies in the folder of images {spec!r}, where it would be taken for a class; "
                f"choose another place for {option}"
            )


def open_eval_data(args: argparse.Namespace, data: ImageDataset) -> ImageDataset:
    """What --eval-data says; else the test split of the data; else, transductively, the data itself."""
    if args.eval_data is not None:
        evaluation = load_dataset(args.eval_data, "test", seed=args.seed, **data_options(args))
        if evaluation.has_pixels != data.has_pixels:
            raise ValueError("--data and --eval-data must both be images or both be embeddings")
        if isinstance(evaluation, FeatureDataset) and evaluation.is_numbered:
            options = {**data_options(args), "classes": data.class_names}
            evaluation, _ = told(load_dataset, args.eval_data, "test", seed=args.seed, **options)
        _check_same_classes(args, data, evaluation)
        _warn_of_classifier(data, evaluation)
        return evaluation
    try:
        return load_dataset(args.data, "test", seed=args.seed, **data_options(args)) if data.split != "all" else data
    except NoSuchSplit:
        return data  # measured on the images it learns from, and named so


def _check_same_classes(args: argparse.Namespace, data: ImageDataset, evaluation: ImageDataset) -> None:
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


def _warn_of_classifier(data: ImageDataset, evaluation: ImageDataset) -> None:
    """Warn if a file to measure on brings a classifier that the method does not use."""
    if not isinstance(data, FeatureDataset) or not isinstance(evaluation, FeatureDataset):
        return
    own, other = data.classifier, evaluation.classifier
    if other is not None and (own is None or not torch.equal(own, other)):
        used = "the text tower's" if own is None else f"that of {data.name}"
        note = f"{evaluation.name} holds another classifier, which is not used: accuracy is measured with {used}"
        warnings.warn(note, stacklevel=2)


def warn_of_skipped(dataset: ImageDataset, listed_in: Path | None = None) -> None:
    """Warn of files that could not be read; names the first of them, fewer if all are listed in a file."""
    n = len(dataset.skipped)
    shown = n if listed_in is None else _SKIPPED_SHOWN
    ends = [(s.path if len(s.path) <= 80 else f"...{s.path[-77:]}", s.reason) for s in dataset.skipped[:shown]]
    names = listed((f"{end!r}: {reason}" for end, reason in ends), "; ")
    more = f"; and {n - shown} more, all listed in {listed_in}" if n > shown else ""
    if n:
        warnings.warn(f"skipped {n} file{'s' * (n != 1)}: {names}{more}", stacklevel=2)


def warn_of_cache(args: argparse.Namespace) -> None:
    """Warn if the cache on disk does not take any more."""
    cache = getattr(args, "disk_cache", None)
    if cache is not None and cache.trouble is not None:
        warnings.warn(cache.trouble, stacklevel=2)


def warn_of_descriptions(data: ImageDataset, backbone: Backbone | None) -> None:
    """Warn of descriptions that are cut or do not name their class."""
    tokenizer = backbone.tokenizer if backbone is not None else None
    check = check_descriptions(data.prompts.descriptions, data.class_names, tokenizer)
    if notices := check.notices():
        warnings.warn(f"descriptions: {check.counts()}; {'; '.join(notices)}", stacklevel=2)
