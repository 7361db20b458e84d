"""Attention weights of the user's own open_clip model, layer by layer and with gradient.

open_clip never asks PyTorch for the weights: a hook on `.attn` sees None, a hook on `.attn.out_proj` never fires, and
the weights that `need_weights=True` would return carry no gradient. So while the `with` statement lasts, `forward` of
each chosen attention module is replaced, on the instance, by the textbook formula

    A = softmax(Q K^T / sqrt(d) + mask),    output = W_o (A V)

which leaves A in the autograd graph. Parameters, state dict and hooks are not touched; leaving the `with` statement,
by an exception too, deletes the replacement, and the class's own `forward` is back. Meanwhile nobody else can look at
the model through clipviz, and a forward pass that another thread makes with open_clip itself is none of the captured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from open_clip.transformer import Attention, PatchDropout
from torch import Tensor, nn

from clipviz.backbone.ownership import image_tower, lock_of

Tower = Literal["image", "text"]

_ELSEWHERE = "integrated_gradients, occlusion and layer_gradcam work without attention weights"


@contextmanager
def capture_attention(
    model: nn.Module, layers: Sequence[int] | None = None, tower: Tower = "image"
) -> Iterator[dict[int, Tensor]]:
    """Collect the attention weights of every forward pass inside the `with` statement.

    Args:
        model: a method, a `Backbone`, an open_clip model, or one of its towers. Its outputs stay what they are (up to
            rounding, 1e-5), in training too.
        layers: blocks to capture, negative ones from the end; None for all. A layer costs B * heads * L * L floats.
        tower: "image" or "text".

    Yields:
        layer -> (B, heads, L, L) float, rows sum to 1, L counts the CLS token first. Filled by each forward pass, which
        replaces what the one before left; still readable after the `with` statement. In the autograd graph if the
        forward pass was.

    Raises:
        ValueError: if the tower has no attention that can be computed explicitly (ResNet, timm, scaled cosine), if
            gradient checkpointing or patch dropout is on, if another tool has already replaced a `forward`, or if a
            layer does not exist.
    """
    captured: dict[int, Tensor] = {}
    part = _tower(model, tower)  # models that train on copies of one image tower share a text tower
    with lock_of(model), lock_of(getattr(part, "transformer", part)):
        modules = attention_modules(model, tower)
        chosen = {layer: modules[layer] for layer in layer_indices(layers, len(modules))}
        try:
            for layer, module in chosen.items():
                # into the instance's dict, past nn.Module's bookkeeping, so that only this entry has to go again
                vars(module)["forward"] = _in_this_thread(module, _explicit_forward(module, layer, captured))
            yield captured
        finally:
            for module in chosen.values():
                vars(module).pop("forward", None)


def attention_modules(model: nn.Module, tower: Tower = "image") -> list[nn.Module]:
    """The attention module of every block of a tower, first block first.

    Args:
        model: as for `capture_attention`.
        tower: "image" or "text".

    Raises:
        ValueError: as `capture_attention`.
    """
    part = _tower(model, tower)
    transformer = getattr(part, "transformer", None)
    modules = [getattr(block, "attn", None) for block in getattr(transformer, "resblocks", ())]
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        raise ValueError(
            f"attention capture wants an {tower} tower made of open_clip's transformer blocks, got a "
            f"{type(part).__name__}; {_ELSEWHERE}"
        )
    if getattr(transformer, "grad_checkpointing", False):
        raise ValueError(
            "attention cannot be captured under gradient checkpointing, which runs every block twice; "
            "switch it off with model.set_grad_checkpointing(False)"
        )
    dropout = getattr(part, "patch_dropout", None)
    if isinstance(dropout, PatchDropout) and dropout.training and dropout.prob > 0:
        raise ValueError("patch dropout hides patches at random, so attention has no grid; call model.eval() first")
    for module in modules:
        _require_supported(cast(nn.Module, module))
    return cast(list[nn.Module], modules)


def layer_indices(layers: Sequence[int] | None, n_layers: int) -> list[int]:
    """Turn layer numbers, negative ones counted from the end, into 0-based indices; None means all.

    Raises:
        ValueError: if a layer does not exist.
    """
    if layers is None:
        return list(range(n_layers))
    wrong = [layer for layer in layers if not -n_layers <= layer < n_layers]
    if wrong:
        raise ValueError(f"layer {wrong[0]} does not exist: the tower has {n_layers}, 0 to {n_layers - 1}, -1 the last")
    return [layer % n_layers for layer in layers]


def _tower(model: nn.Module, tower: Tower) -> nn.Module:
    """Method -> backbone -> open_clip model -> tower; a bare tower is taken as it is."""
    if tower == "image":
        return image_tower(model)
    for inner in ("backbone", "model", "text"):
        model = getattr(model, inner, model)
    return model


def _require_supported(module: nn.Module) -> None:
    reason = None
    if "forward" in vars(module):
        reason = "its forward has already been replaced; leave the other capture (or tool) first"
    elif isinstance(module, nn.MultiheadAttention):
        if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
            reason = f"it is not plain self-attention; {_ELSEWHERE}"
    elif not isinstance(module, Attention):
        reason = f"only open_clip's own attention is known, not {type(module).__module__}; {_ELSEWHERE}"
    elif module.logit_scale is not None:
        reason = f"scaled cosine attention fails in open_clip itself; {_ELSEWHERE}"
    if reason:
        raise ValueError(f"cannot capture the attention of {type(module).__name__}: {reason}")


def _in_this_thread(module: nn.Module, replacement: Callable[..., Any]) -> Callable[..., Any]:
    here = threading.get_ident()

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return type(module).forward(module, *args, **kwargs)
        return replacement(*args, **kwargs)

    return forward


def _explicit_forward(module: nn.Module, layer: int, captured: dict[int, Tensor]) -> Callable[..., Any]:
    if isinstance(module, nn.MultiheadAttention):

        def multihead(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            key_padding_mask: Tensor | None = None,
            need_weights: bool = True,
            attn_mask: Tensor | None = None,
            average_attn_weights: bool = True,
            is_causal: bool = False,
        ) -> tuple[Tensor, Tensor | None]:
            if key is not query or value is not query or key_padding_mask is not None:
                raise ValueError("attention capture knows self-attention without padding only")
            output, weights = _multihead_attention(module, query, attn_mask)
            captured[layer] = weights
            if not need_weights:
                return output, None
            return output, weights.mean(1) if average_attn_weights else weights

        return multihead

    def custom(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        output, captured[layer] = _custom_attention(cast(Any, module), x, attn_mask)
        return output

    return custom


def _multihead_attention(module: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`nn.MultiheadAttention` on one sequence: output in the layout of x, weights (B, heads, L, L)."""
    if not module.batch_first:
        x = x.transpose(0, 1)
    q, k, v = _heads(F.linear(x, cast(Tensor, module.in_proj_weight), module.in_proj_bias), module.num_heads)
    weights = _weights(q, k, mask)
    kept = F.dropout(weights, module.dropout) if module.training else weights
    output = module.out_proj((kept @ v).transpose(1, 2).flatten(2))
    return (output if module.batch_first else output.transpose(0, 1)), weights


def _custom_attention(module: Any, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """open_clip's own `Attention`, with its optional normalizations: output (B, L, W), weights (B, heads, L, L)."""
    q, k, v = _heads(F.linear(x, module.in_proj_weight, module.in_proj_bias), module.num_heads)
    weights = _weights(module.ln_q(q), module.ln_k(k), mask)
    heads = module.attn_drop(weights) @ v
    if module.head_scale is not None:
        heads = heads * module.head_scale
    return module.out_drop(module.out_proj(module.ln_inner(heads.transpose(1, 2).flatten(2)))), weights


def _heads(qkv: Tensor, n_heads: int) -> list[Tensor]:
    """(B, L, 3W) -> query, key and value, each (B, heads, L, W / heads)."""
    return [part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        if mask.ndim == 3:  # (B * heads, L, L)
            mask = mask.unflatten(0, scores.shape[:2])
        scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)
