"""Maps of microCLIP's foreground branch on any ViT: Fiedler vector, NCut mask, SOAP attention.

For a microCLIP they are the method's own, with its trained matrices. For any other method or a bare backbone they are
what microCLIP would start from: identity matrices and the preset's patch graph (see `clipviz.methods.microclip`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from clipviz.methods.microclip import PRESETS, MicroCLIP, MicroCLIPConfig, saliency_query, soap_pool
from clipviz.ncut import AffinityKind, MaskRule, edge_density, foreground_mask, patch_affinity, spectrum
from clipviz.saliency.question import Model, Question, backbone_of


class ForegroundMaps(NamedTuple):
    """Fiedler vector, mask and SOAP attention of a batch, each (B, h, w) float."""

    fiedler: Tensor
    mask: Tensor
    attention: Tensor


def soap(
    model: Model,
    images: Tensor,
    question: Question | None,
    *,
    tau: float | None = None,
    affinity: AffinityKind | None = None,
    mask_rule: MaskRule | None = None,
) -> Tensor:
    """SOAP attention of the foreground query over the patches.

    Args:
        model: a method or a backbone.
        images: (B, 3, S, S) float in [0, 1].
        question: not used; the foreground is the same for every class.
        tau: threshold of the patch graph; None for the method's (or the preset's) own, likewise the next two.
        affinity: "dot" or "cosine".
        mask_rule: "std" or "mean".

    Returns:
        (B, h, w) float, summing to 1.
    """
    return foreground_maps(model, images, tau, affinity, mask_rule).attention


def ncut(
    model: Model,
    images: Tensor,
    question: Question | None,
    *,
    tau: float | None = None,
    affinity: AffinityKind | None = None,
    mask_rule: MaskRule | None = None,
) -> Tensor:
    """Foreground mask of the normalized cut, (B, h, w) of 0 and 1. Arguments as for `soap`."""
    return foreground_maps(model, images, tau, affinity, mask_rule).mask


def fiedler(
    model: Model,
    images: Tensor,
    question: Question | None,
    *,
    tau: float | None = None,
    affinity: AffinityKind | None = None,
) -> Tensor:
    """Fiedler vector of the patch graph, (B, h, w), unit norm, the foreground positive. Arguments as for `soap`."""
    return foreground_maps(model, images, tau, affinity).fiedler


def foreground_maps(
    model: Model,
    images: Tensor,
    tau: float | None = None,
    affinity: AffinityKind | None = None,
    mask_rule: MaskRule | None = None,
) -> ForegroundMaps:
    """The whole branch at once, without gradient. Arguments as for `soap`."""
    backbone = backbone_of(model)
    config = _config(model, tau, affinity, mask_rule)
    with torch.no_grad():
        tokens = backbone.tokens(images)
        graph = patch_affinity(tokens.patches, config.tau, config.affinity)
        vector = spectrum(graph).fiedler
        mask = foreground_mask(vector, config.mask_rule) | (edge_density(graph) >= config.full_density)[:, None]
        query = saliency_query(tokens.patches, mask)
        _, attention = soap_pool(query, tokens.patches, *_matrices(model), backbone.visual.proj)
    return ForegroundMaps(*(values.unflatten(1, tokens.grid) for values in (vector, mask.float(), attention)))


def _config(
    model: Model, tau: float | None, affinity: AffinityKind | None, mask_rule: MaskRule | None
) -> MicroCLIPConfig:
    preset = PRESETS["birds" if backbone_of(model).name == "birds" else "default"]
    own = model.config if isinstance(model, MicroCLIP) else preset
    return replace(
        own,
        tau=own.tau if tau is None else tau,
        affinity=affinity or own.affinity,
        mask_rule=mask_rule or own.mask_rule,
    )


def _matrices(model: Model) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(model, MicroCLIP):
        return model.w_query, model.w_key, model.w_value
    backbone = backbone_of(model)
    identity = torch.eye(backbone.width, device=backbone.device, dtype=backbone.visual.proj.dtype)
    return identity, identity, identity
