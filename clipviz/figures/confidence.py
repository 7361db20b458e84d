"""The guesses that training learned from: how sure they were, and how far that could be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures.moments import Moments, draw_epochs, moments, when
from clipviz.figures.style import (
    BLACK,
    GRAY,
    RIGHT,
    SKY,
    VERMILLION,
    WRONG,
    apply_layout,
    empty_chart,
    percent,
)
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
    epochs = np.sort(samples["epoch"].unique()).astype(int)
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
        return empty_chart(title, _NO_PSEUDO_LABELS, "epoch", "confidence")
    panels = [("all pseudo-labels", [("all: median", info.all, GRAY, "circle", "solid")])]
    if info.right is not None and info.wrong is not None:
        split = [
            ("right: median", info.right, RIGHT, "circle", "solid"),
            ("wrong: median", info.wrong, WRONG, "x", "dash"),
        ]
        panels.append(("right and wrong ones apart", split))
    figure = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[name for name, _ in panels],
    )
    apply_layout(figure, title, 430, has_panel_titles=True)
    for column, (_, bands) in enumerate(panels, start=1):
        for band in bands:
            add_bands(figure, column, info.epochs, *band)
    if info.accuracy is not None:
        figure.add_scatter(
            x=info.epochs,
            y=info.accuracy,
            name="accuracy of the pseudo-labels",
            mode="lines+markers",
            line={"color": BLACK, "dash": "dashdot", "width": 2},
            marker={"symbol": "diamond", "size": 8},
            hovertemplate="%{y:.0%} of the pseudo-labels are right, epoch %{x}<extra></extra>",
            row=1,
            col=1,
        )
    draw_epochs(figure, info.epochs, info.moments, [(1, 1 + i) for i in range(len(panels))])
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="confidence, accuracy" if info.accuracy is not None else "confidence", col=1)
    return figure


def add_bands(
    figure: go.Figure,
    column: int,
    epochs: np.ndarray,
    name: str,
    quantiles: np.ndarray,
    color: str,
    symbol: str,
    dash: str,
) -> None:
    """Median line and bands of the middle half and the middle 90 %; a single epoch becomes an error bar."""
    at = {"row": 1, "col": column}
    shared = {"legendgroup": name, "hoverinfo": "skip", "showlegend": False, "mode": "lines"}
    for low, high, opacity in ((0, 4, 0.15), (1, 3, 0.3)):
        figure.add_scatter(x=epochs, y=quantiles[:, low], line={"width": 0}, **shared, **at)
        figure.add_scatter(
            x=epochs,
            y=quantiles[:, high],
            line={"width": 0},
            fill="tonexty",
            fillcolor=_transparent(color, opacity),
            **shared,
            **at,
        )
    spread = np.abs(quantiles[:, [3, 1]] - quantiles[:, [2]])
    figure.add_scatter(
        x=epochs,
        y=quantiles[:, 2],
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": color, "width": 2.5, "dash": dash},
        marker={"symbol": symbol, "size": 8},
        error_y={
            "array": spread[:, 0],
            "arrayminus": spread[:, 1],
            "visible": len(epochs) == 1,
            "symmetric": False,
        },
        hovertemplate=f"{name} %{{y:.2f}}, epoch %{{x}}<extra></extra>",
        **at,
    )


def _transparent(color: str, opacity: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def confidence_evolution(trace: Trace) -> go.Figure:
    """Quantile bands of pseudo-label confidence per epoch, right and wrong ones apart where targets exist."""
    return draw_confidence_evolution(confidence_evolution_info(trace))


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
    epochs = np.sort(known["epoch"].unique()).astype(int)
    bins = {int(e): calibration_bins(known[known["epoch"] == e], "pseudo_label", n_bins) for e in epochs}
    if epoch is None and len(epochs):
        epoch = int(epochs[-1])
    chosen = bins.get(epoch) if epoch is not None else None
    confidence, accuracy, counts, ece = chosen or (
        *np.full((2, n_bins), np.nan),
        np.zeros(n_bins, int),
        np.nan,
    )
    return Reliability(
        epoch if chosen else None,
        np.linspace(0, 1, n_bins + 1),
        confidence,
        accuracy,
        counts,
        ece,
        epochs,
        np.array([bins[int(e)][3] for e in epochs]),
        moments(trace),
    )


def draw_reliability(info: Reliability) -> go.Figure:
    """Accuracy against confidence with the ideal diagonal, and the calibration error over the epochs."""
    title = "Reliability: is a confidence of 80 % right in 80 % of cases?"
    if info.epoch is None:
        return empty_chart(title, "No pseudo-labels with known targets at this epoch.", "confidence", "accuracy")
    figure = make_subplots(
        cols=2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.12,
        subplot_titles=(
            f"{when(info.epoch, info.moments.part)}: ECE {100 * info.ece:.1f} %",
            "ECE over epochs",
        ),
    )
    apply_layout(figure, title, 440, has_panel_titles=True)
    centers = (info.edges[:-1] + info.edges[1:]) / 2
    figure.add_bar(
        x=centers,
        y=info.accuracy,
        width=1 / len(centers),
        name="accuracy in the bin (numbers: images)",
        marker={"color": SKY, "line": {"color": "white", "width": 1}},
        customdata=info.counts,
        hovertemplate="right in %{y:.0%} of %{customdata} images<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=centers,
        y=np.full(len(centers), 0.035),
        mode="text",
        text=[str(n) if n else "" for n in info.counts],
        textfont={"size": 12, "color": BLACK},
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="perfectly calibrated",
        line={"color": BLACK, "dash": "dot"},
        row=1,
        col=1,
    )
    _add_ece(figure, info)
    figure.update_xaxes(title_text="confidence", range=[0, 1], dtick=0.2, row=1, col=1)
    figure.update_yaxes(title_text="accuracy", range=[0, 1.02], dtick=0.2, row=1, col=1)
    return figure


def _add_ece(figure: go.Figure, info: Reliability) -> None:
    figure.add_scatter(
        x=info.epochs,
        y=percent(info.ece_by_epoch),
        mode="lines+markers",
        line={"color": VERMILLION, "width": 2.5},
        marker={"size": 8},
        showlegend=False,
        hovertemplate="epoch %{x}: %{y:.1f} %<extra></extra>",
        row=1,
        col=2,
    )
    draw_epochs(figure, info.epochs, info.moments, [(1, 2)])
    figure.update_yaxes(title_text="expected calibration error (%)", rangemode="tozero", row=1, col=2)


def reliability(trace: Trace, epoch: int | None = None) -> go.Figure:
    """Reliability diagram of one epoch's pseudo-labels (the last by default), and ECE over all epochs."""
    return draw_reliability(reliability_info(trace, epoch))
