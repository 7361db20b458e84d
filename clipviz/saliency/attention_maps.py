"""Maps made of attention weights: CLS attention, rollout, relevance.

With A_l (heads, L, L) the attention of block l, L = CLS + patches, and I the identity:

    cls_attention  A_l[head, CLS, patches], or its mean over heads
    rollout        R = prod_l (mean_heads A_l + I) / 2                        Abnar & Zuidema, ACL 2020, section 3
    relevance      R = I,  R <- R + mean_heads(max(0, dy/dA_l * A_l)) R       Chefer, Gur & Wolf, ICCV 2021, eqs. 5-6

both read at R[CLS, patches]; y is the score of the question, which the other two do not use. `start_layer` is the first
block that counts, negative from the end: with many blocks the early ones add specks that have nothing to do with the
image's content, which is why the authors' CLIP demo starts relevance at the last block. All maps are (B, h, w) >= 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipviz.saliency.attention import attention_modules, capture_attention, layer_indices
from clipviz.saliency.question import Model, Question, backbone_of


def cls_attention(model: Model, images: Tensor, *, layer: int = -1, head: int | None = None) -> Tensor:
    """Attention from CLS to the patches in one block, of one head or the mean; what CLS pays to itself is left out."""
    with torch.no_grad(), capture_attention(model, [layer]) as captured:
        backbone_of(model).embed(images)
    (attention,) = captured.values()
    if head is not None and not -attention.shape[1] <= head < attention.shape[1]:
        raise ValueError(f"head {head} does not exist: layer {layer} has {attention.shape[1]}, from 0")
    return _patch_grid(model, (attention.mean(1) if head is None else attention[:, head])[:, 0])


def rollout(model: Model, images: Tensor, *, start_layer: int = 0) -> Tensor:
    """Attention rollout from CLS back to the patches."""
    layers = _layers_from(model, start_layer)
    with torch.no_grad(), capture_attention(model, layers) as captured:
        backbone_of(model).embed(images)
    return _patch_grid(model, roll([captured[layer].mean(1) for layer in layers])[:, 0])


def roll(attention: list[Tensor]) -> Tensor:
    """Product of (A + I) / 2 over blocks, first block first: list of (B, L, L) -> (B, L, L), rows sum to 1."""
    identity = torch.eye(attention[0].shape[-1], device=attention[0].device, dtype=attention[0].dtype)
    flow = identity.expand_as(attention[0])
    for weights in attention:
        flow = (0.5 * weights + 0.5 * identity) @ flow
    return flow


def relevance(model: Model, images: Tensor, question: Question, *, start_layer: int = -1) -> Tensor:
    """Gradient-weighted attention relevance of the patches for a question."""
    layers = _layers_from(model, start_layer)
    with capture_attention(model, layers) as captured:
        _, score = question.differentiable(images)
    attention = [captured[layer] for layer in layers]
    gradients = torch.autograd.grad(score.sum(), attention, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(f"the score does not depend on the attention of layers {layers}; try an earlier start_layer")
    return _patch_grid(model, propagate(attention, gradients)[:, 0])


def propagate(attention: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Relevance of every token for every token, first block first: (B, heads, L, L) each -> (B, L, L)."""
    flow = torch.eye(attention[0].shape[-1], device=attention[0].device, dtype=attention[0].dtype)
    flow = flow.expand_as(attention[0][:, 0])
    for weights, gradient in zip(attention, gradients, strict=True):
        if gradient is not None:
            flow = flow + (gradient * weights).clamp(min=0).mean(1) @ flow
    return flow.detach()


def _layers_from(model: Model, start_layer: int) -> list[int]:
    n_layers = len(attention_modules(model))
    (first,) = layer_indices([start_layer], n_layers)
    return list(range(first, n_layers))


def _patch_grid(model: Model, tokens: Tensor) -> Tensor:
    """(B, 1 + h * w) values of CLS and the patches -> (B, h, w), row-major as open_clip flattens them."""
    return tokens[:, 1:].unflatten(1, tuple(backbone_of(model).visual.grid_size))
