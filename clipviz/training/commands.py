"""What a run is told while it goes on.

One thread owns optimizer and recorder. Everybody else puts commands on a queue, which the owner drains between two
optimizer steps: `pause`, `resume`, `step`, `stop`, `set(gamma=...)`, `ask(function)`. Training is therefore the same
whether anybody looks or not. The model has a lock of its own (`clipviz.backbone.ownership`), before, during and after
a run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.errors import plain_numbers, whole_number
from clipviz.methods.base import Method
from clipviz.training.loop import Adaptation

if TYPE_CHECKING:
    from clipviz.training.recorder import Recorder

T = TypeVar("T")

OVER = ("stopped", "finished", "failed")


class Change(Future[int]):
    """Constants (name -> new value) that were handed to a run; `result()` is the first step that they hold for."""

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__()
        self.constants = dict(constants)

    def __repr__(self) -> str:
        what = ", ".join(f"{name} = {value:g}" for name, value in self.constants.items())
        if not self.done():
            return f"{what} from the next step on"
        return f"{what}: {self.exception()}" if self.exception() else f"{what} from step {self.result()} on"


class Commanded:
    """The side of a `Run` that takes commands, from any thread, and that on which its owner carries them out.

    `method` is the one being adapted; while the run is live its thread alone may touch it, see `ask`.
    """

    recorder: Recorder

    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation, self.ranks, self.method = adaptation, adaptation.ranks, adaptation.method
        self.status = "ready"
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending: list[Change] = []
        self._gate = threading.Lock()  # begins and ends the time in which commands are taken
        self._stopping, self._next_step = False, 0
        self._driver: int | None = None  # the thread that does the run
        self._steps_allowed: int | None = None  # None: any number; 0: paused

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What `set` changed, in order: {"step": the first that it holds for, "gamma": 0.3}; step None: not yet."""
        waiting = [{"step": None, **change.constants} for change in list(self._pending)]
        return [*self.recorder.meta.get("changes", ()), *waiting]

    def pause(self) -> None:
        """Rest at the next step boundary."""
        self._allow(lambda: 0)

    def resume(self) -> None:
        """Go on after `pause` or `step`."""
        self._allow(lambda: None)

    def step(self, n: int = 1) -> None:
        """Do n optimizer steps, then rest; a ValueError if n is no whole number, or less than 1."""
        more = whole_number("n", n, 1)
        self._allow(lambda: (self._steps_allowed or 0) + more)

    def stop(self) -> None:
        """End the run at the next step boundary; the model is the one of that step."""
        self._stopping = True
        self._commands.put(lambda: None)  # wakes a paused run

    def set(self, **constants: float) -> Change:
        """Change constants of the method from the next step on, for example `set(gamma=0.3)`.

        The future is the first step that they hold for; `changes` and the trace's metadata have it, too. A ValueError
        if the method cannot change such a constant, or not to this value, or the run is over or shared by processes.
        """
        if self.ranks.size > 1:
            raise ValueError(f"constants cannot change while {self.ranks.size} processes share a run; use one process")
        change = Change(plain_numbers(constants))
        self.method.adjusted(**change.constants)  # refuses here, not in the thread
        with self._gate:
            if self.status in OVER:
                raise ValueError(f"this run is {self.status}, so no step of it can take {change}")
            self._pending.append(change)
            self._commands.put(lambda: self._apply(change))
        return change

    def when_drained(self, then: Callable[[], None]) -> None:
        """Call a function once the commands before it are carried out."""
        self._commands.put(then)

    def ask(self, question: Callable[[Method], T]) -> Future[T]:
        """Have a question about the current model answered at the next step boundary, without changing its course.

        It is called with the method in eval mode and without gradient; at once where no other thread drives the run,
        or where that one waits for the caller, who holds the lock of the model.
        """
        future: Future[T] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                with preserved_state(self.method):
                    future.set_result(question(self.method))
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        if lock_of(self.method)._is_owned():
            answer()
            return future
        self._commands.put(answer)  # before the look at who drives: a run that ends drains the queue once more
        if self._driver in (None, threading.get_ident()):
            self._drain()
        return future

    def _obey(self) -> bool:
        """Carry out what was commanded; rest here while paused. Returns whether to stop, the same in all processes."""
        self._drain()
        while self._steps_allowed == 0 and not self._stopping:
            self.status = "paused"
            self._commands.get()()
        self.status = "running"
        return self.ranks.any(self._stopping)

    def _drain(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _allow(self, steps: Callable[[], int | None]) -> None:
        self._commands.put(lambda: setattr(self, "_steps_allowed", steps()))

    def _apply(self, change: Change) -> None:
        """Carry out a `set`; one that came too late, or does not go with another, says so and harms nothing."""
        self._pending.remove(change)
        try:
            if self.status in OVER:
                raise RuntimeError(f"the run was {self.status} before it")
            with lock_of(self.method):
                self.method.config = self.method.adjusted(**change.constants)
        except (ValueError, RuntimeError) as error:
            change.set_exception(error)
            return
        meta = self.recorder.meta
        meta["changes"] = [*meta.get("changes", ()), {"step": self._next_step, **change.constants}]
        change.set_result(self._next_step)
