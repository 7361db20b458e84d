"""The loss terms, step by step."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures.moments import Moments, add_marks, moments
from clipviz.figures.style import add_line, empty_chart, escape, new_chart, term_look
from clipviz.trace import Trace

#: More points than pixels say nothing; longer runs are averaged into so many.
_MAX_POINTS = 300


class LossTerms(NamedTuple):
    """For each term (steps (n,), values (n,)); `"loss"`, the sum, first. `epoch_starts` are steps."""

    terms: dict[str, tuple[np.ndarray, np.ndarray]]
    epoch_starts: np.ndarray
    moments: Moments = Moments()


def loss_terms_info(trace: Trace) -> LossTerms:
    """Weighted loss terms by step, averaged over neighboring steps where there are too many to draw."""
    steps, terms = trace.steps, {}
    for name in sorted(steps["term"].unique(), key=lambda name: (name != "loss", name)):
        rows = steps[steps["term"] == name].sort_values("step")
        terms[str(name)] = _averaged(rows["step"].to_numpy(float)), _averaged(rows["value"].to_numpy(float))
    return LossTerms(terms, steps.groupby("epoch")["step"].min().to_numpy(int), moments(trace))


def _averaged(values: np.ndarray) -> np.ndarray:
    """Means of neighboring values (n,), at most so many as can be drawn."""
    return np.array([part.mean() for part in np.array_split(values, min(len(values), _MAX_POINTS))])


def draw_loss_terms(info: LossTerms) -> go.Figure:
    """One line per term, epochs as faint vertical lines."""
    title = "Loss terms (weighted, as they are summed)"
    if not info.terms:
        return empty_chart(title, "Nothing was trained.", "step", "loss")
    figure = new_chart(title, 400, x="step (faint vertical lines: a new epoch)", y="loss")
    for place, (name, (steps, values)) in enumerate(info.terms.items()):
        label, mode = "total loss" if name == "loss" else escape(name), "lines" if len(steps) > 1 else "markers"
        add_line(figure, steps, values, label, term_look(place), "%{fullData.name}: %{y:.3f}, step %{x:.0f}", mode=mode)
    if len(info.epoch_starts) <= 60:
        for start in info.epoch_starts[1:]:
            figure.add_vline(x=int(start), line={"color": "#cfcfcf", "width": 1}, layer="below")
    last = float(next(iter(info.terms.values()))[0][-1])
    add_marks(figure, [(mark.step, mark.text) for mark in info.moments.marks], last)
    return figure.update_xaxes(showgrid=False, tickvals=np.arange(last + 1) if last < 8 else None)  # no half steps
