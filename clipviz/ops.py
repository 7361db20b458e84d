"""Math that more than one method needs: free functions of tensors, each beside the equation it computes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def expect_axes(**tensors: tuple[Tensor, str]) -> None:
    """Check tensors against the axes of a formula: `expect_axes(patches=(patches, "BNW"), mask=(mask, "BN"))`.

    A letter stands for the same size everywhere. Raises ValueError, naming the first tensor that does not fit, where
    torch would broadcast or fail in its own words.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, axes) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor ({', '.join(axes)}), got {type(tensor).__name__}")
        shape, known = tuple(tensor.shape), dict(sizes)
        if len(shape) != len(axes) or any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, shape, strict=True)):
            fixed = ", ".join(f"{axis} = {known[axis]}" for axis in dict.fromkeys(axes) if axis in known)
            where = f" with {fixed}" if fixed else ""
            raise ValueError(f"{name} must be ({', '.join(axes)}){where}, got {shape}")


def expect_floats(**tensors: Tensor) -> None:
    """Check that tensors are floating point, and all of one precision; raises ValueError, naming the first that is not.

    With whole numbers some formulas would quietly round to 0 and 1.
    """
    (first, wanted), *_ = tensors.items()
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {_dtype(tensor)}; convert with .float()")
        if tensor.dtype != wanted.dtype:
            raise ValueError(f"{name} must be {_dtype(wanted)} as {first} is, got {_dtype(tensor)}; convert one")


def expect_integers(**tensors: Tensor) -> None:
    """Check that tensors hold whole numbers; raises ValueError, naming the first that does not."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {_dtype(tensor)}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def normalize(x: Tensor) -> Tensor:
    """Scale the last axis to unit L2 norm: x / max(|x|, 1e-12)."""
    return F.normalize(x, dim=-1, eps=1e-12)


def class_logits(embeddings: Tensor, classifier: Tensor, logit_scale: float | Tensor = 1.0) -> Tensor:
    """Scaled similarity of every embedding to every class: logit_scale * cosine.

    (..., E), unit norm, and (C, E), whose rows are normalized here, so that a raw learnable parameter can be passed ->
    (..., C); `logit_scale` is 1 / temperature.
    """
    return logit_scale * embeddings @ normalize(classifier).T


def margin(probs: Tensor) -> Tensor:
    """Largest minus second largest probability, (..., C) -> (...) in [0, 1]; 1 where there is only one class."""
    if probs.shape[-1] == 1:
        return probs[..., 0]
    top = probs.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def fairness_loss(mean_probs: Tensor) -> Tensor:
    """Fairness regularizer of MUST (Li et al., 2022), used by microCLIP and DPA: -(1/C) sum_c log mean_probs_c.

    Args:
        mean_probs: (C,) float, the mean predicted probabilities of a batch (or a running mean of them).

    Returns:
        () float; its minimum is ln C, where all classes are predicted equally often. A class that is predicted with
        probability 0, as float32 rounds exp(-104), counts as the smallest normal number: the loss stays finite.
    """
    expect_axes(mean_probs=(mean_probs, "C"))
    expect_floats(mean_probs=mean_probs)
    return -mean_probs.clamp(min=torch.finfo(mean_probs.dtype).tiny).log().mean()
