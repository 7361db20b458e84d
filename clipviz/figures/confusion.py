"""The confusion matrix: which classes are predicted for which."""

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.trace import Trace

_MAX_HOVER = 50


class ConfusedPair(NamedTuple):
    """For `n` images of class `target` the class `prediction` was predicted."""

    target: str
    prediction: str
    n: int


class Confusion(NamedTuple):
    """Counts (C,C), rows true classes, columns predictions, and the most confused pairs, worst first."""

    names: list[str]
    counts: np.ndarray
    pairs: list[ConfusedPair]
    epoch: int | None


def confusion_info(trace: Trace, epoch: int | None = None, n_pairs: int = 12) -> Confusion:
    """Confusion on the evaluation images.

    Args:
        trace: The run.
        epoch: Epoch to look at, -1 for before training; the last one by default.
        n_pairs: At most so many confused pairs are listed.
    """
    rows = trace.predictions[trace.predictions["target"] >= 0]
    if epoch is None and len(rows):
        epoch = int(rows["epoch"].max())
    rows = rows[rows["epoch"] == epoch]
    if not len(rows):
        return Confusion([], np.zeros((0, 0), int), [], None)
    target, prediction = rows["target"].to_numpy(int), rows["prediction"].to_numpy(int)
    n_classes = max(len(trace.class_names), int(target.max()) + 1, int(prediction.max()) + 1)
    counts = np.bincount(target * n_classes + prediction, minlength=n_classes**2).reshape(n_classes, n_classes)
    names = [style.class_name(trace.class_names, label) for label in range(n_classes)]
    return Confusion(names, counts, _worst_pairs(names, counts, n_pairs), epoch)


def _worst_pairs(names: list[str], counts: np.ndarray, n_pairs: int) -> list[ConfusedPair]:
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:n_pairs]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [ConfusedPair(names[i], names[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]


def draw_confusion(info: Confusion) -> go.Figure:
    """The matrix in percent of each true class, and below it the pairs that are confused most."""
    title = "Confusion matrix"
    if info.epoch is None:
        return style.empty_chart(title, "No evaluation image came with its true label.", "predicted", "true class")
    top, below, height = {"row": 1, "col": 1}, {"row": 2, "col": 1}, 26 * max(len(info.pairs), 4)
    panels = ("row: true class, column: predicted class", "most confused pairs (true → predicted)")
    grid: dict[str, Any] = {"row_heights": [500, height], "vertical_spacing": 180 / (680 + height)}
    figure = style.new_chart(title, 790 + height, 0, panels=panels, rows=2, cols=1, **grid)
    shares, is_small = info.counts / np.maximum(info.counts.sum(1, keepdims=True), 1), len(info.names) <= _MAX_HOVER
    figure.add_heatmap(
        z=style.percent(shares).round().astype(np.uint8), zmin=0, zmax=100, colorscale=style.COUNT_COLORS,
        colorbar={"title": {"text": "% of the<br>true class"}, "len": 0.4, "y": 1, "yanchor": "top"},
        customdata=_hover(info) if is_small else None,  # names in every cell of a large matrix would cost megabytes
        hovertemplate=("%{customdata}" if is_small else "%{z:.0f} %") + "<extra></extra>", **top,
    )  # fmt: skip
    figure.update_xaxes(tickangle=-60, **style.thinned(info.names, width=20), **top)
    figure.update_yaxes(autorange="reversed", **style.thinned(info.names), **top)
    counts, places = [pair.n for pair in info.pairs], list(range(len(info.pairs)))
    labels = [" → ".join(style.short_names([pair.target, pair.prediction], 34)) for pair in info.pairs]
    numbers = {"text": list(map(str, counts)), "textposition": "auto", "textangle": 0, "hoverinfo": "skip"}
    bars: dict[str, Any] = {"orientation": "h", "showlegend": False, **numbers, **below}
    if info.pairs:  # Plotly has no place for no bars
        style.add_bars(figure, counts, places, None, style.INCORRECT, **bars)
    figure.update_xaxes(title_text="images", rangemode="tozero", showticklabels=False, ticks="", **below)
    figure.update_yaxes(tickvals=places, ticktext=labels, range=[max(len(labels), 4) - 0.4, -0.6], **below)
    return figure


def _hover(info: Confusion) -> list[list[str]]:
    """What to say about each cell."""
    names = style.short_names(info.names, 40)
    return [
        [f"{n} of {total} {true} predicted as {guess}" for n, guess in zip(row, names, strict=True)]
        for row, total, true in zip(info.counts, info.counts.sum(1), names, strict=True)
    ]


confusion = style.figure_of(confusion_info, draw_confusion)
