"""What TransCLIP, StatA, TDA and OGA share: embeddings gathered once, decisions that are sums, no training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, Views
from clipviz.events import UNLABELLED, PseudoLabels
from clipviz.methods.base import Method, ViewNeeds, embed, prompt_sentences, text_classifier
from clipviz.ops import class_logits, expect_axes, expect_floats
from clipviz.prompts import ClassPrompts

_UNIT = 1e-2
"""So far may the norm of a row be from 1: half precision is about 1e-3 off."""


def unit_rows(embeddings: Tensor, classifier: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (n, E) and text classifier (C, E) in at least single precision, if they are what a formula wants.

    Raises:
        ValueError: for other shapes, no rows, mixed precision, NaN, or a row that is not of unit norm, which is named.
    """
    expect_axes(embeddings=(embeddings, "nE"), classifier=(classifier, "CE"))
    expect_floats(embeddings=embeddings, classifier=classifier)
    for name, rows in (("embeddings", embeddings), ("classifier", classifier)):
        if 0 in rows.shape:
            raise ValueError(f"{name} must have at least one row and one column, got {tuple(rows.shape)}")
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        bad = ~((norms - 1).abs() < _UNIT)  # NaN is no such number either
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"row {row} of {name} must be finite and of unit norm, its norm is {norms[row]:.4g}; normalize the rows"
            )
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return embeddings.to(dtype), classifier.to(dtype)


class GatheredMethod(Method):
    """A method that gathers the embeddings of all images before the first epoch and decides by adding logits.

    To write: `addends`, `pseudo_label`, and `prepare` where more than gathering is to be done.

    Args:
        backbone: any CLIP, or the backbone of a data set of embeddings.
        prompts: class names, templates and descriptions.
        config: constants, `text` among them; None: the preset of the backbone's name, else "default".
    """

    trains: ClassVar[bool] = False
    adapts_tower: ClassVar[bool] = False
    works_on_embeddings: ClassVar[bool] = True
    sized_by_data: ClassVar[tuple[str, ...]] = ("embeddings", "index")

    classifier: Tensor
    embeddings: Tensor
    index: Tensor

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: Any = None) -> None:
        super().__init__(backbone, prompts)
        self.config = config or self.default_config(backbone)
        self.register_buffer("classifier", text_classifier(backbone, self.sentences))
        self.register_buffer("embeddings", self.classifier.new_zeros(0, self.classifier.shape[1]))
        self.register_buffer("index", torch.zeros(0, dtype=torch.int64, device=self.classifier.device))

    @property
    def sentences(self) -> list[tuple[str, ...]]:
        """Descriptions or filled templates, whichever the preset says."""
        return prompt_sentences(self.prompts, self.config.text)

    @property
    def needs(self) -> ViewNeeds:
        """The whole image, cut as for inference."""
        return ViewNeeds(centered=True)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Gather the embeddings in the order in which the images come, which the seed decides."""
        rows = [(batch.views.gather(embed(self.backbone, batch.views.weak)), batch.index) for batch in batches]
        for name, tensors in zip(("embeddings", "index"), zip(*rows, strict=True), strict=True):
            joined = torch.cat(tensors)
            self._resize(name, joined.shape).copy_(joined)

    def text_logits(self, embeddings: Tensor) -> Tensor:
        """Zero-shot by the same prompts, (B, E) -> (B, C)."""
        return class_logits(embeddings, self.classifier, self.backbone.logit_scale)

    @abstractmethod
    def addends(self, embeddings: Tensor) -> dict[str, Tensor]:
        """What is added up to the logits of unseen images (B, E): name -> (B, C)."""

    def logits(self, images: Tensor) -> Tensor:
        """The sum of the addends."""
        return sum_of(self.addends(embed(self.backbone, images)))

    def measured(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Both, from one look at the neighbors or the caches."""
        addends = self.branches(views.weak)
        return sum_of(addends), addends

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """Each addend alone; the first is zero-shot by the same prompts."""
        return self.addends(embed(self.backbone, images))

    def snapshot(self) -> dict[str, Tensor]:
        """The text classifier."""
        return {"classifier": self.classifier}


def sum_of(addends: dict[str, Tensor]) -> Tensor:
    """The logits (B, C) that the addends make."""
    return torch.stack(list(addends.values())).sum(0)


def guesses(probs: Tensor, addends: dict[str, Tensor]) -> PseudoLabels:
    """Pseudo-labels of equal weight by (B, C) probabilities, with the addends as their sources."""
    confidence, labels = probs.max(-1)
    return PseudoLabels(labels, probs, torch.ones_like(confidence), addends)


class StreamBatches:
    """A stream of embeddings cut into slices of whole batches, one slice an epoch, in the order of the rows.

    Args:
        index: (n,) positions in the data set.
        embeddings: (n, E) float.
        batch_size: images that come together.
        n_slices: number of epochs; where there are fewer batches the last ones are empty.
    """

    def __init__(self, index: Tensor, embeddings: Tensor, batch_size: int, n_slices: int) -> None:
        self._batches = list(zip(index.split(batch_size), embeddings.split(batch_size), strict=True))
        self._slices = np.array_split(np.arange(len(self._batches)), n_slices)

    def __len__(self) -> int:
        """Steps in an epoch, the longest."""
        return max(map(len, self._slices))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of a slice from a step on."""
        for number in self._slices[epoch][first_step:]:
            index, rows = self._batches[number]
            yield Batch(Views(rows), index, torch.full_like(index, UNLABELLED))


class StreamMethod(GatheredMethod):
    """A method that sees one batch after the other, once, and predicts each as it comes. To write: `step`, `forget`."""

    labels_are: ClassVar[str | None] = "online"

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Gather the stream, with nothing remembered."""
        super().prepare(batches)
        self.forget()

    @abstractmethod
    def forget(self) -> None:
        """Empty what is remembered."""

    def training_batches(self, batch_size: int, seed: int) -> StreamBatches:
        """The stream, an equal slice an epoch."""
        return StreamBatches(self.index, self.embeddings, batch_size, self.epochs)

    @abstractmethod
    def step(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Take a batch of the stream in; returns the addends of its logits, (B, C) each."""

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """The predictions in stream order; they change what the method remembers."""
        addends = self.step(views.weak, index)
        return guesses(sum_of(addends).softmax(-1), addends)
