"""The tutorials in a real JupyterLab: run, they say what is committed; just opened, their explorables are pictures."""

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


SOFTMAX = "explorables.softmax("


def test_an_explorable_moves_where_it_was_run_and_is_a_picture_where_nobody_trusts_it(lab, page, run_all):
    committed = nbformat.read(FOLDER / "02_zero_shot.ipynb", as_version=4)
    cell = next(cell for cell in committed.cells if SOFTMAX in cell.source)
    opened = nbformat.v4.new_notebook(cells=[cell], metadata=execute.METADATA)
    nbformat.write(opened, lab.root / "untrusted.ipynb")
    page.goto(f"{lab.url}/lab/workspaces/untrusted/tree/untrusted.ipynb")
    expect(page.get_by_text("To move it, run this cell, or trust the notebook.")).to_be_visible()
    expect(page.locator(".jp-RenderedImage img")).to_be_visible()
    assert page.get_by_role("slider").count() == 0

    source = "from clipviz.figures import explorables\nexplorables.softmax(['owl', 'duck'], [0.3, 0.25], 100.0)"
    run_all(lab.write("explorable.ipynb", source))
    said = page.locator(".clipviz-explorable p[role=status]")
    expect(said).to_contain_text("The label is owl, with confidence 0.993")
    expect(page.locator(".jp-RenderedImage img")).to_be_hidden()
    slider = page.get_by_role("slider", name="cosine of owl")
    slider.focus()
    for _ in range(11):  # and no key may move the notebook instead
        page.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("The label is duck, with confidence 0.622")
    expect(slider).to_be_focused()
