"""Maps of a class on tokens: the dense class map of the value path, LeGrad, Grad-ECLIP.

The first two set tokens against d (B, E), the gradient of the question's score y with respect to the unit CLS
embedding: the logit scale times t_A - t_B for sentences and linear classifiers (of microCLIP times the share of CLS).
With e(z) = nrm(LN_post(z) P) in the joint space:

    class_map    M_j = d . nrm(p_j P), p_j the value-path token of patch j     MaskCLIP, Zhou, Loy & Dai, ECCV 2022
    legrad       M_j = R_j - min_k R_k, as the paper stretches its map         Bousselham et al., ICCV 2025
                 R_j = sum_l mean_head,i max(0, ds_l / dA_l[head, i, j])
                 s_l = d . e(mean_i z_l[i]), z_l the output of block l, i over CLS and patches
    grad_eclip   M_j = sum_l lambda_l[j] sum_c w_l[c] v_l[j, c]                Zhao et al., ICML 2024
                 w_l = dy / do_l[CLS], o_l = A_l v_l, lambda_l = cos(q_l[CLS], k_l[j]) stretched to [0, 1] over patches

In q, k, v and o all heads stand side by side. All maps are (B, h, w); class_map and grad_eclip are signed: the ReLU of
Grad-ECLIP's authors is the positive part that `saliency_maps` shows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.ops import normalize
from clipviz.saliency.attention import attention_modules, capture_attention, layer_indices
from clipviz.saliency.question import Model, Question, backbone_of


def class_map(model: Model, images: Tensor, question: Question) -> Tensor:
    """What the classifier says of every patch token, in logits."""
    backbone = backbone_of(model)
    with backbone.collected() as seen:
        _, score = question.differentiable(images)
    direction = class_direction(score, seen)
    with torch.no_grad():
        tokens = backbone.tokens(images)
        logits = normalize(backbone.project(tokens.patches)) @ direction[:, :, None]
    return logits.unflatten(1, tokens.grid)[..., 0]


def legrad(model: Model, images: Tensor, question: Question, *, layers: Sequence[int] | None = None) -> Tensor:
    """How much attention in some blocks, all by default, forms the class in what leaves them; nowhere negative."""
    backbone = backbone_of(model)
    visual = backbone.visual
    chosen = _chosen(backbone, layers)
    blocks = [visual.transformer.resblocks[layer] for layer in chosen]
    with capture_attention(backbone, chosen) as attention, _passes_of(blocks) as passes, backbone.collected() as seen:
        _, score = question.differentiable(images)
    direction = class_direction(score, seen)
    total = images.new_zeros(len(images), visual.grid_size[0] * visual.grid_size[1])
    for layer, (_, tokens) in zip(chosen, passes, strict=True):
        mean = tokens.float().mean(1 if visual.transformer.batch_first else 0)
        layer_score = (normalize(backbone.project(visual.ln_post(mean))) * direction).sum()
        (gradient,) = torch.autograd.grad(layer_score, attention[layer])  # through this block alone
        total += gradient.float().clamp(min=0).mean((1, 2))[:, 1:]
    return (total - total.amin(1, keepdim=True)).unflatten(1, tuple(visual.grid_size))


def grad_eclip(model: Model, images: Tensor, question: Question, *, layers: Sequence[int] = (-1,)) -> Tensor:
    """Values of the patches in some blocks, the last by default, weighted by channel and by place."""
    backbone = backbone_of(model)
    modules: list[Any] = [attention_modules(backbone)[layer] for layer in _chosen(backbone, layers)]
    with _passes_of(modules) as passes:
        _, score = question.differentiable(images)
    gradients = _gradients(score, [output for _, (output, _) in passes if output is not None])
    total = images.new_zeros(len(images), passes[0][0].shape[1] - 1)
    for module, (x, _), gradient in zip(modules, passes, gradients, strict=True):
        with torch.no_grad():
            q, k, v = F.linear(x.float(), module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
            near = F.cosine_similarity(q[:, :1], k[:, 1:], dim=-1)
            low, high = near.amin(1, keepdim=True), near.amax(1, keepdim=True)
            place = (near - low) / (high - low).clamp(min=torch.finfo(near.dtype).tiny)
            channel = gradient[:, 0] @ module.out_proj.weight  # from behind the output projection to before it
            total += place * (v[:, 1:] @ channel[:, :, None])[..., 0]
    return total.unflatten(1, tuple(backbone.visual.grid_size))


def class_direction(score: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """The d of this module, (B, E), from a score (B,) and the unit CLS embeddings that it was made of."""
    return torch.stack(_gradients(score, seen)).sum(0)


def _chosen(backbone: Backbone, layers: Sequence[int] | None) -> list[int]:
    chosen = layer_indices(layers, len(attention_modules(backbone)))
    if not chosen:
        raise ValueError("layers wants at least one layer, got none; leave it out for those of the paper")
    return list(dict.fromkeys(chosen))


def _gradients(score: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a score with respect to outputs of the tower in its graph, which stays; 0 where one has no part."""
    found = torch.autograd.grad(score.sum(), outputs, retain_graph=True, allow_unused=True) if outputs else ()
    if all(gradient is None for gradient in found):
        raise ValueError(
            "the score does not depend on the tokens of the image tower; take a kind that needs pixels only"
        )
    return [
        torch.zeros_like(output) if gradient is None else gradient.float()
        for output, gradient in zip(outputs, found, strict=True)
    ]


@contextmanager
def _passes_of(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """(input, output) of each module in the last forward pass inside the `with` statement."""
    passes: list[Any] = [(None, (None, None))] * len(modules)
    handles = [
        module.register_forward_hook(lambda _, args, output, i=i: passes.__setitem__(i, (args[0], output)))
        for i, module in enumerate(modules)
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
