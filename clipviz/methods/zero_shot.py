"""The baselines: what CLIP says without any adaptation.

    zero_shot      w_c = nrm(mean_t E(template_t(c)))        template ensemble (Radford et al., 2021)
    descriptions   w_c = nrm(mean_m E(d_cm))                 CuPL (Pratt et al., ICCV 2023)
    prediction     argmax_c  logit_scale * f . w_c           f: CLS embedding of the image

E is the unit text embedding. Each template's embedding is normalized before the mean, as in CLIP's own code.
"""

from typing import Any, ClassVar

from clipviz.backbone import Backbone
from clipviz.data.batches.features import FeatureBackbone
from clipviz.methods.base import AdaptConfig
from clipviz.methods.embedding import EmbeddingMethod
from clipviz.prompts import ClassPrompts, TextSource


class ZeroShot(EmbeddingMethod):
    """Template ensemble on class names."""

    name = "zero_shot"
    trains: ClassVar[bool] = False
    text: ClassVar[TextSource] = "templates"

    @property
    def schedule(self) -> AdaptConfig:
        """One pass; the batch size changes nothing but speed."""
        return AdaptConfig(epochs=1, batch_size=256)


class Descriptions(ZeroShot):
    """Mean of the descriptions of each class; without descriptions the templates stand in for them."""

    name = "descriptions"
    text: ClassVar[TextSource] = "descriptions"

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: Any = None) -> None:
        if isinstance(backbone, FeatureBackbone) and not backbone.reads_text:
            raise ValueError(
                f"descriptions needs a text tower, but {backbone.name!r} has one classifier and no sentences; "
                "use zero_shot, or give the model and the descriptions"
            )
        super().__init__(backbone, prompts, config)
