"""How accurate: per epoch for every method, per class before and after, and which classes are predicted for which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.compare import trace_labels
from clipviz.figures.moments import Mark, Moments, draw_epochs, marks
from clipviz.trace import Trace

_PER_CLASS_ROWS = 40


class AccuracySeries(NamedTuple):
    """Accuracies of one trace; each pair is (epochs (n,) int, fractions (n,) in [0, 1]), n may be 0."""

    label: str
    style: style.MethodStyle
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
    looks, labels, changed = style.trace_styles(traces), trace_labels(traces), list[Mark]()
    names = [look.name for look in looks]
    for name, label, trace in zip(names, labels, traces, strict=True):
        whose = f"{label if names.count(name) > 1 else name}: " if len(traces) > 1 else ""
        changed += [mark._replace(text=whose + mark.text) for mark in marks(trace)]
    accuracies = [(_pair(trace, "accuracy"), _pair(trace, "pseudo_label_accuracy")) for trace in traces]
    of_traces = zip(labels, looks, map(style.is_trained, traces), accuracies, strict=True)
    series = [AccuracySeries(label, look, is_trained, *pairs) for label, look, is_trained, pairs in of_traces]
    return AccuracyOverEpochs(series, Moments(marks=changed))


def _pair(trace: Trace, metric: str) -> tuple[np.ndarray, np.ndarray]:
    series = trace.metric(metric).dropna()
    return series.index.to_numpy(dtype=int), series.to_numpy(dtype=float)


def draw_accuracy_over_epochs(info: AccuracyOverEpochs) -> go.Figure:
    """Evaluation images beside pseudo-labels; methods without training are horizontal lines."""
    title = "Accuracy over epochs"
    pairs = [pair for series in info.series for pair in (series.test, series.pseudo_label)]
    if not any(len(values) for _, values in pairs):
        return style.empty_chart(title, "No image has a true label, so accuracy cannot be measured.", "epoch", "%")
    panels = ("evaluation images", "pseudo-labels")
    figure = style.new_chart(title, 440, panels=panels, shared_yaxes=True, horizontal_spacing=0.04)
    epochs = sorted({int(epoch) for pair in pairs for epoch in pair[0]})
    for series in info.series:
        _add_series(figure, series, epochs)
    of_panels = zip(style.PANELS, ("test", "pseudo_label"), strict=False)  # an empty one has no axis
    sides = [side for side, name in of_panels if any(len(getattr(series, name)[1]) for series in info.series)]
    draw_epochs(figure, epochs, info.moments, *sides)
    every = style.percent(np.concatenate([values for _, values in pairs]))
    around = None if np.ptp(every) else [max(every[0] - 5, -0.5), min(every[0] + 5, 100.5)]  # what accuracy can be
    figure.update_yaxes(title_text="accuracy (%)", showticklabels=True, range=around, **sides[0])
    return figure


def _add_series(figure: go.Figure, series: AccuracySeries, epochs: list[int]) -> None:
    label, hover = style.escape(series.label), "%{fullData.name}: %{y:.1f} %"
    for at, (x, y) in zip(style.PANELS, (series.test, series.pseudo_label), strict=False):
        if not len(y):
            continue
        more = {"legendgroup": label, "showlegend": at == style.LEFT or not len(series.test[1]), **at}
        if series.is_trained:
            style.add_line(figure, x, style.percent(y), label, series.style, f"{hover}, epoch %{{x}}", **more)
        else:
            ends, twice = [epochs[0] - 0.5, epochs[-1] + 0.5], style.percent(y[[-1, -1]])
            style.add_line(figure, ends, twice, label, series.style, hover, mode="lines", **more)


class PerClassAccuracy(NamedTuple):
    """Accuracy (m,) in [0, 1] of each class with evaluation images at the first and the last epoch, by falling gain."""

    names: list[str]
    n_images: np.ndarray
    before: np.ndarray
    after: np.ndarray
    epochs: tuple[int, int] | None


def per_class_accuracy_info(trace: Trace) -> PerClassAccuracy:
    """Per-class accuracy on the evaluation images before training and after the last epoch."""
    rows = trace.predictions[trace.predictions["target"] >= 0]
    if not len(rows):
        return PerClassAccuracy([], np.zeros(0), np.zeros(0), np.zeros(0), None)
    first, last = int(rows["epoch"].min()), int(rows["epoch"].max())
    is_right = (rows["prediction"] == rows["target"]).groupby([rows["target"], rows["epoch"]])
    table = pd.DataFrame({"mean": is_right.mean(), "size": is_right.size()}).unstack()
    before, after = (table["mean"][epoch].to_numpy(dtype=float) for epoch in (first, last))
    order = np.lexsort((-after, -np.nan_to_num(after - before)))
    names = [style.class_name(trace.class_names, int(table.index[i])) for i in order]
    n_images = np.nan_to_num(table["size"][last].to_numpy(dtype=float)).astype(int)
    return PerClassAccuracy(names, n_images[order], before[order], after[order], (first, last))


def draw_per_class_accuracy(info: PerClassAccuracy) -> go.Figure:
    """A dumbbell per class from before to after; of many classes the most gained and the most lost."""
    title = "Accuracy of each class, before and after"
    if info.epochs is None or info.epochs[0] == info.epochs[1]:
        why = "Accuracy was measured only once." if info.epochs else "No evaluation image has a true label."
        return style.empty_chart(title, why, "accuracy (%)", "class")
    n, half = len(info.names), _PER_CLASS_ROWS // 2
    shown = np.arange(n) if n <= _PER_CLASS_ROWS else np.r_[:half, n - half : n]
    if n > len(shown):
        title += f" ({n - len(shown)} classes in between omitted)"
    figure = style.new_chart(title, max(240, 150 + 20 * len(shown)), x="accuracy (%)")
    rows, before, after = np.arange(len(shown)), style.percent(info.before[shown]), style.percent(info.after[shown])
    gained, lost = style.Look(style.BLUE, "", "solid"), style.Look(style.VERMILLION, "", "dot")
    for name, chosen, look in (("gained", after > before, gained), ("lost", after < before, lost)):
        gap = np.full(int(chosen.sum()), np.nan)
        x, y = (np.stack([*ends, gap], 1).ravel() for ends in ((before[chosen], after[chosen]), (rows[chosen],) * 2))
        style.add_line(figure, x, y, name, look, "", hoverinfo="skip")
    names = style.short_names([info.names[i] for i in shown], 34)
    for name, x, look in (("before", before, style.BEFORE), ("after", after, style.AFTER)):
        counts = zip(names, x, info.n_images[shown], strict=True)
        text = [f"{label}: {value:.0f} % of {n}" for label, value, n in counts]
        style.add_line(figure, x, rows, name, look, "%{text}, " + name, mode="markers", text=text, marker={"size": 10})
    figure.update_xaxes(range=[-3, 103])
    figure.update_yaxes(tickvals=rows, ticktext=names, range=[len(shown) - 0.4, -0.6])
    return figure


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
    places = zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:n_pairs], wrong.shape), strict=True)
    return [ConfusedPair(names[i], names[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]


def draw_confusion(info: Confusion) -> go.Figure:
    """The matrix in percent of each true class, and below it the pairs that are confused most."""
    title = "Confusion matrix"
    if info.epoch is None:
        return style.empty_chart(title, "No evaluation image has a true label.", "predicted", "true class")
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
    named = list(dict.fromkeys(name for pair in info.pairs for name in (pair.target, pair.prediction)))
    cut = dict(zip(named, style.short_names(named, 22), strict=True))
    labels = [f"{cut[pair.target]} → {cut[pair.prediction]}" for pair in info.pairs]
    numbers = {"text": list(map(str, counts)), "textposition": "auto", "textangle": 0, "hoverinfo": "skip"}
    bars: dict[str, Any] = {"orientation": "h", "showlegend": False, **numbers, **below}
    if info.pairs:  # Plotly has no place for no bars
        style.add_bars(figure, counts, places, None, style.INCORRECT, **bars)
    figure.update_xaxes(title_text="images", rangemode="tozero", showticklabels=False, ticks="", **below)
    figure.update_yaxes(tickvals=places, ticktext=labels, range=[max(len(labels), 4) - 0.4, -0.6], **below)
    return figure


def _hover(info: Confusion) -> list[list[str]]:
    names = style.short_names(info.names, 40)
    return [
        [f"{n} of {total} {true} predicted as {guess}" for n, guess in zip(row, names, strict=True)]
        for row, total, true in zip(info.counts, info.counts.sum(1), names, strict=True)
    ]
