"""Votes: the stored logits of the sources, mixed again by another rule than the run's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipviz.trace import Trace


@dataclass(frozen=True)
class Votes:
    """Scaled logits of two sources for n images of one epoch.

    Attributes:
        sources: their names; gamma is the share of the first.
        first: (n, C) float32.
        second: (n, C) float32.
        index: (n,) int64, positions in the training images.
        target: (n,) int64, -1 unlabelled; for measuring only.
        gamma: of the run, where it has one.
    """

    sources: tuple[str, str]
    first: np.ndarray
    second: np.ndarray
    index: np.ndarray
    target: np.ndarray
    gamma: float | None

    @classmethod
    def of(cls, trace: Trace) -> Votes | None:
        """The votes in a trace; None unless it holds the logits of exactly two sources."""
        names = [name for name in trace.meta.get("sources", ()) if f"sources/{name}" in trace.arrays]
        if len(names) != 2 or not len(trace.arrays[f"sources/{names[0]}"]):
            return None
        first, second = (trace.arrays[f"sources/{name}"].astype(np.float32) for name in names)
        index = trace.arrays.get("sources/index", np.arange(len(first)))
        target = trace.arrays.get("sources/target", np.full(len(first), -1))
        gamma = trace.meta.get("gamma")
        return cls((names[0], names[1]), first, second, index, target, None if gamma is None else float(gamma))

    def labels(self, gamma: float) -> np.ndarray:
        """(n,) argmax of gamma * first + (1 - gamma) * second."""
        return (gamma * self.first + (1 - gamma) * self.second).argmax(1)

    def accuracy(self, labels: np.ndarray) -> float | None:
        """Share of the labelled images whose label is right; None without targets."""
        known = self.target >= 0
        return float((labels[known] == self.target[known]).mean()) if known.any() else None


def compare(votes: Votes, labels: np.ndarray, reference: np.ndarray) -> str:
    """What a rule that gives `labels` changes against one that gives `reference` (n,), in a sentence."""
    n = int((labels != reference).sum())
    text = f"{n} of {len(labels)} pseudo-labels differ ({100 * n / len(labels):.1f} %)"
    accuracy, before = votes.accuracy(labels), votes.accuracy(reference)
    if accuracy is None or before is None:
        return text
    return f"{text}; {100 * accuracy:.1f} % right instead of {100 * before:.1f} % (for measuring only)"
