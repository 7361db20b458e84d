"""How alike the class vectors are: cosines between all pairs, and what adaptation did to them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures.prototypes import finite_snapshots, unit
from clipviz.figures.style import (
    CHANGE_COLORS,
    SIMILARITY_COLORS,
    apply_layout,
    class_name,
    empty_chart,
    escape,
    thinned,
)
from clipviz.trace import Trace

_MAX_NAMES = 24


class PrototypeSimilarity(NamedTuple):
    """Cosines (C,C) in [-1, 1] of every row vector with every column vector, before training and after.

    `rows` and `columns` name the snapshots; where they are one and the same, the diagonal is 1. `rows` is None
    without snapshots.
    """

    names: list[str]
    rows: str | None
    columns: str | None
    before: np.ndarray
    after: np.ndarray


def prototype_similarity_info(trace: Trace, rows: str | None = None, columns: str | None = None) -> PrototypeSimilarity:
    """Cosines between the stored class vectors.

    Args:
        trace: The run.
        rows: Snapshot of the rows; by default the first that moved (text prototypes, say).
        columns: Snapshot of the columns; by default another one that moved (image prototypes), or `rows`.

    Raises:
        ValueError: If there is no such snapshot.
    """
    snapshots = finite_snapshots(trace)
    if not snapshots:
        return PrototypeSimilarity([], None, None, np.zeros((0, 0)), np.zeros((0, 0)))
    # Last in the alphabet first, so that text prototypes are the rows and image prototypes the columns.
    moved = [name for name in reversed(snapshots) if not np.array_equal(snapshots[name][0], snapshots[name][-1])]
    rows = rows or (moved or list(snapshots))[0]
    columns = columns or next((name for name in moved if name != rows), rows)
    for name in (rows, columns):
        if name not in snapshots:
            raise ValueError(f"no snapshot {name!r} in this trace; it has {', '.join(snapshots)}")
    units = [unit(snapshots[name][[0, -1]]) for name in (rows, columns)]
    before, after = (units[0][when] @ units[1][when].T for when in (0, 1))
    names = [class_name(trace.class_names, label) for label in range(len(before))]
    return PrototypeSimilarity(names, rows, columns, before, after)


def draw_prototype_similarity(info: PrototypeSimilarity) -> go.Figure:
    """Two heat maps: the cosines after the last epoch, and how they changed since before training."""
    title = "Geometry: how alike the class vectors are"
    if info.rows is None:
        return empty_chart(title, "This trace holds no snapshots of class vectors.", "class", "class")
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=("cosine, last epoch", "change of it")
    )
    apply_layout(figure, title, 660, legend_rows=0, has_panel_titles=True)
    own = info.rows == info.columns
    change = info.after - info.before
    others = ~np.eye(len(info.after), dtype=bool) if own and len(info.after) > 1 else np.ones_like(change, bool)
    largest = max(float(np.abs(change[others]).max()), 0.01)
    low, high = float(info.after[others].min()), float(info.after[others].max())
    bars = [{"x": 0.0, "xanchor": "left"}, {"x": 1.0, "xanchor": "right"}]
    for column, (values, colors, bounds) in enumerate(
        [(info.after, SIMILARITY_COLORS, (low, max(high, low + 0.01))), (change, CHANGE_COLORS, (-largest, largest))],
        start=1,
    ):
        _add_heatmap(figure, values, colors, bounds, bars[column - 1], column)
    ticks = thinned(info.names, _MAX_NAMES, 20)
    figure.update_xaxes(tickangle=-60, **ticks)
    figure.update_layout(margin_b=210)
    figure.update_yaxes(**ticks, autorange="reversed", col=1)
    figure.update_yaxes(autorange="reversed", ticks="", col=2)
    if not own:
        figure.update_yaxes(title_text=escape(info.rows), col=1)
        figure.update_xaxes(title_text=escape(info.columns))
    return figure


def _add_heatmap(
    figure: go.Figure, values: np.ndarray, colors: str, bounds: tuple[float, float], place: dict, column: int
) -> None:
    # Hundredths as bytes: a matrix of 200 classes then weighs 50 kB in a page instead of 400.
    low, high = (100 * bound for bound in bounds)
    ticks = np.linspace(low, high, 5)
    bar = {
        "orientation": "h",
        "len": 0.46,
        "thickness": 12,
        "y": 0.01,
        "yref": "container",
        "yanchor": "bottom",
        "tickvals": ticks,
        "ticktext": [f"{tick / 100:z.2f}" for tick in ticks],
        **place,
    }
    figure.add_heatmap(
        z=np.clip((100 * values).round(), -127, 127).astype(np.int8),
        colorscale=colors,
        zmin=low,
        zmax=high,
        colorbar=bar,
        hovertemplate="%{z} hundredths<extra></extra>",
        row=1,
        col=column,
    )


def prototype_similarity(trace: Trace) -> go.Figure:
    """Cosines between the class vectors after the last epoch, and their change since before training."""
    return draw_prototype_similarity(prototype_similarity_info(trace))
