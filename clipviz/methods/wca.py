"""WCA (arXiv 2406.02915, ICML 2024): every crop against every description, weighted. Training-free.

Notation: g unit embedding of the whole image, g_k of crop k (K crops), t_c unit embedding of class c's name, d_cm of
its description m, s logit scale.

    (1) crops           u_k = softmax_k(g_k . g / tau)
    (2) descriptions    v_cm = softmax_m(d_cm . t_c / tau)
    (3) score           z_c = s sum_k sum_m u_k v_cm (g_k . d_cm) = s (sum_k u_k g_k) . (sum_m v_cm d_cm)

tau is 1, so the weights are nearly even. The sums of (3) are deliberately not normalized: that is the weighted mean of
all similarities. The paper cuts 60 crops of side 0.5 to 0.9; we take fewer by default, which costs less and changes
little (the composite is a mean). A test image has the same crops at every measurement.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.data.base import Views
from clipviz.events import PseudoLabels
from clipviz.methods.base import AdaptConfig, Method, ViewNeeds, sentence_embeddings, text_classifier
from clipviz.ops import normalize
from clipviz.prompts import ClassPrompts


@dataclass(frozen=True)
class WCAConfig:
    """Constants of WCA.

    Attributes:
        crops: K.
        crop_scale: side of a crop as a share of the short side of the image.
        temperature: tau of both softmaxes.
        schedule: one pass; the batch size changes nothing but speed.
    """

    crops: int = 16
    crop_scale: tuple[float, float] = (0.5, 0.9)
    temperature: float = 1.0
    schedule: AdaptConfig = field(default_factory=lambda: AdaptConfig(epochs=1))

    def __post_init__(self) -> None:
        """Refuse constants outside their range."""
        if self.crops < 1 or not self.temperature > 0:
            raise ValueError(
                f"wca needs crops >= 1 and temperature > 0, got crops={self.crops}, temperature={self.temperature}"
            )


PRESETS: dict[str, WCAConfig] = {
    "default": WCAConfig(),
    "paper": WCAConfig(crops=60),
    "birds": WCAConfig(crops=8, crop_scale=(0.7, 1.0)),
}


def weighted_descriptions(descriptions: list[Tensor], name_embeddings: Tensor, temperature: float = 1.0) -> Tensor:
    """Descriptions weighted by their similarity to the class name, right factor of eq. (3).

    Args:
        descriptions: C tensors (M_c, E) float, unit norm.
        name_embeddings: (C, E) float, unit norm.
        temperature: of eq. (2).

    Returns:
        (C, E) float, norm at most 1.
    """
    rows = []
    for sentences, name in zip(descriptions, name_embeddings, strict=True):
        rows.append((sentences @ name / temperature).softmax(-1) @ sentences)
    return torch.stack(rows)


def weighted_crops(embedding: Tensor, crops: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Crops weighted by their similarity to the whole image, left factor of eq. (3).

    Args:
        embedding: (B, E) float, unit norm.
        crops: (B, K, E) float, unit norm.
        temperature: of eq. (1).

    Returns:
        The weighted mean (B, E), norm at most 1, and the weights (B, K), summing to 1.
    """
    weights = (torch.einsum("bke,be->bk", crops, embedding) / temperature).softmax(-1)
    return torch.einsum("bk,bke->be", weights, crops), weights


class WCA(Method):
    """Weighted cross alignment of crops and descriptions.

    Args:
        backbone: any CLIP.
        prompts: class names, templates and descriptions (templates stand in for missing descriptions).
        config: constants; None: the preset of the backbone's name, else "default".
    """

    name = "wca"
    presets = PRESETS
    trains: ClassVar[bool] = False
    adapts_tower: ClassVar[bool] = False

    classifier: Tensor

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: WCAConfig | None = None) -> None:
        super().__init__(backbone, prompts)
        self.config: WCAConfig = config or self.default_config(backbone)
        names = text_classifier(backbone, [prompts.template_sentences(name) for name in prompts.names])
        sentences = sentence_embeddings(backbone, [prompts.description_sentences(name) for name in prompts.names])
        self.register_buffer("classifier", weighted_descriptions(sentences, names, self.config.temperature))

    @property
    def schedule(self) -> AdaptConfig:
        """One pass."""
        return self.config.schedule

    @property
    def needs(self) -> ViewNeeds:
        """The crops."""
        return ViewNeeds(crops=self.config.crops, crop_scale=self.config.crop_scale)

    @property
    def test_needs(self) -> ViewNeeds:
        """The crops, of test images too."""
        return self.needs

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration."""
        return asdict(self.config)

    def _score(self, mean: Tensor) -> Tensor:
        return self.backbone.logit_scale * mean @ self.classifier.T

    def _cropped(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Whole-image embedding (B, E), weighted crops (B, E) and their weights (B, K)."""
        assert views.crops is not None  # the loop prepares what `needs` asks for
        whole = self.backbone.embed(views.weak)
        crops = self.backbone.embed(views.crops.flatten(0, 1)).unflatten(0, views.crops.shape[:2])
        return whole, *weighted_crops(whole, crops, self.config.temperature)

    def view_logits(self, views: Views) -> Tensor:
        """Eq. (3)."""
        return self._score(self._cropped(views)[1])

    def logits(self, images: Tensor) -> Tensor:
        """Eq. (3) with the image as its only crop, where no crops are at hand."""
        return self._score(self.backbone.embed(images))

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """Eq. (3); as sources the crops and the whole image."""
        whole, mean, crop_weights = self._cropped(views)
        sources = {"crops": self._score(mean), "image": self._score(whole)}
        probs = sources["crops"].softmax(-1)
        confidence, labels = probs.max(-1)
        return PseudoLabels(labels, probs, torch.ones_like(confidence), sources, crop_weights)

    def snapshot(self) -> dict[str, Tensor]:
        """The weighted descriptions, unit norm."""
        return {"classifier": normalize(self.classifier)}
