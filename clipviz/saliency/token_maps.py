"""Maps made of the attention and the tokens of a ViT, without pixels.

With A_l (heads, L, L) the attention of block l, L = CLS + patches, I the identity, y the score of the question, d
(B, E) its gradient with respect to the unit CLS embedding (the logit scale times t_A - t_B for sentences and linear
classifiers, of microCLIP times the share of CLS), and e(z) = nrm(LN_post(z) P) in the joint space:

    cls_attention  A_l[head, CLS, patches], or its mean over heads
    rollout        R = prod_l (mean_heads A_l + I) / 2                        Abnar & Zuidema, ACL 2020, section 3
    relevance      R = I,  R <- R + mean_heads(max(0, dy/dA_l * A_l)) R       Chefer, Gur & Wolf, ICCV 2021, eqs. 5-6
                   both read at R[CLS, patches]
    class_map      M_j = d . nrm(p_j P), p_j the value-path token of patch j  MaskCLIP, Zhou, Loy & Dai, ECCV 2022
    legrad         M_j = R_j - min_k R_k, as the paper stretches its map      Bousselham et al., ICCV 2025
                   R_j = sum_l mean_head,i max(0, ds_l / dA_l[head, i, j])
                   s_l = d . e(mean_i z_l[i]), z_l the output of block l, i over CLS and patches
    grad_eclip     M_j = sum_l lambda_l[j] sum_c w_l[c] v_l[j, c]             Zhao et al., ICML 2024
                   w_l = dy / do_l[CLS], o_l = A_l v_l
                   lambda_l = cos(q_l[CLS], k_l[j]) stretched to [0, 1] over patches
    soap, ncut, fiedler                                                       microCLIP's foreground branch

`start_layer` is the first block that counts, negative from the end: with many blocks the early ones add specks that
have nothing to do with the image's content, which is why the authors' CLIP demo starts relevance at the last block. In
q, k, v and o all heads stand side by side. Of a microCLIP the foreground is the method's own, with its trained
matrices; of any other method or a bare backbone it is what microCLIP would start from: identity matrices and the
preset's patch graph. The foreground is the same for every question; `tau` to `side` are those of `MicroCLIPConfig`,
None for the method's or the preset's own. All maps are (B, h, w), >= 0 but for class_map, grad_eclip and fiedler, which
are signed: the ReLU of Grad-ECLIP's authors is the positive part that `saliency_maps` shows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.methods.microclip import MicroCLIP, foreground
from clipviz.ncut import AffinityKind, MaskRule, Side
from clipviz.ops import normalize
from clipviz.saliency.attention import attend, attention_modules, capture_attention, layer_indices
from clipviz.saliency.question import Model, Question, backbone_of


def cls_attention(model: Model, images: Tensor, *, layer: int = -1, head: int | None = None) -> Tensor:
    """Attention from CLS to the patches in one block, of one head or the mean; what CLS pays to itself is left out."""
    backbone, modules = backbone_of(model), attention_modules(model)
    (place,) = layer_indices([layer], len(modules))
    with torch.no_grad():
        if modules[place] is modules[-1] and backbone.has_patches:  # what enters the last block may be known
            x = backbone.visual.transformer.resblocks[-1].ln_1(backbone.block_inputs(images))
            attention = attend(modules[-1], x)[1][:, :, 0]
        else:
            with capture_attention(model, [layer]) as captured:
                backbone.embed(images)
            attention = captured[place][:, :, 0]
    if head is not None and (isinstance(head, float) or head not in range(-attention.shape[1], attention.shape[1])):
        raise ValueError(f"head {head!r} does not exist: layer {layer} has {attention.shape[1]}, from 0")
    return _patch_grid(model, attention.mean(1) if head is None else attention[:, head])


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
    return list(range(layer_indices([start_layer], n_layers)[0], n_layers))


def _patch_grid(model: Model, tokens: Tensor) -> Tensor:
    """(B, 1 + h * w) values of CLS and the patches -> (B, h, w), row-major as open_clip flattens them."""
    return tokens[:, 1:].unflatten(1, tuple(backbone_of(model).visual.grid_size))


def _map(
    name: str, model: Model, images: Tensor, *, tau: float | None = None, affinity: AffinityKind | None = None,
    mask_rule: MaskRule | None = None, side: Side | None = None,
) -> Tensor:  # fmt: skip
    backbone = backbone_of(model)
    matrices: tuple[Tensor, Tensor, Tensor]
    if isinstance(model, MicroCLIP):
        own, matrices = model.config, (model.w_query, model.w_key, model.w_value)
    else:
        own = MicroCLIP.default_config(backbone)
        matrices = (torch.eye(backbone.width, device=backbone.device, dtype=backbone.visual.proj.dtype),) * 3
    asked: dict[str, Any] = {"tau": tau, "affinity": affinity, "mask_rule": mask_rule, "side": side}
    config = replace(own, **{name: value for name, value in asked.items() if value is not None})
    with torch.no_grad():
        tokens = backbone.tokens(images)
        return foreground(tokens, config, *matrices, backbone.visual.proj).maps(tokens.grid)[name]


soap = partial(_map, "soap")
"""SOAP attention of the foreground query over the patches, (B, h, w), summing to 1."""

ncut = partial(_map, "ncut")
"""Foreground mask of the normalized cut, (B, h, w) of 0 and 1."""

fiedler = partial(_map, "fiedler")
"""Fiedler vector of the patch graph, (B, h, w), unit norm, the foreground positive; no `mask_rule` changes it."""


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
    visual, chosen = backbone.visual, _chosen(backbone, layers)
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
        raise ValueError("layers needs at least one layer, got none; leave it out for those of the paper")
    return list(dict.fromkeys(chosen))


def _gradients(score: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a score with respect to outputs of the tower in its graph, which stays; 0 where one has no part."""
    found = torch.autograd.grad(score.sum(), outputs, retain_graph=True, allow_unused=True) if outputs else ()
    if all(gradient is None for gradient in found):
        raise ValueError("the score does not depend on the image tower's tokens; use a kind that needs pixels only")
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
