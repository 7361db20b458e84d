"""The live side, measured: `python -m benchmarks.live [--quick] [--out FILE.csv]`.

- a run with all four views attached against the same run alone, in turns within one process; the views send their
  messages through a connection that packs them as a kernel does
- what it costs a run that another process follows its folder
- Stop: how long a run goes on after the step in which it is pressed
- memory of the process over 100 refreshes of every view
- a click on an image until its saliency is on screen, in a real JupyterLab with a headless Chromium

A busy machine makes all of it slower: the load is printed, and stands in every row of the file.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import comm
import torch
from comm.base_comm import BaseComm

import clipviz
from benchmarks import command
from clipviz.data import ImageDataset
from clipviz.events import Event, StepFinished
from clipviz.training.follow import Beacon
from clipviz.training.loop import versions

sys.path.append(str(Path(__file__).parent.parent / "tests" / "browser"))

RESULTS = Path(__file__).parent / "results" / "live.csv"
CLICKS = 20
NOTEBOOK = """
import time
import clipviz
from clipviz.widgets.inspector import Inspector
backbone = clipviz.load_backbone("birds")
data = clipviz.load_dataset("birds/fog", split="train", n=64)
method = clipviz.METHODS["microclip"](backbone, data.prompts)
run = clipviz.Run(method, data, clipviz.AdaptConfig(epochs=1, batch_size=32), eval_dataset=data)
trace = run.fit()
show, saliency = Inspector.show, type(run.model_probe).saliency
def logged(name, function):
    def call(*args, **options):
        begun = time.perf_counter()
        found = function(*args, **options)
        with open("kernel.csv", "a") as file:
            file.write(f"{name},{time.perf_counter() - begun}\\n")
        return found
    return call
Inspector.show = logged("show", show)
type(run.model_probe).saliency = logged("saliency", saliency)
"""
SELECT = """async i => {
    const overlay = document.querySelector('.clipviz-overlay');
    const thumb = document.querySelectorAll('.clipviz-thumb')[i];
    const before = overlay.firstChild;
    const begun = performance.now();
    thumb.click();
    while (overlay.firstChild === before) await new Promise(done => setTimeout(done, 1));
    await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0))); // the frame that shows it is painted
    return (performance.now() - begun) / 1000;
}"""


class Row(NamedTuple):
    """One line of the table: a value, and what it should not exceed."""

    what: str
    value: float
    unit: str
    limit: float | None


class PackingComm(BaseComm):
    """A connection to a browser that is not there: messages are packed, counted and dropped."""

    sent = 0

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        """Pack one message as the kernel would."""
        json.dumps([msg_type, data, metadata])
        for buffer in buffers or ():
            bytes(buffer)
        type(self).sent += 1


@contextmanager
def packed_messages() -> Iterator[type[PackingComm]]:
    """Widgets made in the block talk through `PackingComm`, and print as little as in a notebook."""
    before, PackingComm.sent = comm.create_comm, 0
    comm.create_comm = PackingComm
    try:
        with redirect_stdout(io.StringIO()):
            yield PackingComm
    finally:
        comm.create_comm = before


def make_run(data: ImageDataset, epochs: int, batch: int = 32, folder: str | None = None) -> clipviz.Run:
    """A run of microCLIP on birds, measured and followed as a notebook does."""
    method = clipviz.METHODS["microclip"](clipviz.load_backbone("birds"), data.prompts)  # type: ignore[call-arg]
    config = clipviz.AdaptConfig(epochs=epochs, batch_size=batch)
    probe = clipviz.spread_probe(data, method.backbone.image_size, 8)
    return clipviz.Run(method, data, config, eval_dataset=data, probe=probe, folder=folder)


def views_of(run: clipviz.Run, trace: clipviz.Trace) -> list[Any]:
    """All four, linked."""
    state = clipviz.ViewState(epoch=trace.final_epoch)
    return [
        clipviz.LiveMonitor(run, state=state),
        clipviz.SaliencyExplorer(trace, run, state=state),
        clipviz.PrototypeExplorer(trace, run, state=state),
        clipviz.DKAPlayground(trace, run, state=state),
    ]


def overhead_rows(data: ImageDataset, epochs: int, rounds: int) -> list[Row]:
    """A run with all views over the run alone, median of rounds that take turns.

    In wall seconds, and in processor seconds of all threads, which other work on the machine does not lengthen as much.
    """
    trace = make_run(data, 1).fit()  # also renders the birds once

    def seconds(watched: bool) -> tuple[float, float]:
        run = make_run(data, epochs)
        with packed_messages() as messages:
            views = views_of(run, trace) if watched else []
            begun, worked = time.perf_counter(), time.process_time()
            run.start().wait()
            taken = time.perf_counter() - begun, time.process_time() - worked
            assert not watched or messages.sent > len(views)
        for view in views:
            view.close()
        return taken

    ratios = []
    for i in range(rounds):
        both = {watched: seconds(watched) for watched in ((True, False) if i % 2 else (False, True))}
        ratios.append([with_views / alone for with_views, alone in zip(both[True], both[False], strict=True)])
    wall, processor = ([round_[k] for round_ in ratios] for k in (0, 1))
    print("  rounds, wall:", " ".join(f"{ratio:.3f}" for ratio in wall))
    print("  rounds, processor:", " ".join(f"{ratio:.3f}" for ratio in processor))
    return [
        Row(f"run with four views / run alone, birds, {rounds} rounds", statistics.median(wall), "x", 1.05),
        Row("  the same in processor seconds of all threads", statistics.median(processor), "x", 1.05),
    ]


def followed_row(data: ImageDataset, epochs: int) -> Row:
    """The share of a run's processor time that goes into telling another process, which follows its folder, of it."""
    told, followers = [], []

    class Timed(Beacon):
        def run(self) -> None:
            super().run()
            told.append(time.thread_time())

    def follow(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step == 1:
            line = [sys.executable, "-m", "clipviz", "watch", folder]
            followers.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    with tempfile.TemporaryDirectory() as folder, mock.patch("clipviz.training.run.Beacon", Timed):
        run = make_run(data, epochs, folder=folder)
        run.listeners.append(follow)
        begun = time.process_time()
        run.fit()
        whole = time.process_time() - begun
        followers[0].wait(60)  # it ends with the run
    return Row(f"a followed run: share of its {whole:.0f} s that goes into that", told[0] / whole, "", 0.01)


def stop_row(data: ImageDataset, presses: int) -> Row:
    """Seconds that a stopped run takes beyond the step in which Stop was pressed, at different points of it."""
    beyond = []
    for i in range(presses):
        run, ticks, pressed = make_run(data, 50), [], threading.Event()

        def tick(event: Event, ticks: list[float] = ticks, pressed: threading.Event = pressed) -> None:
            if isinstance(event, StepFinished):
                ticks.append(time.perf_counter())
                if len(ticks) == 5:
                    pressed.set()

        run.listeners.append(tick)
        with packed_messages():
            monitor = clipviz.LiveMonitor(run)
            run.start()
            pressed.wait()
            step = statistics.median(late - early for early, late in itertools.pairwise(ticks))
            time.sleep(step * i / presses)
            begun, done = time.perf_counter(), run.steps_done
            monitor.stop.click()
            run.wait()
            beyond.append(time.perf_counter() - max(begun, ticks[-1]))
        assert run.steps_done <= done + 2  # the step of the press, and one that ended as it came
        monitor.close()
    return Row(f"Stop: from the end of the step to the end of the run, slowest of {presses}", max(beyond), "s", 0.3)


def memory_row(data: ImageDataset) -> Row:
    """Growth of the resident memory over 100 refreshes of every view, after 50 to warm up."""
    run = make_run(data, 1)
    trace = run.fit()
    with packed_messages():
        monitor, explorer, prototypes, playground = views_of(run, trace)
        ids = explorer.gallery.ids

        def use(times: int) -> float:
            for i in range(times):
                monitor.refresh()
                explorer.state.selected = (ids[i % len(ids)],)
                prototypes.scatter.chosen = [i % len(prototypes.scene.index)]
                playground.gamma.value = i % 100 / 100
            gc.collect()
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

        before = use(50)
        return Row("memory over 100 refreshes of each view", use(100) - before, "MB", 5.0)


def select_rows(clicks: int) -> list[Row]:
    """Median seconds from a click on a thumbnail to the frame with its saliency, and the kernel's part of them."""
    from server import browsing, open_and_run, serving

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as lab, browsing() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        page.set_default_timeout(120_000)
        open_and_run(page, lab.write("select.ipynb", NOTEBOOK, "clipviz.SaliencyExplorer(trace, run)"))
        page.locator(".clipviz-overlay canvas").nth(1).wait_for()
        log = lab.root / "kernel.csv"
        taken = []
        for i in range(clicks + 3):  # the first ones warm up
            page.wait_for_function(
                "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
            )
            if i == 3:
                log.unlink()
            seconds = page.evaluate(SELECT, i + 1)
            taken += [seconds] if i >= 3 else []
            page.wait_for_timeout(200)
        lines = [line.split(",") for line in log.read_text().splitlines()]
    print("  clicks:", " ".join(f"{seconds:.3f}" for seconds in taken))
    kernel = {name: statistics.median(float(value) for key, value in lines if key == name) for name, _ in lines}
    return [
        Row(f"select an image -> saliency on screen, median of {clicks}", statistics.median(taken), "s", 0.15),
        Row("  of it the kernel, from the selection to the message", kernel["show"], "s", None),
        Row("  of that the map by the model", kernel["saliency"], "s", None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--out", type=Path, help=f"also write a CSV; {RESULTS} is for runs on a quiet machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{os.cpu_count()} CPUs, 1 thread"
    libraries = " ".join(f"{name} {version}" for name, version in versions().items())
    print(machine, libraries, sep="\n")
    data = clipviz.load_dataset("birds/fog", split="train", n=96 if args.quick else 256)
    tasks = (
        lambda: overhead_rows(data, 2 if args.quick else 4, 4 if args.quick else 10),
        lambda: [followed_row(data, 2 if args.quick else 8)],
        lambda: [stop_row(data, 4 if args.quick else 10)],
        lambda: [memory_row(data)],
        lambda: select_rows(CLICKS),
    )
    table = []
    for task in tasks:
        before = os.getloadavg()[0]
        for row in task():
            limit = "" if row.limit is None else f"{row.limit:g}"
            load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
            print(f"{row.what:58} {row.value:8.3f} {row.unit:3} limit {limit:5} load {load}", flush=True)
            table.append([row.what.strip(), f"{row.value:.4f}", row.unit, limit, load, machine, libraries])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["what", "value", "unit", "limit", "load", "machine", "versions"])
            writer.writerows(table)


if __name__ == "__main__":
    command(main)
