"""Signals at random moments: `python -m benchmarks.kill [--signal KILL] [--kills N] [--methods A,B] [--seed N]`.

Each method is run once undisturbed. Then, again and again, a run is killed at a moment drawn evenly from the time it
takes, and half as often from the time of one of its evaluations, and taken up again; it must end with the same bits
(weights, and the trace but for the clock) and leave no temporary file. A signal that can be answered (TERM, HUP, INT)
must end it with the status 128 + n (before it began, by the signal itself) and, where anything was saved, with a trace
that says "stopped". Last, a report of all runs is killed at any moment and while its page is written: the page is the
one before or the whole new one. Every run saves after every step, so that many kills hit the writing of a checkpoint. A
small model on colored squares: what is tried is the writing, not the learning.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

import clipviz.report
import clipviz.training.loop
from benchmarks import command, positive
from benchmarks.scale import small_backbone
from clipviz import METHODS, Run, Trace, load_dataset
from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.errors import choose
from clipviz.methods.build import build_method
from clipviz.trace import TABLES
from clipviz.training.run import CHECKPOINT

IMAGES, EPOCHS, BATCH = 24, 2, 6


class Moment(NamedTuple):
    """When a signal comes: so many seconds into the run, or into a call of the function that is timed, if one is."""

    signum: int
    seconds: float
    call: int | None = None


class Outcome(NamedTuple):
    """One kill.

    Attributes:
        done: what was there when it came: "nothing", "a checkpoint", "all"; of a report, which page.
        wrong: everything that is not as after the undisturbed run; empty if all is well.
    """

    done: str
    wrong: list[str]


def timed(module: Any, function: str, spans: Path, moment: Moment | None) -> None:
    """Have a function of a module note its seconds, a line for each call, and be hit at its moment."""
    original, calls = getattr(module, function), [0]

    def call(*args: Any, **options: Any) -> Any:
        if moment is not None and moment.call == calls[0]:
            threading.Timer(moment.seconds, os.kill, (os.getpid(), moment.signum)).start()
        calls[0] += 1
        begun = time.perf_counter()
        result = original(*args, **options)
        with spans.open("a") as file:
            file.write(f"{time.perf_counter() - begun}\n")
        return result

    setattr(module, function, call)


def run(method: str, backbone: Backbone, data: ImageDataset, folder: Path, moment: Moment | None) -> None:
    """Begin a run, or go on with it where its folder says."""
    timed(clipviz.training.loop, "predict", folder.with_suffix(".spans"), moment)
    adapted = build_method(method, backbone, data, constants={"shots": "8"} if method == "ntua" else {})
    config = replace(adapted.schedule, epochs=min(EPOCHS, adapted.schedule.epochs), batch_size=BATCH)
    it = Run(adapted, data, config, eval_dataset=data, folder=folder, save_seconds=0.0)
    it.restore()
    it.fit()


def report(folders: Sequence[Path], page: Path, moment: Moment | None) -> None:
    """Write a page about runs."""
    timed(clipviz.report, "write_text", page.with_suffix(".spans"), moment)
    clipviz.report.write_report([Trace.load(folder) for folder in folders], page)


def child(work: Callable[[Moment | None], None], moment: Moment | None = None) -> tuple[bool, int | None]:
    """Work in a process of its own, forked, so that it need not import everything again, and hit at a moment.

    Returns whether the signal found it at work, and its status.
    """
    process = multiprocessing.get_context("fork").Process(target=work, args=(moment,))
    process.start()
    if moment is None or moment.call is not None:
        process.join()
        return process.exitcode != 0, process.exitcode
    process.join(moment.seconds)
    is_alive = process.is_alive()
    if is_alive:
        os.kill(process.pid or 0, moment.signum)
    process.join()
    return is_alive, process.exitcode


def differences(one: Path, other: Path) -> list[str]:
    """What two run folders do not have in common, the clock aside."""
    a, b = Trace.load(one), Trace.load(other)
    found = [f"table {name}" for name in TABLES if not getattr(a, name).equals(getattr(b, name))]
    found += [f"array {name}" for name in sorted(a.arrays.keys() ^ b.arrays.keys())]
    for name in sorted(a.arrays.keys() & b.arrays.keys()):
        if not np.array_equal(a.arrays[name], b.arrays[name], equal_nan=a.arrays[name].dtype.kind == "f"):
            found.append(f"array {name}")
    found += [
        f"meta {k}" for k in sorted(a.meta.keys() | b.meta.keys()) if k != "seconds" and a.meta.get(k) != b.meta.get(k)
    ]
    x, y = load_file(one / CHECKPOINT), load_file(other / CHECKPOINT)
    return found + [
        f"weights {n}" for n in sorted(x.keys() | y.keys()) if n not in x or n not in y or not torch.equal(x[n], y[n])
    ]


def not_stopped(signum: int, status: int | None, folder: Path) -> list[str]:
    """What is wrong with the end of a run that had a signal to answer; a finished run needs none."""
    trace = Trace.load(folder) if (folder / "trace").exists() else None
    if signum == signal.SIGKILL or (trace is not None and trace.meta["status"] == "finished"):
        return []
    right = {1 if signum == signal.SIGINT else 128 + signum} | ({-signum} if trace is None else set())
    wrong = [] if status in right else [f"ended with status {status}"]
    if trace is not None and trace.meta["status"] != "stopped":
        wrong.append(f"its trace says {trace.meta['status']}")
    return wrong


def strays(folder: Path) -> list[str]:
    """What is half-written in a folder, or was left there."""
    return [f"left behind {path.relative_to(folder)}" for path in folder.rglob(".*")]


def killed_run(begin: Callable[[Path, Moment | None], None], folder: Path, whole: Path, moment: Moment) -> Outcome:
    """Send a signal to a run, take the run up again, and compare."""
    was_hit, status = child(partial(begin, folder), moment)
    wrong = not_stopped(moment.signum, status, folder) if was_hit else []
    done = "a checkpoint" if (folder / CHECKPOINT).exists() else "nothing"
    _, status = child(partial(begin, folder))
    if status:
        return Outcome(done, [f"going on ended with status {status}"])
    return Outcome(done if was_hit else "all", wrong + differences(folder, whole) + strays(folder))


def killed_report(begin: Callable[[Path, Moment | None], None], page: Path, whole: bytes, moment: Moment) -> Outcome:
    """Send a signal to a report that replaces an older page, and write the page again."""
    page.parent.mkdir()
    page.write_bytes(b"the page before")
    child(partial(begin, page), moment)
    found = {b"the page before": "the old page", whole: "the new page"}.get(page.read_bytes())
    wrong = [] if found else ["the page is neither the old one nor the new one"]
    _, status = child(partial(begin, page))
    wrong += [f"writing it again ended with status {status}"] if status else []
    return Outcome(found or "half a page", wrong + strays(page.parent))


def moments(
    rng: np.random.Generator, signum: int, kills: int, takes: float, spans: Path
) -> Iterator[tuple[str, list[Moment]]]:
    """Moments of a whole run, and half as many within the calls of what was timed in it."""
    yield "at any moment", [Moment(signum, rng.uniform(0, takes)) for _ in range(kills)]
    seconds = [float(line) for line in spans.read_text().split()]
    calls = rng.integers(len(seconds), size=kills // 2)
    yield "within", [Moment(signum, rng.uniform(0, seconds[i]), int(i)) for i in calls]


def told(what: str, outcomes: Sequence[Outcome]) -> int:
    """Print a line about some kills; returns how many of them were not answered as they should be."""
    when = ", ".join(f"{n} with {done}" for done, n in sorted(Counter(o.done for o in outcomes).items()))
    bad = [o.wrong for o in outcomes if o.wrong]
    print(f"{what} ({when}): {len(outcomes) - len(bad)} of {len(outcomes)} as undisturbed", flush=True)
    for reasons in bad:
        print("    " + "; ".join(reasons[:5]), flush=True)
    return len(bad)


def main() -> None:
    """Kill, count, and exit 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", choices=("KILL", "TERM", "HUP", "INT"), default="KILL", help="default: %(default)s")
    parser.add_argument("--kills", type=positive, default=20, help="of each method, default: %(default)s")
    parser.add_argument("--methods", default=",".join(METHODS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)  # before the processes are forked
    rng, signum, methods = (
        np.random.default_rng(args.seed),
        signal.Signals[f"SIG{args.signal}"],
        [choose("method", name, METHODS) for name in args.methods.split(",")],
    )
    data, backbone = load_dataset("birds/dusk", "train", n=IMAGES), small_backbone()
    for i in range(IMAGES):
        data.image(i)  # rendered once, for all processes
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for method in methods:
            begin, whole, begun = partial(run, method, backbone, data), root / method, time.perf_counter()
            child(partial(begin, whole))
            takes = time.perf_counter() - begun
            for where, some in moments(rng, signum, args.kills, takes, whole.with_suffix(".spans")):
                place = where.replace("within", "evaluating")
                kills = [killed_run(begin, root / f"{method}-{where}-{i}", whole, m) for i, m in enumerate(some)]
                wrong += told(f"{method:12} SIG{args.signal} {place} of {takes:.1f} s", kills)
        pages, begun = partial(report, [root / methods[0], root / methods[-1]]), time.perf_counter()
        child(partial(pages, root / "page.html"))
        takes, page = time.perf_counter() - begun, (root / "page.html").read_bytes()
        for where, some in moments(rng, signum, args.kills, takes, root / "page.spans"):
            place = where.replace("within", "writing")
            kills = [killed_report(pages, root / f"{where}-{i}" / "page.html", page, m) for i, m in enumerate(some)]
            wrong += told(f"report       SIG{args.signal} {place} of {takes:.1f} s", kills)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    command(main)
