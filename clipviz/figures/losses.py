"""The terms of the objective, step by step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures.moments import Moments, add_marks, moments
from clipviz.figures.style import apply_layout, empty_chart, escape, term_look
from clipviz.trace import Trace

#: More points than pixels say nothing; longer runs are averaged into so many.
_MAX_POINTS = 300


class LossTerms(NamedTuple):
    """For each term (steps (n,), values (n,)); `"loss"`, the sum, first. `epoch_starts` are steps."""

    terms: dict[str, tuple[np.ndarray, np.ndarray]]
    epoch_starts: np.ndarray
    moments: Moments = Moments()


def loss_terms_info(trace: Trace) -> LossTerms:
    """Weighted loss terms by step, averaged over neighbouring steps where there are too many to draw."""
    steps = trace.steps
    names = sorted(steps["term"].unique(), key=lambda name: (name != "loss", name))
    terms = {}
    for name in names:
        rows = steps[steps["term"] == name].sort_values("step")
        terms[str(name)] = _averaged(rows["step"].to_numpy(float), rows["value"].to_numpy(float))
    starts = steps.groupby("epoch")["step"].min().to_numpy(int)
    return LossTerms(terms, starts, moments(trace))


def _averaged(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_points = min(len(steps), _MAX_POINTS)
    if n_points == len(steps):
        return steps, values
    groups = [np.array_split(array, n_points) for array in (steps, values)]
    return np.array([g.mean() for g in groups[0]]), np.array([g.mean() for g in groups[1]])


def draw_loss_terms(info: LossTerms) -> go.Figure:
    """One line per term, epochs as faint vertical lines."""
    title = "Loss terms (weighted, as they are summed)"
    if not info.terms:
        return empty_chart(title, "Nothing was trained.", "step", "loss")
    figure = go.Figure()
    apply_layout(figure, title, 400)
    for place, (name, (steps, values)) in enumerate(info.terms.items()):
        figure.add_scatter(
            x=steps,
            y=values,
            name="loss = their sum" if name == "loss" else escape(name),
            mode="lines" if len(steps) > 1 else "markers",
            line={"color": term_look(place).color, "dash": term_look(place).dash, "width": 2},
            hovertemplate="%{fullData.name}: %{y:.3f}, step %{x:.0f}<extra></extra>",
        )
    if len(info.epoch_starts) <= 60:
        for start in info.epoch_starts[1:]:
            figure.add_vline(x=int(start), line={"color": "#cfcfcf", "width": 1}, layer="below")
    add_marks(
        figure, [(mark.step, mark.text) for mark in info.moments.marks], float(next(iter(info.terms.values()))[0][-1])
    )
    figure.update_xaxes(title_text="step (faint vertical lines: a new epoch)", showgrid=False)
    figure.update_yaxes(title_text="loss")
    return figure


def loss_terms(trace: Trace) -> go.Figure:
    """The weighted loss terms and their sum over all steps."""
    return draw_loss_terms(loss_terms_info(trace))
