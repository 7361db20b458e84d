"""Math that more than one method needs: free functions of tensors, each beside the equation it computes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def normalize(x: Tensor) -> Tensor:
    """Scale the last axis to unit L2 norm: x / max(|x|, 1e-12)."""
    return F.normalize(x, dim=-1, eps=1e-12)


def class_logits(embeddings: Tensor, classifier: Tensor, logit_scale: float | Tensor = 1.0) -> Tensor:
    """Scaled similarity of every embedding to every class.

    Args:
        embeddings: (..., E) float, unit norm.
        classifier: (C, E) float; rows are normalized here, so a raw learnable parameter can be passed.
        logit_scale: multiplier of the cosine, 1 / temperature.

    Returns:
        (..., C) float: logit_scale * cosine.
    """
    return logit_scale * embeddings @ normalize(classifier).T


def margin(probs: Tensor) -> Tensor:
    """Largest minus second largest probability.

    Args:
        probs: (..., C) float, summing to 1.

    Returns:
        (...) float in [0, 1]; 1 where there is only one class.
    """
    if probs.shape[-1] == 1:
        return probs[..., 0]
    top = probs.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def fairness_loss(mean_probs: Tensor) -> Tensor:
    """Fairness regularizer of MUST (Li et al., 2022), used by microCLIP and DPA: -(1/C) sum_c log mean_probs_c.

    Args:
        mean_probs: (C,) float, the mean predicted probabilities of a batch (or a running mean of them).

    Returns:
        () float; its minimum is ln C, where all classes are predicted equally often.
    """
    return -mean_probs.log().mean()
