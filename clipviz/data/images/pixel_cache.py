"""Decoded images, kept so that no file is decoded at every use: some in memory, and, if asked for, some on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from clipviz.data.images.decode import UnreadableImage, read_image
from clipviz.files import clear_abandoned, prepare_folder, writing

CACHE_SIDE = 512
_SUFFIX = ".pixels"
_FOLDER = re.compile("[0-9a-f]{2}")
_HEADER = struct.Struct("<8sIII")  # magic, width, height, CRC-32 of the pixels; then width * height * 3 bytes
_MAGIC = b"clipvizP"


class MemoryCache:
    """Decoded images by path, up to a number of bytes; what came first stays.

    An epoch uses every image once in random order, where replacing the least recently used one gains nothing.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._pixels: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> NDArray[np.uint8] | None:
        """The pixels of an image, or None."""
        return self._pixels.get(path)

    def offer(self, path: str, image: Image.Image) -> None:
        """Keep an image, if there is room for it."""
        size = 3 * image.width * image.height
        with self._lock:
            if size <= self._budget:
                self._budget -= size
                self._pixels[path] = np.asarray(image)

    def __reduce__(self) -> tuple[type[MemoryCache], tuple[int]]:
        # A copy in another process stays empty: sending the pixels costs more than decoding them again
        return MemoryCache, (0,)


class DiskCache:
    """Decoded images in a folder, for data sets that are larger than the memory, and for the next run.

    Large images are stored, and given, with a short side of `side` pixels: views of 224 pixels, and crops of half an
    image, lose nothing that can be seen, and every use of an image gives the same pixels whether it is stored or not.

    An entry is known by the file's real path, time of change and size, by `side` and by the version of Pillow; a
    damaged one is made again. When the folder is full, entries that this process has not used give way, the oldest
    first; if all are in use, further images are decoded at each use. A process may exceed the limit by a sixty-fourth.
    The folder is made if need be; one that holds other things, too, is safe.
    """

    def __init__(self, folder: str | os.PathLike[str], gigabytes: float = 10.0, side: int = CACHE_SIDE) -> None:
        if not gigabytes > 0 or side < 1:
            raise ValueError(f"a cache needs gigabytes > 0 and side >= 1, got gigabytes={gigabytes}, side={side}")
        self.folder = prepare_folder(folder).absolute()
        self.gigabytes, self.side = gigabytes, side
        self.trouble: str | None = None  # why nothing is stored any more, in one line
        self._limit = int(gigabytes * 1e9)
        self._room = 0  # bytes that may be written before the folder is looked through again
        self._granted: dict[Path, int] = {}  # bytes of entries that threads write; they may be in the folder already
        self._begun = time.time() - 1  # file systems keep coarser time
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[DiskCache], tuple[str, float, int]]:
        return DiskCache, (os.fspath(self.folder), self.gigabytes, self.side)

    def read(self, path: str) -> Image.Image:
        """An image, with a short side of at most `side`: from its entry, else from its file; UnreadableImage if bad."""
        try:
            entry = self._entry(path)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        if (image := self._load(entry)) is None:
            image = shrunk(read_image(path), self.side)
            self._store(entry, image)
        return image

    def _entry(self, path: str) -> Path:
        found = os.stat(path)
        facts = f"{found.st_mtime_ns} {found.st_size} {self.side} {PIL.__version__}"
        digest = hashlib.sha256(os.fsencode(os.path.realpath(path)) + b"\0" + facts.encode()).hexdigest()[:40]
        return self.folder / digest[:2] / f"{digest}{_SUFFIX}"

    def _load(self, entry: Path) -> Image.Image | None:
        try:
            with entry.open("rb") as file:
                if os.fstat(file.fileno()).st_mtime < self._begun:
                    os.utime(entry)  # in use: others give way first
                content = file.read()
        except OSError:
            return None
        if len(content) >= _HEADER.size:
            magic, width, height, checksum = _HEADER.unpack_from(content)
            pixels = memoryview(content)[_HEADER.size :]
            if magic == _MAGIC and len(pixels) == 3 * width * height and zlib.crc32(pixels) == checksum:
                return Image.frombytes("RGB", (width, height), pixels)
        _remove(entry)
        return None

    def _store(self, entry: Path, image: Image.Image) -> None:
        pixels = image.tobytes()
        if not self._reserve(entry, _HEADER.size + len(pixels)):
            return
        try:
            with writing(entry, durable=False) as file:
                file.write(_HEADER.pack(_MAGIC, *image.size, zlib.crc32(pixels)))
                file.write(pixels)
        except OSError as error:  # a full disk is no reason to stop a run that can do without
            self.trouble = f"nothing more is stored in {self.folder}: {error.strerror or error}"
        with self._lock:
            self._granted.pop(entry, None)

    def _reserve(self, entry: Path, size: int) -> bool:
        with self._lock:
            if self.trouble is None and size > self._room:
                self._room = self._make_room(size)
            if self.trouble is None and size > self._room:
                self.trouble = f"{self.folder} is full ({self.gigabytes:g} GB); further images are decoded at each use"
            if self.trouble is None:
                self._room -= size
                self._granted[entry] = size
            return self.trouble is None

    def _make_room(self, size: int) -> int:
        """Remove what this process has not used until there is room for some images; returns how many bytes."""
        wanted = max(size, self._limit // 64)
        entries = sorted(found for found in self._entries() if found[2] not in self._granted)
        total = sum(self._granted.values()) + sum(held for _, held, _ in entries)
        for used, held, path in entries:
            if total + wanted <= self._limit or used >= self._begun:
                break
            _remove(path)
            total -= held
        return min(wanted, self._limit - total)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(time of the last use, bytes, path) of all; half-written ones of killed processes are removed."""
        for folder in self.folder.iterdir():
            if not _FOLDER.fullmatch(folder.name) or not folder.is_dir():
                continue
            clear_abandoned(folder, f"*{_SUFFIX}")
            for path in folder.glob(f"[!.]*{_SUFFIX}"):
                with contextlib.suppress(OSError):  # another process was faster
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path


def side_of(cache: DiskCache | int | str | os.PathLike[str] | None) -> int | None:
    """The short side that images of a cache have at most; of a cache that is a folder, the default."""
    return cache if isinstance(cache, int | None) else getattr(cache, "side", CACHE_SIDE)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """An image whose short side is at most `side`; smaller ones stay as they are."""
    short = min(image.size)
    if short <= side:
        return image
    width, height = (max(side, round(length * side / short)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # not ours, or not now: it is only a cache
        path.unlink()
