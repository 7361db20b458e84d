"""Saliency without masks: does the map say what the model does when the image changes?

    deletion AUC    mean probability while cells are wiped out, most salient first; low is good
    insertion AUC   mean probability while cells come back out of a blur, most salient first; high is good
                    Petsiuk, Das & Saenko (RISE), BMVC 2018
    infidelity      E_I (I . Phi - (y(x) - y(x - I)))^2, Phi scaled to fit best       Yeh et al., NeurIPS 2019, eq. 1
    sensitivity     max_{|d| <= radius} |Phi(x + d) - Phi(x)| / |Phi(x)|              ibid., definition 2

The last two are captum's. Phi is the raw map spread evenly over the pixels of its cell; I sets random cells to the mean
color. The probability is the softmax of the model's logits at the target; in a contrast, and for a bare backbone with
two sentences, that of the two alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.methods.base import Method
from clipviz.saliency.attribution import FORWARD_BATCH, Baseline, baseline_image
from clipviz.saliency.maps import KINDS, raw_map
from clipviz.saliency.question import Asked, Model, ask, backbone_of, targets


def deletion_auc(
    model: Model,
    images: Tensor,
    maps: Tensor,
    *,
    target: Asked | None = None,
    contrast: Asked | None = None,
    baseline: Baseline = "mean",
    steps: int = 16,
    insert: bool = False,
) -> Tensor:
    """Area under the probability while the most salient cells are replaced by a baseline.

    Args:
        model: a method, or a backbone with a target and a contrast.
        images: (B, 3, S, S) float in [0, 1].
        maps: (B, h, w) float, raw values: only their order counts.
        target: as for `saliency_maps`, like `contrast`.
        contrast: class or sentence that the target is set against.
        baseline: what a deleted cell shows.
        steps: of the curve, each of h * w / steps cells.
        insert: the other way round: the most salient cells of the image replace those of the baseline.

    Returns:
        (B,) float in [0, 1], by the trapezoid rule.
    """
    _require_maps(images, maps)
    device = backbone_of(model).device
    images, chosen = images.to(device), removal_masks(maps.to(device), steps)
    curve = torch.empty(len(images), steps + 1)
    with preserved_state(model):
        probability = _probability(model, images, target, contrast)
        start, end = images, baseline_image(model, images, baseline)
        if insert:
            start, end = end, start
        for step in range(steps + 1):
            cells = F.interpolate(chosen[:, step : step + 1].float(), size=images.shape[-2:]) > 0.5
            curve[:, step] = probability(torch.where(cells, end, start)).cpu()
    return torch.trapezoid(curve, dim=1) / steps


insertion_auc = partial(deletion_auc, baseline="blur", insert=True)
"""Area under the probability while the most salient cells return to a blurred image."""


def removal_masks(maps: Tensor, steps: int) -> Tensor:
    """Which cells are gone after K steps, most salient first, ties in reading order: (B, h, w) -> (B, K + 1, h, w)."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    flat = maps.flatten(1)
    place = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = torch.linspace(0, flat.shape[1], steps + 1, device=maps.device).round()
    return (place[:, None] < counts[:, None]).unflatten(2, maps.shape[1:])


def _probability(
    model: Model, images: Tensor, target: Asked | None, contrast: Asked | None
) -> Callable[[Tensor], Tensor]:
    """A function of images: the (B,) probability of the target among all classes, or against the contrast alone."""
    if contrast is not None:
        question = ask(model, images, target, contrast)
        return lambda pixels: question(pixels).sigmoid()
    if not isinstance(model, Method):
        raise ValueError("a backbone has no classes: give a contrast too, or a method such as METHODS['zero_shot']")
    index = targets(model, images, target)
    return lambda pixels: model.logits(pixels).softmax(-1).gather(1, index[:, None])[:, 0]


def map_infidelity(
    model: Model,
    images: Tensor,
    maps: Tensor,
    *,
    target: Asked | None = None,
    contrast: Asked | None = None,
    samples: int = 16,
    share: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """How badly a map, its scale fitted, predicts the change of the score when random cells are wiped out (captum's).

    `samples` sets of a `share` of the cells, in (0, 1), are wiped out; all else is as for `deletion_auc`. The result is
    (B,) float >= 0, in squared logits; 0 where the map predicts every change.
    """
    _require_maps(images, maps)
    images, maps = (tensor.to(backbone_of(model).device) for tensor in (images, maps))
    generator = torch.Generator().manual_seed(seed)
    grid = maps.shape[1:]
    with preserved_state(model):
        question = ask(model, images, target, contrast)
        baseline = baseline_image(model, images, "mean")[:1]
        per_cell = images[0].numel() / maps[0].numel()
        phi = F.interpolate(maps[:, None], size=images.shape[-2:]) / per_cell  # sums are kept

        def wipe(pixels: Tensor) -> tuple[Tensor, Tensor]:
            gone = torch.rand((len(pixels), 1, *grid), generator=generator) < share
            chosen = F.interpolate(gone.float(), size=pixels.shape[-2:]).to(pixels.device)
            # captum wants I with x - I as the image: here 1 for a wiped pixel, since Phi already counts whole cells
            return chosen.expand_as(pixels), torch.where(chosen > 0.5, baseline.expand_as(pixels), pixels)

        return infidelity(
            question.score,
            wipe,
            images,
            phi.expand_as(images),
            additional_forward_args=question.args,
            n_perturb_samples=samples,
            max_examples_per_batch=len(images) * min(samples, max(1, FORWARD_BATCH // len(images))),
            normalize=True,
        ).detach()


def map_sensitivity(
    model: Model,
    images: Tensor,
    kind: str,
    *,
    target: Asked | None = None,
    contrast: Asked | None = None,
    radius: float = 0.02,
    samples: int = 4,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """How much a map changes, relative to its norm, when the image hardly does (captum's max-sensitivity): (B,) >= 0.

    Args and errors are those of `saliency_maps`; without a target the class predicted on the unchanged image is kept.
    `samples` copies of each image are changed, no pixel by more than `radius`.
    """
    images = images.to(backbone_of(model).device)
    with preserved_state(model):
        question = ask(model, images, target, contrast) if KINDS[kind].asks else None
    generator = torch.Generator().manual_seed(seed)  # its own: the global one is everybody's, in any thread

    def changed(pixels: Tensor, radius: float) -> Tensor:
        return pixels + torch.empty(pixels.shape).uniform_(-radius, radius, generator=generator).to(pixels)

    def explain(pixels: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
        if isinstance(pixels, tuple):  # captum wraps the unchanged images only
            (pixels,) = pixels
        asked = None if question is None else question.repeat(len(pixels) // len(images))
        return (raw_map(model, pixels, kind, asked, **options),)  # captum reads a bare tensor as a tuple of rows

    with lock_of(model):  # all maps by the same model
        return sensitivity_max(explain, images, changed, perturb_radius=radius, n_perturb_samples=samples)


def _require_maps(images: Tensor, maps: Tensor) -> None:
    if maps.ndim != 3 or len(maps) != len(images):
        raise ValueError(f"wanted maps (B, h, w) of {len(images)} images, got {tuple(maps.shape)}")
