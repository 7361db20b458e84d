"""Saliency without masks: does the map say what the model does when the image, or the model, changes?

    deletion AUC    mean probability while cells are wiped out, most salient first; low is good
    insertion AUC   mean probability while cells come back out of a blur, most salient first; high is good
                    Petsiuk, Das & Saenko (RISE), BMVC 2018
    infidelity      E_I (I . Phi - (y(x) - y(x - I)))^2, Phi scaled to fit best       Yeh et al., NeurIPS 2019, eq. 1
    sensitivity     max_{|d| <= radius} |Phi(x + d) - Phi(x)| / |Phi(x)|              ibid., definition 2

The last two are captum's. Phi is the raw map spread evenly over the pixels of its cell; I sets random cells to the mean
color. The probability is the softmax of the model's logits at the target; in a contrast, and for a bare backbone with
two sentences, that of the two alone.

A sanity check changes the model instead (Adebayo et al., NeurIPS 2018): randomize the weights from the output toward
the input, block by block, and compare the maps before and after by rank correlation; a map that survives a scrambled
model does not show what the model learned. Here the entries of each parameter are permuted, which keeps their scale.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.errors import whole_number
from clipviz.methods.base import Method
from clipviz.saliency.attribution import FORWARD_BATCH, Baseline, baseline_image
from clipviz.saliency.maps import KINDS, raw_map, saliency_maps
from clipviz.saliency.question import Asked, Model, ask, backbone_of, predicted_classes, targets


def deletion_auc(
    model: Model, images: Tensor, maps: Tensor, *, target: Asked = None, contrast: Asked = None,
    baseline: Baseline = "mean", steps: int = 16, insert: bool = False,
) -> Tensor:  # fmt: skip
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
    steps, flat = whole_number("steps", steps, 1), maps.flatten(1)
    place = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = torch.linspace(0, flat.shape[1], steps + 1, device=maps.device).round()
    return (place[:, None] < counts[:, None]).unflatten(2, maps.shape[1:])


def _probability(model: Model, images: Tensor, target: Asked, contrast: Asked) -> Callable[[Tensor], Tensor]:
    """A function of images: the (B,) probability of the target among all classes, or against the contrast alone."""
    if contrast is not None:
        question = ask(model, images, target, contrast)
        return lambda pixels: question(pixels).sigmoid()
    if not isinstance(model, Method):
        raise ValueError("a backbone has no classes: give a contrast too, or a method such as METHODS['zero_shot']")
    index = targets(model, images, target)
    return lambda pixels: model.logits(pixels).softmax(-1).gather(1, index[:, None])[:, 0]


def map_infidelity(
    model: Model, images: Tensor, maps: Tensor, *, target: Asked = None, contrast: Asked = None, samples: int = 16,
    share: float = 0.2, seed: int = 0,
) -> Tensor:  # fmt: skip
    """How badly a map, its scale fitted, predicts the change of the score when random cells are wiped out (captum's).

    `samples` sets of a `share` of the cells, in (0, 1), are wiped out; all else is as for `deletion_auc`. The result is
    (B,) float >= 0, in squared logits; 0 where the map predicts every change.
    """
    from captum.metrics import infidelity  # here, as in `attribution`

    _require_maps(images, maps)
    images, maps = (tensor.to(backbone_of(model).device) for tensor in (images, maps))
    generator = torch.Generator().manual_seed(seed)
    with preserved_state(model):
        question = ask(model, images, target, contrast)
        baseline = baseline_image(model, images, "mean")[:1]
        per_cell = images[0].numel() / maps[0].numel()
        phi = F.interpolate(maps[:, None], size=images.shape[-2:]) / per_cell  # sums are kept

        def wipe(pixels: Tensor) -> tuple[Tensor, Tensor]:
            gone = torch.rand((len(pixels), 1, *maps.shape[1:]), generator=generator) < share
            chosen = F.interpolate(gone.float(), size=pixels.shape[-2:]).to(pixels.device)
            # captum wants I with x - I as the image: here 1 for a wiped pixel, since Phi already counts whole cells
            return chosen.expand_as(pixels), torch.where(chosen > 0.5, baseline.expand_as(pixels), pixels)

        return infidelity(
            question.score, wipe, images, phi.expand_as(images), additional_forward_args=question.args,
            n_perturb_samples=samples,
            max_examples_per_batch=len(images) * min(samples, max(1, FORWARD_BATCH // len(images))), normalize=True,
        ).detach()  # fmt: skip


def map_sensitivity(
    model: Model, images: Tensor, kind: str, *, target: Asked = None, contrast: Asked = None, radius: float = 0.02,
    samples: int = 4, seed: int = 0, **options: Any,
) -> Tensor:  # fmt: skip
    """How much a map changes, relative to its norm, when the image hardly does (captum's max-sensitivity): (B,) >= 0.

    Args and errors are those of `saliency_maps`; without a target the class predicted on the unchanged image is kept.
    `samples` copies of each image are changed, no pixel by more than `radius`.
    """
    from captum.metrics import sensitivity_max

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


def sanity_check(
    model: Model, images: Tensor, kind: str, *, target: Asked = None, contrast: Asked = None, seed: int = 0,
    **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """Rank correlation of a kind of map with itself as more and more of a copy's image tower is scrambled.

    Args are those of `saliency_maps`; without a target the class that the intact model predicts is kept. One row per
    stage, from the output to the input: `scrambled` (the last part that was), `correlation` (mean over images of
    Spearman's rho of the raw maps, in [-1, 1]), and `parts`, how many parts are scrambled so far.
    """
    with lock_of(model):  # the map and the copy are of the same weights
        if target is None and KINDS[kind].asks and isinstance(model, Method):
            target = predicted_classes(model, images)
        original = saliency_maps(model, images, kind, target=target, contrast=contrast, **options).raw
        scrambled = _own_tower(model)
    generator, rows = torch.Generator().manual_seed(seed), []
    for count, (name, parameters) in enumerate(_cascade(backbone_of(scrambled).visual), start=1):
        _permute(parameters, generator)
        maps = saliency_maps(scrambled, images, kind, target=target, contrast=contrast, **options).raw
        rows.append((name, float(rank_correlation(original, maps).mean()), count))
    return pd.DataFrame(rows, columns=["scrambled", "correlation", "parts"])


def scrambled_model(model: Model, seed: int = 0) -> Model:
    """A copy of a model whose image tower is scrambled throughout; everything else is shared with it."""
    copied = _own_tower(model)
    _permute(list(backbone_of(copied).visual.parameters()), torch.Generator().manual_seed(seed))
    return copied


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rho of maps (B, h, w), image by image, ties by their mean rank: (B,) in [-1, 1], 0 if constant."""
    if first.shape != second.shape:
        raise ValueError(f"wanted two maps of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    a, b = (torch.tensor(pd.DataFrame(maps.flatten(1).cpu()).rank(axis=1).to_numpy()) for maps in (first, second))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)).float()


def _own_tower(model: Model) -> Model:
    """A shallow copy with an image tower of its own, so that scrambling it touches nobody else's."""
    tower = backbone_of(model).trainable_copy()
    if model is backbone_of(model):
        return tower
    copied = copy.copy(model)
    copied._modules = {**model._modules, "backbone": tower}
    return copied


def _cascade(visual: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """The tower in pieces from the output to the input: its direct children and, of a stack of blocks, each block."""
    pieces: dict[str, list[nn.Parameter]] = {}
    for name, parameter in visual.named_parameters():
        path = name.split(".")
        numbers = [i for i, part in enumerate(path) if part.isdigit()]
        pieces.setdefault(".".join(path[: numbers[0] + 1] if numbers else path[:1]), []).append(parameter)
    heads = [name for name in pieces if name in ("proj", "ln_post", "attnpool", "head")]
    stems = [name for name in pieces if name in ("class_embedding", "positional_embedding", "conv1", "ln_pre")]
    middle = [name for name in pieces if name not in heads and name not in stems]
    return [(name, pieces[name]) for name in (*heads, *reversed(middle), *reversed(stems))]


@torch.no_grad()
def _permute(parameters: list[nn.Parameter], generator: torch.Generator) -> None:
    for parameter in parameters:
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
