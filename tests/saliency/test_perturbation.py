"""Metrics without masks, on models whose reaction to every change is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from towers import Known

from clipviz.backbone import Backbone
from clipviz.saliency import deletion_auc, insertion_auc, map_infidelity, map_sensitivity, saliency_maps
from clipviz.saliency.attribution import baseline_image
from clipviz.saliency.perturbation import removal_masks

CELL = (slice(None), slice(None), slice(8, 16), slice(16, 24))  # row 1, column 2 of the 4 x 4 grid


def one_cell(images: Tensor) -> Tensor:
    """Class 0 is all but certain if the cell is white, class 1 if it is gray."""
    white = images[CELL].mean((1, 2, 3)) - 0.75
    return torch.stack([80 * white, -80 * white, torch.full_like(white, -99.0)], 1)


def additive(images: Tensor) -> Tensor:
    """Class 0 adds up cell means with fixed weights, so that occlusion is a perfect explanation."""
    cells = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 4)[:, 0]
    weights = torch.arange(16.0).view(4, 4) - 5
    total = (cells * weights).sum((1, 2))
    return torch.stack([total, torch.zeros_like(total), torch.zeros_like(total)], 1)


@pytest.fixture
def white() -> Tensor:
    return torch.ones(1, 3, 32, 32)


def ranked(first: tuple[int, int] | None, last: tuple[int, int] | None = None) -> Tensor:
    maps = torch.linspace(1, 0.5, 16).view(1, 4, 4).clone()
    if first:
        maps[0, first[0], first[1]] = 2.0
    if last:
        maps[0, last[0], last[1]] = 0.0
    return maps


def test_removal_masks_go_from_none_to_all_in_order() -> None:
    masks = removal_masks(ranked((1, 2)), 16)
    assert masks.shape == (1, 17, 4, 4)
    assert masks.flatten(2).sum(2).tolist() == [list(range(17))]
    assert masks[0, 1].nonzero().tolist() == [[1, 2]]
    assert masks[0, 2].nonzero().tolist() == [[0, 0], [1, 2]]
    assert removal_masks(ranked(None), 5).flatten(2).sum(2).tolist() == [[0, 3, 6, 10, 13, 16]]
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        removal_masks(ranked(None), 0)


def test_deletion_and_insertion_of_the_cell_that_decides(known: Callable[..., Known], white: Tensor) -> None:
    model = known(one_cell)
    best, worst = ranked((1, 2)), ranked(None, (1, 2))
    # by the trapezoid rule the probability falls from 1 to 0 between steps 0 and 1, or between 15 and 16
    torch.testing.assert_close(deletion_auc(model, white, best, target=0), torch.tensor([0.5 / 16]))
    torch.testing.assert_close(deletion_auc(model, white, worst, target=0), torch.tensor([15.5 / 16]))
    torch.testing.assert_close(insertion_auc(model, white, best, target=0, baseline="black"), torch.tensor([15.5 / 16]))
    torch.testing.assert_close(insertion_auc(model, white, worst, target=0, baseline="black"), torch.tensor([0.5 / 16]))
    torch.testing.assert_close(deletion_auc(model, white, best, target=1), torch.tensor([15.5 / 16]))
    torch.testing.assert_close(deletion_auc(model, white, best), deletion_auc(model, white, best, target=0))
    torch.testing.assert_close(
        deletion_auc(model, white, best, target=0, contrast=2), torch.tensor([1.0]), atol=1e-3, rtol=0
    )


def test_a_backbone_needs_something_to_compare_with(tiny_backbone: Backbone, images: Tensor) -> None:
    with pytest.raises(ValueError, match="give a contrast too"):
        deletion_auc(tiny_backbone, images, torch.rand(3, 4, 4), target="a bird")
    value = deletion_auc(tiny_backbone, images, torch.rand(3, 4, 4), target="a bird", contrast="a fish")
    assert value.shape == (3,)
    assert ((value > 0) & (value < 1)).all()
    with pytest.raises(ValueError, match="of 3 images"):
        deletion_auc(tiny_backbone, images, torch.rand(2, 4, 4), target="a bird", contrast="a fish")


def test_infidelity_of_a_perfect_a_scaled_and_a_wrong_map(known: Callable[..., Known], images: Tensor) -> None:
    model = known(additive)
    perfect = saliency_maps(model, images, "occlusion", target=0).raw
    zero = torch.zeros(3)
    torch.testing.assert_close(map_infidelity(model, images, perfect, target=0), zero, atol=1e-6, rtol=0)
    torch.testing.assert_close(map_infidelity(model, images, 30 * perfect, target=0), zero, atol=1e-6, rtol=0)
    wrong = map_infidelity(model, images, perfect.flip(1), target=0)
    assert (wrong > 0.01).all()
    assert torch.equal(wrong, map_infidelity(model, images, perfect.flip(1), target=0))  # seeded
    # an empty map predicts no change at all, so what is left is the mean squared change itself
    nothing = map_infidelity(model, images, torch.zeros(3, 4, 4), target=0)
    assert torch.isfinite(nothing).all()
    assert (nothing > wrong.min()).all()


def test_sensitivity_is_zero_for_a_constant_gradient_map_and_grows_with_the_radius(
    known: Callable[..., Known], images: Tensor
) -> None:
    model = known(additive)
    small = map_sensitivity(model, images, "occlusion", target=0, radius=1e-3)
    large = map_sensitivity(model, images, "occlusion", target=0, radius=1e-1)
    assert ((small > 0) & (small < 0.05)).all()
    assert (large > 10 * small).all()
    torch.testing.assert_close(map_sensitivity(model, images, "occlusion", target=0, radius=0.0), torch.zeros(3))


def test_sensitivity_keeps_the_random_state_and_the_predicted_class(
    known: Callable[..., Known], images: Tensor
) -> None:
    state = torch.get_rng_state()
    model = known(additive)
    by_default = map_sensitivity(model, images, "occlusion")
    predicted = additive(images).argmax(-1)
    torch.testing.assert_close(by_default, map_sensitivity(model, images, "occlusion", target=predicted))
    assert torch.equal(torch.get_rng_state(), state)


def test_baselines(tiny_backbone: Backbone, images: Tensor) -> None:
    assert (baseline_image(tiny_backbone, images, "mean") == 0.5).all()
    assert (baseline_image(tiny_backbone, images, "black") == 0).all()
    assert (baseline_image(tiny_backbone, images, "white") == 1).all()
    blurred = baseline_image(tiny_backbone, images, "blur")
    assert blurred.shape == images.shape
    assert blurred.var() < 0.1 * images.var()
    torch.testing.assert_close(blurred.mean(), images.mean(), atol=0.02, rtol=0)
    flat = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(baseline_image(tiny_backbone, flat, "blur"), flat)
