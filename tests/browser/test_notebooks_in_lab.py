"""Each tutorial, opened in a real JupyterLab and run from top to bottom: same texts as committed, live widgets."""

from __future__ import annotations

import os
import re
import shutil

import nbformat
import pytest
from playwright.sync_api import expect
from test_notebooks import FOLDER, NAMES, execute

CONTENT = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON()"
IDLE = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
VIEW = re.compile(r"^(?:\w+ = )?(LiveMonitor|SaliencyExplorer|PrototypeExplorer|DKAPlayground)\(", re.M)
LIVE = ".jp-OutputArea .jupyter-widgets"
EVERY = os.environ.get("CLIPVIZ_EVERY_NOTEBOOK")
"""Set it to open all eight, which takes ten minutes; else one that trains at once and one that trains live."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES if EVERY else ["01_quickstart", "06_microclip"])
def test_notebook_runs_in_the_browser_as_committed(lab, page, run_all, name):
    shutil.copy(FOLDER / f"{name}.ipynb", lab.root)
    # a workspace of its own: tabs that another test left open would be restored in front of it
    run_all(f"{lab.url}/lab/workspaces/{name}/tree/{name}.ipynb")
    page.wait_for_function(IDLE)
    ran = execute.clean(nbformat.from_dict(page.evaluate(CONTENT)))
    committed = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert execute.differences(committed, ran) == []
    widget = next(i for i, cell in enumerate(committed.cells) if VIEW.search(cell.source))
    page.evaluate("i => window.jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", widget)
    expect(page.locator(LIVE).first).to_be_visible()
