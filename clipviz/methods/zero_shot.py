"""The baselines: what CLIP says without any adaptation.

    zero_shot      w_c = nrm(mean_t E(template_t(c)))        template ensemble (Radford et al., 2021)
    descriptions   w_c = nrm(mean_m E(d_cm))                 CuPL (Pratt et al., ICCV 2023)
    prediction     argmax_c  logit_scale * f . w_c           f: CLS embedding of the image

E is the unit text embedding. Each template's embedding is normalized before the mean, as in CLIP's own code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.data.base import Views
from clipviz.data.batches.features import FeatureBackbone
from clipviz.events import PseudoLabels
from clipviz.methods.base import AdaptConfig, Method, embed, prompt_sentences, text_classifier
from clipviz.ops import class_logits
from clipviz.prompts import ClassPrompts


class ZeroShotMethod(Method):
    """A fixed classifier on CLS embeddings; subclasses say which."""

    trains: ClassVar[bool] = False
    adapts_tower: ClassVar[bool] = False
    works_on_embeddings: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, classifier: Tensor) -> None:
        super().__init__(backbone, prompts)
        self.classifier: Tensor
        self.register_buffer("classifier", classifier)

    @property
    def schedule(self) -> AdaptConfig:
        """One pass; the batch size changes nothing but speed."""
        return AdaptConfig(epochs=1, batch_size=256)

    def logits(self, images: Tensor) -> Tensor:
        """logit_scale * cosine of the CLS embedding to each class."""
        return class_logits(embed(self.backbone, images), self.classifier, self.backbone.logit_scale)

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """The prediction on the weak view."""
        logits = views.gather(self.logits(views.weak))
        probs = logits.softmax(-1)
        confidence, labels = probs.max(-1)
        return PseudoLabels(labels, probs, torch.ones_like(confidence), {self.name: logits})

    def snapshot(self) -> dict[str, Tensor]:
        """The classifier."""
        return {"classifier": self.classifier}


class ZeroShot(ZeroShotMethod):
    """Template ensemble on class names."""

    name = "zero_shot"

    def __init__(self, backbone: Backbone, prompts: ClassPrompts) -> None:
        super().__init__(backbone, prompts, text_classifier(backbone, prompt_sentences(prompts, "templates")))

    @property
    def sentences(self) -> list[tuple[str, ...]]:
        """The filled templates."""
        return prompt_sentences(self.prompts, "templates")


class Descriptions(ZeroShotMethod):
    """Mean of the descriptions of each class; without descriptions the templates stand in for them."""

    name = "descriptions"

    def __init__(self, backbone: Backbone, prompts: ClassPrompts) -> None:
        if isinstance(backbone, FeatureBackbone) and not backbone.reads_text:
            raise ValueError(
                f"descriptions needs a text tower, but {backbone.name!r} brings one classifier and no sentences; "
                "use zero_shot, or give the model and the descriptions"
            )
        super().__init__(backbone, prompts, text_classifier(backbone, prompt_sentences(prompts, "descriptions")))
