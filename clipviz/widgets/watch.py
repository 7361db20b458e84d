"""Watch: what a run told so far, boiled down to what LiveMonitor shows."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipviz import figures
from clipviz.events import EpochFinished, Event, RunFinished, RunStarted, StepFinished
from clipviz.figures.moments import Part, change_text, marks_of, part_of_epoch
from clipviz.figures.sources import DIAGNOSTIC, deciders, decision_name, kinds_of_decision
from clipviz.figures.style import BLACK, BLUE, VERMILLION, Look, decider_look, prototype_look, term_look
from clipviz.trace import Trace, named_classes
from clipviz.widgets.charts import Chart, Series

Clock = Callable[[], float]

_MOST_POINTS = 300
_MOST_TRAJECTORIES = 60
_HELD = {
    "positive_entries": "positive cache", "negative_entries": "negative cache", "memory_entries": "memory",
    "classes_with_images": "classes with an image",
}  # fmt: skip
_PLACES = {RunStarted: "started", StepFinished: "last_step", EpochFinished: "last_epoch", RunFinished: "finished"}


class Watch:
    """Takes events in the thread that trains and does next to nothing with them there; the rest when it is asked.

    Attributes:
        started, last_step, last_epoch, finished: the newest event of each kind, or None.
        n_steps: of the whole run, 0 before it started; some methods know it only when they are prepared.
        changes: what was changed while the run went on.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.started: RunStarted | None = None
        self.last_step: StepFinished | None = None
        self.last_epoch: EpochFinished | None = None
        self.finished: RunFinished | None = None
        self.n_steps = 0
        self.changes: Sequence[Mapping[str, Any]] = ()
        self._clock = clock
        self._last_at: float | None = None  # when the step or the measurement ended that the next one follows
        self._rested = False
        self._spent = {StepFinished: (0.0, 0), EpochFinished: (0.0, 0)}  # seconds, and of how many
        self._losses: list[tuple[int, dict[str, float]]] = []
        self.take_trace(Trace())

    def take(self, event: Event) -> None:
        """Note an event; tensors are not read here, so that no device is waited for."""
        now, kind = self._clock(), type(event)
        if self._last_at is not None and kind in self._spent and not self._rested:
            seconds, n = self._spent[kind]
            # of a run of another process not every step is told
            done = event.step + 1 - self.steps_done if isinstance(event, StepFinished) else 1
            self._spent[kind] = (seconds + now - self._last_at, n + done)
        # What comes before the first step, preparation and the first measurement, does not come again.
        self._last_at = now if isinstance(event, StepFinished) or self._last_at is not None else None
        self._rested = False
        self._note(event)

    def catch_up(self, events: Iterable[Event]) -> None:
        """Note what a run told before anybody listened; what came since then is newer."""
        for event in list(events):
            if getattr(self, _PLACES[type(event)]) is None:
                self._note(event)

    def _note(self, event: Event) -> None:
        setattr(self, _PLACES[type(event)], event)
        if isinstance(event, RunStarted):
            self.n_steps = event.n_steps

    def rest(self, is_paused: bool) -> None:
        """Say that the run rests or works: a step with a pause before it says nothing of the pace."""
        self._rested = self._rested or is_paused

    @property
    def steps_done(self) -> int:
        """Steps until now, those of earlier sessions included."""
        if self.last_step is not None:
            return self.last_step.step + 1
        return self.started.steps_done if self.started else 0

    @property
    def epochs_done(self) -> int:
        """Whole epochs until now, those of earlier sessions included."""
        if self.last_epoch is not None:
            return self.last_epoch.epoch + 1
        return self.started.steps_done * self.started.n_epochs // max(1, self.started.n_steps) if self.started else 0

    @property
    def _steps_an_epoch(self) -> int:
        return max(1, self.n_steps // max(1, self.started.n_epochs)) if self.started else 1

    def in_epoch(self) -> str:
        """How much is done of the epoch that is being done: "epoch 3: 64 of 320 images", or "" between two epochs."""
        done = self.steps_done % self._steps_an_epoch
        if self.started is None or self.last_step is None or not done:
            return ""
        if self.started.meta.get("labels_are") == "online":  # an epoch is a slice, and slices differ in length
            return ""
        total = int((self.last_epoch.metrics if self.last_epoch else {}).get("cache_size", self.started.n_images))
        return f"epoch {self.last_step.epoch}: {min(done * len(self.last_step.index), total)} of {total} images"

    def seconds_left(self) -> float | None:
        """At the mean pace of the steps until now, and for each epoch the mean of what measuring took; None unknown."""
        (working, n_steps), (measuring, n_epochs) = self._spent[StepFinished], self._spent[EpochFinished]
        if not n_steps or self.started is None:
            return None
        to_measure = self.started.n_epochs - (self.last_epoch.epoch + 1 if self.last_epoch else 0)
        return working / n_steps * (self.n_steps - self.steps_done) + measuring / max(1, n_epochs) * to_measure

    def headline(self, status: str, seconds: float) -> str:
        """Status, steps, epochs, the time until now and the time left, on one line."""
        if self.started is None:
            return f"{status} · not started" if status == "ready" else status
        left, times = self.seconds_left(), [""]
        if self.finished is not None:
            times = [f"{clock_time(self.finished.seconds)} in all"]
        elif status in ("running", "paused"):
            times = [f"{clock_time(seconds)} so far", "" if left is None else f"about {clock_time(left)} left"]
        steps = f"step {self.steps_done} of {self.n_steps}" if self.n_steps else ""  # a trace may hold none
        epochs = f"{self.epochs_done} of {self.started.n_epochs} epochs done"
        return " · ".join(filter(None, [status, steps, epochs, self.in_epoch(), *times]))

    def lines(self) -> list[str]:
        """The newest batch, how sure and how right it is and who decided; and from which step on a change holds."""
        lines = self._batch_lines()
        for change in self.changes[-1:]:
            since = "the next step" if change["step"] is None else f"step {change['step']}"
            lines.append(f"Applied: {change_text(change)}, from {since} on")
        return lines

    def _batch_lines(self) -> list[str]:
        if self.last_step is None:
            return []
        pseudo, target = self.last_step.pseudo, array(self.last_step.target)
        is_right = (array(pseudo.labels) == target)[target >= 0]
        text = f"This batch: median confidence {float(np.median(array(pseudo.probs).max(-1))):.2f}"
        if len(is_right):
            text += f", {100 * float(is_right.mean()):.0f} % right {DIAGNOSTIC}"
        sources, shares = self.decided()
        decided = ", ".join(f"{decision_name(kind, sources)} {100 * share:.0f} %" for kind, share in shares.items())
        return [text, f"Decided by: {decided}"] if decided else [text]

    def decided(self) -> tuple[list[str], dict[str, float]]:
        """The sources of the newest batch that name a class, and its shares by who decided; nothing of fewer than two.

        Kinds of decision are those of `figures.source_decisions_info`.
        """
        if self.last_step is None:
            return [], {}
        pseudo = self.last_step.pseudo
        named = {name: named_classes(array(logits)) for name, logits in pseudo.sources.items()}
        named = {name: classes for name, classes in named.items() if (classes >= 0).any()}
        if len(named) < 2:
            return [], {}
        labels, sources = array(pseudo.labels), list(named)
        decided = deciders(np.stack([*named.values()], 1), labels, sources)
        return sources, {kind: float((decided == kind).mean()) for kind in kinds_of_decision(sources)}

    def sample_losses(self) -> None:
        """Keep the losses of the newest step, thinned to so many points as can be drawn."""
        event = self.last_step
        if event is None or not event.losses or (self._losses and self._losses[-1][0] == event.step):
            return
        terms = {name: float(value) for name, value in event.losses.items()}
        self._losses.append((event.step, {"loss": sum(terms.values()), **terms}))
        if len(self._losses) > _MOST_POINTS:
            self._losses = self._losses[::2]

    def take_trace(self, trace: Trace) -> None:
        """Read what is recorded: once per epoch, because tables take their time and frames must not."""
        self._exact = figures.loss_terms_info(trace).terms
        self._held = held_chart(trace)
        self._decided = figures.source_decisions_info(trace)

    def losses(self) -> Chart:
        """Loss terms: exact up to the last whole epoch, sampled after it; without training, what is held instead."""
        is_whole = self.finished is not None and self.finished.status == "finished"  # read from a folder, without steps
        if (is_whole and not self._exact) or (self.last_step is not None and not self.last_step.losses):
            return self._held
        known_until = max((steps[-1] for steps, _ in self._exact.values() if len(steps)), default=-1)
        sampled = [(step, terms) for step, terms in self._losses if step > known_until]
        series = []
        for i, name in enumerate(self._exact or (sampled[0][1] if sampled else ())):
            steps, values = self._exact.get(name, ((), ()))
            x, y = [*steps, *(step for step, _ in sampled)], [*values, *(terms[name] for _, terms in sampled)]
            series.append(Series("total loss" if name == "loss" else name, term_look(i), x, y))
        marks = [(mark.step, mark.text) for mark in marks_of(self.changes, 1)]
        few = [(step, f"{step:g}") for step in (series[0].x if series and len(series[0].x) < 8 else ())]  # no half ones
        return Chart("Losses", "step", "loss", series, ticks=few, marks=marks, empty="Appears after the first step.")

    @property
    def epoch_marks(self) -> list[tuple[float, str]]:
        """The changes on an axis of epochs."""
        return [(mark.epoch, mark.text) for mark in marks_of(self.changes, self._steps_an_epoch)]

    def decisions(self) -> Chart:
        """Who decided the pseudo-labels, per epoch, and in the newest batch."""
        info, (sources, shares) = self._decided, self.decided()
        sources, now = sources or info.sources, shares if self.finished is None else {}
        ticks = [(int(epoch), info.moments.part.tick(int(epoch))) for epoch in info.epochs]
        if now:
            ticks.append((ticks[-1][0] + 1 if ticks else 0, "batch"))
        places, series, known = [place for place, _ in ticks], [], self.last_step or self.finished
        for kind in list(now or info.decided) if len(sources) > 1 else []:
            y = [*info.decided.get(kind, np.zeros(len(info.epochs))), *([now[kind]] if now else [])]
            look, name = decider_look(kind, sources), decision_name(kind, sources)
            series.append(Series(name, look, places, [100 * share for share in y]))
        return Chart(
            "Which source decides", "epoch", "% of the images", series, "bars", (0, 100), ticks, self.epoch_marks,
            empty="This method has only one source." if known else "Appears after the first step.",
        )  # fmt: skip


def pseudo_label_chart(trace: Trace) -> Chart:
    """Confidence of the pseudo-labels by epoch, and where labels exist how right they and the predictions are."""
    info = figures.confidence_evolution_info(trace)
    lines = {
        "median confidence": (Look(BLACK, "circle", "solid"), pd.Series(info.all[:, 2], info.epochs)),
        f"pseudo-labels right {DIAGNOSTIC}": (Look(BLUE, "square", "dash"), trace.metric("pseudo_label_accuracy")),
        f"predictions right {DIAGNOSTIC}": (Look(VERMILLION, "diamond", "dot"), trace.metric("accuracy")),
    }
    empty = "Appears after the first epoch."
    return Chart("Pseudo-labels", "epoch", "share", y_range=(0, 1), empty=empty, **_by_epoch(lines, info.moments.part))


def held_chart(trace: Trace) -> Chart:
    """What a method without training has gathered after each epoch: entries of its caches, classes with an image."""
    lines = {text: (term_look(i), trace.metric(name)) for i, (name, text) in enumerate(_HELD.items())}
    empty = "This method does not train, so it has no loss."
    return Chart("What the method stores", "epoch", "number", empty=empty, **_by_epoch(lines, part_of_epoch(trace)))


def _by_epoch(lines: Mapping[str, tuple[Look, pd.Series]], part: Part) -> dict[str, Any]:
    known = ((name, look, line) for name, (look, line) in lines.items() if len(line))
    series = [Series(name, look, line.index.to_numpy(), line.to_numpy()) for name, look, line in known]
    epochs = sorted({int(epoch) for line in series for epoch in line.x})
    return {"series": series, "ticks": [(epoch, part.tick(epoch)) for epoch in epochs]}


def trajectory_chart(trace: Trace) -> Chart:
    """Trajectories of the prototypes in the fixed projection, the farthest ones where there are many."""
    info = figures.prototype_paths_info(trace)
    series, n_left_out = [], 0
    for i, (name, path) in enumerate(info.paths.items()):
        look = prototype_look(i)
        order = np.argsort(-np.linalg.norm(path[-1] - path[0], axis=-1), kind="stable")
        n_left_out = max(n_left_out, len(order) - _MOST_TRAJECTORIES)
        path = path[:, order[:_MOST_TRAJECTORIES]]
        if not np.array_equal(path[0], path[-1]):
            line = np.pad(path, ((0, 1), (0, 0), (0, 0)), constant_values=np.nan).transpose(1, 0, 2).reshape(-1, 2)
            series.append(Series(f"{name}: trajectory", look._replace(symbol=""), *line.T))
        series.append(Series(f"{name}: now", look._replace(dash="none"), *path[-1].T))
    which = "that moved most" if any(one.look.dash != "none" for one in series) else f"of {len(info.names)}"
    title = "Trajectories of the prototypes" + (f" ({_MOST_TRAJECTORIES} {which})" if n_left_out > 0 else "")
    empty = "This method has no prototypes." if len(trace.epochs) else "Appears when the run begins."
    return Chart(title, "first direction", "second direction", series, empty=empty)


def clock_time(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def array(tensor: Any) -> np.ndarray:
    """A tensor's numbers, without importing what made it; bfloat16, which numpy lacks, as float32."""
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
