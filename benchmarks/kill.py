"""Signals at random moments: `python -m benchmarks.kill [--signal KILL] [--kills N] [--methods A,B] [--seed N]`.

Each method is run once undisturbed. Then, again and again, a run is killed at a moment drawn evenly from the time it
takes, and taken up again; it must end with the same bits (weights, and the trace but for the clock) and leave no
temporary file. A signal that can be answered (TERM, HUP, INT) must end it with the status 128 + n (before it began,
by the signal itself) and, where anything was saved, with a trace that says "stopped". Every run saves after every step,
so that many kills hit the writing of a checkpoint. A small model on colored squares: what is tried is the writing, not
the learning.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.scale import small_backbone
from clipviz import METHODS, Run, Trace, load_dataset
from clipviz.data.base import ImageDataset
from clipviz.methods import AdaptConfig
from clipviz.methods.build import build_method
from clipviz.trace import TABLES
from clipviz.training.run import CHECKPOINT

TRAINING = tuple(name for name, method in METHODS.items() if method.trains)
IMAGES, EPOCHS, BATCH = 24, 3, 6


class Outcome(NamedTuple):
    """One kill.

    Attributes:
        done: what was there when it came: "nothing", "a checkpoint", "all".
        wrong: everything that is not as after the undisturbed run; empty if all is well.
    """

    done: str
    wrong: list[str]


def run(method: str, data: ImageDataset, folder: Path) -> None:
    """Begin a run, or go on with it where its folder says."""
    torch.set_num_threads(1)
    config = AdaptConfig(epochs=EPOCHS, batch_size=BATCH, lr=1e-3)
    settings = {"shots": "8"} if method == "ntua" else {}
    adapted = build_method(method, small_backbone(), data, constants=settings)
    it = Run(adapted, data, config, eval_dataset=data, folder=folder, save_seconds=0.0)
    it.restore()
    it.fit()


def child(method: str, data: ImageDataset, folder: Path) -> multiprocessing.process.BaseProcess:
    """A run in a process of its own; forked, so that it need not import everything again."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(method, data, folder))
    process.start()
    return process


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


def killed(method: str, data: ImageDataset, folder: Path, whole: Path, after: float, signum: int) -> Outcome:
    """Send a signal to a run after so many seconds, take it up again, and compare."""
    process = child(method, data, folder)
    process.join(after)
    is_alive = process.is_alive()
    if is_alive:
        os.kill(process.pid or 0, signum)
    process.join()
    wrong = not_stopped(signum, process.exitcode, folder) if is_alive else []
    done = "a checkpoint" if (folder / CHECKPOINT).exists() else "nothing"
    again = child(method, data, folder)
    again.join()
    if again.exitcode:
        return Outcome(done, [f"going on ended with status {again.exitcode}"])
    stray = [str(path.relative_to(folder)) for path in folder.rglob(".*")]
    return Outcome(
        done if is_alive else "all", wrong + differences(folder, whole) + [f"left behind {name}" for name in stray]
    )


def main() -> None:
    """Kill, count, and exit 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", choices=("KILL", "TERM", "HUP", "INT"), default="KILL", help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="of each method, default: %(default)s")
    parser.add_argument("--methods", default=",".join(TRAINING), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, default: %(default)s")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    data = load_dataset("birds/dusk", "train", n=IMAGES)
    for i in range(IMAGES):
        data.image(i)  # rendered once, for all processes
    wrong, signum = 0, signal.Signals[f"SIG{args.signal}"]
    with tempfile.TemporaryDirectory() as root:
        for method in args.methods.split(","):
            whole, begun = Path(root) / f"{method}-whole", time.perf_counter()
            child(method, data, whole).join()
            takes = time.perf_counter() - begun
            outcomes = [
                killed(method, data, Path(root) / f"{method}-{i}", whole, rng.uniform(0, takes), signum)
                for i in range(args.kills)
            ]
            when = ", ".join(f"{n} with {what}" for what, n in sorted(Counter(o.done for o in outcomes).items()))
            bad = [o.wrong for o in outcomes if o.wrong]
            wrong += len(bad)
            same = f"{args.kills - len(bad)} of {args.kills} as undisturbed"
            print(f"{method:10} SIG{args.signal} within {takes:.1f} s ({when}): {same}", flush=True)
            for reasons in bad:
                print("    " + "; ".join(reasons[:5]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
