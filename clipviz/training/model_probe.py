"""ModelProbe: queries about images in numpy, answered by the current model.

It connects methods with views, which do not use torch. That of a run works between two steps and changes nothing.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.data.base import ImageDataset
from clipviz.data.images.views import eval_view
from clipviz.methods.base import Method, text_classifier
from clipviz.saliency import KINDS, available_kinds, saliency_maps
from clipviz.saliency.attention import attention_modules
from clipviz.saliency.maps import option_names

T = TypeVar("T")
Ask = Callable[[Callable[[Method], T]], T]


class ModelProbe:
    """Applies a method to images without changing it.

    `dataset` are the training images to show (None: only stored pixels), `eval_dataset` the evaluation
    images. `ask` calls a function of the method; default: directly.
    """

    def __init__(
        self, method: Method, dataset: ImageDataset | None = None, eval_dataset: ImageDataset | None = None,
        ask: Ask[Any] | None = None,
    ) -> None:  # fmt: skip
        self._method = method
        self._datasets = {"train": dataset, "eval": eval_dataset}
        self._ask, self.image_size = ask or self._directly, method.backbone.image_size
        self.class_names, self.prompts = method.class_names, method.prompts
        self.logit_scale = method.backbone.logit_scale

    def _directly(self, question: Callable[[Method], T]) -> T:
        with preserved_state(self._method):
            return question(self._method)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The saliency kinds that work with this model; none if it holds embeddings only."""
        return available_kinds(self._method) if self.image_size else ()

    def contrasts(self, kind: str) -> bool:
        """Whether a kind can explain "why A and not B"."""
        return KINDS[kind].asks

    def options(self, kind: str) -> tuple[str, ...]:
        """Names of what can be chosen for a kind ("layer", "head", "tau", ...)."""
        return option_names(kind)

    @cached_property
    def _attention(self) -> list[Any]:
        """The attention of each block of the image tower; nothing for other towers."""
        with lock_of(self._method), suppress(ValueError):
            return list(attention_modules(self._method))
        return []

    @property
    def n_layers(self) -> int:
        """Blocks of the image tower with attention; 0 for other towers."""
        return len(self._attention)

    @property
    def n_heads(self) -> int:
        """Attention heads of a block; 0 for other towers."""
        return int(self._attention[-1].num_heads) if self._attention else 0

    def has(self, split: str, index: int) -> bool:
        """Whether image `index` of "train" or "eval" can be shown."""
        dataset = self._datasets.get(split)
        return dataset is not None and dataset.has_pixels and 0 <= index < len(dataset)

    def pixels(self, split: str, index: int) -> np.ndarray:
        """Image at the input size of the model, (S, S, 3) uint8; a ValueError unless `has`."""
        dataset = self._datasets.get(split)
        if dataset is None or not self.has(split, index):
            raise ValueError(f"there is no image {index} in {split!r}")
        return eval_view(dataset.image(index), self.image_size)

    def saliency(self, pixels: np.ndarray, kind: str, **options: Any) -> np.ndarray:
        """A map (h, w) float32 in [0, 1] of pixels (S, S, 3) uint8; options: see `clipviz.saliency.saliency_maps`."""

        def question(method: Method) -> np.ndarray:
            return saliency_maps(method, self._batch(method, pixels), kind, **options).maps[0].numpy(force=True)

        return self._ask(question)

    def probs(self, pixels: np.ndarray) -> np.ndarray:
        """(C,) class probabilities of an image (S, S, 3) uint8."""
        return self._ask(lambda method: method.logits(self._batch(method, pixels)).softmax(-1)[0].numpy(force=True))

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Embeddings (n, E) of unit norm of images (n, S, S, 3) uint8, by the current image tower."""
        return self._ask(lambda method: method.backbone.embed(self._batch(method, pixels)).numpy(force=True))

    def embed_text(self, *sentences: Sequence[str]) -> np.ndarray:
        """(C, E), a row of a classifier for each of C groups of sentences; a ValueError if it cannot embed them."""
        return self._ask(lambda method: text_classifier(method.backbone, list(sentences)).numpy(force=True))

    def _batch(self, method: Method, pixels: np.ndarray) -> Tensor:
        size = self.image_size
        batch = pixels[None] if pixels.ndim == 3 else pixels
        if batch.shape[1:] != (size, size, 3):
            raise ValueError(f"this model needs images ({size}, {size}, 3), got {pixels.shape}")
        return torch.from_numpy(batch.copy()).permute(0, 3, 1, 2).to(method.backbone.device) / 255.0
