"""The guesses that training learned from: how sure they were, and how far that could be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import Moments, draw_epochs, epochs_of, moments, when
from clipviz.trace import Trace, calibration_bins

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NO_PSEUDO_LABELS = "No pseudo-labels in this trace: the method does not learn from them, or nothing was trained."


class ConfidenceEvolution(NamedTuple):
    """Quantiles (5 %, 25 %, 50 %, 75 %, 95 %) of pseudo-label confidence (E,5) by epoch (E,).

    `accuracy` (E,) is the share of right pseudo-labels; `right` and `wrong` are quantiles over the images whose
    pseudo-label is (not) the target. All three are None without targets.
    """

    epochs: np.ndarray
    all: np.ndarray
    right: np.ndarray | None
    wrong: np.ndarray | None
    accuracy: np.ndarray | None
    moments: Moments = Moments()


def confidence_evolution_info(trace: Trace) -> ConfidenceEvolution:
    """Quantiles of confidence in [0, 1] for each epoch."""
    samples = trace.samples
    known = samples[samples["target"] >= 0]
    is_right = known["pseudo_label"] == known["target"]
    epochs = epochs_of(samples)
    return ConfidenceEvolution(
        epochs,
        quantiles_by_epoch(samples, epochs),
        quantiles_by_epoch(known[is_right], epochs) if len(known) else None,
        quantiles_by_epoch(known[~is_right], epochs) if len(known) else None,
        is_right.groupby(known["epoch"]).mean().reindex(epochs).to_numpy(dtype=float) if len(known) else None,
        moments(trace),
    )


def quantiles_by_epoch(samples: pd.DataFrame, epochs: np.ndarray, column: str = "confidence") -> np.ndarray:
    """Quantiles (E,5) of a column of the samples at 5, 25, 50, 75 and 95 % for each epoch (E,); NaN for none."""
    by_epoch = samples.groupby("epoch")[column].quantile(np.array(_QUANTILES)).unstack()
    return by_epoch.reindex(index=epochs, columns=list(_QUANTILES)).to_numpy(dtype=float)


def draw_confidence_evolution(info: ConfidenceEvolution) -> go.Figure:
    """Bands of all pseudo-labels, and where targets exist the right beside the wrong ones."""
    title = "Confidence of the pseudo-labels (bands: middle 50 % and 90 %)"
    if not len(info.epochs):
        return style.empty_chart(title, _NO_PSEUDO_LABELS, "epoch", "confidence")
    panels = {"all pseudo-labels": [("all: median", info.all, style.Look(style.GRAY, "circle", "solid"))]}
    if info.right is not None and info.wrong is not None:
        panels["right and wrong ones apart"] = [
            ("right: median", info.right, style.Look(style.RIGHT, "circle", "solid")),
            ("wrong: median", info.wrong, style.Look(style.WRONG, "x", "dash")),
        ]
    grid = {"cols": len(panels), "shared_yaxes": True, "horizontal_spacing": 0.05, "subplot_titles": list(panels)}
    figure = style.new_chart(title, 430, grid=grid)
    for column, bands in enumerate(panels.values(), start=1):
        for band in bands:
            add_bands(figure, column, info.epochs, *band)
    if info.accuracy is not None:
        name, hover = "accuracy of the pseudo-labels", "%{y:.0%} of the pseudo-labels are right, epoch %{x}"
        style.add_line(
            figure, info.epochs, info.accuracy, name, style.Look(style.BLACK, "diamond", "dashdot"), hover, row=1, col=1
        )
    draw_epochs(figure, info.epochs, info.moments, [(1, 1 + i) for i in range(len(panels))])
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="confidence, accuracy" if info.accuracy is not None else "confidence", col=1)
    return figure


def add_bands(
    figure: go.Figure, column: int, epochs: np.ndarray, name: str, quantiles: np.ndarray, look: style.Look
) -> None:
    """Median line and bands of the middle half and the middle 90 %; a single epoch becomes an error bar."""
    at = {"row": 1, "col": column, "legendgroup": name}
    red, green, blue = (int(look.color[i : i + 2], 16) for i in (1, 3, 5))
    for low, high, opacity in ((0, 4, 0.15), (1, 3, 0.3)):
        shared = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "mode": "lines", **at}
        figure.add_scatter(x=epochs, y=quantiles[:, low], **shared)
        shade = f"rgba({red},{green},{blue},{opacity})"
        figure.add_scatter(x=epochs, y=quantiles[:, high], fill="tonexty", fillcolor=shade, **shared)
    above, below = np.abs(quantiles[:, [3, 1]] - quantiles[:, [2]]).T
    error = {"array": above, "arrayminus": below, "visible": len(epochs) == 1, "symmetric": False}
    style.add_line(figure, epochs, quantiles[:, 2], name, look, f"{name} %{{y:.2f}}, epoch %{{x}}", error_y=error, **at)


confidence_evolution = style.figure_of(confidence_evolution_info, draw_confidence_evolution)


class Reliability(NamedTuple):
    """Calibration of the pseudo-labels of one epoch in equal-width bins, and the ECE of every epoch.

    `edges` (n_bins+1,), `confidence`, `accuracy` (n_bins,) in [0, 1] (NaN in an empty bin), `counts`
    (n_bins,). ECE = sum over bins of (count / n) |accuracy - confidence|.
    """

    epoch: int | None
    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    ece: float
    epochs: np.ndarray
    ece_by_epoch: np.ndarray
    moments: Moments = Moments()


def reliability_info(trace: Trace, epoch: int | None = None, n_bins: int = 10) -> Reliability:
    """Reliability of the pseudo-labels of `epoch` (the last by default); only images with a target count."""
    known = trace.samples[trace.samples["target"] >= 0]
    epochs = epochs_of(known)
    bins = {int(e): calibration_bins(known[known["epoch"] == e], "pseudo_label", n_bins) for e in epochs}
    if epoch is None:
        epoch = int(max(epochs, default=-1))
    nothing = (*np.full((2, n_bins), np.nan), np.zeros(n_bins, int), np.nan)
    confidence, accuracy, counts, ece = bins.get(epoch, nothing)
    shown, edges = epoch if epoch in bins else None, np.linspace(0, 1, n_bins + 1)
    all_ece = np.array([value for *_, value in bins.values()])
    return Reliability(shown, edges, confidence, accuracy, counts, ece, epochs, all_ece, moments(trace))


def draw_reliability(info: Reliability) -> go.Figure:
    """Accuracy against confidence with the ideal diagonal, and the calibration error over the epochs."""
    title = "Reliability: is a confidence of 80 % right in 80 % of cases?"
    if info.epoch is None:
        return style.empty_chart(title, "No pseudo-labels with known targets at this epoch.", "confidence", "accuracy")
    titles = (f"{when(info.epoch, info.moments.part)}: ECE {100 * info.ece:.1f} %", "ECE over epochs")
    grid = {"cols": 2, "column_widths": [0.6, 0.4], "horizontal_spacing": 0.12, "subplot_titles": titles}
    figure = style.new_chart(title, 440, grid=grid)
    left, right = {"row": 1, "col": 1}, {"row": 1, "col": 2}
    centers = (info.edges[:-1] + info.edges[1:]) / 2
    figure.add_bar(
        x=centers,
        y=info.accuracy,
        width=1 / len(centers),
        name="accuracy in the bin (numbers: images)",
        marker={"color": style.SKY, "line": {"color": "white", "width": 1}},
        customdata=info.counts,
        hovertemplate="right in %{y:.0%} of %{customdata} images<extra></extra>",
        **left,
    )
    counts = {
        "mode": "text",
        "text": [str(n) if n else "" for n in info.counts],
        "textfont": {"size": 12, "color": style.BLACK},
    }
    figure.add_scatter(x=centers, y=np.full(len(centers), 0.035), **counts, showlegend=False, hoverinfo="skip", **left)
    style.add_line(
        figure, [0, 1], [0, 1], "perfectly calibrated", style.Look(style.BLACK, "", "dot"), "%{y:.0%}", **left
    )
    ece, look, hover = (
        style.percent(info.ece_by_epoch),
        style.Look(style.VERMILLION, "circle", "solid"),
        "epoch %{x}: %{y:.1f} %",
    )
    style.add_line(figure, info.epochs, ece, "ECE", look, hover, showlegend=False, **right)
    draw_epochs(figure, info.epochs, info.moments, [(1, 2)])
    figure.update_xaxes(title_text="confidence", range=[0, 1], dtick=0.2, **left)
    figure.update_yaxes(title_text="accuracy", range=[0, 1.02], dtick=0.2, **left)
    figure.update_yaxes(title_text="expected calibration error (%)", rangemode="tozero", **right)
    return figure


reliability = style.figure_of(reliability_info, draw_reliability)
