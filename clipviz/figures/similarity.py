"""How similar the class prototypes are: cosines between all pairs, and what adaptation did to them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.prototypes import NO_SNAPSHOTS, finite_snapshots, unit
from clipviz.trace import Trace

_MAX_NAMES = 24


class PrototypeSimilarity(NamedTuple):
    """Cosines (C,C) in [-1, 1] of every row prototype with every column prototype, before training and after.

    `rows` and `columns` name the snapshots; where they are one and the same, the diagonal is 1. `rows` is None
    without snapshots.
    """

    names: list[str]
    rows: str | None
    columns: str | None
    before: np.ndarray
    after: np.ndarray


def prototype_similarity_info(trace: Trace, rows: str | None = None, columns: str | None = None) -> PrototypeSimilarity:
    """Cosines between the stored prototypes.

    Args:
        trace: The run.
        rows: Snapshot of the rows; by default the first that moved (text prototypes, say).
        columns: Snapshot of the columns; by default another one that moved (image prototypes), or `rows`.

    Raises:
        ValueError: If there is no such snapshot.
    """
    snapshots = finite_snapshots(trace)
    if not snapshots:
        return PrototypeSimilarity([], None, None, *np.zeros((2, 0, 0)))
    # Last in the alphabet first, so that text prototypes are the rows and image prototypes the columns.
    moved = [name for name in reversed(snapshots) if not np.array_equal(snapshots[name][0], snapshots[name][-1])]
    rows = rows or (moved or list(snapshots))[0]
    columns = columns or next((name for name in moved if name != rows), rows)
    for name in (rows, columns):
        if name not in snapshots:
            raise ValueError(f"no snapshot {name!r} in this trace; it has {', '.join(snapshots)}")
    units = [unit(snapshots[name][[0, -1]]) for name in (rows, columns)]
    before, after = (units[0][when] @ units[1][when].T for when in (0, 1))
    names = [style.class_name(trace.class_names, label) for label in range(len(before))]
    return PrototypeSimilarity(names, rows, columns, before, after)


def draw_prototype_similarity(info: PrototypeSimilarity) -> go.Figure:
    """Two heat maps: the cosines after the last epoch, and how they changed since before training."""
    title = "Geometry: how similar the class prototypes are"
    if info.rows is None:
        return style.empty_chart(title, NO_SNAPSHOTS, "class", "class")
    figure = style.new_chart(
        title,
        660,
        0,
        panels=("cosine, last epoch", "change since before training"),
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    own, change = info.rows == info.columns, info.after - info.before
    others = ~np.eye(len(info.after), dtype=bool) if own and len(info.after) > 1 else np.ones_like(change, bool)
    largest = max(float(np.abs(change[others]).max()), 0.01)
    low, high = float(info.after[others].min()), float(info.after[others].max())
    _add_heatmap(figure, info.after, style.SIMILARITY_COLORS, (low, max(high, low + 0.01)), 0, style.LEFT)
    _add_heatmap(figure, change, style.CHANGE_COLORS, (-largest, largest), 1, style.RIGHT)
    ticks = style.thinned(info.names, _MAX_NAMES, 20)
    figure.update_layout(margin_b=210).update_xaxes(tickangle=-60, **ticks)
    figure.update_yaxes(autorange="reversed", **ticks, col=1).update_yaxes(autorange="reversed", ticks="", col=2)
    if not own:
        figure.update_yaxes(title_text=style.escape(info.rows), col=1)
        figure.update_xaxes(title_text=style.escape(info.columns))
    return figure


def _add_heatmap(
    figure: go.Figure, values: np.ndarray, colors: str, bounds: tuple[float, float], side: int, at: Mapping[str, int]
) -> None:
    """A matrix with its colour bar at the lower left (`side` 0) or right (1)."""
    # Hundredths as bytes: a matrix of 200 classes then weighs 50 kB in a page instead of 400.
    ticks, edge = np.linspace(100 * bounds[0], 100 * bounds[1], 5), ("left", "right")[side]
    figure.add_heatmap(
        z=np.clip((100 * values).round(), -127, 127).astype(np.int8), zmin=ticks[0], zmax=ticks[-1], colorscale=colors,
        colorbar={"orientation": "h", "thickness": 12, "len": 0.46, "x": float(side), "xanchor": edge, "y": 0.01,
                  "yref": "container", "yanchor": "bottom", "tickvals": ticks,
                  "ticktext": [f"{tick / 100:z.2f}" for tick in ticks]},
        hovertemplate="cosine %{z}/100<extra></extra>", **at,
    )  # fmt: skip


prototype_similarity = style.figure_of(prototype_similarity_info, draw_prototype_similarity)
