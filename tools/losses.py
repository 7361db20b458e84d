"""The terms that the bundled CLIP is pretrained by; `tools.pretrain` says how they are weighted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipviz.birds.render import ATTRIBUTE_PARTS, PART_ID
from clipviz.birds.world import ATTRIBUTE_NAMES, ATTRIBUTES
from clipviz.ops import normalize
from tools.pretraining_data import CARDINALITIES


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss of two (B, E) unit-norm batches whose rows belong together."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def attribute_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean over attributes of the cross-entropy among the values of one attribute.

    Args:
        logits: (B, V) float, scaled similarity to the prompts of all V values, attributes side by side.
        codes: (B, A) int, true value of every attribute.
    """
    terms = [F.cross_entropy(part, codes[:, a]) for a, part in enumerate(logits.split(CARDINALITIES.tolist(), 1))]
    return torch.stack(terms).mean()


def place_loss(logits: Tensor, cover: Tensor, plan: Tensor) -> Tensor:
    """What a patch shows: the bird's plan, or background; both kinds count the same, patches on the edge do not.

    Args:
        logits: (B, N, P + 1) float, scaled similarity of each patch to the prompts of P plans and of the background.
        cover: (B, N) float, share of the patch that the bird covers.
        plan: (B,) int, index of the true plan.
    """
    background = logits.shape[-1] - 1
    on = F.cross_entropy(logits.transpose(1, 2), plan[:, None].expand_as(cover), reduction="none")
    off = F.cross_entropy(
        logits.transpose(1, 2), torch.full_like(cover, background, dtype=torch.long), reduction="none"
    )
    kinds = ((on, (cover >= 0.5).float()), (off, (cover <= 0.05).float()))
    return torch.stack([(loss * shown).sum() / shown.sum().clamp(min=1.0) for loss, shown in kinds]).mean()


def pair_loss(tokens: Tensor, cover: Tensor) -> Tensor:
    """Pairs of patches: alike if both show the bird or both the background, unalike if one does and the other does not.

    Args:
        tokens: (B, N, W) float, unit norm.
        cover: (B, N) float, share of the patch that the bird covers.
    """
    cosine = tokens @ tokens.transpose(1, 2)
    inside, outside = (cover >= 0.5).float(), (cover <= 0.05).float()
    kinds = ((inside, inside, 0.6 - cosine), (outside, outside, 0.6 - cosine), (inside, outside, cosine))
    terms = []
    for one, other, excess in kinds:
        pairs = one[:, :, None] * other[:, None, :]
        terms.append((pairs * excess.relu()).sum() / pairs.sum().clamp(min=1.0))
    return torch.stack(terms).mean()


def seen_in(attribute: str, value: str) -> list[int]:
    """The part ids in which a value of an attribute can be seen: its part, or, where that is missing, its place."""
    own, *place = ATTRIBUTE_PARTS[attribute]
    return [PART_ID[part] for part in (place if value == "no" else [own])]


def part_loss(logits: Tensor, shares: Tensor, codes: Tensor, least: float = 0.06) -> Tensor:
    """Every patch that shows a part says what that part is like; mean over the attributes that are seen in the batch.

    A patch counts by the share of it that shows the part, from `least` on.

    Args:
        logits: (B, N, V) float, scaled similarity of each patch to the prompts of all values, attributes side by side.
        shares: (B, N, P) float, share of each patch that shows each part.
        codes: (B, A) int, true value of every attribute.
        least: smallest share that counts.
    """
    terms = []
    for a, (name, part) in enumerate(zip(ATTRIBUTE_NAMES, logits.split(CARDINALITIES.tolist(), 2), strict=True)):
        if name not in ATTRIBUTE_PARTS:  # the plan is of the whole bird
            continue
        by_value = [shares[..., seen_in(name, value)].sum(-1) for value in ATTRIBUTES[name]]  # V_a of (B, N)
        seen = torch.stack(by_value)[codes[:, a], torch.arange(len(codes))]
        weight = seen * (seen >= least)
        wrong = F.cross_entropy(part.transpose(1, 2), codes[:, a, None].expand_as(seen), reduction="none")
        if weight.any():
            terms.append((wrong * weight).sum() / weight.sum())
    return torch.stack(terms).mean() if terms else logits.sum() * 0.0


def zoom_loss(patches: Tensor, region: Tensor, zoomed: Tensor, scale: Tensor) -> Tensor:
    """Dense self-distillation: the patches of a region agree with its own enlarged view, among those of the batch.

    Args:
        patches: (B, N, E) float, unit norm.
        region: (B, N) float, share of each patch in the region.
        zoomed: (B, E) float, unit norm, of the enlarged region; a target, without gradient.
        scale: () float, logit scale.
    """
    pooled = normalize(torch.einsum("bn,bne->be", region, patches))
    logits = scale.detach() * pooled @ zoomed.detach().T
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
