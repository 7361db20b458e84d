"""What NtUA and Tip-Adapter need: choosing the images of a cache while they stream by, drawing from it, a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, Views
from clipviz.events import UNLABELLED
from clipviz.methods.base import text_classifier
from clipviz.ops import class_logits

_PENDING_ROWS = 4096


class Candidates(NamedTuple):
    """Images that may enter a cache."""

    position: Tensor  # (M,) int64, in the data set
    views: Tensor  # (M, A, E) float, unit embeddings of A augmented views
    student: Tensor  # (M, C) float, class probabilities by the model itself
    teacher: Tensor  # (M, C) float, class probabilities by the teacher

    def take(self, rows: Tensor) -> Candidates:
        """Some of them, by row number or mask."""
        return Candidates(*(part[rows] for part in self))


def most_confident(probs: Tensor, shots: int) -> Tensor:
    """Rows of (M, C) probabilities, ascending: the `shots` surest of every class (UPL's rule), of equals the first."""
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

    What `keep` drops it must drop beside any others, too. Reading stops at `full` rows. The chosen ones come in the
    order of the data set.
    """
    parts: list[Candidates] = []
    n_kept = n_new = 0
    for batch in candidates:
        parts.append(batch)
        n_new += len(batch.position)
        if n_new >= max(_PENDING_ROWS, n_kept):
            parts = [keep(_joined(parts))]
            n_kept, n_new = len(parts[0].position), 0
        if full is not None and n_kept + n_new >= full:
            break
    kept = keep(_joined(parts))
    return kept.take(kept.position.argsort())


def _joined(parts: list[Candidates]) -> Candidates:
    return Candidates(*map(torch.cat, zip(*parts, strict=True)))


def class_sums(rows: Tensor, labels: Tensor, weights: Tensor, n_classes: int) -> Tensor:
    """Weighted sum of the rows of each class, V^T rows with V = diag(weights) onehot(labels), which is never made.

    The product with V would be most of the work of 1,000 classes. This adds in the same order on every run.
    (M, X), (M,) in [0, C) and (M,) -> (C, X), zero for classes without a row.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=n_classes)
    first = counts.cumsum(0) - counts
    return F.embedding_bag(order, rows, first, mode="sum", per_sample_weights=weights[order].to(rows.dtype))


class CacheBatches:
    """Shuffled batches of a cache (M,), (M, A, E): one of the A views of each entry, drawn anew every epoch.

    That is the same in distribution as encoding one of A fixed augmentations at every step, without an encoder. Order
    and draws depend on (seed, epoch) alone; the last batch may be smaller.
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


class Teacher:
    """A larger CLIP of any embedding width and input size, as a frozen zero-shot classifier for a smaller one.

    Not a module: it is no part of the model that is adapted, nor of its checkpoint.
    """

    def __init__(self, backbone: Backbone, sentences: list[tuple[str, ...]]) -> None:
        self.backbone = backbone
        self.classifier = text_classifier(backbone, sentences)

    def logits(self, images: Tensor) -> Tensor:
        """Zero-shot logits (B, C) of images (B, 3, S, S) in [0, 1], resized where the teacher's input has another S."""
        size = self.backbone.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        embeddings = self.backbone.embed(images.to(self.backbone.device))
        return class_logits(embeddings, self.classifier, self.backbone.logit_scale).to(images)
