"""How accurate: per epoch for every method, and per class before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures.labels import trace_labels
from clipviz.figures.moments import Moments, draw_epochs, marks
from clipviz.figures.style import (
    BLUE,
    GRAY,
    VERMILLION,
    MethodStyle,
    apply_layout,
    class_name,
    empty_chart,
    escape,
    is_trained,
    percent,
    short_names,
    trace_styles,
)
from clipviz.trace import Trace

_PER_CLASS_ROWS = 40


class AccuracySeries(NamedTuple):
    """Accuracies of one trace; each pair is (epochs (n,) int, fractions (n,) in [0, 1]), n may be 0."""

    label: str
    style: MethodStyle
    is_trained: bool
    test: tuple[np.ndarray, np.ndarray]
    pseudo_label: tuple[np.ndarray, np.ndarray]


class AccuracyOverEpochs(NamedTuple):
    """One series per trace; `moments` are those of all."""

    series: list[AccuracySeries]
    moments: Moments = Moments()


def accuracy_over_epochs_info(traces: Trace | Sequence[Trace]) -> AccuracyOverEpochs:
    """Test accuracy and pseudo-label accuracy by epoch for each trace, or for the only one."""
    traces = [traces] if isinstance(traces, Trace) else traces
    styles, labels = trace_styles(traces), trace_labels(traces)
    names = [style.name for style in styles]
    whose = [f"{label if names.count(name) > 1 else name}: " for name, label in zip(names, labels, strict=True)]
    changed = [
        mark._replace(text=mark.text if len(traces) == 1 else prefix + mark.text)
        for prefix, trace in zip(whose, traces, strict=True)
        for mark in marks(trace)
    ]
    return AccuracyOverEpochs(
        [
            AccuracySeries(
                label,
                style,
                is_trained(trace),
                _pair(trace.metric("accuracy")),
                _pair(trace.metric("pseudo_label_accuracy")),
            )
            for label, style, trace in zip(labels, styles, traces, strict=True)
        ],
        Moments(marks=changed),
    )


def _pair(series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    series = series.dropna()
    return series.index.to_numpy(dtype=int), series.to_numpy(dtype=float)


def draw_accuracy_over_epochs(info: AccuracyOverEpochs) -> go.Figure:
    """Two panels side by side; methods without training are horizontal lines."""
    title = "Accuracy over epochs"
    if not any(len(values) for series in info.series for _, values in (series.test, series.pseudo_label)):
        return empty_chart(title, "No image came with its true label: accuracy cannot be measured.", "epoch", "%")
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("evaluation images", "pseudo-labels")
    )
    apply_layout(figure, title, 440, has_panel_titles=True)
    pairs = [pair for series in info.series for pair in (series.test, series.pseudo_label)]
    epochs = sorted({int(epoch) for pair in pairs for epoch in pair[0]})
    for series in info.series:
        _add_series(figure, series, epochs)
    draw_epochs(figure, epochs, info.moments, [(1, 1), (1, 2)])
    figure.update_yaxes(title_text="accuracy (%)", col=1)
    return figure


def _add_series(figure: go.Figure, series: AccuracySeries, epochs: list[int]) -> None:
    for column, (x, y) in enumerate((series.test, series.pseudo_label), start=1):
        if not len(y):
            continue
        span = [epochs[0] - 0.5, epochs[-1] + 0.5]
        figure.add_scatter(
            x=x if series.is_trained else span,
            y=percent(y if series.is_trained else np.repeat(y[-1], 2)),
            name=escape(series.label),
            legendgroup=escape(series.label),
            showlegend=column == 1 or not len(series.test[1]),
            mode="lines+markers" if series.is_trained else "lines",
            line={"color": series.style.color, "dash": series.style.dash, "width": 2.5},
            marker={"symbol": series.style.symbol, "size": 9},
            hovertemplate="%{fullData.name}: %{y:.1f} %"
            + (", epoch %{x}" if series.is_trained else "")
            + "<extra></extra>",
            row=1,
            col=column,
        )


def accuracy_over_epochs(traces: Trace | Sequence[Trace]) -> go.Figure:
    """Test and pseudo-label accuracy per epoch of every method, beside the methods that do not train."""
    return draw_accuracy_over_epochs(accuracy_over_epochs_info(traces))


class PerClassAccuracy(NamedTuple):
    """Accuracy of each class (m,) in [0, 1] at the first and the last epoch, by falling gain.

    Classes without evaluation images are left out.
    """

    names: list[str]
    n_images: np.ndarray
    before: np.ndarray
    after: np.ndarray
    epochs: tuple[int, int] | None


def per_class_accuracy_info(trace: Trace) -> PerClassAccuracy:
    """Per-class accuracy on the evaluation images before training and after the last epoch."""
    rows = trace.predictions[trace.predictions["target"] >= 0]
    if not len(rows):
        return PerClassAccuracy([], np.zeros(0, int), np.zeros(0), np.zeros(0), None)
    first, last = int(rows["epoch"].min()), int(rows["epoch"].max())
    rows = rows.assign(is_right=rows["prediction"] == rows["target"])
    table = rows.pivot_table(index="target", columns="epoch", values="is_right", aggfunc=["mean", "size"])
    before = table["mean"][first].to_numpy(dtype=float)
    after = table["mean"][last].to_numpy(dtype=float)
    order = np.lexsort((-after, -np.nan_to_num(after - before)))
    names = [class_name(trace.class_names, int(target)) for target in table.index]
    n_images = np.nan_to_num(table["size"][last].to_numpy(dtype=float)).astype(int)
    return PerClassAccuracy([names[i] for i in order], n_images[order], before[order], after[order], (first, last))


def draw_per_class_accuracy(info: PerClassAccuracy) -> go.Figure:
    """A dumbbell per class from before to after; of many classes the most gained and the most lost."""
    title = "Accuracy of each class, before and after"
    if info.epochs is None:
        return empty_chart(title, "No evaluation image came with its true label.", "accuracy (%)", "class")
    shown = _ends(len(info.names), _PER_CLASS_ROWS)
    left_out = len(info.names) - len(shown)
    if left_out:
        title += f" ({left_out} classes between are left out)"
    figure = go.Figure()
    apply_layout(figure, title, max(240, 150 + 20 * len(shown)))
    rows = np.arange(len(shown))
    before, after = percent(info.before[shown]), percent(info.after[shown])
    _add_dumbbell_lines(figure, before, after, rows)
    names = short_names([info.names[i] for i in shown], 34)
    for name, x, color, symbol in (("before", before, GRAY, "circle-open"), ("after", after, BLUE, "circle")):
        figure.add_scatter(
            x=x,
            y=rows,
            mode="markers",
            name=name,
            marker={"color": color, "symbol": symbol, "size": 10, "line": {"width": 2, "color": color}},
            text=[
                f"{label}: {value:.0f} % of {n}" for label, value, n in zip(names, x, info.n_images[shown], strict=True)
            ],
            hovertemplate="%{text}<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title_text="accuracy (%)", range=[-3, 103])
    figure.update_yaxes(tickvals=rows, ticktext=names, range=[len(shown) - 0.4, -0.6])
    return figure


def _ends(n: int, limit: int) -> np.ndarray:
    """Positions of all of n, or of the first and last `limit / 2`."""
    return np.arange(n) if n <= limit else np.r_[: limit // 2, n - limit // 2 : n]


def _add_dumbbell_lines(figure: go.Figure, before: np.ndarray, after: np.ndarray, rows: np.ndarray) -> None:
    for name, chosen, color, dash in (
        ("gained", after > before, BLUE, "solid"),
        ("lost", after < before, VERMILLION, "dot"),
    ):
        gap = np.full(int(chosen.sum()), np.nan)
        figure.add_scatter(
            x=np.stack([before[chosen], after[chosen], gap], 1).ravel(),
            y=np.stack([rows[chosen], rows[chosen], gap], 1).ravel(),
            mode="lines",
            name=name,
            line={"color": color, "dash": dash, "width": 2.5},
            hoverinfo="skip",
        )


def per_class_accuracy(trace: Trace) -> go.Figure:
    """Accuracy of each class on the evaluation images, before training and after the last epoch."""
    return draw_per_class_accuracy(per_class_accuracy_info(trace))
