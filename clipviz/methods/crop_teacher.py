"""Who embeds the crops of microCLIP, eq. (4): the model being trained, as published, or the frozen one, once an image.

The frozen teacher is a variant beyond the official method. Its K crop embeddings g_k of an image are those of the first
pass over the data, before any training, and are kept in float16 for the whole run: n K E numbers of 2 bytes, for 10,000
images, 8 crops and E = 512 that is 82 MB, in memory and in every checkpoint. A step then embeds 2 views instead of
2 + K, and epochs after the first make no crops at all. What it gives up: the crops are always the same K, and the
static vote of eq. (5) no longer grows with the model (only their weights r do, by the model's own g).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, Views

CropTeacherKind = Literal["student", "frozen"]


class StudentCrops(nn.Module):
    """The model being trained embeds new crops at every step."""

    trains_on_crops = True

    def see(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Nothing to prepare."""

    def embeddings(self, backbone: Backbone, views: Views, index: Tensor) -> Tensor:
        """Crop embeddings (B, K, E), unit norm, of a batch's own crops, the shares of all processes."""
        assert views.crops is not None  # the loop prepares what the method needs
        return views.gather(backbone.embed(views.crops.flatten(0, 1)).unflatten(0, views.crops.shape[:2]))


class FrozenCrops(nn.Module):
    """A bank of embeddings by the model as it was before training, (n, K, E) float16."""

    trains_on_crops = False
    bank: Tensor

    def __init__(self, embed_dim: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, 0, embed_dim, dtype=torch.float16, device=device))

    def see(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Fill the bank; the model must not have been trained yet."""
        student = StudentCrops()
        rows = [(b.index, student.embeddings(backbone, b.views, b.index).half()) for b in batches]
        index, embeddings = (torch.cat(column) for column in zip(*rows, strict=True))
        self.bank.data = torch.empty_like(embeddings)  # in place, as `Method._resize` does
        self.bank[index] = embeddings

    def embeddings(self, backbone: Backbone, views: Views, index: Tensor) -> Tensor:
        """Crop embeddings (B, K, E), unit norm up to float16, of the images at `index`."""
        if len(self.bank) == 0:
            raise ValueError(
                "the frozen crop teacher has seen no images yet; call prepare(batches) first, as the loop does"
            )
        return self.bank[index].float()


def crop_teacher(kind: CropTeacherKind, backbone: Backbone) -> StudentCrops | FrozenCrops:
    """The teacher of a configuration."""
    return FrozenCrops(backbone.embed_dim, backbone.device) if kind == "frozen" else StudentCrops()
