"""Tip-Adapter (arXiv 2111.03930) on pseudo-labels, without training: the cache that NtUA starts from.

    z(f) = s f W^T + alpha exp(-beta (1 - f F^T)) L       L one-hot pseudo-labels

Every entry counts the same, and the model's own guesses are the labels: nothing weighs or refines them. The few-shot
labels of the original are not used, so its published numbers are not to be compared with these.
"""

from dataclasses import replace
from typing import Any, ClassVar

from clipviz.backbone import Backbone
from clipviz.methods.ntua import BENCHMARK_PRESETS, PRESETS, NtUA, NtUAConfig
from clipviz.prompts import ClassPrompts


def _plain(presets: dict[str, NtUAConfig]) -> dict[str, NtUAConfig]:
    return {name: replace(config, weighted=False, rectify=False) for name, config in presets.items()}


class TipAdapter(NtUA):
    """A cache of pseudo-labeled images beside the text classifier; weights and teacher of `NtUA` are switched off."""

    name = "tip_adapter"
    presets: ClassVar = _plain(PRESETS)
    backbone_presets: ClassVar = _plain({"birds": NtUAConfig(beta=40.0)})  # chosen on the validation domain of birds
    benchmark_presets: ClassVar = _plain(BENCHMARK_PRESETS)
    trains: ClassVar[bool] = False

    def __init__(
        self, backbone: Backbone, prompts: ClassPrompts, config: NtUAConfig | None = None, **options: Any
    ) -> None:
        if options.get("teacher") is not None:
            raise ValueError("tip_adapter has no teacher; ntua has one")
        plain = replace(config, weighted=False, rectify=False) if isinstance(config, NtUAConfig) else config
        super().__init__(backbone, prompts, plain, **options)
