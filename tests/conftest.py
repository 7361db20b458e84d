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


LAB = tuple(f"tests/browser/test_{name}.py" for name in ("bad_content", "notebooks_in_lab", "widgets"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Files as with loadfile, but those in JupyterLab are one: it starts once, and so does its kernel."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "JupyterLab" if nodeid.startswith(LAB) else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # the order below, also where xdist deals out the files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks and the browser first: their files take minutes, which one process would spend alone at the end."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.parent.name != "browser")
