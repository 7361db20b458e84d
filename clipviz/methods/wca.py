"""WCA (arXiv 2406.02915, ICML 2024): every crop against every description, weighted. Training-free.

Notation: g unit embedding of the whole image, g_k of crop k (K crops), t_c unit embedding of class c's name, d_cm of
its description m, s logit scale.

    (1) crops           u_k = softmax_k(s_image g_k . g)
    (2) descriptions    v_cm = softmax_m(s_text d_cm . t_c)
    (3) score           z_c = s nrm(sum_k u_k g_k) . nrm(sum_m v_cm d_cm)

The scales are those of the released code, e^4 and e^2, and so is the unit norm of both sums; without it (3) is the
weighted mean of all similarities g_k . d_cm, as the paper has it (`normalized=False`). The paper draws 60 crops of side
0.5 to 0.9 per image; we take fewer by default, which costs less. A test image has the same crops at every measurement.
Otherwise than the released code: its loader in effect cuts from 0.1 of the short side on (`crop_scale=(0.1, 0.9)`),
draws 60 of 100 kept crops with repetition and reports the mean of 20 draws; and its t_c is the one sentence "a photo
of a {}.", where ours is the mean of all templates that are given.
The preset `birds` keeps the weights nearly even (both scales 1), without the norm: as it was measured in `benchmarks/`.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import ViewConfig, Views
from clipviz.events import PseudoLabels
from clipviz.methods import base
from clipviz.methods.base import AdaptConfig, Method
from clipviz.ops import normalize
from clipviz.prompts import ClassPrompts


@dataclass(frozen=True)
class WCAConfig:
    """Constants of WCA."""

    crops: int = 16  # K
    crop_scale: tuple[float, float] = (0.5, 0.9)  # side of a crop as a share of the short side of the image
    image_scale: float = math.exp(4.0)  # sharpness of the weights of crops, eq. (1)
    text_scale: float = math.exp(2.0)  # sharpness of the weights of descriptions, eq. (2)
    normalized: bool = True  # whether the two sums of eq. (3) have unit norm
    schedule: AdaptConfig = field(default_factory=lambda: AdaptConfig(epochs=1))  # batches change nothing but speed

    def __post_init__(self) -> None:
        base.check_constants(self, crops=1, image_scale=0, text_scale=0)


_BIRDS = WCAConfig(crops=8, crop_scale=(0.7, 1.0), image_scale=1.0, text_scale=1.0, normalized=False)


def weighted_descriptions(descriptions: list[Tensor], name_embeddings: Tensor, scale: float) -> Tensor:
    """Descriptions weighted by their similarity to the class name, right factor of eq. (3).

    C tensors (M_c, E) and (C, E), of unit norm -> (C, E), norm at most 1; `scale` is s_text of eq. (2).
    """
    pairs = zip(descriptions, name_embeddings, strict=True)
    return torch.stack([(scale * (sentences @ name)).softmax(-1) @ sentences for sentences, name in pairs])


def weighted_crops(embedding: Tensor, crops: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Crops weighted by their similarity to the whole image, left factor of eq. (3).

    (B, E) and (B, K, E), of unit norm -> the weighted mean (B, E), norm at most 1, and the weights (B, K), summing to
    1; `scale` is s_image of eq. (1).
    """
    weights = (scale * torch.einsum("bke,be->bk", crops, embedding)).softmax(-1)
    return torch.einsum("bk,bke->be", weights, crops), weights


class WCA(Method):
    """Weighted cross alignment of crops and descriptions."""

    name = "wca"
    presets: ClassVar = {"default": WCAConfig(), "paper": WCAConfig(crops=60)}
    backbone_presets: ClassVar = {"birds": _BIRDS}
    trains: ClassVar[bool] = False
    adapts_tower: ClassVar[bool] = False

    config: WCAConfig

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: WCAConfig | None = None) -> None:
        super().__init__(backbone, prompts, config)
        names = base.text_classifier(backbone, base.prompt_sentences(prompts, "templates"))
        sentences = base.sentence_embeddings(backbone, self.sentences)
        classifier = weighted_descriptions(sentences, names, self.config.text_scale)
        self.classifier = nn.Buffer(normalize(classifier) if self.config.normalized else classifier)
        self.needs = self.test_needs = ViewConfig(crops=self.config.crops, crop_scale=self.config.crop_scale)

    def _score(self, mean: Tensor) -> Tensor:
        return self.backbone.logit_scale * mean @ self.classifier.T

    def _cropped(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Whole-image embedding (B, E), weighted crops (B, E) and their weights (B, K)."""
        whole = self.backbone.embed(views.weak)
        mean, weights = weighted_crops(whole, base.embed_crops(self.backbone, views), self.config.image_scale)
        return whole, normalize(mean) if self.config.normalized else mean, weights

    def view_logits(self, views: Views) -> Tensor:
        """Eq. (3)."""
        return self._score(self._cropped(views)[1])

    def logits(self, images: Tensor) -> Tensor:
        """Eq. (3) with the image as its only crop, where no crops are at hand."""
        return self._score(self.backbone.embed(images))

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """Eq. (3); as sources the crops and the whole image."""
        whole, mean, crop_weights = map(views.gather, self._cropped(views))
        sources = {"crops": self._score(mean), "image": self._score(whole)}
        return base.guesses(sources["crops"].softmax(-1), sources, crop_weights=crop_weights)

    def snapshot(self) -> dict[str, Tensor]:
        """The weighted descriptions, unit norm."""
        return {"classifier": normalize(self.classifier)}
