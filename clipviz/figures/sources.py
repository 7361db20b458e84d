"""Which source decided: the votes behind each pseudo-label, and what another mixture would have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures.moments import Moments, draw_epochs, moments, when
from clipviz.figures.style import (
    BLACK,
    BLUE,
    VERMILLION,
    Look,
    apply_layout,
    decider_look,
    empty_chart,
    escape,
    pattern,
    percent,
)
from clipviz.trace import Trace

_STEPS = 50


class SourceDecisions(NamedTuple):
    """By epoch (E,), who decided the pseudo-labels, by what margin, and how right that was.

    Deciders are "all agree", "<source>" (its label alone won), "several" (of three or more sources some, not
    all, had the winning label) and "neither".

    Attributes:
        epochs: (E,) int.
        sources: Names of the sources.
        decided: Decider -> (E,) share of the images.
        margin: Decider -> (E,) median margin, first minus second probability of the mixture, NaN for no image.
        right: Decider -> (E,) share of its pseudo-labels that are right; empty without targets.
        accuracy: "pseudo-label" and every source -> (E,) accuracy of its labels; empty without targets.
    """

    epochs: np.ndarray
    sources: list[str]
    decided: dict[str, np.ndarray]
    margin: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]
    moments: Moments = Moments()


def source_names(trace: Trace) -> list[str]:
    """The sources whose labels were recorded, in the order of the metadata; not those that never name a class."""
    suffix = "_label"
    recorded = [
        str(column)[: -len(suffix)]
        for column in trace.samples.columns
        if str(column).endswith(suffix) and column != "pseudo_label" and not (trace.samples[column] == -1).all()
    ]
    listed = [name for name in trace.meta.get("sources") or () if name in recorded]
    return listed + [name for name in recorded if name not in listed]


def source_decisions_info(trace: Trace) -> SourceDecisions:
    """Who decided each pseudo-label, per epoch; methods with a single source have nothing to decide."""
    sources = source_names(trace)
    samples = trace.samples.dropna(subset=[f"{name}_label" for name in sources])
    epochs = np.sort(samples["epoch"].unique()).astype(int)
    if len(sources) < 2 or not len(epochs):
        return SourceDecisions(np.zeros(0, int), sources, {}, {}, {}, {})
    is_right = samples["pseudo_label"] == samples["target"]
    votes = np.stack([samples[f"{name}_label"] == samples["pseudo_label"] for name in sources], 1)
    samples = samples.assign(decider=deciders(votes, sources), is_right=is_right)
    known = samples[samples["target"] >= 0]
    shares = samples.groupby("epoch")["decider"].value_counts(normalize=True).unstack(fill_value=0)
    margin = samples.groupby(["epoch", "decider"])["margin"].median().unstack()
    right = known.groupby(["epoch", "decider"])["is_right"].mean().unstack()
    found = [name for name in kinds_of_decision(sources) if name in shares]
    accuracy = {
        name: (known[column] == known["target"]).groupby(known["epoch"]).mean().reindex(epochs).to_numpy(float)
        for name, column in [("pseudo-label", "pseudo_label"), *((name, f"{name}_label") for name in sources)]
    }
    return SourceDecisions(
        epochs,
        sources,
        _by_epoch(shares, found, epochs),
        _by_epoch(margin, found, epochs),
        _by_epoch(right, found, epochs) if len(known) else {},
        accuracy if len(known) else {},
        moments(trace),
    )


def _by_epoch(table: pd.DataFrame, names: list[str], epochs: np.ndarray) -> dict[str, np.ndarray]:
    table = table.reindex(index=epochs, columns=names)
    return {name: table[name].to_numpy(dtype=float) for name in names}


def kinds_of_decision(sources: Sequence[str]) -> list[str]:
    """Who may have decided a pseudo-label, in the order in which it is drawn."""
    return ["all agree", *sources, *["several"] * (len(sources) > 2), "neither"]


def decision_name(kind: str, sources: Sequence[str]) -> str:
    """A kind of decision in words."""
    return f"only {kind}" if kind in sources else kind


def named_classes(logits: np.ndarray) -> np.ndarray:
    """The class (n,) with the largest of a source's logits (n, C); -1, none, where several share it, as in a trace."""
    is_top = logits == logits.max(1, keepdims=True)
    return np.where(is_top.sum(1) > 1, -1, is_top.argmax(1))


def deciders(votes: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """The kind of each decision (n,), by which source's own label is the pseudo-label (n, S) bool."""
    n_votes = votes.sum(1)
    winner = np.array(sources, dtype=object)[votes.argmax(1)]
    winner[n_votes > 1] = "several"
    winner[n_votes == len(sources)] = "all agree"
    winner[n_votes == 0] = "neither"
    return winner


def draw_source_decisions(info: SourceDecisions) -> go.Figure:
    """Who decided and by what margin; with targets also how right that was, and each source alone."""
    title = "Which source decided the pseudo-label"
    if not len(info.epochs):
        return empty_chart(title, "This method has no two sources to compare.", "epoch", "% of the images")
    titles = ["who decided", "margin of the decision (median)"]
    if info.accuracy:
        titles += ["right, by who decided", "right, each source on its own"]
    n_rows = len(titles) // 2
    figure = make_subplots(rows=n_rows, cols=2, horizontal_spacing=0.1, vertical_spacing=0.17, subplot_titles=titles)
    apply_layout(figure, title, 120 + 300 * n_rows, 2, has_panel_titles=True)
    figure.update_layout(barmode="stack")
    for name in info.decided:
        _add_decider(figure, info, name)
    for name, values in info.accuracy.items():
        look = decider_look(name, info.sources) if name in info.sources else Look(BLACK, "circle", "solid")
        label = "the pseudo-label" if name == "pseudo-label" else f"{escape(name)} alone"
        _add_line(figure, label, info.epochs, percent(values), look, (2, 2))
    draw_epochs(figure, info.epochs, info.moments, [(1 + i // 2, 1 + i % 2) for i in range(len(titles))])
    figure.update_yaxes(title_text="% of the images", range=[0, 100], row=1, col=1)
    figure.update_yaxes(title_text="probability", rangemode="tozero", row=1, col=2)
    if info.accuracy:
        for column in (1, 2):
            figure.update_yaxes(title_text="accuracy (%)", rangemode="tozero", row=2, col=column)
    return figure


def _add_decider(figure: go.Figure, info: SourceDecisions, name: str) -> None:
    """Its share as stacked bars, and its margin and accuracy as lines of the same colour."""
    look, label = decider_look(name, info.sources), escape(decision_name(name, info.sources))
    figure.add_bar(
        x=info.epochs,
        y=percent(info.decided[name]),
        name=label,
        legendgroup=label,
        width=0.7,
        marker=pattern(look.color, look.hatch),
        hovertemplate=label + ": %{y:.1f} %<extra></extra>",
        row=1,
        col=1,
    )
    _add_line(figure, label, info.epochs, info.margin[name], look, (1, 2), ".2f", in_legend=False)
    if info.right:
        values = percent(info.right[name])
        _add_line(figure, label, info.epochs, values, look, (2, 1), in_legend=False)


def _add_line(
    figure: go.Figure,
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    look: Look,
    place: tuple[int, int],
    digits: str = ".1f",
    in_legend: bool = True,
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        legendgroup=name,
        showlegend=in_legend,
        mode="lines+markers",
        line={"color": look.color, "dash": look.dash, "width": 2.5},
        marker={"symbol": look.symbol, "size": 9},
        hovertemplate=f"{name}: %{{y:{digits}}}, epoch %{{x}}<extra></extra>",
        row=place[0],
        col=place[1],
    )


def source_decisions(trace: Trace) -> go.Figure:
    """Who decided each pseudo-label and by what margin, per epoch, and how right that was where targets exist."""
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
    moments: Moments = Moments()


def final_constant(trace: Trace, name: str) -> float | None:
    """A constant of the method at the end of the run, during which it can be changed; None where there is none."""
    settings = (trace.meta.get("settings") or {}).get("method") or {}
    changed = [change[name] for change in trace.meta.get("changes") or () if name in change]
    value = changed[-1] if changed else trace.meta.get(name, settings.get(name))
    return float(value) if isinstance(value, int | float) else None


def final_gamma(trace: Trace) -> float | None:
    """The run's mixing weight at its end; None where it has none."""
    gamma = final_constant(trace, "gamma")
    return gamma if gamma is not None and 0 <= gamma <= 1 else None


def gamma_what_if_info(trace: Trace) -> GammaWhatIf:
    """Recompute the pseudo-labels from the stored source logits for gamma from 0 to 1."""
    stored = trace.sources
    own = final_gamma(trace)
    is_own = own is not None
    reference = 0.5 if own is None else own
    gamma = np.linspace(0, 1, _STEPS + 1)
    if len(stored.logits) != 2:
        return GammaWhatIf(None, gamma, None, np.zeros(len(gamma)), reference, is_own)
    first, second = (logits.astype(np.float32) for logits in stored.logits.values())
    at_reference = _mixed_labels(first, second, reference)
    labels = np.stack([_mixed_labels(first, second, value) for value in gamma])
    known = stored.target >= 0
    accuracy = (labels[:, known] == stored.target[known]).mean(1) if known.any() else None
    changed = (labels != at_reference).mean(1)
    one, other = stored.logits
    return GammaWhatIf((one, other), gamma, accuracy, changed, reference, is_own, moments(trace))


def _mixed_labels(first: np.ndarray, second: np.ndarray, gamma: float) -> np.ndarray:
    return (gamma * first + (1 - gamma) * second).argmax(1)


def draw_gamma_what_if(info: GammaWhatIf) -> go.Figure:
    """Accuracy and share of changed labels against gamma, the run's own marked."""
    title = "What if the sources had been mixed otherwise?"
    if info.sources is None:
        why = "The what-if needs the stored logits of exactly two sources."
        return empty_chart(title, why, "gamma", "%")
    part = info.moments.part
    title += f" ({when(part.epoch, part)})" if part.epoch >= 0 else ""
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
