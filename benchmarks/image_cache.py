"""What keeping decoded images gains: `python -m benchmarks.image_cache [--images N] [--size W H] [--crops K]`.

Makes N photograph-like JPEGs in a temporary folder, then opens them and makes two epochs of views of 224 pixels: with
nothing kept, with the cache in memory, with the cache on disk (nothing kept in memory) in a first run and in a second.
CPU seconds: decoding on the way in, and in the epochs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks import command, positive
from clipviz.data import DiskCache, ImageFolderDataset, ViewConfig, ViewLoader
from clipviz.data.sources.image_files import CACHE_BYTES


class Row(NamedTuple):
    """CPU seconds of a way to keep images."""

    how: str
    opening: float
    first_epoch: float
    second_epoch: float


def make_photos(folder: Path, images: int, size: tuple[int, int]) -> float:
    """Smooth noise with a grain, as photographs have; returns the megabytes."""
    rng = np.random.default_rng(0)
    for i in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize(size, Image.BICUBIC)
        grain = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (size[1], size[0], 1))
        path = folder / f"class {i % 10}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return sum(path.stat().st_size for path in folder.rglob("*.jpg")) / 1e6


def measure(how: str, photos: Path, config: ViewConfig, cache_bytes: int, disk: DiskCache | None) -> Row:
    """Open the images and make two epochs of views."""
    stamps = [time.process_time()]
    dataset = ImageFolderDataset(photos, cache_bytes=cache_bytes, disk_cache=disk)
    stamps.append(time.process_time())
    loader = ViewLoader(dataset, config, batch_size=64, seed=0)
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            pass
        stamps.append(time.process_time())
    return Row(how, *np.diff(stamps).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_cache", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive, default=2000)
    parser.add_argument("--size", type=positive, nargs=2, default=(500, 375), metavar=("W", "H"))
    parser.add_argument("--crops", type=int, default=0, help="of each image, besides the weak and the strong view")
    args = parser.parse_args()
    config = ViewConfig(224, strong=True, crops=args.crops)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        megabytes = make_photos(photos, args.images, tuple(args.size))
        print(f"{args.images} JPEGs of {args.size[0]} x {args.size[1]} pixels, {megabytes:.0f} MB; CPU seconds")
        print(f"{'kept':24} {'opening':>8} {'epoch 1':>8} {'epoch 2':>8}")
        cache = Path(folder) / "cache"
        ways: list[tuple[str, int, bool]] = [
            ("nothing", 0, False),
            ("in memory, 1 GiB", CACHE_BYTES, False),
            ("on disk, first run", 0, True),
            ("on disk, second run", 0, True),
        ]
        for how, cache_bytes, on_disk in ways:
            row = measure(how, photos, config, cache_bytes, DiskCache(cache) if on_disk else None)
            print(f"{row.how:24} {row.opening:8.1f} {row.first_epoch:8.1f} {row.second_epoch:8.1f}", flush=True)
        stored = sum(path.stat().st_size for path in cache.rglob("*.pixels")) / 1e6
        print(f"on disk: {stored:.0f} MB")


if __name__ == "__main__":
    command(main)
