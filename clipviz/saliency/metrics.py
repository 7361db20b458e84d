"""Saliency against masks: does the map point at what it should?

A map has one value m_c per grid cell c; a region (the whole bird, the parts that tell two classes apart) covers a share
r_c in [0, 1] of the pixels of each cell.

    pointing game   1 if the largest m_c lies on a cell with r_c > 0            Zhang et al., IJCV 2018
    part mass       sum_c max(m_c, 0) r_c / sum_c max(m_c, 0)            relevance mass accuracy, Arras et al., 2022
    part rank       share of the other visible parts (background included) whose mean map value is below the region's

The last asks for the right part among the wrong ones, as the part checks of FunnyBirds do (Hesse et al., ICCV 2023),
and does not depend on the scale or the offset of the map. Ties count by their share, so a constant map gets exactly
chance level: the covered share of the cells, of the pixels, and one half. Maps are (B, h, w) float, raw values
will do; regions are (B, S, S) bool, pixels of the same images. Where the region is not visible the score is NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipviz.birds.dataset import contrast_parts, discriminative_parts


def coverage(region: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each cell that a region covers: (B, S, S) bool -> (B, h, w) float in [0, 1]."""
    return F.adaptive_avg_pool2d(region.float()[:, None], grid)[:, 0]


def pointing_game(maps: Tensor, region: Tensor) -> Tensor:
    """Whether the highest cell of a map touches the region: 0 or 1, or the share of hits among cells that tie, (B,)."""
    covered = _covered(maps, region)
    highest = (maps >= maps.amax((1, 2), keepdim=True)).float()
    return _where_visible((highest * (covered > 0)).sum((1, 2)) / highest.sum((1, 2)), region)


def part_mass(maps: Tensor, region: Tensor) -> Tensor:
    """Share of the positive values of a map that falls on the region, (B,) in [0, 1]; 0 where nothing is positive."""
    covered = _covered(maps, region)
    positive = maps.clamp(min=0)
    total = positive.sum((1, 2))
    share = (positive * covered).sum((1, 2)) / total.clamp(min=torch.finfo(maps.dtype).tiny)
    return _where_visible(share, region)


def part_rank(maps: Tensor, region: Tensor, parts: Tensor) -> Tensor:
    """Share of the other visible parts (ids (B, S, S)) that the region beats in mean map value, (B,) in [0, 1].

    What belongs to the region is not compared with it; NaN too where nothing but the region is visible.
    """
    covered = _covered(maps, region)
    if parts.shape != region.shape:
        raise ValueError(f"parts must have the region's shape {tuple(region.shape)}, got {tuple(parts.shape)}")
    own = _mean_over(maps, covered)
    beaten, visible = torch.zeros_like(own), torch.zeros_like(own)
    for part in parts.unique():
        other = coverage((parts == part) & ~region, (maps.shape[1], maps.shape[2]))
        present, mean = other.sum((1, 2)) > 0, _mean_over(maps, other)
        beaten += present * torch.where(own == mean, 0.5, (own > mean).float())
        visible += present
    return _where_visible(beaten / visible, region)


def bird_regions(parts: Tensor, target: Tensor, contrast: Tensor | None = None) -> dict[str, Tensor]:
    """The regions that matter on images of birds, (B, S, S) bool, by part ids (B, S, S) and species (B,).

    "object" is the visible bird, "discriminative" the visible parts in which it differs from the species `contrast`
    (B,), or where that is None from all three look-alikes.
    """
    rows = []
    for i, species in enumerate(target.tolist()):
        wanted = discriminative_parts(species) if contrast is None else contrast_parts(species, int(contrast[i]))
        rows.append(torch.isin(parts[i], torch.tensor(sorted(wanted), dtype=parts.dtype, device=parts.device)))
    return {"object": parts > 0, "discriminative": torch.stack(rows)}


def _covered(maps: Tensor, region: Tensor) -> Tensor:
    if maps.ndim != 3 or region.ndim != 3 or len(maps) != len(region) or region.dtype != torch.bool:
        raise ValueError(
            f"wanted maps (B, h, w) and a region (B, S, S) of bool for the same images, "
            f"got {tuple(maps.shape)} and {tuple(region.shape)} of {region.dtype}"
        )
    return coverage(region, (maps.shape[1], maps.shape[2]))


def _mean_over(maps: Tensor, weights: Tensor) -> Tensor:
    """Mean of the maps in double precision, where a constant map has the same mean over any weights, (B,)."""
    weights = weights.double()
    return ((maps.double() * weights).sum((1, 2)) / weights.sum((1, 2))).float()


def _where_visible(values: Tensor, region: Tensor) -> Tensor:
    return torch.where(region.any(-1).any(-1), values, torch.nan)
