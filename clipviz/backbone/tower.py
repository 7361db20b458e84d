"""The last block of an open_clip ViT, computed only where it is needed.

The patch tokens of microCLIP are the *value path* of the last block. With x the input of that block,

    v = x + out_proj(W_v LN_1(x) + b_v),    v <- v + MLP(LN_2(v)),    patches = LN_post(v) without the CLS row

so a patch token is a function of its own row only (MaskCLIP's observation; LoCoOp's code). The CLS embedding needs the
CLS row of the block and no other (`cls_row`). All modules are the model's own.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def value_path(visual: Any, x: Tensor) -> Tensor:
    """Value-path patch tokens (B, N, W) from the input (B, 1 + N, W) of the last block, without work on its CLS row."""
    block = visual.transformer.resblocks[-1]
    x = x[:, 1:]
    width = x.shape[-1]
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    v = x + block.ls_1(block.attn.out_proj(F.linear(block.ln_1(x), weight, bias)))
    v = v + block.ls_2(block.mlp(block.ln_2(v)))
    return visual.ln_post(v)


def cls_row(block: Any, x: Tensor) -> Tensor:
    """`block(x)[:, :1]` up to rounding, (B, 1 + N, W) -> (B, 1, W), without computing the rows of the patches.

    Queries and MLP, 10 of 12 parts of the block's arithmetic, are done for one token instead of 1 + N.
    """
    attn, width = block.attn, x.shape[-1]
    normed = block.ln_1(x)
    query = F.linear(normed[:, :1], attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    key, value = F.linear(normed, attn.in_proj_weight[width:], attn.in_proj_bias[width:]).chunk(2, -1)
    heads = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    row = x[:, :1] + block.ls_1(attn.out_proj(mixed))
    return row + block.ls_2(block.mlp(block.ln_2(row)))


def encode(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """CLS embeddings (B, E), `visual(pixels)` of normalized pixels up to rounding, and what enters the last block.

    That is (B, 1 + N, W); of the block only the CLS row is computed. Whoever looks, with hooks or a replaced forward,
    sees what open_clip computes, in the same places.
    """
    blocks = visual.transformer.resblocks
    if is_watched(visual) or is_watched(visual.transformer):
        inputs: list[Tensor] = []
        handle = blocks[-1].register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        try:
            return visual(pixels), inputs[0]
        finally:
            handle.remove()
    x = visual._embeds(pixels)
    if len(blocks) > 1:
        x, _ = visual.transformer.forward_intermediates(x, indices=[len(blocks) - 2], stop_early=True)
    row = blocks[-1](x) if any(map(is_watched, blocks[-1].modules())) else cls_row(blocks[-1], x)
    return visual._pool(row)[0] @ visual.proj, x


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks or instance-level replacements of its methods."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool({"forward", "attention"} & module.__dict__.keys())
