"""When something was: epochs in words, the part that was done of the last one, and what was changed on the way."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clipviz.figures.style import BLACK, escape
from clipviz.trace import Trace


def epoch_name(epoch: int) -> str:
    """Axis label of an epoch: -1 is before training."""
    return "before" if epoch < 0 else str(epoch)


def epochs_of(table: pd.DataFrame) -> np.ndarray:
    """The epochs (E,) int of a table, in order."""
    return np.sort(table["epoch"].unique()).astype(int)


class Part(NamedTuple):
    """The epoch inside which a run ended (-1: none), and how many of its images it had seen by then."""

    epoch: int = -1
    n_images: int = 0
    of: int = 0

    def tick(self, epoch: int) -> str:
        """Label of an epoch on the axis of a small chart: "before", "2", "3 (64/320)"."""
        return epoch_name(epoch) + (f" ({self.n_images}/{self.of})" if epoch == self.epoch >= 0 else "")

    def said(self, epoch: int, lead: str = "") -> str:
        """How much of an epoch was done, "64 of 320 images" after `lead`; nothing for whole ones."""
        return f"{lead}{self.n_images} of {self.of} images" if epoch == self.epoch >= 0 else ""

    def below(self, epoch: int) -> str:
        """The same on two lines below the label of an epoch."""
        return self.said(epoch, "<br>").replace(" im", "<br>im")


WHOLE = Part()


def when(epoch: int, part: Part = WHOLE) -> str:
    """An epoch in words: "before training", "epoch 2", "epoch 3, 64 of 320 images"."""
    return "before training" if epoch < 0 else f"epoch {epoch}{part.said(epoch, ', ')}"


def part_of_epoch(trace: Trace) -> Part:
    """The last epoch, if it is not whole: nothing was measured after it, and fewer images were seen than before."""
    counts = trace.samples.groupby("epoch")["index"].size()
    if not len(counts) or (trace.epochs["epoch"] == counts.index[-1]).any():
        return WHOLE
    cache = trace.metric("cache_size")  # methods with a cache see its entries only
    whole = int(counts.iloc[0] if len(counts) > 1 else cache.iloc[-1] if len(cache) else trace.meta.get("n_images", 0))
    return Part(int(counts.index[-1]), int(counts.iloc[-1]), whole) if counts.iloc[-1] < whole else WHOLE


class Mark(NamedTuple):
    """A change of constants: the first step that it holds for, that place among the epochs, and what changed.

    The numbers of epoch e stand at e, and its steps lie between e - 1/2 and e + 1/2.
    """

    step: int
    epoch: float
    text: str


def change_text(change: Mapping[str, Any]) -> str:
    """A change in words: "gamma 0.3"."""
    return ", ".join(f"{name} {value:g}" for name, value in change.items() if name != "step")


class Moments(NamedTuple):
    """What a figure over epochs or steps says beside its numbers."""

    part: Part = WHOLE
    marks: Sequence[Mark] = ()


def moments(trace: Trace) -> Moments:
    """The part of a run's last epoch, and its marks."""
    return Moments(part_of_epoch(trace), marks(trace))


def marks(trace: Trace) -> list[Mark]:
    """What was changed while the run went on."""
    steps = trace.steps.drop_duplicates(["epoch", "step"])
    return marks_of(trace.meta.get("changes") or (), int(steps.groupby("epoch").size().max()) if len(steps) else 1)


def marks_of(changes: Iterable[Mapping[str, Any]], each: int) -> list[Mark]:
    """Where changes stand, with so many steps in an epoch; those that hold for no step yet stand nowhere."""
    known = (change for change in changes if change["step"] is not None)
    return [Mark(int(change["step"]), change["step"] / each - 0.5, change_text(change)) for change in known]


def draw_epochs(figure: go.Figure, epochs: Iterable[int], moments: Moments, *panels: Mapping[str, int]) -> None:
    """X axis of whole epochs, thinned, -1 written as "before", and of a part how much was done; and the marks.

    In these panels of `style.PANELS`, or in the only one.
    """
    ordered = sorted({int(epoch) for epoch in epochs})
    every, pad = max(1, -(-len(ordered) // 10)), 0.5 if len(ordered) > 1 else 1.0
    ticks = [epoch for i, epoch in enumerate(ordered) if i % every == 0 or epoch == moments.part.epoch]
    text = [epoch_name(epoch) + moments.part.below(epoch) for epoch in ticks]
    for at in panels or ({},):
        figure.update_xaxes(title_text="epoch", tickangle=0, tickvals=ticks, ticktext=text, **at)
        if ordered:
            figure.update_xaxes(range=[ordered[0] - pad, ordered[-1] + pad], **at)
    add_marks(figure, [(mark.epoch, mark.text) for mark in moments.marks], max(ordered, default=0), *panels)


def add_marks(figure: go.Figure, places: Sequence[tuple[float, str]], end: float, *panels: Mapping[str, int]) -> None:
    """A dotted line with its text at each place, in these panels or the only one; x goes up to `end`."""
    for at in panels or ({},):
        for i, (x, text) in enumerate(places):
            figure.add_vline(x=x, line={"color": BLACK, "dash": "dot", "width": 1.5}, **at)
            side, lines = "right" if x > 0.7 * end else "left", "<br>".join(map(escape, textwrap.wrap(text, 26)))
            figure.add_annotation(
                x=x, y=1 - 0.07 * (i % 4), yref="y domain", text=lines, showarrow=False, xanchor=side, align=side,
                yanchor="top", xshift=3 if side == "left" else -3, font_size=12, bgcolor="rgba(255,255,255,0.7)", **at,
            )  # fmt: skip
