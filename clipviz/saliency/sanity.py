"""Sanity check by randomised weights: a map that survives a scrambled model does not show what the model learned.

Adebayo et al., NeurIPS 2018: randomise the weights from the output toward the input, block by block, and compare the
maps before and after by rank correlation. Here the entries of each parameter are permuted, which keeps their scale.
"""

import copy
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from clipviz.backbone.ownership import lock_of
from clipviz.methods.base import Method
from clipviz.saliency.maps import KINDS, saliency_maps
from clipviz.saliency.question import Asked, Model, backbone_of, predicted_classes


def sanity_check(
    model: Model,
    images: Tensor,
    kind: str,
    *,
    target: Asked | None = None,
    contrast: Asked | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Rank correlation of a kind of map with itself as more and more of a copy's image tower is scrambled.

    Args are those of `saliency_maps`; without a target the class that the intact model predicts is kept. One row per
    stage, from the output to the input: `scrambled` (the last part that was), `correlation` (mean over images of
    Spearman's rho of the raw maps, in [-1, 1]), and `parts`, how many parts are scrambled so far.
    """
    with lock_of(model):  # the map and the copy are of the same weights
        if target is None and KINDS[kind].asks and isinstance(model, Method):
            target = predicted_classes(model, images)
        original = saliency_maps(model, images, kind, target=target, contrast=contrast, **options).raw
        scrambled = _own_tower(model)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count, (name, parameters) in enumerate(_cascade(backbone_of(scrambled).visual), start=1):
        _permute(parameters, generator)
        maps = saliency_maps(scrambled, images, kind, target=target, contrast=contrast, **options).raw
        rows.append((name, float(rank_correlation(original, maps).mean()), count))
    return pd.DataFrame(rows, columns=["scrambled", "correlation", "parts"])


def scrambled_model(model: Model, seed: int = 0) -> Model:
    """A copy of a model whose image tower is scrambled throughout; everything else is shared with it."""
    copied = _own_tower(model)
    _permute(list(backbone_of(copied).visual.parameters()), torch.Generator().manual_seed(seed))
    return copied


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rho of maps (B, h, w), image by image, ties by their mean rank: (B,) in [-1, 1], 0 if constant."""
    if first.shape != second.shape:
        raise ValueError(f"wanted two maps of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    a, b = (torch.tensor(pd.DataFrame(maps.flatten(1).cpu()).rank(axis=1).to_numpy()) for maps in (first, second))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)).float()


def _own_tower(model: Model) -> Model:
    """A shallow copy with an image tower of its own, so that scrambling it touches nobody else's."""
    tower = backbone_of(model).trainable_copy()
    if model is backbone_of(model):
        return tower
    copied = copy.copy(model)
    copied._modules = {**model._modules, "backbone": tower}
    return copied


def _cascade(visual: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """The tower in pieces from the output to the input: its direct children and, of a stack of blocks, each block."""
    pieces: dict[str, list[nn.Parameter]] = {}
    for name, parameter in visual.named_parameters():
        path = name.split(".")
        numbers = [i for i, part in enumerate(path) if part.isdigit()]
        pieces.setdefault(".".join(path[: numbers[0] + 1] if numbers else path[:1]), []).append(parameter)
    heads = [name for name in pieces if name in ("proj", "ln_post", "attnpool", "head")]
    stems = [name for name in pieces if name in ("class_embedding", "positional_embedding", "conv1", "ln_pre")]
    middle = [name for name in pieces if name not in heads and name not in stems]
    return [(name, pieces[name]) for name in (*heads, *reversed(middle), *reversed(stems))]


@torch.no_grad()
def _permute(parameters: list[nn.Parameter], generator: torch.Generator) -> None:
    for parameter in parameters:
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
