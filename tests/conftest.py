"""Fixtures of all tests; what they are made of is in `tiny`."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from forked import keep_birds

if TYPE_CHECKING:
    from tiny import ToyDataset

    from clipviz.backbone import Backbone


def pytest_collectstart() -> None:
    """Not when this file is read: the process that deals out the tests of others does without torch."""
    gc.disable()  # until all is imported: looking for garbage would take a quarter of that time
    import prepared  # noqa: F401


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays
    gc.enable()


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    """Random weights; methods train on copies of its image tower, so it can be shared."""
    from tiny import make_tiny_backbone

    return make_tiny_backbone()


@pytest.fixture
def toy() -> ToyDataset:
    from tiny import ToyDataset

    return ToyDataset()


@pytest.fixture
def toy_test() -> ToyDataset:
    from tiny import ToyDataset

    return ToyDataset(n=9, seed=1, split="test")


LAB = tuple(f"tests/browser/test_{name}.py" for name in ("bad_content", "notebooks_in_lab", "widgets"))
FORKS = tuple(
    f"tests/{name}.py"
    for name in ("cli/test_cli", "cli/test_hostile", "test_layers", "tools/test_docs_site", "training/test_follow",
                 "training/test_parallel")
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Files as with loadfile, but those in JupyterLab are one: it starts once, and so does its kernel.

    So are those that fork their commands from a process which has imported everything.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            for scope, files in {"JupyterLab": LAB, "forks": FORKS}.items():
                if nodeid.startswith(files):
                    return scope
            return super()._split_scope(nodeid)

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # the order below, also where xdist deals out the files
    keep_birds(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks and the browser first: their files take minutes, which one process would spend alone at the end."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.parent.name != "browser")
