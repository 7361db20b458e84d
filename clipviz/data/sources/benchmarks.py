"""Benchmarks by name: torchvision's files and official splits, the names and templates that zero-shot CLIP needs.

What is known of each benchmark stands in `benchmarks.json`. Its templates are those of the CLIP paper (openai/CLIP,
data/prompts.md), after the single one of CoOp and Tip-Adapter where that is another; names that do not read as words
are CLIP's or CoOp's. `files` says what must be below the root, `splits` what torchvision calls train, val and test;
those without splits give all images. Nothing is downloaded unless asked for. CUB-200 and RESISC45, which torchvision
lacks, are read by `clipviz.data.sources.lists`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipviz.data.base import ImageDataset
from clipviz.data.images.pixel_cache import DiskCache
from clipviz.data.sources.image_files import ImageFileDataset, Progress, check_count
from clipviz.data.sources.layout import ALL, SPLITS, Layout, NoSuchSplit
from clipviz.data.sources.lists import read_cub, read_resisc45
from clipviz.data.sources.scan import find_images, list_folder
from clipviz.errors import choose, one_line
from clipviz.prompts import Descriptions, make_prompts, short_hash

ROOT_VARIABLE = "CLIPVIZ_DATA"
"""Environment variable with the folder of all benchmarks; without it, that is data/."""

# Where torchvision's data sets keep their paths and labels. The names are private, and the same in all versions.
_PATHS_AND_LABELS = {
    "DTD": ("_image_files", "_labels"),
    "FGVCAircraft": ("_image_files", "_labels"),
    "Flowers102": ("_image_files", "_labels"),
    "Food101": ("_image_files", "_labels"),
    "OxfordIIITPet": ("_images", "_labels"),
    "SUN397": ("_image_files", "_labels"),
}


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark; see the module's docstring.

    Attributes:
        name: Its key.
        title: Its name as printed.
        reader: "files" (torchvision lists them), "folders" (of classes), "arrays" (torchvision loads all pixels), "own
            lists" (`lists.py` reads them) or "split file" (there is no other source than CoOp's file).
        templates: The first is the one to use where one is asked for.
        also: Other spellings of the key, in lower case and without signs.
        torchvision: Its class in `torchvision.datasets`.
        files: What must be below the root.
        put: What to put there, for people.
        splits: train, val, test -> torchvision's name of it.
        class_names: Name in the files -> name in sentences.
        names: All names, where the files have none.
        drop: Folders that are no class.
        reversed_names: Whether "a/b" is to be read "b a".
        coop: Its name in CoOp's split files.
        needs: A package that torchvision needs to read it.
        downloads: Whether torchvision can download it.
    """

    name: str
    title: str
    reader: str
    templates: tuple[str, ...]
    also: tuple[str, ...] = ()
    torchvision: str = ""
    files: str = ""
    put: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    class_names: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    reversed_names: bool = False
    coop: str = ""
    needs: str = ""
    downloads: bool = True

    def spoken(self, name: str) -> str:
        """A class name of the files as it belongs into a sentence."""
        if name in self.class_names:
            return self.class_names[name]
        words = " ".join(reversed(name.split("/"))) if self.reversed_names else name
        return words.replace("_", " ")


class ArrayDataset(ImageDataset):
    """Images in memory, as small benchmarks come.

    Args:
        pixels: (N, H, W, 3) or, gray, (N, H, W) uint8.
        labels: (N,) class indices.
        name: What to call it.
        split: Its split.
        class_names: C names.
        templates: Patterns with "{}" for the class name.
        descriptions: A CuPL JSON file, or class name -> sentences.
        n: At most so many images, drawn at random.
        seed: Of that draw.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: Sequence[int],
        *,
        name: str,
        split: str,
        class_names: tuple[str, ...],
        templates: str | Sequence[str] | None,
        descriptions: Descriptions | None = None,
        n: int | None = None,
        seed: int = 0,
    ) -> None:
        check_count(n)
        total = len(pixels)
        chosen = np.sort(np.random.default_rng(seed).permutation(total)[: total if n is None else n])
        self.name, self.split, self.skipped = name, split, []
        self.prompts = make_prompts(class_names, templates, descriptions)
        self.class_names = self.prompts.names
        self.targets = np.asarray(labels, np.int64)[chosen]
        self.names = [f"{split} image {i}" for i in chosen]
        self._pixels = pixels[chosen]

    def _contents_hash(self) -> str:
        return short_hash([self._pixels.tobytes()])

    def image(self, index: int) -> Image.Image:
        """Return image `index` as RGB."""
        return Image.fromarray(self._pixels[index]).convert("RGB")


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    raw = json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))
    lists = {"templates", "also", "names", "drop"}

    def benchmark(name: str, facts: dict[str, Any]) -> Benchmark:
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in facts.items()}
        return Benchmark(name, **values)

    return {name: benchmark(name, facts) for name, facts in raw.items()}


def find_benchmark(spec: str) -> Benchmark | None:
    """The benchmark that is meant by a spec in any usual spelling ("DTD", "fgvc-aircraft", "pets"), or None."""
    wanted = "".join(char for char in spec.lower() if char.isalnum())
    for name, benchmark in benchmarks().items():
        if os.sep not in spec and "." not in spec and wanted in {name.replace("_", ""), *benchmark.also}:
            return benchmark
    return None


def benchmark_of_split_file(path: str) -> Benchmark | None:
    """The benchmark that a file `split_zhou_NAME.json` is about, or None."""
    stem = os.path.basename(path).rpartition(".")[0].lower()
    return next((b for b in benchmarks().values() if b.coop and stem.endswith(b.coop.lower())), None)


def load_benchmark(
    benchmark: Benchmark,
    split: str,
    *,
    root: str | None = None,
    download: bool = False,
    descriptions: Descriptions | None = None,
    templates: str | Sequence[str] | None = None,
    n: int | None = None,
    seed: int = 0,
    disk_cache: DiskCache | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """Load a benchmark from torchvision's layout of its files.

    Args:
        benchmark: Which.
        split: "train", "val" or "test". `split` of the data set is "official train" and so on, by torchvision's name
            of it, or "all" if the benchmark has no official split.
        root: The folder that holds `benchmark.files`; None takes $CLIPVIZ_DATA, else data/.
        download: Whether torchvision may download what is missing.
        descriptions: A CuPL JSON file, or class name -> sentences.
        templates: Patterns with "{}", instead of the benchmark's own.
        n: At most so many images, drawn at random.
        seed: Of that draw.
        disk_cache: A place on disk for decoded images.
        progress: Called with (files opened, files to open).

    Raises:
        NoSuchSplit: If the benchmark has no such official split.
        ValueError: If its files are missing (it says where to put them) or cannot be read.
    """
    choose("split", split, (*SPLITS, ALL))
    if benchmark.reader == "split file":
        raise ValueError(
            f"{benchmark.title} is read from CoOp's split file: give the path of split_zhou_{benchmark.coop}.json"
        )
    folder = os.path.expanduser(root or os.environ.get(ROOT_VARIABLE) or "data")
    official = _official(benchmark, split)
    _make_sure(benchmark, folder, official, download)
    texts: dict[str, Any] = {"templates": templates or benchmark.templates, "descriptions": descriptions}
    if benchmark.reader == "arrays":
        pixels, labels, names = _arrays(benchmark, folder, official)
        return ArrayDataset(
            pixels,
            labels,
            name=benchmark.name,
            split=f"official {official}",
            class_names=names,
            n=n,
            seed=seed,
            **texts,
        )
    read = {"folders": _folders, "files": _files, "own lists": _own_lists}[benchmark.reader]
    layout = read(benchmark, folder, official)
    place = f"{benchmark.title} in {folder!r}"
    options: dict[str, Any] = {"n": n, "seed": seed, "disk_cache": disk_cache, "progress": progress}
    return ImageFileDataset(layout, folder, name=benchmark.name, place=place, **options, **texts)


def _official(benchmark: Benchmark, split: str) -> str:
    """Torchvision's name of the split; as it came where there are none."""
    if not benchmark.splits:
        return split
    if split not in benchmark.splits:
        raise NoSuchSplit(f"{benchmark.title} has no official {split!r} split; it has {', '.join(benchmark.splits)}")
    return benchmark.splits[split]


def _make_sure(benchmark: Benchmark, root: str, split: str, download: bool) -> None:
    """Refuse a benchmark that is not there, after downloading it if that was asked for."""
    wanted = os.path.join(root, benchmark.files)
    if os.path.exists(wanted):
        return
    if download and benchmark.downloads:
        try:
            _construct(benchmark, root, split, download=True)
        except Exception as error:  # no network, no space, a changed file: torchvision raises what it meets
            raise ValueError(f"{benchmark.title} could not be downloaded: {one_line(error)}") from error
        return
    load = "; give the folder that has it (root=, --root)"
    load += ", or let it be downloaded (download=True, --download)" if benchmark.downloads else ""
    raise ValueError(f"{benchmark.title} wants {benchmark.put} so that {wanted!r} exists, but it does not{load}")


def _construct(benchmark: Benchmark, root: str, split: str, download: bool = False) -> Any:
    """Torchvision's data set of a split."""
    make = getattr(import_module("torchvision.datasets"), benchmark.torchvision)
    if benchmark.reader == "arrays":
        return make(root, train=split == "train", download=download)
    if not benchmark.splits:
        return make(root, download=download)
    return make(root, split=split, download=download)


def _read(benchmark: Benchmark, root: str, split: str) -> Any:
    """Torchvision's data set, with one kind of error."""
    try:
        return _construct(benchmark, root, split)
    except ModuleNotFoundError as error:
        raise ValueError(f"{benchmark.title} needs the package {error.name}: pip install {error.name}") from error
    except Exception as error:  # damaged lists make it raise KeyError, IndexError, UnpicklingError, ...
        raise ValueError(
            f"{benchmark.title} in {root!r} is incomplete or damaged ({type(error).__name__}: {one_line(error)}); "
            f"it wants {benchmark.put}"
        ) from error


def _arrays(benchmark: Benchmark, root: str, split: str) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...]]:
    """Pixels, labels and class names. torchvision unpickles CIFAR only if its bytes have the published checksum."""
    data = _read(benchmark, root, split)
    names = tuple(benchmark.spoken(name) for name in data.classes)
    return np.asarray(data.data), [int(label) for label in data.targets], names


def _files(benchmark: Benchmark, root: str, split: str) -> Layout:
    """The files that torchvision lists for a split."""
    if benchmark.needs:
        _need(benchmark)
    data = _read(benchmark, root, split)
    if benchmark.torchvision in _PATHS_AND_LABELS:
        paths, labels = (getattr(data, attribute) for attribute in _PATHS_AND_LABELS[benchmark.torchvision])
    else:
        paths, labels = zip(*data._samples, strict=True) if data._samples else ((), ())
    pairs = [(os.fspath(path), int(label)) for path, label in zip(paths, labels, strict=True)]
    used = f"official {split}" if benchmark.splits else ALL
    if benchmark.name == "gtsrb" and split == "train":  # the folder's name is the label, whichever folders there are
        pairs = [(path, int(os.path.basename(os.path.dirname(path)))) for path, _ in pairs]
    if benchmark.name == "sun397":
        used, pairs = _sun_partition(sorted(pairs), os.path.join(root, benchmark.files), split)
    names = benchmark.names or tuple(benchmark.spoken(name) for name in data.classes)
    if not pairs:
        raise ValueError(f"{benchmark.title} in {root!r} lists no image in its {used} split; it wants {benchmark.put}")
    return Layout(used, names, [path for path, _ in pairs], [label for _, label in pairs], [])


def _need(benchmark: Benchmark) -> None:
    try:
        import_module(benchmark.needs)
    except ImportError as error:
        raise ValueError(
            f"{benchmark.title} needs the package {benchmark.needs} to read its lists: pip install {benchmark.needs}"
        ) from error


def _sun_partition(pairs: list[tuple[str, int]], folder: str, split: str) -> tuple[str, list[tuple[str, int]]]:
    """The images of SUN397's first partition, where its lists lie beside the images; else all."""
    file = {"train": "Training_01.txt", "test": "Testing_01.txt"}.get(split)
    if not os.path.isfile(os.path.join(folder, "Training_01.txt")):
        return ALL, pairs
    if file is None:
        raise NoSuchSplit(f"SUN397 has no official {split!r} split; it has train, test")
    try:
        with open(os.path.join(folder, file), encoding="utf-8") as lines:
            listed = {os.path.join(folder, *line.strip().strip("/").split("/")) for line in lines if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {file} of SUN397 cannot be read: {one_line(error)}") from error
    return f"official {split} (partition 1)", [pair for pair in pairs if pair[0] in listed]


def _own_lists(benchmark: Benchmark, root: str, split: str) -> Layout:
    """What the published lists of a benchmark say, with its names as they are spoken."""
    folder = os.path.join(root, benchmark.files)
    try:
        layout = (
            read_cub(os.path.dirname(folder), split) if benchmark.name == "cub200" else read_resisc45(folder, split)
        )
    except NoSuchSplit:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{benchmark.title} in {root!r} is incomplete or damaged ({one_line(error)}); it wants {benchmark.put}"
        ) from error
    if not layout.paths:
        raise ValueError(f"{benchmark.title}: there is no image in {folder!r}; it wants {benchmark.put}")
    return replace(layout, class_names=tuple(benchmark.spoken(name) for name in layout.class_names))


def _folders(benchmark: Benchmark, root: str, split: str) -> Layout:
    """Images by class folder, for benchmarks that come without splits."""
    base = os.path.join(root, benchmark.files)
    folders = [name for name in list_folder(base).folders if name not in benchmark.drop]
    if not folders:
        raise ValueError(f"{benchmark.title}: there are no class folders in {base!r}; put {benchmark.put} there")
    layout = Layout(ALL, tuple(benchmark.spoken(name) for name in folders), [], [], [])
    for target, name in enumerate(folders):
        tree = find_images(os.path.join(base, name), root)
        layout.paths.extend(tree.images)
        layout.targets.extend([target] * len(tree.images))
        layout.skipped.extend(tree.skipped)
    if not layout.paths:
        raise ValueError(f"{benchmark.title}: there is no image in {base!r}; put {benchmark.put} there")
    return layout
