"""Fixtures of all tests; what they are made of is in `tiny`."""

from __future__ import annotations

import pytest
import torch
from tiny import GOLDEN, ToyDataset, make_tiny_backbone

from clipviz.backbone import Backbone

__all__ = ["GOLDEN", "ToyDataset", "make_tiny_backbone"]

torch.set_num_threads(1)  # the models are too small to share


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    """Random weights; methods train on copies of its image tower, so it can be shared."""
    return make_tiny_backbone()


@pytest.fixture
def toy() -> ToyDataset:
    return ToyDataset()


@pytest.fixture
def toy_test() -> ToyDataset:
    return ToyDataset(n=9, seed=1, split="test")
