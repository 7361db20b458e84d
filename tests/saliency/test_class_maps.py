"""Maps of a class on tokens against slow loops, written from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from towers import Known, make_backbone

from clipviz.backbone import Backbone
from clipviz.methods import METHODS
from clipviz.methods.base import Method
from clipviz.prompts import ClassPrompts
from clipviz.saliency import saliency_maps

KINDS = ("class_map", "legrad", "grad_eclip")


@pytest.fixture
def zero_shot(tiny_backbone: Backbone, prompts: ClassPrompts) -> Method:
    return METHODS["zero_shot"](tiny_backbone, prompts).eval()


def forward_by_hand(visual: nn.Module, pixels: Tensor) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The tower on one image: tokens (L, W) after each block; of each block q, k, v, o (L, W) and A, heads x (L, L)."""
    x = visual.conv1(pixels[None]).flatten(2)[0].T
    x = torch.cat([visual.class_embedding[None], x]) + visual.positional_embedding
    x = visual.ln_pre(x)
    tokens, parts = [], []
    for block in visual.transformer.resblocks:
        attn = block.attn
        q, k, v = (block.ln_1(x) @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
        width = q.shape[1] // attn.num_heads
        heads, weights = [], []
        for head in range(attn.num_heads):
            cut = slice(head * width, (head + 1) * width)
            weights.append((q[:, cut] @ k[:, cut].T / width**0.5).softmax(-1))
            heads.append(weights[-1] @ v[:, cut])
        o = torch.cat(heads, -1)
        x = x + attn.out_proj(o)
        x = x + block.mlp(block.ln_2(x))
        tokens.append(x)
        parts.append({"q": q, "k": k, "v": v, "A": weights, "o": o})
    return tokens, parts


def embedding(visual: nn.Module, token: Tensor) -> Tensor:
    return F.normalize(visual.ln_post(token) @ visual.proj, dim=-1)


def by_hand(method: Method, image: Tensor) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    backbone = method.backbone
    pixels = ((image - backbone.mean[0]) / backbone.std[0]).clone().requires_grad_(True)
    return forward_by_hand(backbone.visual, pixels)


def direction(method: Method, target: int, contrast: int | None = None) -> Tensor:
    row = method.classifier[target] - (0 if contrast is None else method.classifier[contrast])
    return method.backbone.logit_scale * row


@pytest.mark.parametrize(("layers", "contrast"), [(None, None), ([0], None), ([-1], 2), ([0, 1], 2)])
def test_legrad_against_a_slow_loop(
    layers: list[int] | None, contrast: int | None, zero_shot: Method, images: Tensor
) -> None:
    raw = saliency_maps(zero_shot, images, "legrad", target=1, contrast=contrast, layers=layers).raw
    for image, got in zip(images, raw, strict=True):
        tokens, parts = by_hand(zero_shot, image)
        expected = torch.zeros(16)
        for layer in range(2) if layers is None else [layer % 2 for layer in layers]:
            mean = sum(tokens[layer]) / 17
            score = direction(zero_shot, 1, contrast) @ embedding(zero_shot.backbone.visual, mean)
            for gradient in torch.autograd.grad(score, parts[layer]["A"], retain_graph=True):
                for query in range(17):
                    for patch in range(16):
                        expected[patch] += max(0.0, float(gradient[query, 1 + patch])) / (4 * 17)
        torch.testing.assert_close(got.flatten(), expected - expected.min(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("layers", "contrast"), [((-1,), None), ((0,), None), ((0, 1), 2)])
def test_grad_eclip_against_a_slow_loop(
    layers: tuple[int, ...], contrast: int | None, zero_shot: Method, images: Tensor
) -> None:
    raw = saliency_maps(zero_shot, images, "grad_eclip", target=1, contrast=contrast, layers=layers).raw
    for image, got in zip(images, raw, strict=True):
        tokens, parts = by_hand(zero_shot, image)
        score = direction(zero_shot, 1, contrast) @ embedding(zero_shot.backbone.visual, tokens[-1][0])
        expected = torch.zeros(16)
        for layer in layers:
            q, k, v, o = (parts[layer][name] for name in "qkvo")
            (gradient,) = torch.autograd.grad(score, o, retain_graph=True)
            near = [(q[0] @ k[1 + j] / (q[0].norm() * k[1 + j].norm())).item() for j in range(16)]
            for j in range(16):
                place = (near[j] - min(near)) / (max(near) - min(near))
                expected[j] += place * sum(float(gradient[0, c]) * v[1 + j, c].item() for c in range(64))
        torch.testing.assert_close(got.flatten(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("contrast", [None, 2])
def test_class_map_against_a_slow_loop(contrast: int | None, zero_shot: Method, images: Tensor) -> None:
    raw = saliency_maps(zero_shot, images, "class_map", target=1, contrast=contrast).raw
    visual = zero_shot.backbone.visual
    block = visual.transformer.resblocks[-1]
    for image, got in zip(images, raw, strict=True):
        tokens, parts = by_hand(zero_shot, image)
        for patch in range(16):
            token = tokens[-2][1 + patch] + block.attn.out_proj(parts[-1]["v"][1 + patch])
            token = token + block.mlp(block.ln_2(token))
            expected = direction(zero_shot, 1, contrast) @ embedding(visual, token)
            assert float(got.flatten()[patch]) == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_no_map(kind: str, zero_shot: Method, images: Tensor) -> None:
    """Two classes with one classifier row: no score changes with anything."""
    zero_shot.classifier[1] = zero_shot.classifier[0]
    assert saliency_maps(zero_shot, images, kind, target=0, contrast=1).raw.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_heads_does_not_matter(kind: str, prompts: ClassPrompts, images: Tensor) -> None:
    backbone = make_backbone()
    method = METHODS["zero_shot"](backbone, prompts).eval()
    before = saliency_maps(method, images, kind, target=1).raw
    for block in method.backbone.visual.transformer.resblocks:
        attn = block.attn
        order = torch.arange(64).view(4, 16)[[2, 0, 3, 1]].flatten()
        rows = torch.cat([order, 64 + order, 128 + order])
        attn.in_proj_weight.data, attn.in_proj_bias.data = attn.in_proj_weight[rows], attn.in_proj_bias[rows]
        attn.out_proj.weight.data = attn.out_proj.weight[:, order]
    torch.testing.assert_close(saliency_maps(method, images, kind, target=1).raw, before, atol=1e-5, rtol=1e-4)


def test_microclips_share_of_cls_is_explained(microclip: Method, images: Tensor) -> None:
    """Of (6) the CLS token has the share rho: the class map is rho times that of its learned classifier alone."""
    raw = saliency_maps(microclip, images, "class_map", target=1).raw
    tokens = microclip.backbone.tokens(images)
    patches = F.normalize(tokens.patches @ microclip.backbone.visual.proj, dim=-1)
    row = F.normalize(microclip.learned_classifier[1], dim=-1) * microclip.backbone.logit_scale * microclip.config.rho
    torch.testing.assert_close(raw.flatten(1), (patches @ row).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_without_the_tower_is_refused(kind: str, known: Callable[..., Known], images: Tensor) -> None:
    model = known(lambda pixels: pixels.flatten(1)[:, :3])
    with pytest.raises(ValueError, match="does not depend on the image tower's tokens"):
        saliency_maps(model, images, kind, target=0)


@pytest.mark.parametrize("kind", ["legrad", "grad_eclip"])
def test_layers_that_are_not_there(kind: str, zero_shot: Method, images: Tensor) -> None:
    with pytest.raises(ValueError, match="layer 2 does not exist"):
        saliency_maps(zero_shot, images, kind, target=0, layers=[0, 2])
    with pytest.raises(ValueError, match="at least one layer"):
        saliency_maps(zero_shot, images, kind, target=0, layers=[])
