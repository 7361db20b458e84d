"""Which source decided: the votes behind each pseudo-label, and what another mixture would have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import Moments, draw_epochs, epochs_of, moments, when
from clipviz.trace import Trace

_STEPS = 50


class SourceDecisions(NamedTuple):
    """By epoch (E,), who decided the pseudo-labels, by what margin, and how right that was.

    Deciders are "all agree", "<source>" (its label alone won), "several" (of three or more sources some, not
    all, had the winning label) and "neither".
    """

    epochs: np.ndarray
    sources: list[str]
    decided: dict[str, np.ndarray]  # decider -> share of the images
    margin: dict[
        str, np.ndarray
    ]  # decider -> median of first minus second probability of the mixture, NaN for no image
    right: dict[str, np.ndarray]  # decider -> share of its pseudo-labels that are right; empty without targets
    accuracy: dict[str, np.ndarray]  # "pseudo-label" and every source -> that of its labels; empty without targets
    moments: Moments = Moments()


def source_names(trace: Trace) -> list[str]:
    """The sources whose labels were recorded, in the order of the metadata; not those that never name a class."""
    columns = [str(column) for column in trace.samples.columns if str(column).endswith("_label")]
    columns = [name for name in columns if name != "pseudo_label" and not (trace.samples[name] == -1).all()]
    recorded = [name.removesuffix("_label") for name in columns]
    listed = [name for name in trace.meta.get("sources") or () if name in recorded]
    return list(dict.fromkeys([*listed, *recorded]))


def source_decisions_info(trace: Trace) -> SourceDecisions:
    """Who decided each pseudo-label, per epoch; methods with a single source have nothing to decide."""
    sources = source_names(trace)
    samples = trace.samples.dropna(subset=[f"{name}_label" for name in sources])
    epochs = epochs_of(samples)
    if len(sources) < 2 or not len(epochs):
        return SourceDecisions(np.zeros(0, int), sources, {}, {}, {}, {})
    votes = np.stack([samples[f"{name}_label"] == samples["pseudo_label"] for name in sources], 1)
    is_right = samples["pseudo_label"] == samples["target"]
    samples = samples.assign(decider=deciders(votes, sources), is_right=is_right)
    known = samples[samples["target"] >= 0]
    shares = samples.groupby("epoch")["decider"].value_counts(normalize=True).unstack(fill_value=0)
    margin = samples.groupby(["epoch", "decider"])["margin"].median().unstack()
    right = known.groupby(["epoch", "decider"])["is_right"].mean().unstack()
    found = [name for name in kinds_of_decision(sources) if name in shares]
    tables = (table.reindex(index=epochs, columns=found) for table in (shares, margin, right))
    decided, margins, rights = ({name: table[name].to_numpy(dtype=float) for name in found} for table in tables)
    if not len(known):
        return SourceDecisions(epochs, sources, decided, margins, {}, {}, moments(trace))
    columns = {"pseudo-label": "pseudo_label", **{name: f"{name}_label" for name in sources}}
    is_own_right = (known[column] == known["target"] for column in columns.values())
    by_epoch = (own.groupby(known["epoch"]).mean().reindex(epochs).to_numpy(float) for own in is_own_right)
    accuracy = dict(zip(columns, by_epoch, strict=True))
    return SourceDecisions(epochs, sources, decided, margins, rights, accuracy, moments(trace))


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
        return style.empty_chart(title, "This method has no two sources to compare.", "epoch", "% of the images")
    titles = ["who decided", "margin of the decision (median)"]
    if info.accuracy:
        titles += ["right, by who decided", "right, each source on its own"]
    n_rows = len(titles) // 2
    grid = {"rows": n_rows, "cols": 2, "horizontal_spacing": 0.1, "vertical_spacing": 0.17, "subplot_titles": titles}
    figure = style.new_chart(title, 120 + 300 * n_rows, 2, grid)
    figure.update_layout(barmode="stack")
    for name in info.decided:
        _add_decider(figure, info, name)
    for name, values in info.accuracy.items():
        look = (
            style.decider_look(name, info.sources)
            if name in info.sources
            else style.Look(style.BLACK, "circle", "solid")
        )
        label = "the pseudo-label" if name == "pseudo-label" else f"{style.escape(name)} alone"
        style.add_line(figure, info.epochs, style.percent(values), label, look, _hover(label, ".1f"), row=2, col=2)
    draw_epochs(figure, info.epochs, info.moments, [(1 + i // 2, 1 + i % 2) for i in range(len(titles))])
    figure.update_yaxes(title_text="% of the images", range=[0, 100], row=1, col=1)
    figure.update_yaxes(title_text="probability", rangemode="tozero", row=1, col=2)
    if info.accuracy:
        figure.update_yaxes(title_text="accuracy (%)", rangemode="tozero", row=2)
    return figure


def _add_decider(figure: go.Figure, info: SourceDecisions, name: str) -> None:
    """Its share as stacked bars, and its margin and accuracy as lines of the same colour."""
    look, label = style.decider_look(name, info.sources), style.escape(decision_name(name, info.sources))
    shares, hover = style.percent(info.decided[name]), label + ": %{y:.1f} %<extra></extra>"
    bars = {"width": 0.7, "marker": style.pattern(look.color, look.hatch), "hovertemplate": hover}
    figure.add_bar(x=info.epochs, y=shares, name=label, legendgroup=label, **bars, row=1, col=1)
    more = {"legendgroup": label, "showlegend": False}
    style.add_line(figure, info.epochs, info.margin[name], label, look, _hover(label, ".2f"), **more, row=1, col=2)
    if info.right:
        right = style.percent(info.right[name])
        style.add_line(figure, info.epochs, right, label, look, _hover(label, ".1f"), **more, row=2, col=1)


def _hover(label: str, digits: str) -> str:
    return f"{label}: %{{y:{digits}}}, epoch %{{x}}"


source_decisions = style.figure_of(source_decisions_info, draw_source_decisions)


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
    """Recompute the pseudo-labels of the last epoch from the stored source logits for gamma from 0 to 1."""
    stored, own = trace.sources, final_gamma(trace)
    reference, is_own = 0.5 if own is None else own, own is not None
    gamma = np.linspace(0, 1, _STEPS + 1)
    if len(stored.logits) != 2:
        return GammaWhatIf(None, gamma, None, np.zeros(len(gamma)), reference, is_own)
    first, second = (logits.astype(np.float32) for logits in stored.logits.values())
    labels = np.stack([_mixed_labels(first, second, value) for value in gamma])
    known = stored.target >= 0
    accuracy = (labels[:, known] == stored.target[known]).mean(1) if known.any() else None
    changed = (labels != _mixed_labels(first, second, reference)).mean(1)
    one, other = stored.logits
    return GammaWhatIf((one, other), gamma, accuracy, changed, reference, is_own, moments(trace))


def _mixed_labels(first: np.ndarray, second: np.ndarray, gamma: float) -> np.ndarray:
    return (gamma * first + (1 - gamma) * second).argmax(1)


def draw_gamma_what_if(info: GammaWhatIf) -> go.Figure:
    """Accuracy and share of changed labels against gamma, the run's own marked."""
    title = "What if the sources had been mixed otherwise?"
    if info.sources is None:
        return style.empty_chart(title, "The what-if needs the stored logits of exactly two sources.", "gamma", "%")
    part = info.moments.part
    title += f" ({when(part.epoch, part)})" if part.epoch >= 0 else ""
    figure, named = style.new_chart(title), f"{info.reference:g}"
    if info.accuracy is not None:
        accuracy, look = style.percent(info.accuracy), style.Look(style.BLUE, "", "solid")
        style.add_line(figure, info.gamma, accuracy, "pseudo-label accuracy", look, "gamma %{x:.2f}: %{y:.1f} % right")
    name, look = f"labels other than at gamma = {named}", style.Look(style.VERMILLION, "", "dash")
    style.add_line(
        figure, info.gamma, style.percent(info.changed), name, look, "gamma %{x:.2f}: %{y:.1f} % of the labels differ"
    )
    figure.add_vline(x=info.reference, line={"color": style.BLACK, "dash": "dot", "width": 1.5})
    text = f"this run: {named}" if info.is_own else f"reference: {named}"
    anchor, shift = ("right", -6) if info.reference > 0.5 else ("left", 6)
    place = {"x": info.reference, "y": 1, "yref": "y domain", "yanchor": "top", "xanchor": anchor, "xshift": shift}
    figure.add_annotation(text=text, showarrow=False, **place)
    first, second = map(style.escape, info.sources)
    figure.update_xaxes(title_text=f"gamma (0: only {second}; 1: only {first})", range=[-0.02, 1.02])
    figure.update_yaxes(title_text="% of the images", rangemode="tozero")
    return figure


gamma_what_if = style.figure_of(gamma_what_if_info, draw_gamma_what_if)
