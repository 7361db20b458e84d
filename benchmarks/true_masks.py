"""microCLIP with the true mask of the object in place of NCut's: what no better cut could beat.

A method sees views and positions only, so the masks are found from these. A whole image is known by its bytes: the weak
view of a square image is the view that is measured. The mask of a strong view goes through the same random resized
crop, flip and geometric operations as the image, by the same generator; that this is the view at hand is checked on the
first image of every batch. Labels play no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.soap_oracle import object_patches
from clipviz.backbone import Backbone, ImageTokens
from clipviz.data.base import Batch, ImageDataset, ViewConfig, Views
from clipviz.data.images.views import Color, apply_op, eval_parts, eval_view, strong_view
from clipviz.events import PseudoLabels
from clipviz.methods.microclip import Foreground, MicroCLIP, MicroCLIPConfig, saliency_query, soap_pool
from clipviz.prompts import ClassPrompts

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""The operations of RandAugment that move pixels; all others change their color."""


class ObjectMasks:
    """Where the object is in the views of two data sets of square images with part masks, for a run with `seed`."""

    def __init__(self, unlabeled: ImageDataset, test: ImageDataset, size: int, seed: int) -> None:
        self.unlabeled, self.test, self.size, self.seed = unlabeled, test, size, seed

    @cached_property
    def _of_view(self) -> dict[bytes, NDArray[np.bool_]]:
        """The mask (S, S) of every image of both data sets, by the bytes of its view."""
        return {
            eval_view(data.image(i), self.size).tobytes(): eval_parts(_parts(data, i), self.size) > 0
            for data in (self.unlabeled, self.test)
            for i in range(len(data))
        }

    def whole(self, images: Tensor) -> Tensor:
        """The masks (B, S, S) bool of whole images (B, 3, S, S) in [0, 1]; a ValueError for an image of neither set."""
        try:
            masks = [self._of_view[pixels.tobytes()] for pixels in _as_pixels(images)]
        except KeyError:
            raise ValueError("wanted views of whole square images of the two data sets, got another") from None
        return torch.from_numpy(np.stack(masks)).to(images.device)

    def strong(self, images: Tensor, epoch: int, index: Sequence[int], fill: Color) -> Tensor:
        """The masks (B, S, S) bool of the strong views (B, 3, S, S) of the images at `index` in an epoch.

        Raises:
            ValueError: if the first is not the strong view of that image, epoch and seed.
        """
        config = ViewConfig(images.shape[-1], strong=True, fill=fill)
        first = strong_view(self.unlabeled.image(index[0]), config, self._generator(epoch, index[0]))
        if not np.array_equal(first, _as_pixels(images[:1])[0]):
            raise ValueError(f"this is not the strong view of image {index[0]} in epoch {epoch} with seed {self.seed}")
        masks = [strong_mask(_parts(self.unlabeled, i) > 0, config.size, self._generator(epoch, i)) for i in index]
        return torch.from_numpy(np.stack(masks)).to(images.device)

    def _generator(self, epoch: int, index: int) -> np.random.Generator:
        """That of the strong view, as in `make_views`."""
        return np.random.default_rng((self.seed, epoch, index, 1))


def strong_mask(mask: NDArray[np.bool_], size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask (H, W) as the strong view moves its image, (S, S): a pixel counts where half of it or more does."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
    return strong_view(image, ViewConfig(size, fill=(0, 0, 0)), rng, _move)[..., 0] > 127


def _move(name: str, image: Image.Image, magnitude: float, sign: float, fill: Color) -> Image.Image:
    return apply_op(name, image, magnitude, sign, fill) if name in GEOMETRIC else image


def _parts(data: ImageDataset, index: int) -> NDArray[np.uint8]:
    parts = data.parts(index)
    if parts is None:
        raise ValueError(f"true masks need part masks, and {data.name} has none; for example birds have them")
    return parts


def _as_pixels(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, S, S) in [0, 1] -> the (B, S, S, 3) uint8 that it was made of."""
    return np.ascontiguousarray((images * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy())


class TrueMaskMicroCLIP(MicroCLIP):
    """microCLIP with m of eq. (1) from `masks`: in pseudo-labels, in the loss and in inference; all else is the same.

    Where nothing of the object is visible, the whole image is the mask.
    """

    def __init__(
        self, backbone: Backbone, prompts: ClassPrompts, config: MicroCLIPConfig | None, masks: ObjectMasks
    ) -> None:
        super().__init__(backbone, prompts, config)
        self.masks = masks
        self._region = torch.zeros(0)  # (B, S, S) bool, of the images at hand
        self._index: list[int] = []  # of the batch at hand
        self._epoch = -1

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Count the epochs of a new run."""
        self._epoch = -1
        super().prepare(batches)

    def begin_epoch(self) -> None:
        """One more."""
        self._epoch += 1
        super().begin_epoch()

    def foreground(self, tokens: ImageTokens) -> Foreground:
        """Eqs. (2) and (3) with the true mask; the spectrum is that of the graph, which is not asked."""
        truth = object_patches(self._region, tokens.grid)
        mask = truth | ~truth.any(1, keepdim=True)
        query = saliency_query(tokens.patches, mask)
        matrices = (self.w_query, self.w_key, self.w_value, self.backbone.visual.proj)
        embedding, attention = soap_pool(query, tokens.patches, *matrices)
        return super().foreground(tokens)._replace(embedding=embedding, attention=attention, mask=mask)

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """Eqs. (1)-(5)."""
        self._index, self._region = index.tolist(), self.masks.whole(views.weak)
        return super().pseudo_label(views, index)

    def loss(self, views: Views, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Eq. (6), on the views of the batch that has just been labeled."""
        assert views.strong is not None
        self._region = self.masks.strong(views.strong, self._epoch, self._index, self.config.fill)
        return super().loss(views, pseudo)

    def logits(self, images: Tensor) -> Tensor:
        """Eq. (6) on whole images."""
        self._region = self.masks.whole(images)
        return super().logits(images)

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """CLS alone and [FG] alone."""
        self._region = self.masks.whole(images)
        return super().branches(images)

    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Its maps."""
        self._region = self.masks.whole(images)
        return super().explain(images)
