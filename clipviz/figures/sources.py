"""Which source decided: the votes behind each pseudo-label, and what another mixture would have done."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures._style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILLION,
    apply_layout,
    empty_chart,
    epoch_axis,
    escape,
    pattern,
    percent,
)
from clipviz.trace import Trace

_STEPS = 50
_SOURCE_LOOKS = [(ORANGE, "square", "dash"), (BLUE, "diamond", "dot"), (PURPLE, "triangle-up", "longdash")]


class SourceDecisions(NamedTuple):
    """By epoch (E,): shares (E,) of images by who decided, accuracy (E,) of each source and of the mixture.

    `decided` keys: "all agree", "<source>" (its label alone won), "several" (of three or more sources some,
    not all, had the winning label), "neither". `accuracy` is empty without targets.
    """

    epochs: np.ndarray
    sources: list[str]
    decided: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]


def source_names(trace: Trace) -> list[str]:
    """The sources whose labels were recorded, in the order of the metadata."""
    suffix = "_label"
    recorded = [
        str(column)[: -len(suffix)]
        for column in trace.samples.columns
        if str(column).endswith(suffix) and column != "pseudo_label"
    ]
    listed = [name for name in trace.meta.get("sources", ()) if name in recorded]
    return listed + [name for name in recorded if name not in listed]


def source_decisions_info(trace: Trace) -> SourceDecisions:
    """Who decided each pseudo-label, per epoch."""
    sources = source_names(trace)
    samples = trace.samples.dropna(subset=[f"{name}_label" for name in sources])
    epochs = np.sort(samples["epoch"].unique()).astype(int)
    if not sources or not len(epochs):
        return SourceDecisions(np.zeros(0, int), sources, {}, {})
    decided = _decider(samples, sources).groupby(samples["epoch"]).value_counts(normalize=True).unstack(fill_value=0)
    kinds = ["all agree", *sources, "several", "neither"]
    shares = {kind: decided[kind].to_numpy(dtype=float) for kind in kinds if kind in decided}
    known = samples[samples["target"] >= 0]
    accuracy = {
        name: (known[column] == known["target"]).groupby(known["epoch"]).mean().reindex(epochs).to_numpy(float)
        for name, column in [("pseudo-label", "pseudo_label"), *((name, f"{name}_label") for name in sources)]
    }
    return SourceDecisions(epochs, sources, shares, accuracy if len(known) else {})


def _decider(samples: pd.DataFrame, sources: list[str]) -> pd.Series:
    votes = np.stack([(samples[f"{name}_label"] == samples["pseudo_label"]).to_numpy() for name in sources], 1)
    n_votes = votes.sum(1)
    winner = np.array(sources, dtype=object)[votes.argmax(1)]
    winner[n_votes > 1] = "several"
    winner[n_votes == len(sources)] = "all agree"
    winner[n_votes == 0] = "neither"
    return pd.Series(winner, index=samples.index, name="decided")


def draw_source_decisions(info: SourceDecisions) -> go.Figure:
    """Shares stacked per epoch, beside the accuracy of each source and of their mixture."""
    title = "Which source decided the pseudo-label"
    if not len(info.epochs):
        return empty_chart(title, "This method has no sources to compare.", "epoch", "% of the images")
    n_columns = 2 if info.accuracy else 1
    titles = ("who decided", "accuracy of each source")[:n_columns]
    figure = make_subplots(cols=n_columns, horizontal_spacing=0.1, subplot_titles=titles)
    legend_rows = -(-(len(info.decided) + len(info.accuracy)) // 4)
    apply_layout(figure, title, 430 + 22 * legend_rows, legend_rows, has_panel_titles=True)
    figure.update_layout(barmode="stack")
    looks = {"all agree": ("#BBBBBB", ""), "several": (GREEN, "."), "neither": (VERMILLION, "x")}
    looks |= {name: (_look(i)[0], "/\\|"[i % 3]) for i, name in enumerate(info.sources)}
    for kind, shares in info.decided.items():
        label = f"only {escape(kind)}" if kind in info.sources else kind
        figure.add_bar(
            x=info.epochs,
            y=percent(shares),
            name=label,
            width=0.7,
            marker=pattern(*looks[kind]),
            hovertemplate=label + ": %{y:.1f} %<extra></extra>",
            row=1,
            col=1,
        )
    for name, values in info.accuracy.items():
        _add_accuracy(figure, info, name, values)
    figure.update_xaxes(**epoch_axis(info.epochs))
    figure.update_yaxes(title_text="% of the images", range=[0, 100], row=1, col=1)
    if info.accuracy:
        figure.update_yaxes(title_text="accuracy (%)", row=1, col=2)
    return figure


def _look(source: int) -> tuple[str, str, str]:
    return _SOURCE_LOOKS[source % len(_SOURCE_LOOKS)]


def _add_accuracy(figure: go.Figure, info: SourceDecisions, name: str, values: np.ndarray) -> None:
    color, symbol, dash = _look(info.sources.index(name)) if name in info.sources else (BLACK, "circle", "solid")
    figure.add_scatter(
        x=info.epochs,
        y=percent(values),
        name=f"accuracy: {escape(name)}",
        mode="lines+markers",
        line={"color": color, "dash": dash, "width": 2.5},
        marker={"symbol": symbol, "size": 9},
        hovertemplate="%{fullData.name} %{y:.1f} %, epoch %{x}<extra></extra>",
        row=1,
        col=2,
    )


def source_decisions(trace: Trace) -> go.Figure:
    """Which source's label won, per epoch, and how accurate each source was where targets exist."""
    return draw_source_decisions(source_decisions_info(trace))


class GammaWhatIf(NamedTuple):
    """Last pseudo-labels, had the logits been gamma * first + (1 - gamma) * second, for gamma (G,).

    `accuracy` (G,) in [0, 1], None without targets; `changed` (G,) the share of labels other than at
    `reference`, the run's own gamma (0.5 where it has none). None of it when the trace does not hold
    exactly two sources.
    """

    sources: tuple[str, str] | None
    gamma: np.ndarray
    accuracy: np.ndarray | None
    changed: np.ndarray
    reference: float
    is_own: bool


def gamma_what_if_info(trace: Trace) -> GammaWhatIf:
    """Recompute the pseudo-labels from the stored source logits for gamma from 0 to 1."""
    stored = [name for name in trace.meta.get("sources", ()) if f"sources/{name}" in trace.arrays]
    own = trace.meta.get("gamma")
    is_own = isinstance(own, int | float) and 0 <= own <= 1
    reference = float(own) if is_own else 0.5  # type: ignore[arg-type]
    gamma = np.linspace(0, 1, _STEPS + 1)
    if len(stored) != 2 or not len(trace.arrays[f"sources/{stored[0]}"]):
        return GammaWhatIf(None, gamma, None, np.zeros(len(gamma)), reference, is_own)
    first, second = (trace.arrays[f"sources/{name}"].astype(np.float32) for name in stored)
    at_reference = _mixed_labels(first, second, reference)
    labels = np.stack([_mixed_labels(first, second, value) for value in gamma])
    target = trace.arrays.get("sources/target", np.full(len(first), -1))
    known = target >= 0
    accuracy = (labels[:, known] == target[known]).mean(1) if known.any() else None
    changed = (labels != at_reference).mean(1)
    return GammaWhatIf((stored[0], stored[1]), gamma, accuracy, changed, reference, is_own)


def _mixed_labels(first: np.ndarray, second: np.ndarray, gamma: float) -> np.ndarray:
    return (gamma * first + (1 - gamma) * second).argmax(1)


def draw_gamma_what_if(info: GammaWhatIf) -> go.Figure:
    """Accuracy and share of changed labels against gamma, the run's own marked."""
    title = "What if the sources had been mixed otherwise?"
    if info.sources is None:
        why = "The what-if needs the stored logits of exactly two sources."
        return empty_chart(title, why, "gamma", "%")
    figure = go.Figure()
    apply_layout(figure, title, 420)
    if info.accuracy is not None:
        figure.add_scatter(
            x=info.gamma,
            y=percent(info.accuracy),
            name="pseudo-label accuracy",
            line={"color": BLUE, "width": 3},
            hovertemplate="gamma %{x:.2f}: %{y:.1f} % right<extra></extra>",
        )
    named = f"{info.reference:g}"
    figure.add_scatter(
        x=info.gamma,
        y=percent(info.changed),
        name=f"labels other than at gamma = {named}",
        line={"color": VERMILLION, "width": 3, "dash": "dash"},
        hovertemplate="gamma %{x:.2f}: %{y:.1f} % of the labels differ<extra></extra>",
    )
    figure.add_vline(x=info.reference, line={"color": BLACK, "dash": "dot", "width": 1.5})
    figure.add_annotation(
        x=info.reference,
        y=1,
        yref="y domain",
        text=f"this run: {named}" if info.is_own else f"reference: {named}",
        showarrow=False,
        xanchor="right" if info.reference > 0.5 else "left",
        yanchor="top",
        xshift=-6 if info.reference > 0.5 else 6,
    )
    first, second = map(escape, info.sources)
    figure.update_xaxes(title_text=f"gamma (0: only {second}; 1: only {first})", range=[-0.02, 1.02])
    figure.update_yaxes(title_text="% of the images", rangemode="tozero")
    return figure


def gamma_what_if(trace: Trace) -> go.Figure:
    """Pseudo-label accuracy and changed labels of the last epoch as gamma goes from 0 to 1 (two sources)."""
    return draw_gamma_what_if(gamma_what_if_info(trace))
