"""Memory and time at size: `python -m benchmarks.scale [--images N] [--classes C] [--epochs E] [--out FILE.csv]`.

Makes a manifest of N tiny pictures of C classes in a temporary folder, opens them as anybody would, and trains for E
epochs on a model that is small enough not to matter: what grows is the data. The resident memory is read after opening
and after every epoch; from the first epoch to the last it must not grow.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from PIL import Image

from benchmarks import command, positive
from clipviz import METHODS, AdaptConfig, load_dataset
from clipviz.backbone import Backbone
from clipviz.errors import choose
from clipviz.events import EpochFinished, StepFinished
from clipviz.training.loop import adapt
from clipviz.training.recorder import Recorder

SIDE = 32
_PER_FOLDER = 1000


class Row(NamedTuple):
    """One reading."""

    when: str
    seconds: float
    resident_mb: float


def resident_mb() -> float:
    """Resident memory of this process, in units of 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_manifest(root: Path, images: int, classes: int) -> Path:
    """Write pictures of one color each, and the list of them."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (classes, 3))
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        for i in range(images):
            name = f"{i // _PER_FOLDER}/{i}.png"
            if i % _PER_FOLDER == 0:
                (root / name).parent.mkdir()
            noise = rng.integers(-8, 9, (SIDE, SIDE, 3))
            pixels = np.clip(colors[i % classes] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name, compress_level=1)
            writer.writerow((name, f"class {i % classes}"))
    return root / "manifest.csv"


def small_backbone() -> Backbone:
    """A CLIP of random weights for pictures of this size."""
    torch.manual_seed(0)
    vision = {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(16, vision, text)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    return Backbone(model, tokenizer, (0.5,) * 3, (0.25,) * 3, "small").requires_grad_(False).eval()


def readings(images: int, classes: int, epochs: int, method: str) -> Iterator[Row]:
    """Read memory and the clock on the way through a run."""
    begun = time.perf_counter()

    def now(when: str) -> Row:
        return Row(when, time.perf_counter() - begun, resident_mb())

    with tempfile.TemporaryDirectory() as folder:
        manifest = make_manifest(Path(folder), images, classes)
        yield now("pictures made")
        data = load_dataset(manifest)
        yield now("opened")
        adapted = METHODS[method](small_backbone(), data.prompts)
        recorder = Recorder()
        config = AdaptConfig(epochs=epochs, batch_size=256, lr=1e-4)
        for event in adapt(adapted, data, config, eval_dataset=data):
            recorder(event)
            if isinstance(event, StepFinished) and event.step in (0, len(data) // 512):
                yield now(f"step {event.step}")
            if isinstance(event, EpochFinished):
                yield now(f"epoch {event.epoch}")
        recorder.trace().save(Path(folder) / "trace")
        yield now("trace saved")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=50_000)
    parser.add_argument("--classes", type=positive, default=1_000)
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--method", default="dpa")
    parser.add_argument("--out", type=Path, help="CSV file")
    args = parser.parse_args()
    found = []
    for row in readings(args.images, args.classes, args.epochs, choose("method", args.method, METHODS)):
        print(f"{row.when:16} {row.seconds:8.1f} s {row.resident_mb:8.0f} MB", flush=True)
        found.append(row)
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            csv.writer(file).writerows([Row._fields, *found])
    epochs = [row.resident_mb for row in found if row.when.startswith("epoch") and row.when != "epoch -1"]
    if len(epochs) > 1 and epochs[-1] > 1.05 * epochs[0]:
        sys.exit(f"memory grew from {epochs[0]:.0f} to {epochs[-1]:.0f} MB")


if __name__ == "__main__":
    command(main)
