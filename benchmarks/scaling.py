"""What a run costs per image, and what that makes of a million: `python -m benchmarks.scaling [--measure]`.

With --measure the constants are measured anew (two minutes) into benchmarks/results/scaling.csv. Without, the
arithmetic is done on the ones that are there, and the tables of docs/scaling.md are rewritten. Times are CPU seconds of
one thread, which other work on the machine changes least; nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import re
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks import command
from benchmarks.scale import make_manifest
from clipviz import METHODS, load_backbone
from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset, ViewConfig, Views
from clipviz.data.batches.features import FeatureDataset
from clipviz.data.batches.loader import ViewLoader
from clipviz.data.images.decode import read_image
from clipviz.data.images.views import crop_views, strong_view, weak_view
from clipviz.data.sources.feature_files import read_features, write_features
from clipviz.data.sources.image_files import ImageFolderDataset
from clipviz.events import PseudoLabels, RunStarted, StepFinished
from clipviz.methods import Method
from clipviz.prompts import ClassPrompts
from clipviz.training.recorder import Recorder

RESULTS = Path(__file__).parent / "results" / "scaling.csv"
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"

EMBED, WIDTH, NORMS = 512, 768, 39_936
"""ViT-B/32: joint width E, tower width W, numbers in its LayerNorms."""
CROPS, VIEWS, SHOTS, EPOCHS = 8, 10, 16, 15
"""Defaults of microclip (crops, epochs) and ntua (views, shots)."""
BYTES = 4


class Constant(NamedTuple):
    """One measured number; a later one may be made from it by arithmetic."""

    name: str
    what: str
    value: float
    unit: str


# ------------------------------------------------------------------------------------------------- measuring


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of one call, after one that does not count."""
    work()
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - begun) / repeats


def photo() -> bytes:
    """A JPEG of 500 x 375 pixels, blurred noise: no easier to decode than a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.2)).save(out, "JPEG", quality=90)
    return out.getvalue()


def measure_pixels() -> Iterator[Constant]:
    """Decoding, and each kind of view."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        path.write_bytes(photo())
        size = path.stat().st_size / 1e3
        what = f"decode a JPEG, 500 x 375, {size:.0f} kB"
        yield Constant("decode", what, 1e3 * cpu_seconds(lambda: read_image(path), 50), "ms")
        image = read_image(path)
    config, rng = ViewConfig(224, crops=CROPS), np.random.default_rng(0)
    for name, what, view in (
        ("weak", "crop the weak view, 224 x 224", lambda: weak_view(image, 224, rng)),
        ("strong", "crop and augment the strong view", lambda: strong_view(image, config, rng)),
        ("crops", f"make {CROPS} crops", lambda: crop_views(image, config, rng)),
    ):
        yield Constant(name, what, 1e3 * cpu_seconds(view, 50), "ms")


def measure_tower(batch: int = 8) -> Iterator[Constant]:
    """ViT-B/32: one embedding, and one step of the two methods that train it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights cost what trained ones do
        backbone = load_backbone("ViT-B-32")
    images = torch.rand(batch, 3, 224, 224)
    with torch.no_grad():
        yield Constant("embed", "embed an image", cpu_seconds(lambda: backbone.embed(images), 5) / batch, "s")
    views = Views(images, images, images[:, None].expand(-1, CROPS, -1, -1, -1))
    for name in ("dpa", "microclip"):
        yield Constant(name, f"a step of {name}, per image", step_seconds(name, backbone, views), "s")


def step_seconds(name: str, backbone: Backbone, views: Views) -> float:
    """Pseudo-labels, loss and its gradient for a batch, per image; the optimizer aside."""
    names = tuple(f"class {i}" for i in range(10))
    method: Method = METHODS[name](backbone, ClassPrompts(names, ("a photo of a {}.",), {}))
    index = torch.arange(len(views.weak))
    for buffer in ("bank_embeddings", "bank_labels"):
        if name == "dpa":
            shape = (len(index), EMBED) if buffer == "bank_embeddings" else (len(index),)
            method._resize(buffer, shape)

    def step() -> None:
        with torch.no_grad():
            pseudo = method.pseudo_label(views, index)
        torch.stack(list(method.loss(views, pseudo).values())).sum().backward()
        method.zero_grad()

    return cpu_seconds(step, 2) / len(index)


class _Unseen(ImageDataset):
    """A million images of which nobody reads more than one batch."""

    def __init__(self, n: int) -> None:
        self.name, self.split, self.skipped, self.targets = "unseen", "train", [], np.zeros(n, np.int64)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8))


def allocated(work: Callable[[], object], *, at_peak: bool) -> float:
    """Bytes that Python and numpy hold after some work (or at most, on the way)."""
    tracemalloc.start()
    kept = work()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return float(peak if at_peak else now)


def measure_bookkeeping(n: int = 1_000_000, files: int = 4_000) -> Iterator[Constant]:
    """What is remembered of an image besides its pixels."""
    with tempfile.TemporaryDirectory() as folder:
        make_manifest(Path(folder), files, 1000)  # its pictures; a folder a thousand
        held = allocated(lambda: ImageFolderDataset(folder, cache_bytes=0), at_peak=False)
    yield Constant("listed", "an image of an open data set: path of 25 characters, name, label", held / files, "bytes")
    loader = ViewLoader(_Unseen(n), ViewConfig(8), 64, 0)
    peak = allocated(lambda: next(loader.epoch(0)), at_peak=True)
    yield Constant("order", "an image in the order of an epoch, batches of 64", peak / n, "bytes")


def events(name: str, n: int, n_classes: int) -> Iterator[RunStarted | StepFinished]:
    """A run of one epoch with invented guesses, in batches of 1000."""
    yield RunStarted(name, {}, tuple(map(str, range(n_classes))), n, 1, n // 1000, None)
    generator = torch.Generator().manual_seed(0)
    sources = {"dpa": ("text", "image"), "microclip": ("static", "dynamic"), "ntua": ("zero_shot", "cache", "teacher")}
    for step in range(n // 1000):
        logits = {key: 4 * torch.randn(1000, n_classes, generator=generator) for key in sources[name]}
        probs = next(iter(logits.values())).softmax(-1)
        index = torch.randperm(n, generator=generator)[:1000]
        weights = torch.rand(1000, generator=generator)
        crop_weights = torch.rand(1000, CROPS, generator=generator) if name == "microclip" else None
        pseudo = PseudoLabels(probs.argmax(-1), probs, weights, logits, crop_weights)
        yield StepFinished(0, step, index, index % n_classes, pseudo, {"cross_entropy": torch.ones(())})


def measure_trace(n: int = 50_000, n_classes: int = 1000) -> Iterator[Constant]:
    """A row of the trace, in memory and on disk."""
    for name in ("dpa", "microclip"):
        recorder = Recorder()
        for event in events(name, n, n_classes):
            recorder(event)
        trace = recorder.trace()
        memory = trace.samples.memory_usage(index=False).sum() / n
        yield Constant(f"row {name}", f"a row of {name}'s trace in memory (one image, one epoch)", memory, "bytes")
        with tempfile.TemporaryDirectory() as folder:
            disk = (trace.save(Path(folder) / "trace") / "samples.parquet").stat().st_size / n
        yield Constant(f"stored {name}", f"the same on disk ({name})", disk, "bytes")


def measure_features(n: int = 200_000) -> Iterator[Constant]:
    """A row of a file of embeddings, as `clipviz embed` writes it and with half the bytes."""
    rows = torch.randn(n, EMBED, generator=torch.Generator().manual_seed(0))
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.safetensors"
            write_features(path, FeatureDataset(rows.to(dtype), name="rows"))
            size = path.stat().st_size / n
            before = anonymous_bytes()
            held = read_features(path)
            grown = (anonymous_bytes() - before) / n
            del held
        yield Constant(f"file {name}", f"a row of a file of {name} embeddings", size, "bytes")
        yield Constant(f"read {name}", f"the same, in memory of a process that opened it ({name})", grown, "bytes")


def anonymous_bytes() -> int:
    """Memory that is this process's alone, not pages of a file (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def measure() -> list[Constant]:
    """All of it."""
    torch.set_num_threads(1)
    parts = (measure_pixels, measure_tower, measure_bookkeeping, measure_trace, measure_features)
    found = []
    for part in parts:
        for constant in part():
            print(f"{constant.what:60} {constant.value:10.4g} {constant.unit}", flush=True)
            found.append(constant)
    return found


# ------------------------------------------------------------------------------------------------- arithmetic


def arithmetic(c: dict[str, float], n: int, n_classes: int) -> list[tuple[str, str, str]]:
    """What n images cost in one process: (what, how it is computed, value). `c` are the constants by name."""
    cores = 3600.0
    look = c["decode"] / 1e3
    dpa = look + (c["weak"] + c["strong"]) / 1e3 + c["dpa"]
    microclip = look + (c["weak"] + c["strong"] + c["crops"]) / 1e3 + c["microclip"]
    ntua = look + (c["weak"] + c["crops"] * VIEWS / CROPS) / 1e3 + (1 + VIEWS) * c["embed"]
    once = look + c["weak"] / 1e3 + c["embed"]
    entries = SHOTS * n_classes
    cache = entries * BYTES * ((1 + VIEWS) * EMBED + 3 * n_classes + 2)
    return [
        ("open the data set", "n x decode", hours(n * look / cores)),
        ("embed everything once", "n x (decode + weak + embed)", hours(n * once / cores)),
        ("dpa, one epoch", "n x (decode + weak + strong + step)", hours(n * dpa / cores)),
        ("microclip, one epoch", "the same with its crops and its step", hours(n * microclip / cores)),
        ("ntua, its single pass", "n x (decode + weak + 10 views + 11 x embed)", hours(n * ntua / cores)),
        ("paths, names, labels", "n x bytes listed", size(n * c["listed"])),
        ("order of an epoch", "n x bytes of order", size(n * c["order"])),
        ("dpa's bank", "n x (4 E + 8)", size(n * (BYTES * EMBED + 8))),
        ("ntua's cache", "K C x 4 ((1 + A) E + 3 C + 2)", size(cache)),
        (f"dpa's trace in memory, {EPOCHS} epochs", "n x epochs x bytes of a row", size(n * EPOCHS * c["row dpa"])),
        (f"dpa's trace on disk, {EPOCHS} epochs", "n x epochs x bytes stored", size(n * EPOCHS * c["stored dpa"])),
        ("dpa's checkpoint", "bank + 3 x 4 x (LayerNorms + C E)",
         size(n * (BYTES * EMBED + 8) + 3 * BYTES * (NORMS + n_classes * EMBED))),
        ("a file of float16 embeddings", "n x (2 E + 8)", size(n * c["file float16"])),
    ]  # fmt: skip


ASSUMED_RATE = 1000
PASSES = {"dpa": 4, "microclip": 12}
"""Forward passes an image, as docs/your_data.md counts them, and how many of them a device may do in a second."""


def devices(c: dict[str, float], n: int) -> list[tuple[str, ...]]:
    """Hours of an epoch on 1, 8 and 64 devices of the assumed rate, and CPU cores to feed one of them."""
    rows = []
    for name, passes in PASSES.items():
        views = (c["decode"] + c["weak"] + c["strong"] + (c["crops"] if name == "microclip" else 0.0)) / 1e3
        times = [hours(n * passes / ASSUMED_RATE / 3600 / count) for count in (1, 8, 64)]
        rows.append((name, *times, f"{views * ASSUMED_RATE / passes:.2g}"))
    return rows


def exchanged(batch: int, n_classes: int) -> list[tuple[str, str, str]]:
    """What processes exchange in a step: (method, rows gathered, gradients averaged)."""
    row = BYTES * EMBED
    dpa = batch * 2 * row, BYTES * (NORMS + n_classes * EMBED)
    microclip = batch * ((4 + CROPS) * row + 2 * BYTES), BYTES * (NORMS + n_classes * EMBED + 3 * WIDTH**2)
    return [("dpa", *map(size, dpa)), ("microclip", *map(size, microclip))]


def plain(value: float) -> str:
    """A number in three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hours(value: float) -> str:
    """Hours."""
    return f"{plain(value)} h"


def size(value: float) -> str:
    """Bytes in the unit that reads best, in three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def constants_table(rows: list[Constant]) -> str:
    """The measured numbers."""
    lines = [f"| {row.what} | {plain(row.value)} {row.unit} |" for row in rows]
    return "\n".join(["| measured | value |", "|---|---|", *lines])


def arithmetic_table(rows: list[Constant]) -> str:
    """One million images, and a hundred."""
    c = {row.name: row.value for row in rows}
    columns = [arithmetic(c, n, 1000) for n in (1_281_167, 100_000_000)]
    lines = [f"| {what} | {how} | {one} | {hundred[2]} |" for (what, how, one), hundred in zip(*columns, strict=True)]
    return "\n".join(["| what | arithmetic | 1.28 M | 100 M |", "|---|---|---|---|", *lines])


def exchange_table() -> str:
    """Two global batches."""
    rows = zip(exchanged(64, 1000), exchanged(4096, 1000), strict=True)
    lines = [f"| {a[0]} | {a[1]} | {b[1]} | {a[2]} |" for a, b in rows]
    head = ["| method | rows gathered, B = 64 | B = 4096 | gradients averaged |", "|---|---|---|---|"]
    return "\n".join([*head, *lines])


def devices_table(rows: list[Constant]) -> str:
    """Estimates for devices that nobody has measured."""
    head = ["| an epoch of 1.28 M images | 1 device | 8 | 64 | cores per device |", "|---|---|---|---|---|"]
    made = devices({row.name: row.value for row in rows}, 1_281_167)
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in made)])


def written(page: str, rows: list[Constant]) -> str:
    """The page with its three tables made anew."""
    tables = {
        "constants": constants_table(rows),
        "arithmetic": arithmetic_table(rows),
        "devices": devices_table(rows),
        "exchange": exchange_table(),
    }
    for name, table in tables.items():
        made = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
        page = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, made=made: made, page, flags=re.DOTALL)
    return page


def read() -> list[Constant]:
    """The constants that were measured last."""
    with RESULTS.open(newline="") as file:
        return [Constant(r["name"], r["what"], float(r["value"]), r["unit"]) for r in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        found = measure()
        with RESULTS.open("w", newline="") as file:
            csv.writer(file).writerows([Constant._fields, *found])
        print(f"on {platform.machine()}, {platform.system()}, torch {torch.__version__}")
    PAGE.write_text(written(PAGE.read_text(), read()))
    print(PAGE.read_text())


if __name__ == "__main__":
    command(main)
