"""From what a user writes after --data to a data set."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clipviz.data.base import ImageDataset
from clipviz.data.images.pixel_cache import DiskCache, side_of
from clipviz.data.sources.benchmarks import ROOT_VARIABLE, benchmark_of_file, benchmarks, find_benchmark, load_benchmark
from clipviz.data.sources.feature_files import FEATURE_SUFFIXES, read_features
from clipviz.data.sources.image_files import Classes, ImageFileDataset, ImageFolderDataset, Progress, given_classes
from clipviz.data.sources.layout import data_name, display_name, list_folder
from clipviz.data.sources.lists import is_coop_split, read_coop_split
from clipviz.data.sources.manifest import MANIFEST_SUFFIXES, read_manifest
from clipviz.errors import path_text, unknown, whole_number
from clipviz.origin import remembered
from clipviz.prompts import Descriptions

_BIRDS = "birds"


@remembered("progress", disk_cache=side_of)
def load_dataset(
    spec: str | os.PathLike[str], split: str = "train", *, classes: Classes | None = None,
    descriptions: Descriptions | None = None, templates: str | Sequence[str] | None = None, seed: int = 0,
    n: int | None = None, severity: float = 1.0, root: str | os.PathLike[str] | None = None, download: bool = False,
    allow_outside: bool = False, disk_cache: DiskCache | int | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ImageDataset:  # fmt: skip
    """Load a data set.

    Args:
        spec: "birds" or "birds/DOMAIN"; a folder of images (one called birds is "./birds"); a benchmark by name ("dtd",
            "pets", ...; see `benchmarks.py`; a folder of that name comes first, unless `root` or `download` is given);
            a .csv or .parquet manifest; CoOp's split_zhou_*.json; or a .npz or .safetensors file of embeddings.
        split: "train", "val" or "test". A folder without splits gives all images, and says so in `split`.
        classes: Class names, or a text file with one on each line; birds, benchmarks and split files have their own.
        descriptions: A CuPL JSON file, or class name -> sentences.
        templates: One or more patterns with "{}" for the class name.
        seed: For the images of birds, and for the choice of `n` images.
        n: Most images to load; None for all of a folder, or the default number of birds.
        severity: For birds: strength of the domain's shift; 0 is the source domain.
        root: For benchmarks: the folder that holds them, see `load_benchmark`; for CoOp's files: that of the images.
        download: For benchmarks: whether to download what is missing.
        allow_outside: For manifests: whether images may lie outside the manifest's folder.
        disk_cache: For image files: a folder for decoded images, a `DiskCache`, or the side that one shrinks them to.
        progress: For image files: called with (files opened, files to open).

    Raises:
        ValueError: In one line: what was wanted, what came and what to do.
    """
    text = path_text("a data set", spec) if spec != "" else ""
    whole_number("seed", seed, 0)
    texts: dict[str, Any] = {"descriptions": descriptions, "templates": templates, "n": n, "seed": seed}
    options = texts | {"disk_cache": disk_cache, "progress": progress}
    if text == _BIRDS or text.startswith(_BIRDS + "/"):
        return _birds(text.partition("/")[2] or "source", split, classes, severity=severity, **texts)
    place = None if root is None else os.path.expanduser(os.fsdecode(root))
    is_folder_of_yours = place is None and not download and os.path.isdir(text)
    if not is_folder_of_yours and (benchmark := find_benchmark(text)):
        _refuse_classes(classes, f"{benchmark.title} brings its")
        if place is None:  # named, so that its origin holds from everywhere
            return load_dataset(text, split, root=os.environ.get(ROOT_VARIABLE) or "data", download=download, **options)
        return load_benchmark(benchmark, split, root=place, download=download, **options)
    path = os.path.expanduser(text)
    if os.path.isfile(path):
        if text.lower().endswith(FEATURE_SUFFIXES):
            return read_features(path, classes=classes, **texts)
        if text.lower().endswith(MANIFEST_SUFFIXES) or is_coop_split(text):
            return _listed(path, split, classes, place, allow_outside, options)
    if not os.path.isdir(path):
        raise ValueError(_no_folder(text, path))
    return ImageFolderDataset(path, split, classes=classes, **options)


def _birds(domain: str, split: str, classes: Classes | None, **options: Any) -> ImageDataset:
    _refuse_classes(classes, "birds bring their")
    from clipviz.birds.dataset import BirdsDataset  # here, so that a folder of images needs no renderer

    return BirdsDataset(domain, split, **options)


def _listed(
    path: str, split: str, classes: Classes | None, root: str | None, allow_outside: bool, options: dict[str, Any]
) -> ImageDataset:
    """The images that a manifest or a split file lists."""
    name = data_name(path)
    if not is_coop_split(path):
        layout = read_manifest(path, split, given_classes(classes), allow_outside=allow_outside)
        folder = os.path.dirname(os.path.abspath(path))
        return ImageFileDataset(layout, folder, name=name, place=f"the manifest {name!r}", **options)
    _refuse_classes(classes, "a split file brings its")
    layout, folder = read_coop_split(path, split, root)
    if benchmark := benchmark_of_file(path):  # it knows the names and templates that CLIP needs
        layout = replace(layout, class_names=tuple(map(benchmark.spoken, layout.class_names)))
        options["templates"] = options["templates"] or benchmark.templates
    return ImageFileDataset(layout, folder, name=name, place=f"the split file {name!r}", **options)


def _refuse_classes(classes: Classes | None, who_brings: str) -> None:
    if classes is not None:
        raise ValueError(f"{who_brings} own class names: leave the class list out")


def _no_folder(text: str, folder: str) -> str:
    if text.lower().endswith(FEATURE_SUFFIXES):
        return f"no such file of embeddings: {text!r}; `clipviz embed` writes one from a folder of images"
    if text.lower().endswith(MANIFEST_SUFFIXES) or is_coop_split(text):
        return f"no such file: {text!r}; give an existing manifest (.csv, .parquet) or split file"
    if os.path.exists(folder):
        return (
            f"{text!r} is a file; give the folder that holds the images, or a .csv, .parquet, .npz, .safetensors or "
            "split_*.json file"
        )
    if os.path.lexists(folder):
        return f"{text!r} is a broken symbolic link; give a folder of images"
    if text.startswith((os.sep, ".", "~")):
        return f"no such folder: {text!r}; give an existing folder of images, or {_BIRDS!r}"
    from clipviz.birds.dataset import DOMAINS

    builtin = [_BIRDS, *(f"{_BIRDS}/{domain}" for domain in DOMAINS), *benchmarks()]
    beside: list[str] = []
    with contextlib.suppress(OSError):
        parent = os.path.dirname(folder)
        beside = [display_name(os.path.join(parent, name)) for name in list_folder(parent or ".").folders]
    error = unknown("data set or folder", text, builtin, also=beside)
    return f"{error}, or give the path of an existing folder of images"
