"""Following a run from another process: `Beacon` in the one that trains, `FollowedRun` in those that look.

Twice a second the beacon writes `live.json` into the run folder, whole or not at all: where the run is, its newest
batch and a number that grows while its process lives. What was recorded is in `trace/`, after every epoch. The user who
trains can lay orders into `commands/`; the beacon puts them on the queue of the run, which carries them out between two
steps, like those of its own process, and answers in `live.json`. Both go when the run ends.
"""

import json
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from clipviz.errors import one_line, parse_json, plain_numbers, whole_number
from clipviz.events import EpochFinished, Event, Listener, Probe, RunFinished, RunStarted, StepFinished
from clipviz.files import lock_folder, writing
from clipviz.trace import Trace, named_classes

LIVE, COMMANDS = "live.json", "commands"
OVER = ("stopped", "finished", "failed", "interrupted")
_FORMAT = 1
_INTERVAL, _HEARTBEAT, _DEAD_AFTER = 0.5, 3.0, 20.0  # seconds
_MOST_ROWS, _MOST_BYTES = 64, 2**20
_ORDER = re.compile(r"\d{1,20}-[0-9a-f]{8}\.json")
_DIAGNOSTIC = "(diagnostic only)"


class Beacon(threading.Thread):
    """Tells other processes of a `Run`, and takes their orders, in a thread of its own that never touches the model."""

    def __init__(self, run: Any) -> None:
        super().__init__(name="clipviz beacon", daemon=True)
        self._run, self._folder = run, Path(run.folder)
        self._over = threading.Event()
        self._answers: dict[str, str] = {}
        self._told: tuple[Any, ...] = ()
        self._beat, self._written = 0, float("-inf")
        self._clear()  # orders to a session that was killed are not for this one; later ones are

    def run(self) -> None:
        """Look and tell until the run is over."""
        while not self._over.wait(_INTERVAL if self._beat else 0):
            with suppress(OSError, RuntimeError):  # a full disk, a folder that went away: training goes on
                self._take_orders()
                self._tell()

    def close(self) -> None:
        """Take back what was told: the trace says how it ended."""
        self._over.set()
        self.join()
        self._clear()

    def _clear(self) -> None:
        with suppress(OSError):
            (self._folder / LIVE).unlink(missing_ok=True)
            for name in self._orders():
                (self._folder / COMMANDS / name).unlink()
            (self._folder / COMMANDS).rmdir()

    def _orders(self) -> list[str]:
        with suppress(OSError):
            return sorted(name for name in os.listdir(self._folder / COMMANDS) if _ORDER.fullmatch(name))
        return []

    def _tell(self) -> None:
        run, now = self._run, time.monotonic()
        news = (run.status, run.steps_done, str(run.changes), *self._answers)
        if (news == self._told and now < self._written + _HEARTBEAT) or not self._folder.is_dir():
            return
        self._beat, self._told, self._written = self._beat + 1, news, now
        step = run.newest.get(StepFinished)
        batch = {"epoch": step.epoch, "step": step.step, "batch": _batch(step)} if step else {}
        facts = {
            "format": _FORMAT, "beat": self._beat, "host": socket.gethostname(), "pid": os.getpid(),
            "status": run.status, "seconds": run.seconds, "n_steps": run.n_steps,
            "n_epochs": run.n_epochs, "steps_done": run.steps_done,
            "changes": run.changes, "answers": dict([*self._answers.items()][-_MOST_ROWS:]), **batch,
        }  # fmt: skip
        with writing(self._folder / LIVE, durable=False) as file:
            file.write(json.dumps(facts).encode())

    def _take_orders(self) -> None:
        for name in [name for name in self._orders() if name not in self._answers]:  # not those that cannot be removed
            try:
                self._carry_out(name, _order(self._folder / COMMANDS / name))
            except (ValueError, TypeError, RuntimeError, OSError) as error:
                self._answers[name] = f"refused: {one_line(error)}"
            with suppress(OSError):
                (self._folder / COMMANDS / name).unlink()

    def _carry_out(self, name: str, order: Mapping[str, Any]) -> None:
        """Hand an order to the run; it is answered when it was carried out."""
        do, run = order.get("do"), self._run
        if do in ("pause", "resume", "stop"):
            getattr(run, do)()
        elif do == "step":
            run.step(order.get("n"))
        elif do == "set" and isinstance(order.get("constants"), dict):
            run.set(**order["constants"]).add_done_callback(lambda change: self._answers.update({name: repr(change)}))
            return
        else:
            raise ValueError(f"wanted pause, resume, step, stop or set, got {one_line(repr(do), 60)}")
        run.when_drained(lambda: self._answers.update({name: "done"}))


def _order(path: Path) -> dict[str, Any]:
    """The command in a file of the same user; a ValueError for any other file."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _is_own(found):
            raise ValueError("commands must be files of the user who trains")
        order = parse_json(file.read(4096))
    if not isinstance(order, dict):
        raise ValueError("a command is a JSON object")
    return order


def _is_own(found: os.stat_result) -> bool:  # Windows has no such numbers: whoever may write may command
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def _batch(step: StepFinished) -> dict[str, Any]:
    """What a step told of its images, as JSON has it; of many the first."""
    pseudo = step.pseudo
    columns = {"index": step.index, "target": step.target, "pseudo_label": pseudo.labels}
    rows = {name: values[:_MOST_ROWS].tolist() for name, values in columns.items()}
    first = {name: logits[:_MOST_ROWS].float().numpy(force=True) for name, logits in pseudo.sources.items()}
    sources = {name: named_classes(logits).tolist() for name, logits in first.items()}
    confidence = [round(value, 4) if value == value else None for value in pseudo.probs[:_MOST_ROWS].amax(-1).tolist()]
    losses = {name: float(value) for name, value in step.losses.items()}
    return {**rows, "confidence": confidence, "sources": sources, "losses": losses}


class FollowedRun:
    """A run of another process by its folder, for whoever looks: as a `Run`, as far as `LiveMonitor` asks.

    `poll` reads what is new and tells the listeners; nothing is written but orders. `status` is that of the run, or
    "interrupted" where its process is gone.

    Attributes:
        trace: what was recorded last; empty before the first epoch is measured.
        newest: the newest event of each type.

    Raises:
        ValueError: if the folder holds no run, or one that cannot be read.
    """

    error: BaseException | None = None

    def __init__(
        self, folder: str | os.PathLike[str], *listeners: Listener, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self._clock = Path(folder).expanduser().absolute(), clock
        self.trace, self.status = Trace(), "running"
        self.listeners = list(listeners)
        self.newest: dict[type[Event], Event] = {}
        self._read: tuple[object, ...] = ()
        self._told, self._beat = -2, (-1, clock())  # the last epoch; the last beat, and when it came
        self._sent: dict[str, Future[str]] = {}
        self._gate, self._live = threading.RLock(), self._read_live()
        if not self._is_alive() or (self.folder / "trace").exists():
            Trace.load(self.folder)  # says what is wrong with it
        self.poll()

    def __repr__(self) -> str:
        return f"FollowedRun({self.name}, {self.status})"

    def _take_facts(self) -> None:
        """As they are for a `Run`: what its process says, else what is recorded."""
        live, meta, steps = self._live, self.trace.meta, self.trace.steps["step"]
        known = int(steps.max()) + 1 if len(steps) else 0
        if live and live["beat"] != self._beat[0]:
            self._beat = (live["beat"], self._clock())
        self.name = f"{self.trace.method} on {meta.get('data', self.folder.name)}"
        self.changes: list[dict[str, Any]] = list(live.get("changes") or meta.get("changes") or ())
        self.gamma: Any = [meta.get("gamma"), *(c["gamma"] for c in self.changes if "gamma" in c)][-1]
        self.seconds = float(live.get("seconds") or meta.get("seconds") or 0.0)
        self.n_epochs = int(live.get("n_epochs") or meta.get("epochs") or 1)
        self.n_steps = int(live.get("n_steps") or (known and meta.get("n_steps")) or known)
        self.steps_done = known if live.get("step") is None else max(known, live["step"] + 1)

    def poll(self) -> None:
        """Read what is new, a look at two files where nothing is; a ValueError if one cannot be read or was altered."""
        with self._gate:
            if self.status in OVER:
                return
            self._live = self._read_live() or self._live
            alive = self._is_alive()  # before the trace: what it wrote last is read in any case
            seen = _stamp(self.folder / "trace" / "manifest.json")
            if seen and seen != self._read:
                self.trace, self._read = Trace.load(self.folder), seen
            try:
                self._take_facts()
                step, answers = self._newest_step(), dict(self._live.get("answers") or {})
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                fault = f"{type(error).__name__} {one_line(error)}"
                raise ValueError(f"{self.folder / LIVE} was altered: {fault}") from error
            self._tell_epochs()
            if step is not None:
                self._tell(step)
            recorded = self.trace.meta.get("status")
            self.status = self._live.get("status") or "running" if alive else recorded or "interrupted"
            if not alive and self.status not in ("stopped", "finished", "failed"):
                self.status = "interrupted"
                told = "its process is gone; --resume continues from what it saved"
                moved = f"the folder {self.folder} is gone; open the run again where it is now"
                self.error = InterruptedError(told if self.folder.is_dir() else moved)
            elif self.status == "failed":
                self.error = RuntimeError(self.trace.meta.get("error") or "the reason was not recorded")
            for name, text in answers.items():
                if (future := self._sent.pop(name, None)) is not None:
                    future.set_result(str(text))
            if self.status in OVER:
                for future in self._sent.values():
                    future.set_result(f"the run is {self.status}")
                self._tell(RunFinished(self.status, self.seconds, None))

    def _is_alive(self) -> bool:
        """Whether somebody has the folder; where its lock cannot be seen from here, whether the heart still beats."""
        try:
            descriptor = lock_folder(self.folder, shared=True)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if descriptor is not None:
            os.close(descriptor)
        is_here = self._live.get("host", socket.gethostname()) == socket.gethostname()
        if descriptor is not None and is_here:
            return False
        return self._clock() - self._beat[1] < _DEAD_AFTER

    def _read_live(self) -> dict[str, Any]:  # nothing where there is none
        path = self.folder / LIVE
        try:
            with path.open("rb") as file:
                live = parse_json(file.read(_MOST_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
        if not isinstance(live, dict) or not isinstance(version := live.get("format"), int):
            raise ValueError(f"{path} was not written by a run of clipviz")
        if version > _FORMAT:
            raise ValueError(f"{path} is from a newer clipviz (format {version}); upgrade clipviz to follow this run")
        return live

    def _tell(self, event: Event) -> None:
        self.newest[type(event)] = event
        for listener in list(self.listeners):
            listener(event)

    def _tell_epochs(self) -> None:
        """The start, and the epochs that the trace has more than before."""
        trace, meta = self.trace, self.trace.meta
        if trace.final_epoch < self._told:  # another run, in the place of the older one
            self.newest, self._told = {}, -2
        if RunStarted not in self.newest and meta:
            pixels = trace.probe.images.transpose(0, 3, 1, 2) / np.float32(255)
            images: Any = (pixels, trace.probe.index, trace.probe.target)
            n = int(meta.get("n_images") or 0)
            probe: Any = Probe(*images) if len(pixels) else None
            known = (trace.method, meta, trace.class_names, n, self.n_epochs, self.n_steps, probe, self.steps_done)
            self._tell(RunStarted(*known))
        for epoch, rows in trace.epochs[trace.epochs["epoch"] > self._told].groupby("epoch"):
            self._told = int(str(epoch))
            kept = {kind: maps for kind, maps in trace.probe.maps.items() if len(maps) > self._told + 1}
            maps: Any = {kind: maps[self._told + 1] for kind, maps in kept.items()}
            self._tell(EpochFinished(self._told, dict(zip(rows["metric"], rows["value"], strict=True)), None, {}, maps))

    def _newest_step(self) -> StepFinished | None:
        """The newest batch if it is new: classes stand for logits, and the confidence for probabilities."""
        batch, step, known = self._live.get("batch"), self._live.get("step"), self.newest.get(StepFinished)
        if not batch or step is None or (isinstance(known, StepFinished) and known.step == step):
            return None
        n_classes = max(1, len(self.trace.class_names))
        index, target, labels = (np.array(batch[name], int) for name in ("index", "target", "pseudo_label"))
        sources = {name: np.equal.outer(named, np.arange(n_classes)) * 1.0 for name, named in batch["sources"].items()}
        probs = np.array(batch["confidence"], float)[:, None]
        told: Any = (index, target, SimpleNamespace(labels=labels, probs=probs, sources=sources), batch["losses"])
        return StepFinished(self._live["epoch"], step, *told)

    def start(self) -> None:
        """Refused: another process has it."""
        raise ValueError(f"the run in {self.folder} belongs to another process; it is {self.status}")

    def step(self, n: int = 1) -> Future[str]:
        """As for `Run`, and so are the others; the future is the answer of the run, which `poll` brings."""
        return self._send(do="step", n=whole_number("n", n, 1))

    def set(self, **constants: float) -> Future[str]:  # noqa: D102
        return self._send(do="set", constants=plain_numbers(constants))

    def _send(self, **order: Any) -> Future[str]:
        """Lay an order into the folder; a ValueError if the run is over, or is not the reader's to command."""
        self.poll()
        if self.status in OVER:
            raise ValueError(f"the run in {self.folder} is {self.status}, so it takes no commands")
        if not _is_own(self.folder.stat()) or not os.access(self.folder, os.W_OK):
            raise ValueError(f"the run in {self.folder} can be commanded by its user only; you can watch it")
        name = f"{time.time_ns()}-{secrets.token_hex(4)}.json"
        future = self._sent[name] = Future()
        with writing(self.folder / COMMANDS / name, durable=False) as file:
            file.write(json.dumps(order).encode())
        return future

    pause = partialmethod(_send, do="pause")
    resume = partialmethod(_send, do="resume")
    stop = partialmethod(_send, do="stop")


def progress_line(event: EpochFinished, n_epochs: int) -> str:
    """One epoch for a terminal."""
    moment = "before training" if event.epoch < 0 else f"{event.epoch + 1} of {n_epochs} epochs"
    names = [name for name in ("pseudo_label_accuracy", "accuracy") if name in event.metrics]
    return "  ".join([moment, *(f"{n.replace('_', ' ')} {event.metrics[n]:.3f} {_DIAGNOSTIC}" for n in names)])


def _stamp(path: Path) -> tuple[object, ...]:
    """What changes when a file is replaced; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
