"""What each source of the pseudo-labels said, which one decided, and what another mixture would have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import Moments, draw_epochs, epochs_of, moments, when
from clipviz.trace import Trace

DIAGNOSTIC = "(diagnostic only)"


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


class Crops(NamedTuple):
    """What each of K crops says alone: cosine to its image (n, K), logits (n, K, C), cosines among all (n, K, K).

    `temperature` is the one that the run weighed them by at its end.
    """

    similarity: np.ndarray
    logits: np.ndarray
    gram: np.ndarray
    temperature: float

    def weights(self, temperature: float) -> np.ndarray:
        """(n, K) softmax of similarity / temperature."""
        return softmax(self.similarity / temperature)

    def composite_logits(self, temperature: float) -> np.ndarray:
        """(n, C) logits of the normalized weighted mean of the crops, without the crops themselves.

        With g_k the crops and t a class, all of unit norm, and w the weights: cos(sum_k w_k g_k, t) =
        sum_k w_k (g_k . t) / m with m^2 = w^T G w and G the cosines among the crops.
        """
        weights = self.weights(temperature)
        norm = np.sqrt(np.einsum("nk,nkl,nl->n", weights, self.gram, weights))
        return np.einsum("nk,nkc->nc", weights, self.logits) / norm[:, None]


@dataclass(frozen=True)
class SourceLogits:
    """Scaled logits (n, C) of two sources for n images of one epoch, by position; targets are diagnostic only.

    `gamma`, the share of the first, is None where the run mixes otherwise; `crops` are what `first` was made from, None
    where it was not, or was too much to keep.
    """

    sources: tuple[str, str]
    first: np.ndarray
    second: np.ndarray
    index: np.ndarray
    target: np.ndarray
    gamma: float | None
    crops: Crops | None = None

    @classmethod
    def of(cls, trace: Trace) -> SourceLogits | None:
        """Those in a trace; None unless it holds exactly two sources."""
        stored = trace.sources
        if len(stored.logits) != 2:
            return None
        first, second = (logits.astype(np.float32) for logits in stored.logits.values())
        one, other = stored.logits
        return cls((one, other), first, second, stored.index, stored.target, final_gamma(trace), _crops(trace))

    @property
    def reference(self) -> float:
        """The gamma to compare with: the run's, or one half where it has none."""
        return 0.5 if self.gamma is None else self.gamma

    def reweighed(self, temperature: float) -> SourceLogits:
        """With the crops of the first source weighed by another temperature than the run's."""
        return self if self.crops is None else replace(self, first=self.crops.composite_logits(temperature))

    def rows(self, rows: np.ndarray) -> SourceLogits:
        """Those of some images."""
        some = {name: getattr(self, name)[rows] for name in ("first", "second", "index", "target")}
        return replace(self, **some, crops=None)

    def mix(self, gamma: float) -> np.ndarray:
        """(n, C) gamma * first + (1 - gamma) * second."""
        return gamma * self.first + (1 - gamma) * self.second

    def labels(self, gamma: float) -> np.ndarray:
        """(n,) argmax of the mixture."""
        return self.mix(gamma).argmax(1)

    def disputed(self) -> np.ndarray:
        """Rows that the two sources call different classes, those first of which both are sure."""
        rows = np.flatnonzero(self.labels(0) != self.labels(1))
        least = np.minimum(softmax(self.first[rows]).max(1), softmax(self.second[rows]).max(1))
        return rows[np.argsort(-least, kind="stable")]

    def accuracy(self, labels: np.ndarray) -> float | None:
        """Share of the labeled images whose label is right; None without targets."""
        known = self.target >= 0
        return float((labels[known] == self.target[known]).mean()) if known.any() else None

    def compare(self, labels: np.ndarray, reference: np.ndarray) -> str:
        """What a rule that gives `labels` (n,) changes against one that gives `reference` (n,), in a sentence."""
        n = int((labels != reference).sum())
        text = f"{n} of {len(labels)} pseudo-labels differ ({100 * n / len(labels):.1f} %)"
        accuracy, before = self.accuracy(labels), self.accuracy(reference)
        if accuracy is None or before is None:
            return text
        return f"{text}; {100 * accuracy:.1f} % right instead of {100 * before:.1f} % {DIAGNOSTIC}"


def _crops(trace: Trace) -> Crops | None:
    stored = trace.sources
    parts = stored.crop_similarity, stored.crop_logits, stored.crop_gram
    if any(part is None or len(part) != len(stored.index) for part in parts):
        return None
    similarity, logits, gram = (np.asarray(part, dtype=np.float32) for part in parts)
    return Crops(similarity, logits, gram, final_constant(trace, "crop_temperature") or 1.0)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


_STEPS = 50


class SourceDecisions(NamedTuple):
    """By epoch (E,), who decided the pseudo-labels, by what margin, and how right that was.

    Deciders are "all agree" (all that name a class), "<source>" (its label alone won), "several" (of three or more
    sources some had the winning label and some another) and "neither".
    """

    epochs: np.ndarray
    sources: list[str]
    decided: dict[str, np.ndarray]  # decider -> share of the images
    margin: dict[str, np.ndarray]  # decider -> median margin of the mixture's two best classes, NaN for no image
    right: dict[str, np.ndarray]  # decider -> share of its pseudo-labels that are right; empty without targets
    accuracy: dict[str, np.ndarray]  # "pseudo-label" and every source -> that of its labels; empty without targets
    moments: Moments = Moments()


def source_names(trace: Trace) -> list[str]:
    """The sources whose labels were recorded, in the order of the metadata; not those that never name a class."""
    columns = [str(column) for column in trace.samples.columns if str(column).endswith("_label")]
    columns = [name for name in columns if name != "pseudo_label" and not (trace.samples[name] == -1).all()]
    recorded = [name.removesuffix("_label") for name in columns]
    return list(dict.fromkeys([*[name for name in trace.meta.get("sources") or () if name in recorded], *recorded]))


def source_decisions_info(trace: Trace) -> SourceDecisions:
    """Who decided each pseudo-label, per epoch; methods with a single source have nothing to decide."""
    sources = source_names(trace)
    samples = trace.samples.dropna(subset=[f"{name}_label" for name in sources])
    epochs = epochs_of(samples)
    if len(sources) < 2 or not len(epochs):
        return SourceDecisions(np.zeros(0, int), sources, {}, {}, {}, {})
    labels = samples[[f"{name}_label" for name in sources]].to_numpy()
    is_right = samples["pseudo_label"] == samples["target"]
    samples = samples.assign(decider=deciders(labels, samples["pseudo_label"].to_numpy(), sources), is_right=is_right)
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
    return f"only {source_title(kind)}" if kind in sources else kind


def source_title(name: str) -> str:
    """A source in words: "zero_shot" -> "zero-shot"."""
    return name.replace("zero_shot", "zero-shot").replace("_", " ")


def deciders(labels: np.ndarray, pseudo_labels: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """The kind of each decision (n,), by which source's own label (n, S), -1 if it names no class, is the pseudo-label.

    A source that names no class is not asked: the others can still all agree.
    """
    agrees = labels == pseudo_labels[:, None]
    n, winner = agrees.sum(1), np.array(sources, dtype=object)[agrees.argmax(1)]
    winner[n > 1] = "several"
    winner[(n > 1) & (n == (labels >= 0).sum(1))] = "all agree"
    winner[n == 0] = "neither"
    return winner


def draw_source_decisions(info: SourceDecisions) -> go.Figure:
    """Who decided and by what margin; with targets also how right that was, and each source alone."""
    title = "Which source decided the pseudo-label"
    if not len(info.epochs):
        return style.empty_chart(title, "This method has only one source.", "epoch", "% of the images")
    panels = ["deciding source", "margin of the decision (median)"]
    panels += ["accuracy, by deciding source", "accuracy of each source alone"] if info.accuracy else []
    n_rows, places = len(panels) // 2, style.PANELS[: len(panels)]
    grid: dict[str, Any] = {"rows": n_rows, "cols": 2, "horizontal_spacing": 0.1, "vertical_spacing": 0.17}
    figure = style.new_chart(title, 120 + 300 * n_rows, 2, panels=panels, **grid).update_layout(barmode="stack")
    for name, shares in info.decided.items():
        look, label = style.decider_look(name, info.sources), style.escape(decision_name(name, info.sources))
        group, hover = {"legendgroup": label}, label + ": %{y:.1f} %"
        style.add_bars(figure, info.epochs, style.percent(shares), label, look, hover, width=0.7, **group, **places[0])
        lines = [(info.margin[name], ".2f")] + ([(style.percent(info.right[name]), ".1f")] if info.right else [])
        for at, (values, digits) in zip(places[1:], lines, strict=False):
            hover = f"{label}: %{{y:{digits}}}, epoch %{{x}}"
            style.add_line(figure, info.epochs, values, label, look, hover, showlegend=False, **group, **at)
    for name, values in info.accuracy.items():
        is_source = name in info.sources
        look = style.decider_look(name, info.sources) if is_source else style.Look(style.BLACK, "circle", "solid")
        label = f"{style.escape(source_title(name))} alone" if is_source else f"the {name}"
        hover = label + ": %{y:.1f}, epoch %{x}"
        style.add_line(figure, info.epochs, style.percent(values), label, look, hover, **places[3])
    draw_epochs(figure, info.epochs, info.moments, *places)
    figure.update_yaxes(title_text="% of the images", range=[0, 100], **places[0])
    figure.update_yaxes(title_text="probability", rangemode="tozero", **places[1])
    if info.accuracy:
        figure.update_yaxes(title_text="accuracy (%)", rangemode="tozero", row=2)
    return figure


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


def gamma_what_if_info(trace: Trace) -> GammaWhatIf:
    """Recompute the pseudo-labels of the last epoch from the stored source logits for gamma from 0 to 1."""
    stored, gamma = SourceLogits.of(trace), np.linspace(0, 1, _STEPS + 1)
    if stored is None:
        own = final_gamma(trace)
        return GammaWhatIf(None, gamma, None, np.zeros(len(gamma)), 0.5 if own is None else own, own is not None)
    labels = [stored.labels(value) for value in gamma]
    accuracy = [stored.accuracy(row) for row in labels]
    reference, is_own = stored.labels(stored.reference), stored.gamma is not None
    right = None if None in accuracy else np.array(accuracy)
    changed = np.array([(row != reference).mean() for row in labels])
    return GammaWhatIf(stored.sources, gamma, right, changed, stored.reference, is_own, moments(trace))


def draw_gamma_what_if(info: GammaWhatIf) -> go.Figure:
    """Accuracy and share of changed labels against gamma, the run's own marked."""
    title = "What if gamma had been different?"
    if info.sources is None:
        return style.empty_chart(title, "This needs the stored logits of exactly two sources.", "gamma", "%")
    part = info.moments.part
    title += f" ({when(part.epoch, part)})" if part.epoch >= 0 else ""
    first, second = (style.escape(source_title(name)) for name in info.sources)
    figure = style.new_chart(title, x=f"gamma (0: only {second}; 1: only {first})", y="% of the images")
    named, at = f"{info.reference:g}", "gamma %{x:.2f}: %{y:.1f} % "
    name = f"labels that differ from those at gamma = {named}"
    curves = [(name, info.changed, style.MIXED_CHANGES, "of the labels differ")]
    if info.accuracy is not None:
        curves.insert(0, ("pseudo-label accuracy", info.accuracy, style.MIXED_ACCURACY, "right"))
    for name, shares, look, what in curves:
        style.add_line(figure, info.gamma, style.percent(shares), name, look, at + what)
    figure.add_vline(x=info.reference, line={"color": style.BLACK, "dash": "dot", "width": 1.5})
    text = f"this run: {named}" if info.is_own else f"reference: {named}"
    anchor, shift = ("right", -6) if info.reference > 0.5 else ("left", 6)
    place = {"x": info.reference, "y": 1, "yref": "y domain", "yanchor": "top", "xanchor": anchor, "xshift": shift}
    figure.add_annotation(text=text, showarrow=False, **place)
    figure.update_xaxes(range=[-0.02, 1.02])
    return figure.update_yaxes(rangemode="tozero")
