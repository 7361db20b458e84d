"""Benchmarks by name: torchvision's files and official splits, the names and templates that zero-shot CLIP needs.

What is known of each benchmark stands in `benchmarks.json`. Its templates are those of the CLIP paper (openai/CLIP,
data/prompts.md), after the single one of CoOp and Tip-Adapter where that is another; names that do not read as words
are CLIP's or CoOp's. Those without splits give all images. Nothing is downloaded unless asked for. CUB-200 and
RESISC45, which torchvision lacks, are read by `clipviz.data.sources.lists`.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipviz.data.base import ImageDataset
from clipviz.data.sources.image_files import FileOptions, ImageFileDataset, drawn
from clipviz.data.sources.layout import ALL, SPLITS, Layout, NoSuchSplit, find_images, list_folder
from clipviz.data.sources.lists import read_cub, read_resisc45
from clipviz.errors import choose, one_line
from clipviz.files import read_text
from clipviz.prompts import make_prompts, short_hash

ROOT_VARIABLE = "CLIPVIZ_DATA"
"""Environment variable with the folder of all benchmarks; without it, that is data/."""


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark; see the module."""

    name: str  # its key
    title: str  # its name as printed
    # "files" (torchvision lists them), "folders" (of classes), "arrays" (torchvision loads all pixels), "own lists"
    # (`lists.py` reads them) or "split file" (there is no other source than CoOp's file)
    reader: str
    templates: tuple[str, ...]  # the first is the one to use where one is asked for
    also: tuple[str, ...] = ()  # other spellings of the key, in lower case and without signs
    torchvision: str = ""  # its class in `torchvision.datasets`
    files: str = ""  # what must be below the root
    put: str = ""  # what to put there, for people
    splits: Mapping[str, str] = field(default_factory=dict)  # train, val, test -> torchvision's name of it
    class_names: Mapping[str, str] = field(default_factory=dict)  # name in the files -> name in sentences
    names: tuple[str, ...] = ()  # all names, where the files have none
    drop: tuple[str, ...] = ()  # folders that are no class
    reversed_names: bool = False  # whether "a/b" is to be read "b a"
    coop: str = ""  # its name in CoOp's split files
    needs: str = ""  # a package that torchvision needs to read it
    downloads: bool = True  # whether torchvision can download it

    def spoken(self, name: str) -> str:
        """A class name of the files as it belongs into a sentence."""
        if name in self.class_names:
            return self.class_names[name]
        return (" ".join(reversed(name.split("/"))) if self.reversed_names else name).replace("_", " ")


class ArrayDataset(ImageDataset):
    """Images in memory: pixels (N, H, W, 3) or, gray, (N, H, W) uint8; labels (N,) class indices."""

    def __init__(
        self, pixels: NDArray[np.uint8], labels: Sequence[int], *, name: str, split: str, class_names: tuple[str, ...],
        **options: Unpack[FileOptions],
    ) -> None:  # fmt: skip
        chosen = drawn(len(pixels), options.get("n"), options.get("seed", 0))
        self.name, self.split, self.skipped = name, split, []
        self.prompts = make_prompts(class_names, options.get("templates"), options.get("descriptions"))
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
    facts = json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))
    for of in facts.values():
        of |= {key: tuple(value) for key, value in of.items() if isinstance(value, list)}
    return {name: Benchmark(name, **of) for name, of in facts.items()}


def find_benchmark(spec: str) -> Benchmark | None:
    """The benchmark that is meant by a spec in any usual spelling ("DTD", "fgvc-aircraft", "pets"), or None."""
    if os.sep in spec or "." in spec:
        return None
    wanted = "".join(char for char in spec.lower() if char.isalnum())
    return next((b for name, b in benchmarks().items() if wanted in {name.replace("_", ""), *b.also}), None)


def benchmark_of_file(path: str) -> Benchmark | None:
    """The benchmark that a file `split_zhou_NAME.json` is about, or None."""
    stem = os.path.basename(path).rpartition(".")[0].lower()
    return next((b for b in benchmarks().values() if b.coop and stem.endswith(b.coop.lower())), None)


def load_benchmark(
    benchmark: Benchmark, split: str, *, root: str | None = None, download: bool = False, **options: Unpack[FileOptions]
) -> ImageDataset:
    """Load a benchmark from torchvision's layout of its files in `root`, else $CLIPVIZ_DATA, else data/.

    The split of the data set is "official train" and so on, by torchvision's name of it, or "all" of benchmarks without
    official splits; templates are the benchmark's own unless others are given. Raises NoSuchSplit.
    """
    choose("split", split, (*SPLITS, ALL))
    if benchmark.reader == "split file":
        raise ValueError(f"{benchmark.title} needs CoOp's list: give the path of split_zhou_{benchmark.coop}.json")
    folder = os.path.expanduser(root or os.environ.get(ROOT_VARIABLE) or "data")
    if benchmark.splits and split not in benchmark.splits:
        raise NoSuchSplit(f"{benchmark.title} has no official {split!r} split; it has {', '.join(benchmark.splits)}")
    official = benchmark.splits.get(split, split)  # torchvision's name of it; as it came where there are none
    _make_sure(benchmark, folder, official, download)
    options["templates"] = options.get("templates") or benchmark.templates
    if benchmark.reader == "arrays":  # torchvision unpickles CIFAR only if its bytes have the published checksum
        data = _torchvision(benchmark, folder, official)
        names, pixels, labels = tuple(map(benchmark.spoken, data.classes)), np.asarray(data.data), data.targets
        used = f"official {official}"
        return ArrayDataset(pixels, labels, name=benchmark.name, split=used, class_names=names, **options)
    read = {"folders": _folders, "files": _files, "own lists": _own_lists}[benchmark.reader]
    layout = read(benchmark, folder, official)
    if not layout.paths:
        which = "" if layout.split == ALL else f" of its {layout.split} split"
        place = os.path.join(folder, benchmark.files)
        raise ValueError(f"{benchmark.title}: there is no image{which} in {place!r}; it needs {benchmark.put}")
    layout = replace(layout, class_names=benchmark.names or tuple(map(benchmark.spoken, layout.class_names)))
    return ImageFileDataset(layout, folder, name=benchmark.name, place=f"{benchmark.title} in {folder!r}", **options)


def _make_sure(benchmark: Benchmark, root: str, split: str, download: bool) -> None:
    """Refuse a benchmark that is not there, after downloading it if that was asked for."""
    wanted = os.path.join(root, benchmark.files)
    if os.path.exists(wanted):
        return
    if download and benchmark.downloads:
        _torchvision(benchmark, root, split, download=True)
        return
    or_load = ", or let it be downloaded (download=True, --download)" if benchmark.downloads else ""
    raise ValueError(
        f"{benchmark.title} needs {benchmark.put} so that {wanted!r} exists, but it does not; give the folder that has "
        f"it (root=, --root){or_load}"
    )


def _torchvision(benchmark: Benchmark, root: str, split: str, *, download: bool = False) -> Any:
    which = {"train": split == "train"} if benchmark.reader == "arrays" else {"split": split}
    try:
        if benchmark.needs:
            import_module(benchmark.needs)
        make = getattr(import_module("torchvision.datasets"), benchmark.torchvision)
        return make(root, download=download, **(which if benchmark.splits else {}))
    except ImportError as error:
        package = error.name or benchmark.needs
        what = f"the package {package} to read its lists: pip install {package}"
        raise ValueError(f"{benchmark.title} needs {what}") from error
    except Exception as error:  # no network, no space, damaged lists: it raises what it meets
        if download:
            raise ValueError(f"{benchmark.title} could not be downloaded: {one_line(error)}") from error
        raise _damaged(benchmark, root, f"{type(error).__name__}: {one_line(error)}") from error


def _damaged(benchmark: Benchmark, root: str, reason: str) -> ValueError:
    return ValueError(f"{benchmark.title} in {root!r} is incomplete or damaged ({reason}); it needs {benchmark.put}")


def _files(benchmark: Benchmark, root: str, split: str) -> Layout:
    """The files that torchvision lists for a split, under names that are private, and the same in all versions."""
    data = _torchvision(benchmark, root, split)
    if (found := getattr(data, "_samples", None)) is None:
        paths = data._images if benchmark.torchvision == "OxfordIIITPet" else data._image_files
        found = zip(paths, data._labels, strict=True)
    pairs = [(os.fspath(path), int(label)) for path, label in found]
    used = f"official {split}" if benchmark.splits else ALL
    if benchmark.name == "gtsrb" and split == "train":  # the folder's name is the label, whichever folders there are
        pairs = [(path, int(os.path.basename(os.path.dirname(path)))) for path, _ in pairs]
    if benchmark.name == "sun397":
        used, pairs = _sun_partition(sorted(pairs), os.path.join(root, benchmark.files), split)
    layout = Layout(used, () if benchmark.names else tuple(data.classes))
    for pair in pairs:
        layout.add(*pair)
    return layout


def _sun_partition(pairs: list[tuple[str, int]], folder: str, split: str) -> tuple[str, list[tuple[str, int]]]:
    """The images of SUN397's first partition, where its lists lie beside the images; else all."""
    lists = {"train": "Training_01.txt", "test": "Testing_01.txt"}
    if not os.path.isfile(os.path.join(folder, lists["train"])):
        return ALL, pairs
    if split not in lists:
        raise NoSuchSplit(f"SUN397 has no official {split!r} split; it has train, test")
    text = read_text(os.path.join(folder, lists[split]), f"the list {lists[split]} of SUN397")
    listed = {os.path.join(folder, *line.strip().strip("/").split("/")) for line in text.split("\n") if line.strip()}
    return f"official {split} (partition 1)", [pair for pair in pairs if pair[0] in listed]


def _own_lists(benchmark: Benchmark, root: str, split: str) -> Layout:
    folder = os.path.join(root, benchmark.files)
    try:
        return read_cub(os.path.dirname(folder), split) if benchmark.name == "cub200" else read_resisc45(folder, split)
    except NoSuchSplit:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(benchmark, root, one_line(error)) from error


def _folders(benchmark: Benchmark, root: str, split: str) -> Layout:
    """Images by class folder, for benchmarks that come without splits."""
    base = os.path.join(root, benchmark.files)
    folders = [name for name in list_folder(base).folders if name not in benchmark.drop]
    layout = Layout(ALL, tuple(folders))
    for target, name in enumerate(folders):
        layout.add_found(find_images(os.path.join(base, name), root), target)
    return layout
