"""Maps of microCLIP's foreground branch on any ViT: Fiedler vector, NCut mask, SOAP attention.

For a microCLIP they are the method's own, with its trained matrices. For any other method or a bare backbone they are
what microCLIP would start from: identity matrices and the preset's patch graph. The foreground is the same for every
question; `tau` to `side` are those of `MicroCLIPConfig`, None for the method's or the preset's own.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipviz.methods.microclip import MicroCLIP, foreground
from clipviz.ncut import AffinityKind, MaskRule, Side
from clipviz.saliency.question import Model, backbone_of


def _map(
    name: str,
    model: Model,
    images: Tensor,
    *,
    tau: float | None = None,
    affinity: AffinityKind | None = None,
    mask_rule: MaskRule | None = None,
    side: Side | None = None,
) -> Tensor:
    backbone = backbone_of(model)
    matrices: tuple[Tensor, Tensor, Tensor]
    if isinstance(model, MicroCLIP):
        own, matrices = model.config, (model.w_query, model.w_key, model.w_value)
    else:
        own = MicroCLIP.default_config(backbone)
        matrices = (torch.eye(backbone.width, device=backbone.device, dtype=backbone.visual.proj.dtype),) * 3
    asked: dict[str, Any] = {"tau": tau, "affinity": affinity, "mask_rule": mask_rule, "side": side}
    config = replace(own, **{name: value for name, value in asked.items() if value is not None})
    with torch.no_grad():
        tokens = backbone.tokens(images)
        return foreground(tokens, config, *matrices, backbone.visual.proj).maps(tokens.grid)[name]


soap = partial(_map, "soap")
"""SOAP attention of the foreground query over the patches, (B, h, w), summing to 1."""

ncut = partial(_map, "ncut")
"""Foreground mask of the normalized cut, (B, h, w) of 0 and 1."""

fiedler = partial(_map, "fiedler")
"""Fiedler vector of the patch graph, (B, h, w), unit norm, the foreground positive; no `mask_rule` changes it."""
