"""How much the crops differ in weight: whether the composite listens to some of them or to all alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures.confidence import add_bands, quantiles_by_epoch
from clipviz.figures.moments import Moments, draw_epochs, moments
from clipviz.figures.style import BLACK, BLUE, GRAY, ORANGE, apply_layout, empty_chart, percent
from clipviz.trace import Trace

_BINS = 30


class CropWeights(NamedTuple):
    """How the relevance weights of the crops are spread.

    Attributes:
        epochs: (E,) int.
        effective: (E,5) quantiles (5 %, 25 %, 50 %, 75 %, 95 %) of the effective number of crops, exp(entropy of
            the weights): K when all count alike, 1 when one decides.
        largest_edges: (bins+1,) edges of the histograms of the largest weight, in [0, 1].
        largest_first: (bins,) share of the images of the first epoch.
        largest_last: (bins,) share of the images of the last epoch.
        n_crops: K, or None where the trace does not say.
    """

    epochs: np.ndarray
    effective: np.ndarray
    largest_edges: np.ndarray
    largest_first: np.ndarray
    largest_last: np.ndarray
    n_crops: int | None
    moments: Moments = Moments()


def crop_weights_info(trace: Trace) -> CropWeights:
    """Spread of the crop weights over the training images, by epoch."""
    samples = trace.samples
    n_crops = trace.meta.get("n_crops")
    if "crop_effective" in samples:
        samples = samples.dropna(subset=["crop_effective", "crop_weight_max"])
    if "crop_effective" not in samples or not len(samples):
        return CropWeights(np.zeros(0, int), np.zeros((0, 5)), np.zeros(1), np.zeros(0), np.zeros(0), n_crops)
    epochs = np.sort(samples["epoch"].unique()).astype(int)
    largest = samples["crop_weight_max"].to_numpy(float)
    edges = np.linspace(largest.min() - 1e-4, largest.max() + 1e-4, _BINS + 1)
    first, last = (
        np.histogram(largest[(samples["epoch"] == epoch).to_numpy()], edges)[0] for epoch in (epochs[0], epochs[-1])
    )
    return CropWeights(
        epochs,
        quantiles_by_epoch(samples, epochs, "crop_effective"),
        edges,
        first / first.sum(),
        last / last.sum(),
        n_crops,
        moments(trace),
    )


def draw_crop_weights(info: CropWeights) -> go.Figure:
    """Effective number of crops over the epochs, beside the largest weight in the first and the last epoch."""
    title = "Crop weights: how many crops count"
    if not len(info.epochs):
        return empty_chart(title, "This method has no crops, or their weights were not recorded.", "epoch", "crops")
    titles = ("effective number of crops", "largest weight of an image")
    figure = make_subplots(cols=2, horizontal_spacing=0.12, subplot_titles=titles)
    apply_layout(figure, title, 430, has_panel_titles=True)
    add_bands(figure, 1, info.epochs, "median (bands: middle 50 % and 90 %)", info.effective, BLUE, "circle", "solid")
    when = [("first epoch", info.largest_first, GRAY, "dot"), ("last epoch", info.largest_last, ORANGE, "solid")]
    for name, shares, color, dash in when[-1:] if len(info.epochs) == 1 else when:
        figure.add_scatter(
            x=(info.largest_edges[:-1] + info.largest_edges[1:]) / 2,
            y=percent(shares),
            name=name,
            mode="lines",
            line={"color": color, "dash": dash, "width": 2.5, "shape": "hvh"},
            hovertemplate=name + ": %{y:.1f} % of the images at %{x:.3f}<extra></extra>",
            row=1,
            col=2,
        )
    if info.n_crops:
        _mark_equal_weights(figure, info.n_crops)
    draw_epochs(figure, info.epochs, info.moments, [(1, 1)])
    figure.update_yaxes(title_text="crops", row=1, col=1)
    figure.update_xaxes(title_text="largest crop weight", row=1, col=2)
    figure.update_yaxes(title_text="% of the images", rangemode="tozero", row=1, col=2)
    return figure


def _mark_equal_weights(figure: go.Figure, n_crops: int) -> None:
    """Dotted lines where all K crops count alike."""
    figure.add_scatter(
        x=[None], y=[None], mode="lines", name="all alike", line={"color": BLACK, "dash": "dot", "width": 1.5}
    )
    line = {"color": BLACK, "dash": "dot", "width": 1.5}
    figure.add_hline(y=n_crops, line=line, row=1, col=1)
    figure.add_vline(x=1 / n_crops, line=line, row=1, col=2)


def crop_weights(trace: Trace) -> go.Figure:
    """Effective number of crops per epoch, and the distribution of the largest crop weight."""
    return draw_crop_weights(crop_weights_info(trace))
