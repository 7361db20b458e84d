"""Maps of microCLIP's foreground branch on any ViT: Fiedler vector, NCut mask, SOAP attention.

For a microCLIP they are the method's own, with its trained matrices. For any other method or a bare backbone they are
what microCLIP would start from: identity matrices and the preset's patch graph. The foreground is the same for every
question, which is not used; `tau` to `side` are those of `MicroCLIPConfig`, None for the method's or the preset's own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipviz.methods.microclip import MicroCLIP, foreground
from clipviz.ncut import AffinityKind, MaskRule, Side
from clipviz.saliency.question import Model, Question, backbone_of


def fiedler(
    model: Model,
    images: Tensor,
    question: Question | None,
    *,
    tau: float | None = None,
    affinity: AffinityKind | None = None,
    side: Side | None = None,
) -> Tensor:
    """Fiedler vector of the patch graph, (B, h, w), unit norm, the foreground positive."""
    return _map("fiedler", model, images, question, tau=tau, affinity=affinity, side=side)


def _map(
    name: str,
    model: Model,
    images: Tensor,
    question: Question | None,
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
        identity = torch.eye(backbone.width, device=backbone.device, dtype=backbone.visual.proj.dtype)
        matrices = (identity, identity, identity)
    asked: dict[str, Any] = {"tau": tau, "affinity": affinity, "mask_rule": mask_rule, "side": side}
    config = replace(own, **{name: value for name, value in asked.items() if value is not None})
    with torch.no_grad():
        tokens = backbone.tokens(images)
        return foreground(tokens, config, *matrices, backbone.visual.proj).maps(tokens.grid)[name]


soap = partial(_map, "soap")
"""SOAP attention of the foreground query over the patches, (B, h, w), summing to 1."""

ncut = partial(_map, "ncut")
"""Foreground mask of the normalized cut, (B, h, w) of 0 and 1."""
