"""Maps by captum: integrated gradients, occlusion, Grad-CAM of a layer. They need no patch tokens.

    integrated_gradients   (x - x0) * mean_a dy/dx at x0 + a (x - x0)           Sundararajan, Taly & Yan, ICML 2017
    occlusion              y(x) - y(x with a window set to x0)                  Zeiler & Fergus, ECCV 2014
    layer_gradcam          sum_k mean_grid(dy/dF_k) F_k                         Grad-CAM, Selvaraju et al., ICCV 2017
                           sum_k dy/dF_k F_k   on the tokens of a ViT           HiResCAM, Draelos & Carin, 2020

y is the score of the question, F the output of a layer, x0 the `baseline`, an image that says nothing
(`baseline_image`). All maps are (B, h, w) and signed; `grid` is their (h, w), None for the patch grid. The last line is
computed here: on tokens captum's `LayerGradCam` would average over channels, taking them for the grid, and of a layer
that runs twice, as a LayerNorm of microCLIP's last block does (for CLS and for the value path), captum keeps one run.
It is imported where it is called: it is half a second, and the other maps, which every run records, do without.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.errors import choose, one_line, whole_number
from clipviz.saliency.question import Model, Question, backbone_of

Baseline = Literal["mean", "black", "white", "blur"]
Grid = tuple[int, int]

FORWARD_BATCH = 256  # images per forward pass where captum multiplies them


def integrated_gradients(
    model: Model, images: Tensor, question: Question, *, steps: int = 20, baseline: Baseline = "mean",
    grid: Grid | None = None,
) -> Tensor:  # fmt: skip
    """Integrated gradients by Gauss-Legendre nodes, summed over the pixels and channels of each patch.

    The sum of a map is score(image) - score(baseline), but for the error of the integral and for jumps of the score on
    the way, such as those of a microCLIP where its NCut mask changes.
    """
    from captum.attr import IntegratedGradients

    pixels, _ = question.differentiable(images)
    attribution = IntegratedGradients(question.score).attribute(
        pixels, baselines=baseline_image(model, images, baseline), additional_forward_args=question.args,
        n_steps=whole_number("steps", steps, 1), internal_batch_size=max(len(images), FORWARD_BATCH),
    )  # fmt: skip
    h, w = patch_grid(model, grid)
    per_cell = images.shape[-1] * images.shape[-2] / (h * w)
    return F.adaptive_avg_pool2d(attribution.detach().sum(1, keepdim=True), (h, w))[:, 0] * per_cell


def occlusion(
    model: Model, images: Tensor, question: Question, *, window: int | None = None, stride: int | None = None,
    baseline: Baseline = "mean", grid: Grid | None = None,
) -> Tensor:  # fmt: skip
    """Score lost when a window is painted over, averaged over the windows that cover a patch.

    `window`, its side, and `stride` are in pixels, None for those of a patch.
    """
    from captum.attr import Occlusion

    h, w = patch_grid(model, grid)
    cell = max(1, images.shape[-1] // max(h, w))
    window, stride = (whole_number("window, and stride,", side or cell, 1) for side in (window, stride))
    if not 1 <= stride <= window <= images.shape[-1]:
        raise ValueError(f"occlusion needs 1 <= stride <= window <= {images.shape[-1]}, got {stride} and {window}")
    with torch.no_grad():
        attribution = Occlusion(question.score).attribute(
            images.detach(), sliding_window_shapes=(3, window, window), strides=(3, stride, stride),
            baselines=baseline_image(model, images, baseline), additional_forward_args=question.args,
            perturbations_per_eval=max(1, FORWARD_BATCH // len(images)),
        )  # fmt: skip
    return F.adaptive_avg_pool2d(attribution.detach().mean(1, keepdim=True), (h, w))[:, 0]


def layer_gradcam(model: Model, images: Tensor, question: Question, *, layer: nn.Module | None = None) -> Tensor:
    """Grad-CAM of a convolution (captum's), or gradient x activation of a layer of tokens.

    The layer is a module of the image tower with output (B, C, h, w) or (B, L, W), on whose grid the map is; None for
    the last one that still has a grid: `layer4` of a ResNet, the first LayerNorm of a ViT's last block.
    """
    layer = layer or grid_layer(backbone_of(model))
    if not isinstance(layer, nn.Module):
        raise ValueError(f"layer must be a module of model.visual, got {one_line(repr(layer), 60)}")
    outputs: list[Tensor] = []  # one for each time the layer runs
    handle = layer.register_forward_hook(lambda _, __, out: outputs.extend([out] if isinstance(out, Tensor) else []))
    try:
        pixels, score = question.differentiable(images)
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"layer {type(layer).__name__} takes no part in the model's logits; give one of model.visual")
    if all(output.ndim == 3 for output in outputs):
        return _token_gradcam(score, outputs, patch_grid(model))
    if not all(output.ndim == 4 for output in outputs):
        shapes = [tuple(output.shape) for output in outputs]
        raise ValueError(f"layer_gradcam needs a layer with output (B, C, h, w) or (B, L, W), got {shapes}")
    from captum.attr import LayerGradCam

    attribution = LayerGradCam(question.score, layer).attribute(pixels, additional_forward_args=question.args)
    return cast(Tensor, attribution).detach()[:, 0]


def _token_gradcam(score: Tensor, outputs: list[Tensor], grid: Grid) -> Tensor:
    """Gradient x activation of every patch, added up over the runs of a layer: (B, L, W) each -> (B, h, w)."""
    h, w = grid
    gradients = torch.autograd.grad(score.sum(), outputs, allow_unused=True)
    total = score.new_zeros(len(score), h * w)
    for output, gradient in zip(outputs, gradients, strict=True):
        first = output.shape[1] - h * w  # class and register tokens stand in front
        if first < 0:
            raise ValueError(f"layer_gradcam needs a token for each of {h} x {w} patches, got {output.shape[1]} tokens")
        if gradient is not None:
            total += (gradient * output.detach())[:, first:].sum(-1)
    return total.unflatten(1, grid)


def grid_layer(backbone: Backbone) -> nn.Module:
    """The last layer of the image tower whose output still has a place for every patch."""
    trunk = getattr(backbone.visual, "trunk", backbone.visual)  # timm towers
    if isinstance(getattr(trunk, "layer4", None), nn.Module):
        return trunk.layer4
    blocks = getattr(getattr(trunk, "transformer", None), "resblocks", None)
    if blocks is not None:
        return blocks[-1].ln_1
    if isinstance(getattr(trunk, "stages", None), nn.Module):
        return trunk.stages[-1]
    if hasattr(trunk, "blocks") and hasattr(trunk.blocks[-1], "norm1"):
        return trunk.blocks[-1].norm1
    raise ValueError(
        f"the last layer with a grid is not known for a {type(trunk).__name__}; give layer=, a module of "
        "model.visual with output (B, C, h, w) or (B, L, W)"
    )


def patch_grid(model: Model, asked: Grid | None = None) -> Grid:
    """(h, w) asked for, or of the patches; of a tower without patches, cells of 32 pixels, the stride of a ResNet."""
    if asked is not None:
        if not isinstance(asked, tuple | list) or len(asked) != 2:
            raise ValueError(f"grid must be (rows, columns), got {one_line(repr(asked), 60)}")
        h, w = (whole_number("a side of the grid", side, 1) for side in asked)
        return h, w
    backbone = backbone_of(model)
    embed = getattr(getattr(backbone.visual, "trunk", None), "patch_embed", None)
    grid = getattr(backbone.visual, "grid_size", None) or getattr(embed, "grid_size", None)
    h, w = grid or (max(1, backbone.image_size // 32),) * 2
    return int(h), int(w)


def baseline_image(model: Model, images: Tensor, baseline: Baseline) -> Tensor:
    """What images look like when they say nothing, (B, 3, S, S) in [0, 1].

    "mean" is the color that the model was trained with, "blur" a Gaussian whose sigma is a tenth of the side.
    """
    choose("baseline", baseline, ("mean", "black", "white", "blur"))
    if baseline == "mean":
        return backbone_of(model).mean.to(images.dtype).expand_as(images)
    if baseline == "blur":
        return _blurred(images, images.shape[-1] / 10)
    return torch.full_like(images, float(baseline == "white"))


def _blurred(images: Tensor, sigma: float) -> Tensor:
    reach = min(int(3 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
