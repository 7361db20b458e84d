"""Attention weights of the user's own open_clip model, layer by layer and with gradient.

open_clip never asks PyTorch for the weights: a hook on `.attn` sees None, a hook on `.attn.out_proj` never fires, and
the weights that `need_weights=True` would return carry no gradient. So while the `with` statement lasts, `forward` of
each chosen attention module is replaced, on the instance, by the textbook formula

    A = softmax(Q K^T / sqrt(d) + mask),    output = W_o (A V)

which leaves A in the autograd graph. Parameters, state dict and hooks are not touched, and whichever way the `with`
statement ends, the class's own `forward` is back. Meanwhile nobody else can look at the model through clipviz, and what
another thread computes with open_clip itself is not captured.
"""

import inspect
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
        layer -> (B, heads, L, L) float, rows sum to 1, the CLS token first; in the autograd graph if the forward pass
        was. Each forward pass replaces what the one before left, which stays readable after the `with` statement.

    Raises:
        ValueError: if the tower has no attention that can be computed explicitly (ResNet, timm, scaled cosine, gradient
            checkpointing, patch dropout, a `forward` that another tool has replaced), or if a layer does not exist.
    """
    captured: dict[int, Tensor] = {}
    part = _tower(model, tower)  # models that train on copies of one image tower share a text tower
    with lock_of(model), lock_of(getattr(part, "transformer", part)):
        modules = attention_modules(model, tower)
        chosen = {layer: modules[layer] for layer in layer_indices(layers, len(modules))}
        try:
            for layer, module in chosen.items():
                # into the instance's dict, past nn.Module's bookkeeping, so that only this entry has to go again
                vars(module)["forward"] = _explicit_forward(module, layer, captured)
            yield captured
        finally:
            for module in chosen.values():
                vars(module).pop("forward", None)


def attention_modules(model: nn.Module, tower: Tower = "image") -> list[nn.Module]:
    """The attention module of every block of a tower, first block first; refused as by `capture_attention`."""
    part = _tower(model, tower)
    transformer = getattr(part, "transformer", None)
    modules = [getattr(block, "attn", None) for block in getattr(transformer, "resblocks", ())]
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        raise ValueError(
            f"attention capture needs an {tower} tower made of open_clip's transformer blocks, got a "
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


def layer_indices(layers: Sequence[int] | int | None, n_layers: int) -> list[int]:
    """0-based indices of layers, of which negative ones count from the end; None means all."""
    chosen = range(n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    if wrong := [one for one in chosen if isinstance(one, float) or one not in range(-n_layers, n_layers)]:
        raise ValueError(f"layer {wrong[0]!r} does not exist: the tower has {n_layers}, from 0; -1 is the last")
    return [layer % n_layers for layer in chosen]


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
        reason = f"only open_clip's own attention is supported, not {type(module).__module__}; {_ELSEWHERE}"
    elif module.logit_scale is not None:
        reason = f"scaled cosine attention fails in open_clip itself; {_ELSEWHERE}"
    if reason:
        raise ValueError(f"cannot capture the attention of {type(module).__name__}: {reason}")


def _explicit_forward(module: Any, layer: int, captured: dict[int, Tensor]) -> Callable[..., Any]:
    """A `forward` by the formula above that leaves its weights in `captured`, in this thread; in others the class's."""
    here, own = threading.get_ident(), type(module).forward
    signature = inspect.signature(own)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return own(module, *args, **kwargs)
        given = signature.bind(module, *args, **kwargs)
        given.apply_defaults()
        _, x, *_ = given.args
        asked = given.arguments
        if not isinstance(module, nn.MultiheadAttention):
            output, captured[layer] = attend(module, x, asked["attn_mask"])
            return output
        if asked["key"] is not x or asked["value"] is not x or asked["key_padding_mask"] is not None:
            raise ValueError("attention capture supports self-attention without padding only")
        output, weights = attend(module, x if module.batch_first else x.transpose(0, 1), asked["attn_mask"])
        captured[layer] = weights
        shown = weights.mean(1) if asked["average_attn_weights"] else weights
        return output if module.batch_first else output.transpose(0, 1), shown if asked["need_weights"] else None

    return forward


def attend(module: Any, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Self-attention of (B, L, W): output (B, L, W), weights (B, heads, L, L)."""
    qkv = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in qkv)
    is_plain = isinstance(module, nn.MultiheadAttention)  # or open_clip's own, with its optional normalizations
    q, k = (q, k) if is_plain else (module.ln_q(q), module.ln_k(k))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        if mask.ndim == 3:  # (B * heads, L, L)
            mask = mask.unflatten(0, scores.shape[:2])
        scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if is_plain:
        mixed = F.dropout(weights, module.dropout, module.training) @ v
        return module.out_proj(mixed.transpose(1, 2).flatten(2)), weights
    mixed = module.attn_drop(weights) @ v
    if module.head_scale is not None:
        mixed = mixed * module.head_scale
    return module.out_drop(module.out_proj(module.ln_inner(mixed.transpose(1, 2).flatten(2)))), weights
