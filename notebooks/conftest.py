"""Before any notebook is run as a test."""

import os
from pathlib import Path

# In a fresh environment matplotlib says on stderr that it collects the fonts. Here that is no
# unexpected output of a cell.
import matplotlib.font_manager  # noqa: F401
import pytest

# Kernels beside each other, of two threads each, would wait for each other's cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of an explorable the text beside it is compared, as of a picture: its last digits depend on the processor."""
    for notebook in {item.parent for item in items if hasattr(item.parent, "skip_compare")}:
        notebook.skip_compare += ("text/html",)


def pytest_collectstart(collector):
    """Have nbval read sanitize.cfg, wherever pytest is started, unless the command line names another file."""
    option = collector.config.option
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(
        Path(__file__).with_name("sanitize.cfg")
    )
