"""How the crops are weighted: whether a few of them make the composite or all count alike."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.confidence import add_bands, quantiles_by_epoch
from clipviz.figures.moments import Moments, draw_epochs, epochs_of, moments
from clipviz.trace import Trace

_BINS = 30


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
    epochs = epochs_of(samples)
    largest = samples["crop_weight_max"].to_numpy(float)
    edges = np.linspace(largest.min() - 1e-4, largest.max() + 1e-4, _BINS + 1)
    counts = (np.histogram(largest[(samples["epoch"] == epoch).to_numpy()], edges)[0] for epoch in epochs[[0, -1]])
    first, last = (count / count.sum() for count in counts)
    effective = quantiles_by_epoch(samples, epochs, "crop_effective")
    return CropWeights(epochs, effective, edges, first, last, n_crops, moments(trace))


def draw_crop_weights(info: CropWeights) -> go.Figure:
    """Effective number of crops over the epochs, beside the largest weight in the first and the last epoch."""
    title = "Crop weights: how many crops count"
    if not len(info.epochs):
        why = "This method has no crops, or their weights were not recorded."
        return style.empty_chart(title, why, "epoch", "crops")
    panels = ("effective number of crops", "largest weight of an image")
    figure = style.new_chart(title, 430, panels=panels, horizontal_spacing=0.12)
    look = style.Look(style.BLUE, "circle", "solid")
    add_bands(figure, style.LEFT, info.epochs, "median (bands: middle 50 % and 90 %)", info.effective, look)
    ends = [
        ("first epoch", info.largest_first, style.Look(style.GRAY, "", "dot")),
        ("last epoch", info.largest_last, style.Look(style.ORANGE, "", "solid")),
    ]
    centers = (info.largest_edges[:-1] + info.largest_edges[1:]) / 2
    for name, shares, look in ends[-1:] if len(info.epochs) == 1 else ends:
        hover = name + ": %{y:.1f} % of the images at %{x:.3f}"
        style.add_line(figure, centers, style.percent(shares), name, look, hover, line={"shape": "hvh"}, **style.RIGHT)
    if info.n_crops:
        line = {"color": style.BLACK, "dash": "dot", "width": 1.5}
        style.add_line(figure, [None], [None], "all alike", style.Look(style.BLACK, "", "dot"), "", line=line)
        figure.add_hline(y=info.n_crops, line=line, **style.LEFT)
        figure.add_vline(x=1 / info.n_crops, line=line, **style.RIGHT)
    draw_epochs(figure, info.epochs, info.moments, style.LEFT)
    figure.update_yaxes(title_text="crops", **style.LEFT)
    figure.update_xaxes(title_text="largest crop weight", **style.RIGHT)
    figure.update_yaxes(title_text="% of the images", rangemode="tozero", **style.RIGHT)
    return figure


crop_weights = style.figure_of(crop_weights_info, draw_crop_weights)
