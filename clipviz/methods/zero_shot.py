"""The baselines: what CLIP says without any adaptation.

    zero_shot      w_c = nrm(mean_t E(template_t(c)))        template ensemble (Radford et al., 2021)
    descriptions   w_c = nrm(mean_m E(d_cm))                 CuPL (Pratt et al., ICCV 2023)
    prediction     argmax_c  logit_scale * f . w_c           f: CLS embedding of the image

E is the unit text embedding. Each template's embedding is normalized before the mean, as in CLIP's own code.
"""

from __future__ import annotations

from clipviz.backbone import Backbone
from clipviz.data.batches.features import FeatureBackbone
from clipviz.methods.base import ZeroShotMethod, prompt_sentences, text_classifier
from clipviz.prompts import ClassPrompts


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
