"""Speed as ratios within one process: `python -m benchmarks.speed [--quick] [--out FILE.csv]`.

Every ratio is the median over rounds in which numerator and denominator take turns, so a machine that slows down
slows both. "plain" is open_clip itself on the same weights, batch and threads: the forwards and the backward that a
method cannot do without. Rows that need a whole program (start-up, demo) are seconds.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch

from clipviz import METHODS, Run, load_backbone, load_dataset
from clipviz.backbone import Backbone
from clipviz.data.base import Views
from clipviz.loop import adapt, versions
from clipviz.methods import AdaptConfig
from clipviz.methods.microclip import MicroCLIP
from clipviz.prompts import ClassPrompts
from clipviz.recorder import Recorder

RESULTS = Path(__file__).parent / "results" / "speed.csv"


class Row(NamedTuple):
    """One line of the table: value in `unit`, and what design asks for."""

    what: str
    value: float
    unit: str
    limit: float | None


def ratio(ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> float:
    """Median of time(ours) / time(plain) over interleaved rounds, after one of each to warm up."""
    ours(), plain()
    return statistics.median(seconds(ours) / seconds(plain) for _ in range(rounds))


def seconds(function: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def backbone_of(name: str) -> Backbone:
    """The bundled model, or an open_clip architecture with random weights."""
    if name == "birds":
        return load_backbone("birds")
    model, _, transform = open_clip.create_model_and_transforms(name)
    normalization = transform.transforms[-1]
    return Backbone(model, open_clip.get_tokenizer(name), normalization.mean, normalization.std, name).eval()


def embedding_row(name: str, batch: int, rounds: int) -> Row:
    """Backbone.embed against `encode_image` with its normalization of pixels and embeddings."""
    backbone = backbone_of(name)
    images = torch.rand(batch, 3, backbone.image_size, backbone.image_size)

    def plain() -> None:
        backbone.model.encode_image((images - backbone.mean) / backbone.std, normalize=True)  # type: ignore[operator]

    with torch.no_grad():
        value = ratio(lambda: backbone.embed(images), plain, rounds)
    return Row(f"embeddings / open_clip, {name}, batch {batch}", value, "x", 1.02)


def step_row(method_name: str, name: str, batch: int, rounds: int) -> Row:
    """A step of a method against the forwards of all its views and one backward through the trainable parameters."""
    backbone = backbone_of(name)
    classes = [f"kind {i}" for i in range(24)]
    prompts = ClassPrompts(tuple(classes), ("a photo of a {}.",), {c: (f"A {c}.", f"{c} outside.") for c in classes})
    method = METHODS[method_name](backbone, prompts)  # type: ignore[call-arg]
    needs, size = method.needs, backbone.image_size
    crops = torch.rand(batch, needs.crops, 3, size, size) if needs.crops else None
    views = Views(torch.rand(batch, 3, size, size), torch.rand(batch, 3, size, size), crops)
    index = torch.arange(batch)
    optimizer = torch.optim.AdamW(method.parameter_groups(0.1), lr=1e-6)
    model, classifier = method.backbone.model, torch.randn(len(classes), backbone.embed_dim)

    def ours() -> None:
        with torch.no_grad():
            pseudo = method.pseudo_label(views, index)
        loss = torch.stack(list(method.loss(views, pseudo).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def plain() -> None:
        with torch.no_grad():
            model.encode_image(views.weak, normalize=True)  # type: ignore[operator]
            if views.crops is not None:
                model.encode_image(views.crops.flatten(0, 1), normalize=True)  # type: ignore[operator]
        logits = 100.0 * model.encode_image(views.strong, normalize=True) @ classifier.T  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits, index % len(classes)).backward()
        optimizer.step()

    method.train()
    method.begin_epoch()
    views_text = f"2+{needs.crops}" if needs.crops else "2"
    return Row(f"{method_name} step / {views_text} forwards + backward, {name}", ratio(ours, plain, rounds), "x", 1.10)


def soap_share_row(name: str, batch: int, rounds: int, limit: float) -> Row:
    """NCut and SOAP, which happen twice in a step, as a share of the step."""
    backbone = backbone_of(name)
    prompts = ClassPrompts(("a", "b"), ("a photo of a {}.",), {})
    method = MicroCLIP(backbone, prompts)
    size = backbone.image_size
    weak, crops = torch.rand(batch, 3, size, size), torch.rand(batch, method.needs.crops, 3, size, size)
    views = Views(weak, weak.clone(), crops)
    patches = backbone.tokens(weak).patches.detach()

    def step() -> None:
        with torch.no_grad():
            pseudo = method.pseudo_label(views, torch.arange(batch))
        torch.stack(list(method.loss(views, pseudo).values())).sum().backward()

    def soap() -> None:
        with torch.no_grad():
            method.foreground(patches)
            method.foreground(patches)

    share = ratio(soap, step, rounds)
    return Row(f"NCut + SOAP / step, {name}, N={patches.shape[1]}", share, "x", limit)


def recorder_row(rounds: int) -> Row:
    """An epoch with the recorder listening against the bare loop."""
    backbone = load_backbone("birds")
    data = load_dataset("birds/dusk", split="train", n=256)
    config = AdaptConfig(epochs=1)
    for i in range(len(data)):
        data.image(i)  # rendered once, before the clock runs

    def epoch(listen: bool) -> None:
        recorder = Recorder()
        for event in adapt(MicroCLIP(backbone, data.prompts), data, config):
            if listen:
                recorder(event)

    return Row(
        "epoch with recorder / bare loop, birds", ratio(lambda: epoch(True), lambda: epoch(False), rounds), "x", 1.05
    )


def epoch_row(images: int) -> Row:
    """The first epoch of microCLIP: rendering of the birds, views, crops, pseudo-labels, training."""
    backbone = load_backbone("birds")
    data = load_dataset("birds/clutter", split="train", n=images)
    method = MicroCLIP(backbone, data.prompts)
    run = Run(method, data, AdaptConfig(epochs=1))
    return Row(f"microclip epoch, birds, {images} images", seconds(run.fit), "s", 60.0 * images / 2000)


def program_row(what: str, command: list[str], limit: float, rounds: int = 3) -> Row:
    """Best wall seconds of a program in a process of its own."""
    value = min(seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(rounds))
    return Row(what, value, "s", limit)


def demo_rows() -> list[Row]:
    """`clipviz demo` from start to the finished report, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import resource, sys; from clipviz.cli import main; main(['demo', '--out', sys.argv[1]]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, text=True)
        elapsed = time.perf_counter() - begun
        size = (Path(folder) / "report.html").stat().st_size / 1e6
    peak = int(done.stdout.split()[-1]) / 1e6
    return [
        Row("clipviz demo", elapsed, "s", 180),
        Row("clipviz demo, peak memory", peak, "GB", 2),
        Row("report.html", size, "MB", 8),
    ]


def table(quick: bool) -> list[Row]:
    """All rows; `quick` leaves out the large models and the demo."""
    rounds = 5 if quick else 15
    rows = [embedding_row("birds", 64, 4 * rounds), step_row("microclip", "birds", 64, rounds)]
    rows.append(recorder_row(3))
    rows.append(program_row("import clipviz", [sys.executable, "-c", "import clipviz"], 0.3))
    rows.append(program_row("clipviz --help", [sys.executable, "-m", "clipviz.cli", "--help"], 1.0))
    rows.append(epoch_row(400 if quick else 2000))
    if "dpa" in METHODS:
        rows.append(step_row("dpa", "birds", 64, rounds))
    if not quick:
        rows += [embedding_row("ViT-B-32", 16, 7), embedding_row("ViT-B-16", 8, 5)]
        rows += [step_row("microclip", "ViT-B-32", 8, 5), step_row("microclip", "ViT-B-16", 4, 3)]
        rows += [soap_share_row("ViT-B-32", 8, 5, 0.02), soap_share_row("ViT-B-16", 4, 3, 0.05)]
        rows += demo_rows()
    return rows


def main() -> None:
    """Print the table, write it beside machine and versions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="birds only, fewer rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    args = parser.parse_args()
    machine = f"{os.cpu_count()} CPUs {platform.machine()}, {torch.get_num_threads()} threads"
    libraries = " ".join(f"{name} {version}" for name, version in versions().items())
    print(machine, libraries, sep="\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "value", "unit", "limit", "machine", "versions"])
        for row in table(args.quick):
            limit = "" if row.limit is None else f"{row.limit:g}"
            print(f"{row.what:55} {row.value:8.3f} {row.unit:3} limit {limit}", flush=True)
            writer.writerow([row.what, f"{row.value:.4f}", row.unit, limit, machine, libraries])


if __name__ == "__main__":
    main()
