"""LiveMonitor: a run while it happens, with its buttons."""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import ipywidgets
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from clipviz.errors import path_text
from clipviz.events import EpochFinished, Event, RunFinished
from clipviz.figures.moments import when
from clipviz.figures.saliency import KIND_NAMES
from clipviz.figures.sources import SourceLogits
from clipviz.figures.style import folded, shorten
from clipviz.trace import Trace
from clipviz.training.follow import OVER, FollowedRun, progress_line
from clipviz.widgets.canvases import PLAIN_TEXT, MonitorCanvas
from clipviz.widgets.charts import Chart
from clipviz.widgets.controls import RunControls
from clipviz.widgets.images import to_bytes
from clipviz.widgets.probe import ProbeStrip
from clipviz.widgets.view import View, ViewState, follow
from clipviz.widgets.watch import Clock, Watch, pseudo_label_chart, trajectory_chart

if TYPE_CHECKING:
    from clipviz.training.run import Run


class LiveMonitor(View):
    """Watches a run and drives it.

    It listens to the run, samples at most `rate` times a second and sends one message for each sample; the last state
    is always shown. Nothing here changes what is learned, except the buttons. Without a notebook it prints one line per
    epoch.

    Args:
        run: not started yet, or running; or the folder of a run of another process, which is read, twice a second.
        state: shared with other views; `kind` chooses the maps of the probe images.
        rate: updates per second, at most.
        clock: seconds; for tests.

    Attributes:
        start, pause, step, stop: the buttons. `start` resumes a paused run.
        gamma: slider over the mixing weight; moving it shows what it would have changed, `apply` sets it in the run.
    """

    note = "a picture of the last state: run the cell to follow a run"

    def __init__(
        self, run: Run | FollowedRun | str | os.PathLike[str], *, state: ViewState | None = None, rate: float = 5.0,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self.run = run = cast("Run", run) if hasattr(run, "newest") else FollowedRun(path_text("a run's folder", run))
        self.state = state or ViewState()
        self._lock = threading.RLock()  # the pump draws, and so does whoever shows the view
        self._rate, self._clock, self._projection_due = rate, clock, -math.inf
        self._charts: dict[str, Chart] = {}
        self._probe, self._mapped = ProbeStrip(), (-2, "")
        self._handles: list[DisplayHandle] = []
        self.canvas = MonitorCanvas(_view_count=0)  # with a number, ipywidgets counts the outputs that show it
        self._controls = controls = RunControls(run, self._pressed, self._show_what_if)
        self.start, self.pause, self.step, self.stop = controls.start, controls.pause, controls.step, controls.stop
        self.gamma, self.apply, self.what_if = controls.gamma, controls.apply, controls.what_if
        self.widget = ipywidgets.VBox([*controls.rows, self.canvas])
        self._listen()
        follow(self.state, self.refresh, "kind")
        self.canvas.observe(lambda change: self._shown(change.new), "_view_count")

    def __repr__(self) -> str:
        return f"LiveMonitor({shorten(self.run.name, 60)})"

    def close(self) -> None:
        """Stop listening to the run, which continues, and release the widgets and the memory of the run."""
        self._leave()
        super().close()

    def _listen(self) -> None:
        """Follow the run, from what it told last."""
        run = self.run
        self.pump = Pump(self._pumped, self._rate, self._has_moved, lambda: run.status in OVER, self._clock)
        self.watch, self._trace = Watch(self._clock), run.trace
        self._charted = self._projected = Trace()  # neither is this one yet
        run.listeners.append(self)
        self.watch.catch_up(run.newest.values())
        self.refresh()
        if self._handles or run.status not in ("ready", *OVER):
            self.pump.start()

    def _leave(self) -> None:
        self.pump.stop()
        if self in self.run.listeners:
            self.run.listeners.remove(self)

    def _shown(self, n_outputs: int) -> None:
        """Rest while no output shows the view, as after its cell was run again; it may be shown anew."""
        if not n_outputs:
            self._leave()
        elif self not in self.run.listeners:
            self._listen()

    def __call__(self, event: Event) -> None:
        """Take an event, in the thread that trains."""
        if isinstance(event, EpochFinished | RunFinished):
            self._trace = self.run.trace  # here, where it holds whole epochs only, or all of it
        self.watch.take(event)  # after it: whoever draws the end of the run draws all of it
        if isinstance(event, EpochFinished) and getattr(get_ipython(), "kernel", None) is None:
            print(progress_line(event, self.watch.started.n_epochs if self.watch.started else 0))
        if isinstance(event, RunFinished):
            self.refresh()  # whoever waits for the run finds the last frame drawn
        self.pump.start()
        self.pump.offer()

    def _pumped(self) -> None:
        self.refresh()
        if self.run.status in OVER:
            self._update_displays()  # here, because a picture takes too long for the thread that trains

    def _has_moved(self) -> bool:
        """Whether the run came to rest, or went on, without an event; of another process, whether it has news."""
        try:
            self.run.poll()
        except ValueError as error:
            self.run.error = error
        self.watch.rest(self.run.status == "paused")
        return self._seen != self._news()

    def _news(self) -> tuple[str, int, str]:  # what may change without an event
        return self.run.status, self.run.steps_done, str(self.run.changes)

    def _pressed(self, problem: str) -> None:
        if problem:
            with self._lock:
                self.canvas.frame = {**self.canvas.frame, "problem": problem}
        self.pump.start()
        self.pump.offer()

    def _show_what_if(self) -> None:
        """What the slider's gamma would have labeled in the last whole epoch, from the stored logits."""
        with self._lock:
            stored = SourceLogits.of(self._trace) if len(self._trace.epochs) else None
            if stored is None:
                self.what_if.value = "what-if: available after the first epoch"
                return
            own = stored.reference  # of that epoch, whatever was applied since
            changed = stored.compare(stored.labels(self.gamma.value), stored.labels(own))
            self.what_if.value = f"instead of {own:.2f}: {changed}"

    def refresh(self) -> None:
        """Bring the view up to date, in one message; may be called from any thread."""
        with self._lock:
            self._seen = self._news()
            status = self.watch.finished.status if self.watch.finished else self.run.status
            self.watch.n_steps = self.run.n_steps if self.watch.started else 0
            self.watch.rest(status == "paused")
            self.watch.changes = self.run.changes
            self.watch.sample_losses()
            with self.canvas.hold_sync():
                self._take_trace()
                self._take_probe()
                self._take_trajectories(status)
                self._set_chart("losses", self.watch.losses())
                self._set_chart("labels", replace(self._charts["labels"], marks=self.watch.epoch_marks))
                self._set_chart("decisions", self.watch.decisions())
                self.canvas.frame = self._frame(status)
            self._controls.enable(status)

    def _frame(self, status: str) -> dict[str, Any]:
        done, total, error = self.watch.steps_done, self.watch.n_steps, self.run.error
        status = status if error is None else self.run.status  # which a run that fails says first
        said = str(error) if isinstance(self.run, FollowedRun) else f"{type(error).__name__}: {error}"
        kind, epoch = self._probe.kind, self.watch.last_epoch.epoch if self.watch.last_epoch else -1
        name = "Probe images" if len(self._probe.images) else ""
        moment = when(epoch) if epoch < 0 else f"after {when(epoch)}"
        return {
            "headline": self.watch.headline(status, self.run.seconds), "now": self.watch.lines(),
            "progress": done / total if total else float(status == "finished"),
            "problem": "" if error is None else shorten(said, 400),
            "probe": f"{name} and {KIND_NAMES.get(kind, kind)}, {moment}" if kind else name,
        }  # fmt: skip

    def _take_trace(self) -> None:  # once per epoch
        trace = self._trace
        if self._charted is not trace:
            self._charted = trace
            self.watch.take_trace(trace)
            self._charts["labels"] = pseudo_label_chart(trace)
            self._show_what_if()

    def _take_probe(self) -> None:  # the images, and once per epoch their maps
        if self._probe.take_images(self.watch.started):
            self.canvas.captions, self.canvas.sheet = self._probe.captions, self._probe.sheet()
        event, kind = self.watch.last_epoch, self.state.kind
        if event is not None and event.explanation and self._mapped != (event.epoch, kind):
            self._mapped = event.epoch, kind
            self._probe.take_maps(event.explanation, kind)
            self.canvas.shape, self.canvas.maps = list(self._probe.maps.shape), to_bytes(self._probe.maps)

    def _take_trajectories(self, status: str) -> None:
        """Those of the newest epoch; while the run trains, no sooner than costs a fiftieth of the time.

        Their plane is an eigenproblem, which wakes all cores: beside a run it can take 200 ms, 1 ms alone.
        """
        trace, begun = self._trace, self._clock()  # the thread that trains may put another one in its place
        if self._projected is trace or (status == "running" and begun < self._projection_due):
            return
        self._set_chart("trajectories", trajectory_chart(trace))
        self._projected, self._projection_due = trace, begun + 50 * (self._clock() - begun)

    def _set_chart(self, name: str, chart: Chart) -> None:
        self._charts[name] = chart
        setattr(self.canvas, name, chart.to_json())

    @property
    def alt(self) -> str:
        """Headline and the newest numbers."""
        frame = self.canvas.frame
        return " ".join([f"{self!r}: {frame['headline']}.", *frame["now"]])

    def draw(self) -> Figure:
        """Headline, four charts and the probe images over their maps."""
        if self not in self.run.listeners:  # taken off the page, since when the run has gone on
            self._listen()
            self._leave()
        self.refresh()
        with self._lock:
            frame, charts, probe = self.canvas.frame, dict(self._charts), copy(self._probe)
        strip = 1.85 if len(probe.images) else 0.0
        lines = [*frame["now"], *folded(frame["problem"], 110).splitlines()]
        top = 1.1 + 0.2 * max(0, len(lines) - 3)
        height = 5.3 + top + strip
        figure = Figure(figsize=(7.2, height), dpi=100)
        figure.text(0.01, 1 - 0.08 / height, frame["headline"], fontsize=10, weight="bold", va="top")
        for i, line in enumerate(lines):
            figure.text(0.01, 1 - (0.31 + 0.2 * i) / height, line, fontsize=8.5, **PLAIN_TEXT)
        grid = {"left": 0.085, "right": 0.985, "wspace": 0.24, "hspace": 0.76}
        grid |= {"top": 1 - top / height, "bottom": (strip + 0.98) / height}
        names = ("losses", "labels", "decisions", "trajectories")
        for axes, name in zip(figure.subplots(2, 2, gridspec_kw=grid).flat, names, strict=True):
            charts[name].draw(axes)
        if len(probe.images):
            probe.draw(figure, frame["probe"])
        return figure

    def _ipython_display_(self) -> None:
        data, metadata = self._repr_mimebundle_()
        handle = display(data, metadata=metadata, raw=True, display_id=True)
        if handle is not None and self.watch.finished is None:
            self._handles.append(handle)

    def _update_displays(self) -> None:
        """Leave the picture of the end in the notebook: the one of the beginning would be all that a reader sees."""
        if self._handles:
            data, metadata = self._repr_mimebundle_()
            for handle in self._handles:
                handle.update(data, metadata=metadata, raw=True)
            self._handles.clear()


class Pump:
    """Draws in a thread of its own, at most `rate` times a second, and only when something is new.

    The training thread calls `offer`, which only sets a flag; frames in between are dropped. `has_changed`
    is called once per interval, for changes that nobody offers (a paused run). When it `is_over` the pump draws
    once more, so that the last state is shown, and its thread ends.
    """

    def __init__(
        self, draw: Callable[[], None], rate: float = 5.0, has_changed: Callable[[], bool] = lambda: False,
        is_over: Callable[[], bool] = lambda: False, clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        if not rate > 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self.interval = 1.0 / rate
        self._draw, self._has_changed, self._is_over, self._clock = draw, has_changed, is_over, clock
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn_at = float("-inf")

    def offer(self) -> None:
        """There is something new; returns at once."""
        self._news.set()

    def start(self) -> None:
        """Start drawing, unless it draws already."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="clipviz view", daemon=True)
            atexit.register(self._stop_at_exit)
            self._thread.start()

    def stop(self) -> None:
        """Stop drawing."""
        self._is_over, self._draw = (lambda: True), (lambda: None)
        self._news.set()

    def turn(self) -> bool:
        """Draw if something is new and the interval since the last drawing is over; returns whether it drew."""
        is_due = self._clock() - self._drawn_at >= self.interval
        if not is_due or not (self._news.is_set() or self._has_changed()):
            return False
        self._news.clear()  # before drawing: what comes meanwhile is news for the next turn
        self._drawn_at = self._clock()
        self._draw()
        return True

    def _stop_at_exit(self) -> None:
        """An interpreter that ends must not cut a thread in the middle of a drawing: that aborts the process."""
        self.stop()
        if self._thread is not None:
            self._thread.join(5)

    def _loop(self) -> None:
        while not self._is_over():
            self.turn()
            # News is waited for, the rest of the interval is slept through, and rest is looked for once per interval.
            self._news.wait(self.interval)
            time.sleep(max(0.0, self._drawn_at + self.interval - self._clock()))
        self._news.clear()
        self._draw()
        atexit.unregister(self._stop_at_exit)
