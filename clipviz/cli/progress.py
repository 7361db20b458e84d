"""One progress line for opening files and one for training, silent where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from clipviz.events import Event, RunFinished, RunStarted, StepFinished


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
    """A listener that draws one progress line: images per second and time left; silent when stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: Event) -> None:
        """Advance with every step."""
        match event:
            case RunStarted():
                total = event.n_images * event.n_epochs
                done = round(total * event.steps_done / max(1, event.n_steps))
                self._bar = tqdm(
                    total=total, initial=done, desc=event.method, unit="img", disable=None, dynamic_ncols=True
                )
            case StepFinished() if self._bar is not None:
                self._bar.update(len(event.index))
            case RunFinished() if self._bar is not None:
                self._bar.close()
