"""What NtUA and Tip-Adapter share: choosing the images of a cache while they stream by, and drawing from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipviz.data.base import Batch, Views
from clipviz.events import UNLABELLED

_PENDING_ROWS = 4096


@dataclass(frozen=True)
class Candidates:
    """Images that may enter a cache.

    Attributes:
        index: (M,) int64, positions in the data set.
        views: (M, A, E) float, unit embeddings of A augmented views.
        student: (M, C) float, class probabilities by the model itself.
        teacher: (M, C) float, class probabilities by the teacher.
    """

    index: Tensor
    views: Tensor
    student: Tensor
    teacher: Tensor

    def take(self, rows: Tensor) -> Candidates:
        """Some of them, by row number or mask."""
        return Candidates(self.index[rows], self.views[rows], self.student[rows], self.teacher[rows])


def most_confident(probs: Tensor, shots: int) -> Tensor:
    """For every class the `shots` rows that are most surely in it (UPL's rule).

    Args:
        probs: (M, C) float.
        shots: at most so many rows of each predicted class; of equals the first.

    Returns:
        Row numbers, ascending.
    """
    confidence, labels = probs.max(-1)
    order = confidence.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels, minlength=probs.shape[1])
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(order), device=order.device) - first[labels[order]]
    return order[rank < shots].sort().values


def choose_streaming(
    candidates: Iterable[Candidates], keep: Callable[[Candidates], Candidates], full: int | None = None
) -> Candidates:
    """Apply a choice to batches as they come, so that no more than the chosen ones are ever held.

    Args:
        candidates: batch after batch.
        keep: the choice; what it drops once it would drop again beside any others.
        full: stop reading at so many rows.

    Returns:
        The chosen ones, in the order of the data set.
    """
    held: Candidates | None = None
    pending: list[Candidates] = []
    waiting = 0
    for batch in candidates:
        pending.append(batch)
        waiting += len(batch.index)
        if waiting >= max(_PENDING_ROWS, 0 if held is None else len(held.index)):
            held, pending, waiting = keep(_joined(held, pending)), [], 0
        if full is not None and (0 if held is None else len(held.index)) + waiting >= full:
            break
    held = keep(_joined(held, pending))
    return held.take(held.index.argsort())


def _joined(held: Candidates | None, pending: list[Candidates]) -> Candidates:
    parts = pending if held is None else [held, *pending]
    return Candidates(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Candidates)))


def class_sums(rows: Tensor, labels: Tensor, weights: Tensor, n_classes: int) -> Tensor:
    """Weighted sum of the rows of each class, V^T rows with V = diag(weights) onehot(labels), which is never made.

    The product with V would be most of the work of 1,000 classes. This adds in the same order on every run.

    Args:
        rows: (M, X) float.
        labels: (M,) int64 in [0, C).
        weights: (M,) float.
        n_classes: C.

    Returns:
        (C, X) float; zero for classes without a row.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=n_classes)
    first = counts.cumsum(0) - counts
    return F.embedding_bag(order, rows, first, mode="sum", per_sample_weights=weights[order].to(rows.dtype))


class CacheBatches:
    """Shuffled batches of a cache: one of the A cached views of each entry, drawn anew every epoch.

    That is the same in distribution as encoding one of A fixed augmentations at every step, without an encoder.

    Args:
        index: (M,) positions in the data set.
        views: (M, A, E) float.
        batch_size: entries per step; the last step may have fewer.
        seed: of order and draws, which depend on (seed, epoch) alone.
    """

    def __init__(self, index: Tensor, views: Tensor, batch_size: int, seed: int) -> None:
        self.index, self.views, self.batch_size, self.seed = index, views, batch_size, seed

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.index) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; the weak view is an embedding."""
        rng = np.random.default_rng((self.seed, epoch))
        n, a = self.views.shape[:2]
        order = torch.from_numpy(rng.permutation(n)).to(self.index.device)
        drawn = torch.from_numpy(rng.integers(a, size=n)).to(self.index.device)
        for rows in order.split(self.batch_size)[first_step:]:
            index = self.index[rows]
            yield Batch(Views(self.views[rows, drawn[rows]]), index, torch.full_like(index, UNLABELLED))
