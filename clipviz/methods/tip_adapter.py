"""Tip-Adapter (arXiv 2111.03930) on pseudo-labels, without training: the cache that NtUA starts from.

    z(f) = s f W^T + alpha exp(-beta (1 - f F^T)) L       L one-hot pseudo-labels

Every entry counts the same, and the model's own guesses are the labels: nothing weighs or refines them. The few-shot
labels of the original are not used, so its published numbers are not to be compared with these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from clipviz.backbone import Backbone
from clipviz.methods.ntua import PRESETS, NtUA, NtUAConfig
from clipviz.prompts import ClassPrompts


class TipAdapter(NtUA):
    """A cache of pseudo-labelled images beside the text classifier, training-free.

    Args:
        backbone: any CLIP, or the backbone of a data set of embeddings.
        prompts: class names, templates and descriptions.
        config: constants, of which weights, teacher and training are switched off; default as for `NtUA`.
    """

    name = "tip_adapter"
    trains: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: NtUAConfig | None = None) -> None:
        chosen = config or (PRESETS["birds"] if backbone.name == "birds" else NtUAConfig())
        super().__init__(backbone, prompts, replace(chosen, weighted=False, rectify=False))
