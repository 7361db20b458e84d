"""What SOAP would see with other patch graphs, thresholds and signs of the Fiedler vector.

Used by `benchmarks.saliency`. The matrices of SOAP stay those of the method, only the mask behind the query changes.

    tokens    "raw"; "centered": minus the mean patch of the image, so that tau cuts at more alike than average; or
              "placeless": minus the mean over the images at the same place, which takes the position embedding out
    affinity  dot product or cosine of the tokens
    tau       threshold, or "median": half of the pairs of each image are connected
    sign      which side of the Fiedler vector is the foreground: "peak" the one with the largest entry (TokenCut,
              the default), "border" the one with less of the image's border, "small" the one with fewer patches,
              "attention" the one that the last block's CLS attends to more
    rule      of `foreground_mask`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import pandas as pd
import torch
from torch import Tensor

from clipviz.events import Probe
from clipviz.methods.microclip import MicroCLIP, saliency_query, soap_pool
from clipviz.ncut import Side, edge_density, fiedler_vector, foreground_mask, patch_affinity, turn_to_side
from clipviz.ops import normalize
from clipviz.saliency import part_mass, pointing_game, saliency_maps
from clipviz.saliency.metrics import coverage

TAUS = {"dot": (0.2, "median"), "cosine": (0.1, 0.2, 0.4, 0.6, "median")}
SIGNS = ("peak", "small", "border", "attention")


class Variant(NamedTuple):
    """One setting and the mask it gives, (B, N) bool."""

    tokens: str
    affinity: str
    tau: float | str
    sign: str
    rule: str
    mask: Tensor
    density: Tensor


def soap_study(method: MicroCLIP, probe: Probe) -> pd.DataFrame:
    """SOAP's mass and pointing on the bird, and the mask's overlap with it, for every variant.

    Returns:
        One row per variant: its settings, `own` (whether they are the method's), and the means over images of
        `soap_mass`, `soap_pointing`, `mask_iou` (at half coverage) and `edge_density`; `place_share`, how much of the
        variance of the patch tokens is there in the mean image already.
    """
    bird = probe.parts > 0
    config = method.config
    rows = []
    with torch.no_grad():
        tokens = method.backbone.tokens(probe.images)
        attention = saliency_maps(method, probe.images, "cls_attention").raw.flatten(1)
        place_share = float(tokens.patches.mean(0).var(0).sum() / tokens.patches.flatten(0, 1).var(0).sum())
        covered = coverage(bird, tokens.grid).flatten(1) > 0.5
        for variant in variants(tokens.patches, attention, tokens.grid):
            query = saliency_query(tokens.patches, variant.mask)
            matrices = (method.w_query, method.w_key, method.w_value, method.backbone.visual.proj)
            soap = soap_pool(query, tokens.patches, *matrices)[1].unflatten(1, tokens.grid)
            overlap = (variant.mask & covered).sum(1) / (variant.mask | covered).sum(1)
            settings = variant[:5]
            own = settings == ("raw", config.affinity, config.tau, config.side, config.mask_rule)
            means = (part_mass(soap, bird), pointing_game(soap, bird), overlap, variant.density)
            rows.append((*settings, own, *(float(values.nanmean()) for values in means)))
    columns = [*Variant._fields[:5], "own", "soap_mass", "soap_pointing", "mask_iou", "edge_density"]
    return pd.DataFrame(rows, columns=columns).assign(place_share=place_share)


def variants(patches: Tensor, attention: Tensor, grid: tuple[int, int]) -> Iterator[Variant]:
    """All combinations, for patches (B, N, W) and CLS attention (B, N)."""
    kinds = {
        "raw": patches,
        "centered": patches - patches.mean(1, keepdim=True),
        "placeless": patches - patches.mean(0, keepdim=True),
    }
    for name, tokens in kinds.items():
        for affinity, taus in TAUS.items():
            for tau in taus:
                graph = patch_affinity(tokens, threshold(tokens, affinity, tau), affinity)
                density, vector = edge_density(graph), fiedler_vector(graph)
                for sign in SIGNS:
                    oriented = turned(vector, sign, attention, grid)
                    for rule in ("std", "mean"):
                        mask = foreground_mask(oriented, rule) | (density == 1.0)[:, None]
                        yield Variant(name, affinity, tau, sign, rule, mask, density)


def threshold(tokens: Tensor, affinity: str, tau: float | str) -> float | Tensor:
    """The number itself, or the median similarity of each image, (B, 1, 1)."""
    if tau != "median":
        return tau
    tokens = normalize(tokens) if affinity == "cosine" else tokens
    return (tokens @ tokens.transpose(1, 2)).flatten(1).median(1).values[:, None, None]


def turned(vector: Tensor, sign: str, attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fiedler vectors (B, N) with the foreground by that rule positive."""
    if sign in ("peak", "border"):
        return turn_to_side(vector, grid, cast(Side, sign))
    positive = (vector > 0).float()
    share = positive.mean(1)
    if sign == "small":
        keep = share <= 0.5
    else:
        inside = (attention * positive).sum(1) / positive.sum(1).clamp(min=1)
        outside = (attention * (1 - positive)).sum(1) / (1 - positive).sum(1).clamp(min=1)
        keep = inside >= outside
    return torch.where(keep[:, None], vector, -vector)
