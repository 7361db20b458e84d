"""The pseudo-labels: how confident they were, how far that could be trusted, and how many crops made them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import Moments, draw_epochs, epochs_of, moments, when
from clipviz.trace import Trace, calibration_bins

_QUANTILES, _CROP_BINS = (0.05, 0.25, 0.5, 0.75, 0.95), 30
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
    is_right, epochs = known["pseudo_label"] == known["target"], epochs_of(samples)
    overall, right, wrong = (quantiles_by_epoch(rows, epochs) for rows in (samples, known[is_right], known[~is_right]))
    if not len(known):
        return ConfidenceEvolution(epochs, overall, None, None, None, moments(trace))
    accuracy = is_right.groupby(known["epoch"]).mean().reindex(epochs).to_numpy(dtype=float)
    return ConfidenceEvolution(epochs, overall, right, wrong, accuracy, moments(trace))


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
        apart = [("right: median", info.right, style.CORRECT), ("wrong: median", info.wrong, style.INCORRECT)]
        panels["right and wrong pseudo-labels"] = apart
    figure = style.new_chart(title, 430, panels=list(panels), shared_yaxes=True, horizontal_spacing=0.05)
    places = style.PANELS[: len(panels)]
    for at, bands in zip(places, panels.values(), strict=True):
        for band in bands:
            add_bands(figure, at, info.epochs, *band)
    if info.accuracy is not None:
        name, look = "accuracy of the pseudo-labels", style.Look(style.BLACK, "diamond", "dashdot")
        hover = "%{y:.0%} of the pseudo-labels are right, epoch %{x}"
        style.add_line(figure, info.epochs, info.accuracy, name, look, hover, **style.LEFT)
    draw_epochs(figure, info.epochs, info.moments, *places)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="confidence, accuracy" if info.accuracy is not None else "confidence", col=1)
    return figure


def add_bands(
    figure: go.Figure, at: Mapping[str, int], epochs: np.ndarray, name: str, quantiles: np.ndarray, look: style.Look
) -> None:
    """Median line and bands of the middle half and the middle 90 %; a single epoch becomes an error bar."""
    group = {"legendgroup": name, **at}
    red, green, blue = (int(look.color[i : i + 2], 16) for i in (1, 3, 5))
    for low, high, opacity in ((0, 4, 0.15), (1, 3, 0.3)):
        shared = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "mode": "lines", **group}
        shade = f"rgba({red},{green},{blue},{opacity})"
        figure.add_scatter(x=epochs, y=quantiles[:, low], **shared)
        figure.add_scatter(x=epochs, y=quantiles[:, high], fill="tonexty", fillcolor=shade, **shared)
    above, below = np.abs(quantiles[:, [3, 1]] - quantiles[:, [2]]).T
    error = {"array": above, "arrayminus": below, "visible": len(epochs) == 1, "symmetric": False}
    hover = f"{name} %{{y:.2f}}, epoch %{{x}}"
    style.add_line(figure, epochs, quantiles[:, 2], name, look, hover, error_y=error, **group)


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
    epoch = int(max(epochs, default=-1)) if epoch is None else epoch
    unknown = np.full(n_bins, np.nan)
    confidence, accuracy, counts, ece = bins.get(epoch, (unknown, unknown, np.zeros(n_bins, int), np.nan))
    by_epoch, edges = np.array([value for *_, value in bins.values()]), np.linspace(0, 1, n_bins + 1)
    shown = epoch if epoch in bins else None
    return Reliability(shown, edges, confidence, accuracy, counts, ece, epochs, by_epoch, moments(trace))


def draw_reliability(info: Reliability) -> go.Figure:
    """Accuracy against confidence with the ideal diagonal, and the calibration error over the epochs."""
    title = "Reliability: is a confidence of 80 % right in 80 % of cases?"
    if info.epoch is None:
        return style.empty_chart(title, "No pseudo-labels with known targets at this epoch.", "confidence", "accuracy")
    panels = (f"{when(info.epoch, info.moments.part)}: ECE {100 * info.ece:.1f} %", "ECE over epochs")
    figure = style.new_chart(title, 440, panels=panels, column_widths=[0.6, 0.4], horizontal_spacing=0.12)
    centers, look = (info.edges[:-1] + info.edges[1:]) / 2, style.Look(style.SKY, "", "")
    bars = {"width": 1 / len(centers), "marker": {"line": {"color": "white", "width": 1}}, "customdata": info.counts}
    name, hover = "accuracy in the bin (numbers: images)", "right in %{y:.0%} of %{customdata} images"
    style.add_bars(figure, centers, info.accuracy, name, look, hover, **bars, **style.LEFT)
    text = [str(n) if n else "" for n in info.counts]
    counts = {"mode": "text", "text": text, "textfont": {"size": 12, "color": style.BLACK}, "hoverinfo": "skip"}
    figure.add_scatter(x=centers, y=np.full(len(centers), 0.035), showlegend=False, **counts, **style.LEFT)
    ideal = style.Look(style.BLACK, "", "dot")
    style.add_line(figure, [0, 1], [0, 1], "perfectly calibrated", ideal, "%{y:.0%}", **style.LEFT)
    ece, look = style.percent(info.ece_by_epoch), style.Look(style.VERMILLION, "circle", "solid")
    hover = "epoch %{x}: %{y:.1f} %"
    style.add_line(figure, info.epochs, ece, "ECE", look, hover, showlegend=False, **style.RIGHT)
    draw_epochs(figure, info.epochs, info.moments, style.RIGHT)
    figure.update_xaxes(title_text="confidence", range=[0, 1], dtick=0.2, **style.LEFT)
    figure.update_yaxes(title_text="accuracy", range=[0, 1.02], dtick=0.2, **style.LEFT)
    figure.update_yaxes(title_text="expected calibration error (%)", rangemode="tozero", **style.RIGHT)
    return figure


class CropWeights(NamedTuple):
    """How the relevance weights of the crops are spread.

    The effective number of crops is exp(entropy of the weights): K when all count alike, 1 when one decides.
    """

    epochs: np.ndarray  # (E,) int
    effective: np.ndarray  # (E,5) quantiles (5 %, 25 %, 50 %, 75 %, 95 %) of the effective number
    largest_edges: np.ndarray  # (bins+1,) of the histograms of the largest weight, in [0, 1]
    largest_first: np.ndarray  # (bins,) shares of the images of the first epoch
    largest_last: np.ndarray  # (bins,) and of the last one
    n_crops: int | None  # K; None where the trace does not say
    moments: Moments = Moments()


def crop_weights_info(trace: Trace) -> CropWeights:
    """Spread of the crop weights over the training images, by epoch."""
    samples, n_crops, needed = trace.samples, trace.meta.get("n_crops"), ["crop_effective", "crop_weight_max"]
    samples = samples.dropna(subset=needed) if needed[0] in samples else samples[:0]
    if not len(samples):
        return CropWeights(np.zeros(0, int), np.zeros((0, 5)), np.zeros(1), np.zeros(0), np.zeros(0), n_crops)
    epochs, largest = epochs_of(samples), samples["crop_weight_max"].to_numpy(float)
    edges = np.linspace(largest.min() - 1e-4, largest.max() + 1e-4, _CROP_BINS + 1)
    counts = (np.histogram(largest[(samples["epoch"] == epoch).to_numpy()], edges)[0] for epoch in epochs[[0, -1]])
    first, last = (count / count.sum() for count in counts)
    effective = quantiles_by_epoch(samples, epochs, "crop_effective")
    return CropWeights(epochs, effective, edges, first, last, n_crops, moments(trace))


def draw_crop_weights(info: CropWeights) -> go.Figure:
    """Effective number of crops over the epochs, beside the largest weight in the first and the last epoch."""
    title = "Crop weights: how many crops contribute"
    if not len(info.epochs):
        why = "This method has no crops, or their weights were not recorded."
        return style.empty_chart(title, why, "epoch", "crops")
    panels = ("effective number of crops", "largest weight of an image")
    figure = style.new_chart(title, 430, panels=panels, horizontal_spacing=0.12)
    look = style.Look(style.BLUE, "circle", "solid")
    add_bands(figure, style.LEFT, info.epochs, "median (bands: middle 50 % and 90 %)", info.effective, look)
    first = ("first epoch", info.largest_first, style.Look(style.GRAY, "", "dot"))
    last = ("last epoch", info.largest_last, style.Look(style.ORANGE, "", "solid"))
    # The centers of the bins, halfway between which a line steps, and the ends of the outer ones.
    places = np.convolve(np.pad(info.largest_edges, 1, "edge"), (0.5, 0.5), "valid")
    for name, shares, look in [last] if len(info.epochs) == 1 else [first, last]:
        hover = name + ": %{y:.1f} % of the images at %{x:.3f}"
        heights = style.percent(np.pad(shares, 1, "edge"))
        style.add_line(figure, places, heights, name, look, hover, line={"shape": "hvh"}, **style.RIGHT)
    if info.n_crops:
        line = {"color": style.BLACK, "dash": "dot", "width": 1.5}
        style.add_line(figure, [None], [None], "equal weights", style.Look(style.BLACK, "", "dot"), "", line=line)
        figure.add_hline(y=info.n_crops, line=line, **style.LEFT)
        figure.add_vline(x=1 / info.n_crops, line=line, **style.RIGHT)
    draw_epochs(figure, info.epochs, info.moments, style.LEFT)
    figure.update_yaxes(title_text="crops", **style.LEFT)
    figure.update_xaxes(title_text="largest crop weight", **style.RIGHT)
    figure.update_yaxes(title_text="% of the images", rangemode="tozero", **style.RIGHT)
    return figure
