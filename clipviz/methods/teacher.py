"""A larger CLIP that guesses for a smaller one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.methods.base import text_classifier
from clipviz.ops import class_logits


class Teacher:
    """A frozen zero-shot classifier with a joint space of its own; only its probabilities leave it.

    Not a module: it is no part of the model that is adapted, nor of its checkpoint.

    Args:
        backbone: any CLIP, of any embedding width and input size.
        sentences: what each of the C classes is made of.
    """

    def __init__(self, backbone: Backbone, sentences: list[tuple[str, ...]]) -> None:
        self.backbone = backbone
        self.classifier = text_classifier(backbone, sentences)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.backbone.name

    def logits(self, images: Tensor) -> Tensor:
        """Zero-shot logits (B, C) of images (B, 3, S, S) in [0, 1], resized where the teacher's input has another S."""
        size = self.backbone.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        embeddings = self.backbone.embed(images.to(self.backbone.device))
        return class_logits(embeddings, self.classifier, self.backbone.logit_scale).to(images)
