"""Every kind against a slow loop or a model whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from towers import NAMES, TEXT, Known, hook_count, make_backbone

from clipviz.backbone import Backbone
from clipviz.data.batches.features import FeatureBackbone
from clipviz.methods import METHODS
from clipviz.methods.base import Method
from clipviz.prompts import ClassPrompts
from clipviz.saliency import KINDS, available_kinds, capture_attention, runner_up, saliency_maps, unit_maps
from clipviz.saliency.question import resolve

ASKING = [kind for kind in KINDS if KINDS[kind].asks]
FAST = {"integrated_gradients": {"steps": 3}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_once(kind: str, microclip: Method, images: Tensor) -> None:
    microclip.train()
    modes = [module.training for module in microclip.modules()]
    hooks, random = hook_count(microclip), torch.get_rng_state()
    maps, raw = saliency_maps(microclip, images, kind, **FAST.get(kind, {}))
    assert maps.shape == raw.shape == (3, 4, 4)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert not raw.requires_grad
    positive = (raw > 0).flatten(1).any(1)
    torch.testing.assert_close(maps.amax((1, 2)), positive.float())
    assert [module.training for module in microclip.modules()] == modes
    assert hook_count(microclip) == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in microclip.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_see_its_batch(kind: str, microclip: Method, images: Tensor) -> None:
    options = FAST.get(kind, {})
    target = {"target": [0, 1, 2]} if KINDS[kind].asks else {}
    alone = {"target": 1} if KINDS[kind].asks else {}
    batch = saliency_maps(microclip, images, kind, **target, **options).raw[1]
    torch.testing.assert_close(
        saliency_maps(microclip, images[1:2], kind, **alone, **options).raw[0], batch, atol=1e-5, rtol=1e-3
    )


def test_foreground_kinds_are_the_methods_own(microclip: Method, images: Tensor) -> None:
    microclip.w_query.data.add_(0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    own = microclip.explain(images)
    for kind in ("soap", "ncut", "fiedler"):
        torch.testing.assert_close(saliency_maps(microclip, images, kind).raw, own[kind])
    assert not torch.equal(saliency_maps(microclip.backbone, images, "soap").raw, own["soap"])
    assert not torch.equal(saliency_maps(microclip, images, "ncut", mask_rule="mean").raw, own["ncut"])


def test_foreground_kinds_take_the_side_asked_for(microclip: Method) -> None:
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    raw = {side: saliency_maps(microclip, images, "fiedler", side=side).raw for side in ("peak", "border")}
    outer = torch.ones(4, 4, dtype=torch.bool)
    outer[1:3, 1:3] = False
    on_border = (raw["peak"][:, outer] > 0).sum(1)
    assert {True, False} == set((on_border > 6).tolist())  # of twelve patches
    for peak, border, count in zip(raw["peak"], raw["border"], on_border, strict=True):
        torch.testing.assert_close(border, -peak if count > 6 else peak)
    config = replace(microclip.config, side="border")
    own = METHODS["microclip"](microclip.backbone, microclip.prompts, config).explain(images)
    for kind in ("soap", "ncut", "fiedler"):
        torch.testing.assert_close(saliency_maps(microclip, images, kind, side="border").raw, own[kind])


def test_cls_attention_reads_one_row_of_one_head(tiny_backbone: Backbone, images: Tensor) -> None:
    with capture_attention(tiny_backbone) as attention:
        tiny_backbone.embed(images)
    raw = saliency_maps(tiny_backbone, images, "cls_attention", layer=0, head=2).raw
    assert torch.equal(saliency_maps(tiny_backbone, images, "cls_attention", layer=0, head=np.int64(2)).raw, raw)
    for patch in range(16):
        torch.testing.assert_close(raw[:, patch // 4, patch % 4], attention[0][:, 2, 0, 1 + patch])
    mean = saliency_maps(tiny_backbone, images, "cls_attention").raw
    torch.testing.assert_close(mean.flatten(1), attention[1][:, :, 0, 1:].mean(1))


@pytest.mark.parametrize("start", [0, 1, -2])
def test_rollout_against_a_slow_loop(tiny_backbone: Backbone, images: Tensor, start: int) -> None:
    with capture_attention(tiny_backbone) as attention:
        tiny_backbone.embed(images)
    raw = saliency_maps(tiny_backbone, images, "rollout", start_layer=start).raw
    for b in range(3):
        flow = torch.eye(17)
        for layer in range(start % 2, 2):
            step = torch.zeros(17, 17)
            for i in range(17):
                for j in range(17):
                    heads = sum(attention[layer][b, h, i, j] for h in range(4)) / 4
                    step[i, j] = 0.5 * heads + 0.5 * (i == j)
            flow = step @ flow
        torch.testing.assert_close(raw[b].flatten(), flow[0, 1:])


@pytest.mark.parametrize(("start", "contrast"), [(0, None), (1, None), (-1, "blue square"), (0, 2)])
def test_relevance_against_a_slow_loop(
    microclip: Method, images: Tensor, start: int, contrast: str | int | None
) -> None:
    raw = saliency_maps(microclip, images, "relevance", target=0, contrast=contrast, start_layer=start).raw
    for b in range(3):
        with capture_attention(microclip) as attention:
            logits = microclip.logits(images[b : b + 1].clone().requires_grad_(True))[0]
        score = logits[0] - (0 if contrast is None else logits[2])
        gradients = torch.autograd.grad(score, [attention[0], attention[1]])
        flow = torch.eye(17)
        for layer in range(start % 2, 2):
            step = torch.zeros(17, 17)
            for i in range(17):
                for j in range(17):
                    products = [
                        attention[layer][0, h, i, j].item() * gradients[layer][0, h, i, j].item() for h in range(4)
                    ]
                    step[i, j] = sum(max(0.0, product) for product in products) / 4
            flow = flow + step @ flow
        torch.testing.assert_close(raw[b].flatten(), flow[0, 1:], atol=1e-7, rtol=1e-3)


def test_integrated_gradients_are_complete(tiny_backbone: Backbone, prompts: ClassPrompts, images: Tensor) -> None:
    method = METHODS["zero_shot"](tiny_backbone, prompts)
    maps = saliency_maps(method, images, "integrated_gradients", target=1, contrast=0, steps=100, baseline="black")
    with torch.no_grad():
        logits = method.logits(images) - method.logits(torch.zeros_like(images))
    torch.testing.assert_close(maps.raw.sum((1, 2)), logits[:, 1] - logits[:, 0], atol=1e-3, rtol=1e-3)


def linear_rule(images: Tensor) -> Tensor:
    """Class 0 likes red in the patch of row 1, column 2; class 1 dislikes green at row 3, column 0; class 2 is 0."""
    red = images[:, 0, 8:16, 16:24].mean((1, 2))
    green = images[:, 1, 24:32, 0:8].mean((1, 2))
    return torch.stack([4 * red, -2 * green, torch.zeros_like(red)], 1)


@pytest.mark.parametrize("kind", ["integrated_gradients", "occlusion"])
def test_known_answer_of_a_linear_model(kind: str, known: Callable[..., Known], images: Tensor) -> None:
    model = known(linear_rule)
    expected = torch.zeros(3, 4, 4)
    expected[:, 1, 2] = 4 * (images[:, 0, 8:16, 16:24].mean((1, 2)) - 0.5)
    torch.testing.assert_close(saliency_maps(model, images, kind, target=0).raw, expected, atol=1e-5, rtol=0)
    expected[:, 3, 0] = 2 * (images[:, 1, 24:32, 0:8].mean((1, 2)) - 0.5)
    torch.testing.assert_close(
        saliency_maps(model, images, kind, target=0, contrast=1).raw, expected, atol=1e-5, rtol=0
    )


def test_occlusion_window_and_grid(known: Callable[..., Known], images: Tensor) -> None:
    model = known(linear_rule)
    raw = saliency_maps(model, images, "occlusion", target=0, baseline="white", window=16, stride=16, grid=(2, 2)).raw
    expected = torch.zeros(3, 2, 2)
    expected[:, 0, 1] = 4 * (images[:, 0, 8:16, 16:24].mean((1, 2)) - 1)
    torch.testing.assert_close(raw, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="1 <= stride <= window <= 32"):
        saliency_maps(model, images, "occlusion", window=64)
    for grid in (5, (5,), (1, 2, 3), "44"):
        with pytest.raises(ValueError, match=r"grid must be \(rows, columns\), got"):
            saliency_maps(model, images, "occlusion", grid=grid)


def test_layer_gradcam_is_gradient_times_activation(microclip: Method, images: Tensor) -> None:
    layer = microclip.backbone.visual.transformer.resblocks[-1].ln_1
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, args, output: outputs.append(output))
    score = microclip.logits(images.clone().requires_grad_(True))[:, 1].sum()
    handle.remove()
    assert [output.shape[1] for output in outputs] == [17, 16]  # the block with CLS, and the value path without
    block, value_path = torch.autograd.grad(score, outputs)
    expected = (block * outputs[0]).sum(-1)[:, 1:] + (value_path * outputs[1]).sum(-1)
    expected = expected.unflatten(1, (4, 4)).detach()
    torch.testing.assert_close(saliency_maps(microclip, images, "layer_gradcam", target=1).raw, expected)


@pytest.mark.parametrize("kind", ASKING)
def test_contrast_is_the_difference_and_turns_round(kind: str, microclip: Method, images: Tensor) -> None:
    options = FAST.get(kind, {})
    plain = saliency_maps(microclip, images, kind, target=0, **options).raw
    there = saliency_maps(microclip, images, kind, target=0, contrast=1, **options).raw
    back = saliency_maps(microclip, images, kind, target="green square", contrast="red square", **options).raw
    assert not torch.allclose(plain, there)
    if kind in ("relevance", "legrad"):  # keep positive evidence only, so the two directions are two maps
        assert not torch.allclose(there, back)
    else:
        torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ASKING)
def test_sentences_for_a_backbone(kind: str, tiny_backbone: Backbone, prompts: ClassPrompts, images: Tensor) -> None:
    options = FAST.get(kind, {})
    sentence = "a photo of a red square."
    zero_shot = METHODS["zero_shot"](tiny_backbone, ClassPrompts(NAMES, ("a photo of a {}.",), {}))
    by_sentence = saliency_maps(tiny_backbone, images, kind, target=sentence, **options).raw
    by_class = saliency_maps(zero_shot, images, kind, target="red square", **options).raw
    torch.testing.assert_close(by_sentence, by_class, atol=1e-4, rtol=1e-3)
    embeddings = tiny_backbone.embed_text([sentence] * 3)
    torch.testing.assert_close(
        saliency_maps(tiny_backbone, images, kind, target=embeddings, **options).raw, by_sentence
    )
    against = saliency_maps(
        tiny_backbone, images, kind, target=sentence, contrast="a photo of a blue square.", **options
    )
    by_classes = saliency_maps(zero_shot, images, kind, target=0, contrast=2, **options)
    torch.testing.assert_close(against.raw, by_classes.raw, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("one", [1, np.int64(1), np.array(1), torch.tensor(1), "green square"], ids=repr)
def test_one_class_for_all_images_is_any_number_or_a_name(microclip: Method, images: Tensor, one: Any) -> None:
    """Those of a data set's targets are numbers of numpy."""
    assert resolve(microclip, one, len(images)).tolist() == [1] * len(images)
    assert resolve(microclip, [one] * len(images), len(images)).tolist() == [1] * len(images)


def test_the_default_target_is_the_prediction(microclip: Method, images: Tensor) -> None:
    with torch.no_grad():
        order = microclip.logits(images).argsort(1, descending=True)
    default = saliency_maps(microclip, images, "relevance").raw
    torch.testing.assert_close(default, saliency_maps(microclip, images, "relevance", target=order[:, 0]).raw)
    assert torch.equal(runner_up(microclip, images), order[:, 1])
    assert torch.equal(runner_up(microclip, images, target=order[:, 1]), order[:, 0])


def test_works_where_gradients_are_off(microclip: Method, images: Tensor) -> None:
    expected = saliency_maps(microclip, images, "relevance", target=0).raw
    with torch.no_grad():
        torch.testing.assert_close(saliency_maps(microclip, images, "relevance", target=0).raw, expected)
    with torch.inference_mode():
        inside = saliency_maps(microclip, images + 0, "relevance", target=0).raw
    torch.testing.assert_close(inside, expected)


def test_gradcam_of_a_convolution_averages_the_gradient(resnet: Backbone, prompts: ClassPrompts) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    method = METHODS["zero_shot"](resnet, prompts)
    outputs: list[Tensor] = []
    handle = resnet.visual.layer3.register_forward_hook(lambda m, args, output: outputs.append(output))
    score = method.logits(images.clone().requires_grad_(True))[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, outputs)
    expected = (gradient.mean((2, 3), keepdim=True) * outputs[0]).sum(1).detach()
    raw = saliency_maps(method, images, "layer_gradcam", target=1, layer=resnet.visual.layer3).raw
    assert raw.shape == (2, 4, 4)
    torch.testing.assert_close(raw, expected)
    with pytest.raises(ValueError, match=r"layer must be a module of model\.visual, got 'layer3'"):
        saliency_maps(method, images, "layer_gradcam", target=1, layer="layer3")


def test_resnet_does_what_it_can(resnet: Backbone, prompts: ClassPrompts) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    method = METHODS["zero_shot"](resnet, prompts)
    assert available_kinds(method) == ("integrated_gradients", "occlusion", "layer_gradcam")
    for kind in available_kinds(method):
        raw = saliency_maps(method, images, kind, target=0, contrast=1, **FAST.get(kind, {})).raw
        assert raw.shape == (2, 2, 2)
        assert raw.abs().max() > 0
    for kind in ("soap", "relevance"):
        with pytest.raises(ValueError, match=f"{kind} needs .* ModifiedResNet.*these kinds work with it: integrated_g"):
            saliency_maps(method, images, kind, target=0)


def test_towers_without_cls(images: Tensor) -> None:
    backbone = make_backbone("pooled", pool_type="avg")
    assert available_kinds(backbone) == ("integrated_gradients", "occlusion", "layer_gradcam")
    assert saliency_maps(backbone, images, "layer_gradcam", target="a square").raw.shape == (3, 4, 4)
    with pytest.raises(ValueError, match="ends in its CLS token"):
        saliency_maps(backbone, images, "rollout")


def test_custom_blocks_have_attention_but_no_value_path(images: Tensor) -> None:
    backbone = make_backbone("custom", qk_norm=True)
    assert "soap" not in available_kinds(backbone)
    assert saliency_maps(backbone, images, "relevance", target="a square").raw.shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"soap needs .*these kinds work with it: cls_attention"):
        saliency_maps(backbone, images, "soap")


def test_timm_tower() -> None:
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    model = open_clip.CustomTextCLIP(embed_dim=32, vision_cfg={**vision, "image_size": 160}, text_cfg=dict(TEXT))
    backbone = Backbone(model, open_clip.SimpleTokenizer(context_length=24), (0.5,) * 3, (0.25,) * 3, "timm").eval()
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert available_kinds(backbone) == ("integrated_gradients", "occlusion", "layer_gradcam")
    raw = saliency_maps(backbone, images, "layer_gradcam", target="a square").raw
    assert raw.shape == (2, 10, 10)
    assert raw.abs().max() > 0


def test_unit_maps() -> None:
    raw = torch.tensor([[[2.0, -1.0], [1.0, 0.0]], [[-1.0, -2.0], [-3.0, 0.0]]])
    expected = torch.tensor([[[1.0, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(unit_maps(raw), expected)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("sopa", {}, "unknown saliency kind 'sopa'; did you mean 'soap'"),
        ("soap", {"contrast": 1}, "soap is the same for every class.*these have: relevance"),
        ("rollout", {"start": 1}, "unknown option of rollout 'start'; did you mean 'start_layer'"),
        ("cls_attention", {"layer": 5}, "layer 5 does not exist"),
        ("cls_attention", {"head": 4}, "head 4 does not exist: layer -1 has 4"),
        ("cls_attention", {"layer": 1.0}, "layer 1.0 does not exist"),
        ("rollout", {"start_layer": "x"}, "layer 'x' does not exist"),
        ("cls_attention", {"head": 1.5}, "head 1.5 does not exist"),
        ("integrated_gradients", {"grid": (0, 5)}, "a side of the grid must be a whole number of at least 1, got 0"),
        ("occlusion", {"window": "x"}, "window, and stride, must be a whole number of at least 1, got 'x'"),
        ("ncut", {"affinity": "cosin"}, "unknown affinity 'cosin'"),
        ("relevance", {"target": "red sqare"}, "did you mean 'red square'"),
        ("relevance", {"target": 3}, "class index 3 does not exist: microclip knows 3"),
        ("relevance", {"target": [0, 1]}, "one for each of 3 images, got 2"),
        ("relevance", {"target": 1, "contrast": [0, 1, 2]}, "the same for image 1"),
        ("integrated_gradients", {"baseline": "grey"}, "unknown baseline 'grey'"),
        ("integrated_gradients", {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_input(kind: str, arguments: dict[str, object], message: str, microclip: Method, images: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        saliency_maps(microclip, images, kind, **arguments)


def test_bad_models_and_images(tiny_backbone: Backbone, microclip: Method, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs a Backbone .* got CLIP"):
        saliency_maps(tiny_backbone.model, images, "soap")
    with pytest.raises(ValueError, match="'bank' holds their embeddings only"):
        saliency_maps(FeatureBackbone(8, 100.0, "bank"), images, "soap")
    with pytest.raises(ValueError, match=r"needs images \(B, 3, 32, 32\)"):
        saliency_maps(microclip, images[0], "soap")
    with pytest.raises(ValueError, match="B >= 1"):
        saliency_maps(microclip, images[:0], "soap")
    with pytest.raises(ValueError, match=r"needs images .* got Image"):
        saliency_maps(microclip, Image.new("RGB", (32, 32)), "soap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tiny needs images \(B, 3, 32, 32\) in \[0, 1\], B >= 1, got uint8 \("):
        saliency_maps(microclip, (255 * images).byte(), "soap")
    for wrong in (255 * images, images - 0.5):  # as a file has them, and pixels that were normalized
        with pytest.raises(ValueError, match=r"tiny needs images in \[0, 1\], got .* to "):
            saliency_maps(microclip, wrong, "soap")
    saliency_maps(microclip, images.masked_fill(images > 0.9, 1 + 1e-6), "soap")  # what a resize rounds is an image
    with pytest.raises(ValueError, match="a backbone has no classes"):
        saliency_maps(tiny_backbone, images, "relevance")
    for indices in (3, torch.arange(60).reshape(20, 3)):  # the text of which has a line for each row
        with pytest.raises(ValueError, match=r"\A.*embeddings, got .*; class indices need a method.*\Z"):
            saliency_maps(tiny_backbone, images, "relevance", target=indices)
    with pytest.raises(ValueError, match="the same for image 0"):
        saliency_maps(tiny_backbone, images, "relevance", target="a bird", contrast="a bird")
    with pytest.raises(ValueError, match="not finite"):
        saliency_maps(microclip, images * torch.nan, "cls_attention")


def test_a_model_without_gradient_is_refused(known: Callable[..., Known], images: Tensor) -> None:
    model = known(lambda pixels: linear_rule(pixels).detach())
    with pytest.raises(ValueError, match="without gradient"):
        saliency_maps(model, images, "integrated_gradients")
    with pytest.raises(ValueError, match="takes no part"):
        saliency_maps(known(linear_rule), images, "layer_gradcam")
