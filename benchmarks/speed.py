"""Speed, memory and sizes as one table: `python -m benchmarks.speed [--quick] [--out FILE.csv]`.

Every ratio is the median over rounds in which numerator and denominator take turns, so a machine that slows down
slows both. "plain" is open_clip itself on the same weights, batch and threads: the forwards and the backward that a
method cannot do without. Rows that need a whole program (start-up, demo) are seconds. Beside each row stands the peak
memory of the process that did it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import command
from benchmarks.measure import (
    forget_peak,
    libraries,
    machine,
    median_ratio,
    peak_mb,
    seconds,
    taking_turns,
)
from benchmarks.steps import Step, backbone_of
from clipviz import Run, load_dataset
from clipviz.data.batches.features import FeatureDataset
from clipviz.methods import AdaptConfig
from clipviz.methods.build import build_method
from clipviz.methods.microclip import MicroCLIP
from clipviz.ops import normalize
from clipviz.training.loop import adapt
from clipviz.training.recorder import Recorder
from clipviz.widgets import LiveMonitor

RESULTS = Path(__file__).parent / "results" / "speed.csv"
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
_MB = 1e6


class Row(NamedTuple):
    """One line of the table: a value, its unit, and what it is held to (None: nothing)."""

    what: str
    value: float
    unit: str
    limit: float | None


# ------------------------------------------------------------------------------------------------- steps


def embedding_rows(name: str, batch: int, rounds: int) -> Iterator[Row]:
    """Backbone.embed against `encode_image` with its normalization of pixels and embeddings."""
    backbone = backbone_of(name)
    images = torch.rand(batch, 3, backbone.image_size, backbone.image_size)

    def plain() -> None:
        backbone.model.encode_image((images - backbone.mean) / backbone.std, normalize=True)  # type: ignore[operator]

    with torch.no_grad():
        taken = taking_turns({"ours": lambda: lambda: backbone.embed(images), "plain": lambda: plain}, rounds)
    limit = None if name == "small" else 1.02
    yield Row(f"embeddings / open_clip, {name}, batch {batch}", median_ratio(taken, "ours", "plain"), "x", limit)


def step_rows(
    method: str, name: str, batch: int, rounds: int, limit: float | None = 1.10, share: float | None = None
) -> Iterator[Row]:
    """A step against the forwards of all its views and one backward; NCut and SOAP against the step of microCLIP."""
    step = Step(method, backbone_of(name), batch)
    works = {"ours": lambda: step.ours, "plain": lambda: step.plain}
    if method == "microclip":
        works["foregrounds"] = lambda: step.foregrounds
    taken = taking_turns(works, rounds)
    what = f"{name}, batch {batch}"
    yield Row(
        f"{method} step / {step.n_views} forwards + backward, {what}", median_ratio(taken, "ours", "plain"), "x", limit
    )
    if method == "microclip":
        n = step.tokens.patches.shape[1]
        yield Row(
            f"NCut + SOAP / microclip step, {what}, N={n}", median_ratio(taken, "foregrounds", "ours"), "share", share
        )


def frozen_rows(name: str, batch: int, rounds: int) -> Iterator[Row]:
    """What the frozen crop teacher, which is not the published method, saves of a step."""
    backbone = backbone_of(name)
    student, frozen = (Step("microclip", backbone, batch, crop_teacher=kind) for kind in ("student", "frozen"))
    taken = taking_turns({"frozen": lambda: frozen.ours, "student": lambda: student.ours}, rounds)
    ratio = median_ratio(taken, "frozen", "student")
    yield Row(f"microclip step, crop_teacher=frozen / student, {name}, batch {batch}", ratio, "x", None)


# ------------------------------------------------------------------------------------------------- runs


def listener_rows(rounds: int) -> Iterator[Row]:
    """An epoch that is recorded, and one that is recorded and watched, against the bare loop."""
    backbone = backbone_of("birds")
    data = load_dataset("birds/dusk", split="train", n=256)
    config = AdaptConfig(epochs=1)
    for i in range(len(data)):
        data.image(i)  # rendered once, before the clock runs

    def bare() -> Callable[[], object]:
        method = MicroCLIP(backbone, data.prompts)
        return lambda: list(adapt(method, data, config))

    def recorded() -> Callable[[], object]:
        method, recorder = MicroCLIP(backbone, data.prompts), Recorder()
        return lambda: [recorder(event) for event in adapt(method, data, config)]

    def watched() -> Callable[[], object]:
        run = Run(MicroCLIP(backbone, data.prompts), data, config)
        monitor = LiveMonitor(run)
        assert monitor is not None  # it listens to the run
        return lambda: run.start().wait()

    with contextlib.redirect_stdout(io.StringIO()):  # the line that a monitor prints where there is no notebook
        taken = taking_turns({"bare": bare, "recorded": recorded, "watched": watched}, rounds)
    yield Row("epoch with recorder / bare loop, birds", median_ratio(taken, "recorded", "bare"), "x", 1.05)
    yield Row("epoch with recorder and live view / bare loop, birds", median_ratio(taken, "watched", "bare"), "x", 1.05)


def ntua_rows(rounds: int) -> Iterator[Row]:
    """NtUA on features of 100 classes: choosing 16 shots of each, and 20 epochs."""
    generator = torch.Generator().manual_seed(0)
    classifier = normalize(torch.randn(100, 512, generator=generator))
    targets = torch.arange(5000) % 100
    embeddings = normalize(classifier[targets] + 0.1 * torch.randn(5000, 512, generator=generator))
    data = FeatureDataset(embeddings, name="made up", targets=targets, classifier=classifier)

    def make() -> Callable[[], object]:
        method = build_method("ntua", data.backbone(), data)
        return lambda: list(adapt(method, data))

    taken = taking_turns({"ntua": make}, rounds)["ntua"]
    yield Row("ntua on features, 16 shots x 100 classes, 20 epochs", statistics.median(taken), "s", 5.0)


# ------------------------------------------------------------------------------------------------- programs, files


def program_rows(rounds: int) -> Iterator[Row]:
    """Start-up, in processes of their own."""
    for what, arguments, limit in (
        ("import clipviz", ["-c", "import clipviz"], 0.3),
        ("clipviz --help", ["-m", "clipviz", "--help"], 1.0),
    ):
        command = [sys.executable, *arguments]
        work = lambda c=command: subprocess.run(c, check=True, capture_output=True)  # noqa: E731
        yield Row(what, statistics.median(seconds(work) for _ in range(rounds)), "s", limit)


def notebook_rows() -> Iterator[Row]:
    """The largest committed notebook."""
    size = max(path.stat().st_size for path in NOTEBOOKS.glob("*.ipynb"))
    yield Row("the largest notebook", size / _MB, "MB", 1)


def demo_rows() -> Iterator[Row]:
    """`clipviz demo` from start to the finished report, and its peak memory."""
    code = (
        "import sys; from benchmarks.measure import peak_mb; from clipviz.cli.main import main;"
        "main(['demo', '--out', sys.argv[1]]); print(peak_mb())"  # ru_maxrss would begin with this process's
    )
    with tempfile.TemporaryDirectory() as folder:
        printed: list[str] = []

        def demo() -> None:
            command = [sys.executable, "-c", code, folder]
            printed.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        yield Row("clipviz demo", seconds(demo), "s", 180)
        yield Row("report.html of the demo", (Path(folder) / "report.html").stat().st_size / _MB, "MB", 6)
    yield Row("clipviz demo, peak memory", float(printed[0].split()[-1]) / 1000, "GB", 2)


# ------------------------------------------------------------------------------------------------- the table


def groups(quick: bool) -> Iterator[Iterator[Row]]:
    """All rows, in groups that are measured together; `quick` leaves out the large models and the demo."""
    few = 5 if quick else 11
    yield embedding_rows("small", 64, 4 * few)
    yield embedding_rows("birds", 64, 2 * few)
    yield step_rows("microclip", "small", 64, 4 * few, limit=None)
    yield step_rows("microclip", "birds", 64, few)
    yield step_rows("dpa", "birds", 64, few)
    yield frozen_rows("birds", 64, 5)
    yield listener_rows(3 if quick else 7)
    yield ntua_rows(3)
    yield program_rows(3 if quick else 5)
    yield notebook_rows()
    if quick:
        return
    yield embedding_rows("ViT-B-32", 16, 5)
    yield embedding_rows("ViT-B-16", 8, 5)
    yield step_rows("microclip", "ViT-B-32", 4, 5, share=0.02)
    yield step_rows("microclip", "ViT-B-16", 2, 3, share=0.05)
    yield step_rows("dpa", "ViT-B-32", 8, 5)
    yield step_rows("dpa", "ViT-B-16", 2, 3)
    yield frozen_rows("ViT-B-32", 4, 3)
    yield demo_rows()


def main() -> None:
    """Print the table, write it beside machine and versions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="birds only, fewer rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    args = parser.parse_args()
    print(machine(), libraries(), sep="\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "value", "unit", "limit", "peak_mb", "machine", "versions"])
        for group in groups(args.quick):
            forget_peak()
            for row in group:
                limit, peak = "" if row.limit is None else f"{row.limit:g}", f"{peak_mb():.0f}"
                print(f"{row.what:68} {row.value:8.3f} {row.unit:5} limit {limit:5} peak {peak:>5} MB", flush=True)
                writer.writerow([row.what, f"{row.value:.4f}", row.unit, limit, peak, machine(), libraries()])


if __name__ == "__main__":
    command(main)
