from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from towers import NAMES, Known, make_backbone

from clipviz.backbone import Backbone
from clipviz.methods import METHODS
from clipviz.methods.base import Method
from clipviz.prompts import ClassPrompts


@pytest.fixture(scope="session")
def resnet() -> Backbone:
    return make_backbone("RN-tiny", layers=(1, 1, 1, 1), width=8, image_size=64)


@pytest.fixture
def prompts() -> ClassPrompts:
    return ClassPrompts(NAMES, ("a photo of a {}.", "a {}."), {})


@pytest.fixture
def microclip(tiny_backbone: Backbone, prompts: ClassPrompts) -> Method:
    return METHODS["microclip"](tiny_backbone, prompts).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def known(tiny_backbone: Backbone, prompts: ClassPrompts) -> Callable[..., Known]:
    return lambda rule: Known(tiny_backbone, prompts, rule)
