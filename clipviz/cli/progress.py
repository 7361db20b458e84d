"""One progress line for opening files and one for training; without a terminal, a plain line after each epoch."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from clipviz.errors import inert
from clipviz.events import EpochFinished, Event, RunFinished, RunStarted, StepFinished


def opening() -> Callable[[int, int], None]:
    """A progress line for opening many files; silent when stderr is no terminal."""
    bar: tqdm[Any] | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc="opening images", unit="img", disable=None, leave=False, dynamic_ncols=True)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


class Progress:
    """A listener that draws one progress line on a terminal, and elsewhere prints a plain line after each epoch."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._started: RunStarted | None = None
        self._begun = 0.0
        self._steps = self._step = 0  # how many in this session; the last one's number in the run
        self._epoch: list[tuple[Any, Any]] = []  # loss and mean confidence of each step, left on their device

    def __call__(self, event: Event) -> None:
        """Advance with every step."""
        match event:
            case RunStarted():
                total = event.n_images * event.n_epochs
                done = round(total * event.steps_done / max(1, event.n_steps))
                self._bar = tqdm(
                    total=total, initial=done, desc=inert(event.method), unit="img", disable=None, dynamic_ncols=True
                )
                self._started, self._begun = event, time.perf_counter()
            case StepFinished() if self._bar is not None:
                self._bar.update(len(event.index))
                if self._bar.disable and event.losses:
                    self._steps, self._step = self._steps + 1, event.step
                    self._epoch.append((sum(event.losses.values()), event.pseudo.probs.amax(-1).mean()))
            case EpochFinished(epoch=-1):
                self._begun = time.perf_counter()
            case EpochFinished() if self._started is not None and self._bar is not None:
                self._bar.total = round(self._bar.n * self._started.n_epochs / (event.epoch + 1))  # own batches
                if self._epoch:
                    print(self._line(event), file=sys.stderr, flush=True)
                    self._epoch = []
            case RunFinished() if self._bar is not None:
                self._bar.close()

    def _line(self, event: EpochFinished) -> str:
        """Loss, accuracy (confidence of the pseudo-labels without labels), and the time left at the pace until now."""
        assert self._started is not None
        loss, confidence = (float(sum(column)) / len(self._epoch) for column in zip(*self._epoch, strict=True))
        accuracy, done, of = event.metrics.get("accuracy"), event.epoch + 1, self._started.n_epochs
        each = (self._step + 1) / done  # steps of an epoch, of batches that a method may bring after `prepare`
        since = " since the resume" * (len(self._epoch) < each)  # the rest is not known here
        measured = f"confidence {confidence:.3f}{since}" if accuracy is None else f"accuracy {accuracy:.3f}"
        pace = (time.perf_counter() - self._begun) / self._steps
        left = tqdm.format_interval(pace * each * (of - done))
        return f"{inert(self._started.method)}: {done} of {of} epochs, loss {loss:.4g}{since}, {measured}, {left} left"
