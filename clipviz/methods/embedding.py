"""What methods on embeddings share: a text classifier, decisions that are sums, embeddings gathered once."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, ViewConfig, Views
from clipviz.errors import finite_number
from clipviz.events import UNLABELLED, CacheContributions, PseudoLabels
from clipviz.methods.base import Method, embed, guesses, text_classifier
from clipviz.ops import class_logits, expect_axes, expect_floats
from clipviz.prompts import ClassPrompts

_UNIT = 1e-2
"""So far may the norm of a row be from 1: half precision is about 1e-3 off."""


def unit_rows(embeddings: Tensor, classifier: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """Embeddings (n, E) and text classifier (C, E) in at least single precision, if they are what a formula wants.

    A ValueError for other shapes, no rows, mixed precision, NaN, or a row that is not of unit norm, which is named; and
    for a scale of the cosines by which no softmax can be taken.
    """
    finite_number("logit_scale", logit_scale, 0)
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


class EmbeddingMethod(Method):
    """A method that sees an image as its CLS embedding, and classes by their texts; by itself it is zero-shot."""

    adapts_tower: ClassVar[bool] = False
    works_on_embeddings: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: Any = None) -> None:
        super().__init__(backbone, prompts, config)
        self.classifier = nn.Buffer(text_classifier(backbone, self.sentences))

    def text_logits(self, embeddings: Tensor) -> Tensor:
        """Zero-shot, (B, E) -> (B, C)."""
        return class_logits(embeddings, self.classifier, self.backbone.logit_scale)

    def logits(self, images: Tensor) -> Tensor:
        """Zero-shot."""
        return self.text_logits(embed(self.backbone, images))

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """The prediction on the weak view."""
        logits = views.gather(self.logits(views.weak))
        return guesses(logits.softmax(-1), {self.name: logits})

    def snapshot(self) -> dict[str, Tensor]:
        """The text classifier."""
        return {"classifier": self.classifier}


class AddingMethod(EmbeddingMethod):
    """A method that adds to the logits of the text classifier. To write: `addends` and `pseudo_label`."""

    @abstractmethod
    def addends(self, embeddings: Tensor) -> dict[str, Tensor]:
        """What is added up to the logits of unseen images (B, E): name -> (B, C)."""

    def logits(self, images: Tensor) -> Tensor:
        """The sum of the addends."""
        return sum_of(self.branches(images))

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """Each addend alone; the first is zero-shot by the same prompts."""
        return self.addends(embed(self.backbone, images))

    def measured(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Both, from one look at the neighbors or the cache."""
        addends = self.branches(views.weak)
        return sum_of(addends), addends


def sum_of(addends: dict[str, Tensor]) -> Tensor:
    """The logits (B, C) that the addends make."""
    return torch.stack(list(addends.values())).sum(0)


def heaviest(adds: Tensor, index: Tensor, labels: Tensor, n: int, *, signed: bool = False) -> CacheContributions | None:
    """The n entries of a cache that weigh most for each image, for or against a class; `signed`: for it.

    What each of M entries adds to the logit of its class (B, M); its position in the data set, -1 if it is empty; its
    class (M,). None if all are empty.
    """
    if not (n := min(n, int((index >= 0).sum()))):
        return None
    rows = (adds if signed else adds.abs()).masked_fill(index < 0, -torch.inf).topk(n)[1]
    return CacheContributions(*(t.cpu() for t in (index[rows], labels[rows], adds.gather(1, rows))))


class GatheredMethod(AddingMethod):
    """A method without training that gathers the embeddings of all images before the first epoch."""

    trains: ClassVar[bool] = False
    sized_by_data: ClassVar[tuple[str, ...]] = ("embeddings", "index")
    kept_once: ClassVar[tuple[str, ...]] = ("embeddings", "index")
    needs = ViewConfig(centered=True)

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: Any = None) -> None:
        super().__init__(backbone, prompts, config)
        self.embeddings = nn.Buffer(self.classifier.new_zeros(0, self.classifier.shape[1]))
        self.index = nn.Buffer(torch.zeros(0, dtype=torch.int64, device=self.classifier.device))

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Gather the embeddings in the order in which the images come, which the seed decides."""
        rows = [(batch.views.gather(embed(self.backbone, batch.views.weak)), batch.index) for batch in batches]
        embeddings, index = map(torch.cat, zip(*rows, strict=True))
        self.fill(embeddings=embeddings, index=index)


class StreamBatches:
    """A stream of embeddings (n, E) cut into slices of whole batches, one slice an epoch, in the order of the rows.

    Where there are fewer batches than slices the last ones are empty. `index` are positions in the data set, (n,).
    """

    def __init__(self, index: Tensor, embeddings: Tensor, batch_size: int, n_slices: int) -> None:
        self._batches = list(zip(index.split(batch_size), embeddings.split(batch_size), strict=True))
        self._slices = np.array_split(np.arange(len(self._batches)), n_slices)

    def __len__(self) -> int:
        """Steps in an epoch, the longest."""
        return max(map(len, self._slices))

    def steps_before(self, epoch: int) -> int:
        """Steps of all slices before one."""
        return sum(map(len, self._slices[:epoch]))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of a slice from a step on."""
        for number in self._slices[epoch][first_step:]:
            index, rows = self._batches[number]
            yield Batch(Views(rows), index, torch.full_like(index, UNLABELLED))


class StreamMethod(GatheredMethod):
    """A method that sees one batch after the other, once, and predicts each as it comes. To write: `empty`, `step`."""

    labels_are: ClassVar[str | None] = "online"
    rows_of_data: ClassVar = {"embeddings": "index"}

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: Any = None) -> None:
        super().__init__(backbone, prompts, config)
        for name, tensor in self.empty().items():
            self.register_buffer(name, tensor)

    @abstractmethod
    def empty(self) -> dict[str, Tensor]:
        """The buffers of what is remembered, as they are before the first image."""

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Gather the stream, with nothing remembered."""
        super().prepare(batches)
        self.fill(**self.empty())

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
