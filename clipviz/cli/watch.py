"""`clipviz watch`: a run of another process, one line an epoch; and orders to it."""

import argparse
import time

from clipviz.errors import inert
from clipviz.events import EpochFinished
from clipviz.training.follow import OVER, FollowedRun, progress_line

_PATIENCE = 30.0


def watch(args: argparse.Namespace) -> None:
    """`clipviz watch`: follow a run folder until the run is over, or have the run do something and return."""
    epochs: list[EpochFinished] = []
    run = FollowedRun(args.run, lambda event: epochs.append(event) if isinstance(event, EpochFinished) else None)
    if args.order or args.set:
        print(inert(_answer(run, args)))
        return
    status = ""
    while True:
        for event in epochs:
            print(inert(_line(run, event)), flush=True)
        epochs.clear()
        if run.status != status:
            status = run.status
            print(inert(f"{run.name}: {status}{f': {run.error}' if run.error else ''}"), flush=True)
        if status in OVER:
            break
        time.sleep(0.5)
        run.poll()
    if status in ("interrupted", "failed"):
        raise SystemExit(1)


def _line(run: FollowedRun, event: EpochFinished) -> str:
    steps, samples = (table[table["epoch"] == event.epoch] for table in (run.trace.steps, run.trace.samples))
    means = {"loss": steps[steps["term"] == "loss"]["value"].mean(), "confidence": samples["confidence"].mean()}
    told = [f"{name} {value:.3f}" for name, value in means.items() if value == value]  # of nothing the mean is NaN
    return "  ".join([progress_line(event, run.n_epochs), *told])


def _answer(run: FollowedRun, args: argparse.Namespace) -> str:
    if args.set:
        order = run.set(**_constants(args.set))
    else:
        order = run.step(args.order) if isinstance(args.order, int) else getattr(run, args.order)()
    until = time.monotonic() + _PATIENCE
    while not order.done() and time.monotonic() < until:
        time.sleep(0.1)
        run.poll()
    if not order.done():
        return f"sent; the run has not answered in {_PATIENCE:g} s, and will do so between two steps"
    if (said := order.result()).startswith("refused: "):
        raise ValueError(said.removeprefix("refused: "))
    return said


def _constants(assignments: list[str]) -> dict[str, float]:
    try:
        return {name.strip(): float(text) for name, _, text in (each.partition("=") for each in assignments)}
    except ValueError:
        raise ValueError(f"wanted NAME=NUMBER, got {assignments}; for example --set gamma=0.3") from None
