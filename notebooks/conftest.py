"""Before any notebook is run as a test."""

import os
from collections.abc import Iterator
from pathlib import Path

# In a fresh environment matplotlib says on stderr that it collects the fonts. Here that is no
# unexpected output of a cell.
import matplotlib.font_manager  # noqa: F401
import pytest
from forked import Kernel, keep_birds
from jupyter_client.provisioning import local_provisioner

# Kernels beside each other, of two threads each, would wait for each other's cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    keep_birds(config)  # as in tests/conftest.py, which is not read if only notebooks are tested


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """A kernel that nbval starts before the first cell is forked, with all that notebooks import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_provisioner, "launch_kernel", Kernel)
        return (yield)


@pytest.hookimpl(trylast=True)  # when it is known which tests of the browser are left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What nbval compares, and of which notebooks."""
    # Of an explorable it is the text beside it, as of a picture: its last digits depend on the processor.
    for notebook in {item.parent for item in items if hasattr(item.parent, "skip_compare")}:
        notebook.skip_compare += ("text/html",)
    # A notebook that this session also runs in the browser is compared there.
    opened = {item.name.rpartition("[")[2] for item in items if "as_committed[" in item.name}
    again = [
        item for item in items if item.path.suffix == ".ipynb" and f"{item.path.stem}]" in opened
    ]
    items[:] = [item for item in items if item not in again]
    config.hook.pytest_deselected(items=again)


def pytest_collectstart(collector):
    """Have nbval read sanitize.cfg, wherever pytest is started, unless the command line names another file."""
    option = collector.config.option
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(
        Path(__file__).with_name("sanitize.cfg")
    )
