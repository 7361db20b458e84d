from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from towers import Known

from clipviz.methods.base import Method
from clipviz.saliency import sanity_check
from clipviz.saliency.perturbation import rank_correlation, scrambled_model


def test_rank_correlation_on_known_cases() -> None:
    rising = torch.arange(16.0).view(1, 4, 4)
    assert rank_correlation(rising, rising**3) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    assert rank_correlation(rising, torch.ones(1, 4, 4)) == 0
    # textbook: ranks 1 2 3 4 against 2 1 4 3, rho = 1 - 6 * 4 / (4 * 15) = 0.6
    first, second = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[2.0, 1.0], [4.0, 3.0]]])
    assert rank_correlation(first, second) == pytest.approx(0.6)
    # ties share ranks: 1.5 1.5 3 4 against 1 2 3 4, rho = 4.5 / sqrt(4.5 * 5)
    tied = torch.tensor([[[1.0, 1.0], [2.0, 3.0]]])
    assert rank_correlation(tied, first) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(rising, rising[:, :2])


def test_scrambling_touches_a_copy_only(microclip: Method, images: Tensor) -> None:
    before = {name: value.clone() for name, value in microclip.state_dict().items()}
    scrambled = scrambled_model(microclip)
    assert all(torch.equal(value, before[name]) for name, value in microclip.state_dict().items())
    visual = microclip.backbone.visual
    for name, parameter in scrambled.backbone.visual.named_parameters():
        own = dict(visual.named_parameters())[name]
        torch.testing.assert_close(parameter.flatten().sort().values, own.flatten().sort().values)
    assert not torch.equal(scrambled.backbone.visual.conv1.weight, visual.conv1.weight)
    assert scrambled.learned_classifier is microclip.learned_classifier
    assert torch.equal(scrambled_model(microclip).backbone.visual.conv1.weight, scrambled.backbone.visual.conv1.weight)


def test_a_cascade_from_the_output_to_the_input(microclip: Method, images: Tensor) -> None:
    before = {name: value.clone() for name, value in microclip.state_dict().items()}
    table = sanity_check(microclip, images, "relevance", start_layer=0)
    blocks = ["transformer.resblocks.1", "transformer.resblocks.0"]
    stem = ["ln_pre", "conv1", "positional_embedding", "class_embedding"]
    assert list(table["scrambled"]) == ["proj", "ln_post", *blocks, *stem]
    assert list(table["parts"]) == list(range(1, len(table) + 1))
    assert table["correlation"].between(-1, 1).all()
    assert table["correlation"].iloc[-1] < 0.8
    assert all(torch.equal(value, before[name]) for name, value in microclip.state_dict().items())


def test_a_map_that_ignores_the_weights_is_caught(known: Callable[..., Known], images: Tensor) -> None:
    """An edge detector passes for an explanation until the weights are scrambled."""
    model = known(lambda pixels: pixels.mean((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0, 3.0]))
    table = sanity_check(model, images, "occlusion")
    assert (table["correlation"] > 0.999).all()
    assert sanity_check(model, images, "cls_attention")["correlation"].iloc[-1] < 0.8
