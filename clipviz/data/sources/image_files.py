"""Image files on disk as a data set: those of a folder, or found in another way."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipviz.data.base import ImageDataset, Skipped
from clipviz.data.images.decode import UnreadableImage, read_image
from clipviz.data.images.pixel_cache import DiskCache, MemoryCache, shrunk, side_of
from clipviz.data.sources.layout import Layout, data_name, display_name, display_path, read_class_names, read_layout
from clipviz.errors import one_line, several_texts, whole_number
from clipviz.prompts import Descriptions, check_class_names, make_prompts, short_hash

Classes = str | os.PathLike[str] | Sequence[str]
Progress = Callable[[int, int], None]

CACHE_BYTES = 2**30
_MOST_THREADS = 8
_SAMPLE = 4096
"""Bytes at either end of a file by which it is known again."""


class FileOptions(TypedDict, total=False):
    """What a data set of image files can be given; see `ImageFileDataset`."""

    descriptions: Descriptions | None
    templates: str | Sequence[str] | None
    n: int | None
    seed: int
    cache_bytes: int
    disk_cache: DiskCache | int | str | os.PathLike[str] | None
    progress: Progress | None


class ImageFileDataset(ImageDataset):
    """Image files on disk, each decoded once before the data set is ready; `skipped` lists what cannot be read.

    Args:
        layout: Which files, of which classes.
        root: The folder that their display names are relative to.
        place: Where the images lie, for the message that there is none, such as "the folder 'photos'".
        options: As for `load_dataset`; decoded images are kept in memory up to `cache_bytes`, `CACHE_BYTES` by default,
            the rest is decoded at each use.
    """

    are_files = True

    def __init__(self, layout: Layout, root: str, *, name: str, place: str, **options: Unpack[FileOptions]) -> None:
        check_count(options.get("n"))
        self.name, self.split = name, layout.split
        self.prompts = make_prompts(layout.class_names, options.get("templates"), options.get("descriptions"))
        self.class_names = self.prompts.names
        self._cache = MemoryCache(options.get("cache_bytes", CACHE_BYTES))
        self._side = side_of(cache := options.get("disk_cache"))
        disk = None if isinstance(cache, int) else cache
        folder = disk.folder if isinstance(disk, DiskCache) else disk and os.path.expanduser(disk)
        if folder is not None and (os.path.realpath(folder) + os.sep).startswith(os.path.realpath(root) + os.sep):
            raise ValueError(f"the cache {os.fspath(folder)!r} lies among the images; choose another place")
        self._disk = disk if isinstance(disk, DiskCache | None) else DiskCache(disk)
        self._here = os.getcwd()  # what relative paths are relative to, wherever the process goes
        self._samples, unreadable = self._open_all(layout, root, options)
        self.skipped = layout.skipped + unreadable
        if not self._samples:
            bad = unreadable or self.skipped
            example = f"for example {bad[0].path!r}: {bad[0].reason}"
            raise ValueError(f"no readable image in {place}: all {len(bad)} were skipped, {example}")
        self._paths = [layout.paths[i] for i in self._samples]
        self.targets = np.array([layout.targets[i] for i in self._samples], np.int64)
        self.names = [display_path(path, root) for path in self._paths]

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB, upright, as large as it is or the disk cache keeps it; RuntimeError if it is gone."""
        path = self._paths[index]
        if (pixels := self._cache.get(path)) is not None:
            return Image.fromarray(pixels)
        try:
            return self._decode(path)
        except UnreadableImage as error:
            raise RuntimeError(
                f"{self.names[index]!r} was readable when {self.name!r} was opened, but not now: {error}"
            ) from error

    def _contents_hash(self) -> str:
        """Of every file's size and both its ends, as they were when it was opened: see `_sample`."""
        side = [] if self._side is None else [f"short side at most {self._side}"]
        return short_hash([*side, *self._samples.values()])

    def _decode(self, path: str) -> Image.Image:
        path = os.path.join(self._here, path)
        if self._disk is not None:
            return self._disk.read(path)
        return read_image(path) if self._side is None else shrunk(read_image(path), self._side)

    def _open_all(self, layout: Layout, root: str, options: FileOptions) -> tuple[dict[int, bytes], list[Skipped]]:
        """Decode until n are good (all if None); return their positions in order with a sample, and the bad ones."""
        total, n, progress = len(layout.paths), options.get("n"), options.get("progress")
        rng = np.random.default_rng(options.get("seed", 0))
        order = list(range(total)) if n is None else rng.permutation(total).tolist()
        wanted = total if n is None else min(n, total)
        kept: dict[int, bytes] = {}
        unreadable: list[Skipped] = []
        pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))  # Pillow releases the interpreter lock
        try:
            with warnings.catch_warnings():
                # Pillow's remarks on odd but readable files, and on sizes that read_image judges itself
                warnings.simplefilter("ignore")
                opened = 0
                while len(kept) < wanted and opened < total:
                    block = order[opened : opened + wanted - len(kept)]
                    to_open = max(wanted, opened + len(block))
                    for i, sample in zip(block, pool.map(self._open, [layout.paths[i] for i in block]), strict=True):
                        if isinstance(sample, bytes):
                            kept[i] = sample
                        else:
                            unreadable.append(Skipped(display_path(layout.paths[i], root), sample))
                        opened += 1
                        if progress is not None:
                            progress(opened, to_open)
        finally:  # after Ctrl-C, files in line are not opened any more
            pool.shutdown(cancel_futures=True)
        return dict(sorted(kept.items())), unreadable

    def _open(self, path: str) -> bytes | str:  # a sample of it, or why there is none
        try:
            self._cache.offer(path, self._decode(path))
            return _sample(path)
        except UnreadableImage as error:
            return str(error)
        except OSError as error:  # it went away, or the disk fails
            return error.strerror or one_line(error)


class ImageFolderDataset(ImageFileDataset):
    """A folder of images. Layouts: see `read_layout`.

    Args:
        folder: With class folders, or images, or either inside train/, val/ and test/.
        classes: Class names, or a text file with one on each line. The default takes the class folders, else
            classes.txt in the folder, else the keys of `descriptions`, else no class is known.
        options: As for `ImageFileDataset`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: str = "train", *, classes: Classes | None = None,
        **options: Unpack[FileOptions],
    ) -> None:  # fmt: skip
        check_count(options.get("n"))  # before the folder is looked through
        root = os.fsdecode(folder)
        name = data_name(root)
        layout = read_layout(root, split, given_classes(classes))
        super().__init__(layout, root, name=name, place=f"the folder {name!r}", **options)
        folders = {os.path.dirname(path) for path in self._paths}
        if classes is None and len(self.class_names) == 1 < len(folders):  # an archive wraps its data set in a folder
            above = display_name(os.path.dirname(min(folders, key=len)))
            warnings.warn(
                f"{name!r} has one class, {self.class_names[0]!r}, so every prediction is right; if the folders in it "
                f"are the classes, give {above!r}", stacklevel=2,
            )  # fmt: skip


def _sample(path: str) -> bytes:
    """What tells a file from another that took its place: a hash of its size, its first 4 kB and its last.

    It costs little beside decoding, and does not depend on when a file was touched. What changes in the middle alone is
    not seen: that can be in BMP and plain TIFF, while compressed images would end otherwise.
    """
    with open(path, "rb", buffering=0) as file:
        size, content = os.fstat(file.fileno()).st_size, file.read(_SAMPLE)
        file.seek(max(size - _SAMPLE, len(content)))
        content += file.read(_SAMPLE)
    return hashlib.blake2b(size.to_bytes(8, "big") + content, digest_size=16).digest()


def check_count(n: int | None) -> None:
    """Refuse a number of images below 1."""
    if n is not None:
        whole_number("n, the number of images,", n, 1)


def drawn(total: int, n: int | None, seed: int) -> NDArray[np.int64]:
    """At most n positions of `total`, drawn at random, ascending; None: all."""
    check_count(n)
    return np.arange(total) if n is None else np.sort(np.random.default_rng(seed).permutation(total)[:n])


def given_classes(classes: Classes | None) -> tuple[str, ...] | None:
    """Class names that a user gave, as a list or as a text file with one on each line; None if there are none."""
    if classes is None:
        return None
    if isinstance(classes, str | os.PathLike):
        return read_class_names(classes)
    names = several_texts("class names", classes)
    check_class_names(names)
    return names
