"""Run: drives the iterator of events, in the caller or in a thread, and keeps its folder.

One thread owns optimizer and recorder; others send it commands (`clipviz.training.commands`).
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import torch

from clipviz.data.base import ImageDataset
from clipviz.errors import inert, one_line, path_text
from clipviz.events import EpochFinished, Event, Listener, RunFinished, RunStarted, StepFinished
from clipviz.methods.base import AdaptConfig, Method
from clipviz.trace import Trace
from clipviz.training.commands import Commanded
from clipviz.training.follow import Beacon
from clipviz.training.interrupts import StoppedBySignal, raise_for, stopping
from clipviz.training.loop import Adaptation, Options
from clipviz.training.recorder import Recorder
from clipviz.training.run_folder import CHECKPOINT, RunFolder, measure_zero_shot

if TYPE_CHECKING:
    from clipviz.training.model_probe import ModelProbe

__all__ = ["CHECKPOINT", "Run"]

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that a step has to end when whoever waits for it is interrupted."""


def end_idle_workers() -> None:
    """End this thread's OpenMP workers: where all threads' outnumber the cores, GNU's sleep after each operation."""
    getattr(ctypes.CDLL(torch._C.__file__), "omp_pause_resource_all", lambda how: None)(1)  # omp_pause_soft


class Run(Commanded):
    """One adaptation that can be watched, paused, changed and stopped.

    Args:
        method, dataset, config, options: as for `clipviz.adapt`; of several `ranks` only the first records and
            writes, and stopping one stops all.
        folder: the run folder; None keeps the trace in memory only.
        keep_epochs: whether the folder keeps the weights of every epoch; None: if those of one take at most 16 MB.
        save_seconds: also save between two epochs after this time.
        listeners: called with every event, in the thread that trains.

    Attributes:
        name: method and data.
        folder: the run folder.
        n_epochs: number of epochs of the whole run, like `n_steps`.
        recorder: holds the trace so far.
        status: "ready", "running", "paused", "stopped", "finished" or "failed"; the last three are final.
        steps_done: optimizer steps since this object began.
        error: what ended a failed run.
        newest: the newest event of each type, for views that are opened later.
    """

    def __init__(
        self, method: Method, dataset: ImageDataset, config: AdaptConfig | None = None, *,
        folder: str | os.PathLike[str] | None = None, keep_epochs: bool | None = None, save_seconds: float = 300.0,
        listeners: Sequence[Listener] = (), **options: Unpack[Options],
    ) -> None:  # fmt: skip
        super().__init__(Adaptation(method, dataset, config, **options))
        self.recorder = Recorder()
        if not isinstance(folder, RunFolder | None):  # absolute, for the process may go elsewhere meanwhile
            place = os.path.expanduser(path_text("the folder of a run", folder))
            folder = RunFolder(os.path.join(os.getcwd(), place), keep_epochs)
        self._disk = folder
        self._writes = self._disk if self.ranks.is_first else None  # the folder, in the process that writes to it
        self.folder = None if self._disk is None else self._disk.path
        self.name, self.n_epochs = f"{self.method.name} on {dataset.name}", self.adaptation.n_epochs
        self.listeners, self.save_seconds = list(listeners), save_seconds
        self.steps_done = 0
        self.error: BaseException | None = None
        self.newest: dict[type[Event], Event] = {}
        self._lock = threading.Lock()  # the recorder's: one thread writes, any may read
        self._thread: threading.Thread | None = None
        self._over = threading.Event()  # not `Thread.join`: Ctrl-C in it has Python 3.11 take a live thread for ended
        self._saved = time.monotonic()
        self._begun: float | None = None
        self._beacon: Beacon | None = None  # for those who follow the folder

    def __repr__(self) -> str:
        return inert(f"Run({self.name}, {self.status})")

    @property
    def gamma(self) -> float | None:
        """The mixing weight, of a method that has one."""
        return getattr(self.method.config, "gamma", None)

    @property
    def n_steps(self) -> int:
        """Steps of the whole run; some methods know them only after `prepare`."""
        return self.adaptation.n_steps

    def poll(self) -> None:
        """Does nothing: a run of this process notifies its listeners itself; see `FollowedRun`."""

    @property
    def trace(self) -> Trace:
        """The trace so far."""
        with self._lock:
            return self.recorder.trace()

    @cached_property
    def model_probe(self) -> ModelProbe:
        """Queries of the views about images, answered by the current model, whether the run is live or not."""
        from clipviz.training.model_probe import ModelProbe

        return ModelProbe(self.method, self.adaptation.dataset, self.adaptation.eval_dataset, self._answer)

    def _answer(self, question: Callable[[Method], T]) -> T:
        future = self.ask(question)
        try:
            return future.result(PATIENCE)
        finally:
            future.cancel()  # if it was too late: nobody waits for it any more

    @property
    def seconds(self) -> float:
        """Wall seconds of all sessions until now, without the time between a checkpoint and a crash."""
        if self.status not in ("ready", "running", "paused"):
            return float(self.recorder.meta.get("seconds") or 0.0)
        return self.adaptation.seconds_before + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    @property
    def is_live(self) -> bool:
        """Whether a thread of this run is working or paused."""
        return self._thread is not None and not self._over.is_set()

    def restore(self) -> bool:
        """Continue from the folder's checkpoint; returns whether there is one: else the run starts at the beginning.

        One that is damaged or of another run, or a method that is in another run, is a ValueError.
        """
        if self.status != "ready":
            raise RuntimeError(f"this run is {self.status}; restore() goes before fit() and start(), on a new Run")
        self.adaptation.claim()
        self.adaptation.release()
        known = self._disk.restore(self.adaptation) if self._disk else None
        if known is None:
            return False
        self.adaptation.seconds_before = float(known.meta.get("seconds") or 0.0)
        if len(known.samples):
            self.recorder = Recorder(known if self.ranks.is_first else Trace(meta=known.meta))
        self._next_step = int(known.steps["step"].max()) + 1 if len(known.steps) else 0
        return True

    def fit(self) -> Trace:
        """Run in the calling thread and return the trace.

        Ctrl-C (or the notebook's stop button), SIGTERM and SIGHUP end it at a step boundary: what is recorded is saved
        with the status "stopped", then `KeyboardInterrupt`, or `SystemExit` with the status 128 + the signal's number,
        is raised. Before the first step, and at a second Ctrl-C, it does not wait.
        """
        with self._gate:
            self._claim()
        # before the first step there is nothing to be saved yet: with many images for minutes
        with stopping(self.stop, lambda: self.steps_done == 0 and self.ranks.size == 1) as came:
            self._drive()
            signum = max(map(int, self.ranks.texts(str(max(came, default=0)))))  # while this one is not gone
        if signum:
            raise_for(signum)
        return self.trace

    def start(self) -> Run:
        """Run in a thread of its own and return at once; if the run is already active, say so and do nothing."""
        with self._gate:
            if self.status in ("running", "paused"):
                more = "; resume() continues it" if self.status == "paused" else ""
                print(f"this run is {self.status} already{more}")
                return self
            self._claim()
            self._thread = threading.Thread(target=self._drive_quietly, name=f"clipviz {self.method.name}", daemon=True)
        atexit.register(self._stop_at_exit)
        end_idle_workers()
        self._thread.start()
        return self

    def wait(self, timeout: float | None = None) -> Trace:
        """Wait for the end of a started run, at most `timeout` seconds; signals end it as they end `fit`.

        Raises the error of a failed run; `TimeoutError` if the run is not over in time: it continues.
        """
        if self.status == "ready":
            raise RuntimeError("this run was not started; call start(), or fit() to do it in the caller")
        if self._thread is not None:
            with stopping(self.stop, lambda: False, PATIENCE) as came:
                self._over.wait(timeout)
                if came:
                    self._over.wait()
            if came:
                raise_for(came[0])
        if self.is_live:
            raise TimeoutError(f"the run is still {self.status} after {timeout:g} s; it continues")
        if self.error is not None:
            raise self.error
        return self.trace

    def __await__(self) -> Generator[Any, None, Trace]:
        """Wait without blocking the event loop, so that widgets answer while a cell awaits the run.

        To interrupt the cell, or to cancel the task, is to stop the run; it is over when the cell is.
        """
        try:
            yield from self._rest().__await__()
        except asyncio.CancelledError:
            self.stop()
            yield from self._rest().__await__()
            raise
        return self.wait()

    async def _rest(self) -> None:
        """Looks again and again: an interrupt that another thread of a kernel gets does not wake a sleeping loop."""
        while self.is_live:
            await asyncio.sleep(0.05)

    def _claim(self) -> None:
        if self.status != "ready":
            raise RuntimeError(f"this run is {self.status}; a Run runs only once; make a new one to repeat it")
        self.adaptation.claim()
        try:
            if self._writes is not None:
                self._writes.lock()
        except BaseException:
            self.adaptation.release()
            raise
        self.status = "running"
        if self._writes is not None:
            self._beacon = Beacon(self)
            self._beacon.start()

    def _drive_quietly(self) -> None:
        try:
            self._drive()
        except BaseException as error:
            self.error = error  # wait() raises it: a thread has nobody to raise to
        finally:
            self._over.set()
            atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        """An interpreter that ends must not cut a thread in the middle of a step."""
        self.stop()
        self._over.wait(PATIENCE)

    def _drive(self) -> None:
        self._begun, self._driver, outcome = time.perf_counter(), threading.get_ident(), "finished"
        try:
            self._obey()
            for event in self.adaptation:
                self._take(event)
                if not isinstance(event, RunFinished) and self._obey():
                    outcome = "stopped"
                    self._take(RunFinished(outcome, self.seconds, None))
                    self._save()
                    break
        except BaseException as error:
            self._end("stopped" if isinstance(error, KeyboardInterrupt | StoppedBySignal) else "failed", error)
            raise
        self._end(outcome)

    def _end(self, outcome: str, error: BaseException | None = None) -> None:
        """Save what there is, let go of the folder, and answer what was still asked, whatever fails of it."""
        meta = self.recorder.meta
        meta |= {"status": outcome, "n_steps": self.n_steps}
        if outcome == "failed":
            self.error = error
            meta |= {"seconds": round(self.seconds, 3), "error": f"{type(error).__name__}: {one_line(error, 400)}"}
        try:
            if self._writes is not None and self.newest.keys() - {RunStarted}:  # else nothing has happened yet
                self._writes.save_trace(self.trace, self.adaptation)
        except BaseException as failure:
            if error is None:
                self.error, outcome, meta["status"] = failure, "failed", "failed"
                raise
        finally:
            if self._beacon is not None:
                self._beacon.close()
            if self._writes is not None:
                self._writes.unlock()
            self.adaptation.release()
            with self._gate:
                self.status, self._driver = outcome, None
            self._drain()

    def _take(self, event: Event) -> None:
        if self.ranks.is_first:
            with self._lock:
                self.recorder(event)
        self.newest[type(event)] = event
        if isinstance(event, StepFinished):
            self.steps_done += 1
            self._next_step = event.step + 1
            if self._steps_allowed:
                self._steps_allowed -= 1
        for listener in list(self.listeners):  # of which another thread may take one off
            listener(event)
        if self._disk is not None and isinstance(event, EpochFinished) and event.epoch == -1:
            measure_zero_shot(self.recorder.meta, self.method, self.adaptation.eval_dataset, self.ranks)
        is_due = isinstance(event, StepFinished) and time.monotonic() - self._saved > self.save_seconds
        if isinstance(event, EpochFinished) or is_due:
            self._save()

    def _save(self) -> None:
        if self._writes is not None:
            self.recorder.meta["seconds"] = round(self.seconds, 3)
            self._writes.save(self.trace, self.adaptation)
        self._saved = time.monotonic()
