"""SourceLogits: what each source said at the end of a run, mixed again by another rule than the run's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

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
