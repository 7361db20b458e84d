"""Where a microCLIP step goes: `python -m benchmarks.profile [--model NAME] [--batch B] [--set NAME=VALUE]`.

The step is the one of the loop, the views included. Its parts are timed where they are called, each without the parts
in it, in processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from benchmarks import command, positive
from benchmarks.measure import libraries
from benchmarks.steps import backbone_of
from clipviz import load_dataset, ncut
from clipviz.backbone import Backbone
from clipviz.events import StepFinished
from clipviz.methods import AdaptConfig, microclip
from clipviz.methods.build import build_method, parse_constants
from clipviz.training.loop import Adaptation

PARTS: list[tuple[Any, str, str]] = [
    (Backbone, "tokens", "forward, whole views"),
    (Backbone, "embed", "forward, crops"),
    (ncut, "patch_affinity", "NCut, graph"),
    (ncut, "spectrum", "NCut, eigenvectors"),
    (ncut, "foreground_mask", "NCut, graph"),
    (ncut, "edge_density", "NCut, graph"),
    (microclip, "saliency_query", "SOAP"),
    (microclip, "soap_pool", "SOAP"),
    (microclip.MicroCLIP, "pseudo_label", "pseudo-labels, the rest"),
    (microclip.MicroCLIP, "loss", "loss"),
    (torch.Tensor, "backward", "backward"),
    (torch.optim.AdamW, "step", "optimizer"),
]


class Clock:
    """Processor seconds by part; time in a part that another one calls counts for the inner one only."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[float] = []

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, with its time booked."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._open.append(0.0)
            begun = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.process_time() - begun
                self.spent[part] += took - self._open.pop()
                if self._open:
                    self._open[-1] += took

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """All parts are timed inside the `with` statement."""
        with ExitStack() as undo:
            for owner, name, part in PARTS:
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, self.timed(getattr(owner, name), part))
            yield


def profile(model: str, batch: int, steps: int, constants: dict[str, str]) -> dict[str, list[float]]:
    """Milliseconds of each part in each of the steps, the first one left out; "views" is what comes before a step."""
    torch.set_num_threads(1)
    data = load_dataset("birds/dusk", "train", n=batch)
    method = build_method("microclip", backbone_of(model), data, constants=constants)
    clock, found = Clock(), defaultdict(list)
    with clock.watching():
        begun = time.process_time()
        for event in Adaptation(method, data, AdaptConfig(epochs=steps + 1, batch_size=batch)):
            took = time.process_time() - begun
            if isinstance(event, StepFinished) and event.step:
                clock.spent["views and the loop"] = took - sum(clock.spent.values())
                for part, spent in clock.spent.items():
                    found[part].append(1e3 * spent)
                found["all"].append(1e3 * took)
            clock.spent.clear()
            begun = time.process_time()
    return found


def table(found: dict[str, list[float]]) -> str:
    """One line a part."""
    medians = {part: statistics.median(values) for part, values in found.items()}
    order = [part for part in dict.fromkeys(part for _, _, part in PARTS) if part in medians]
    lines = [f"{part:24} {medians[part]:9.1f} ms {100 * medians[part] / medians['all']:5.1f} %" for part in
             ("views and the loop", *order, "all")]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="birds", help="birds, or an architecture with random weights")
    parser.add_argument("--batch", type=positive, default=64, help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=5, help="medians are over so many, default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a constant of the method")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args()
    what = " ".join([f"microclip step, {args.model}, batch {args.batch}, one thread", *args.set])
    text = f"{what}\n{table(profile(args.model, args.batch, args.steps, parse_constants(args.set)))}\n{libraries()}\n"
    print(text)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    command(main)
