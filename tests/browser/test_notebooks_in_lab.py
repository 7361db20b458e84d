"""The tutorials in a real JupyterLab: run, they say what is committed; just opened, their explorables are pictures."""

from __future__ import annotations

import json
import os
import re
import shutil

import nbformat
import pytest
from playwright.sync_api import expect
from server import run_notebook
from test_explorables_exported import committed
from test_notebooks import FOLDER, NAMES, execute
from tiny import ToyDataset, make_tiny_backbone

from clipviz.methods.base import text_classifier

CONTENT = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON()"
IDLE = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
VIEW = re.compile(r"^(?:\w+ = )?(LiveMonitor|SaliencyExplorer|PrototypeExplorer|DKAPlayground)\(", re.M)
LIVE = ".jp-OutputArea .jupyter-widgets"
EVERY = os.environ.get("CLIPVIZ_EVERY_NOTEBOOK")
"""Set it to open all, which takes ten minutes; else one that trains at once and one that trains live."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES if EVERY else ["01_quickstart", "07_dka"])
def test_notebook_runs_in_the_browser_as_committed(lab, put_on_desk, name):
    shutil.copy(FOLDER / f"{name}.ipynb", lab.root)
    page = put_on_desk(f"{name}.ipynb")
    run_notebook(page, f"{name}.ipynb")
    page.wait_for_function(IDLE)
    ran = execute.clean(nbformat.from_dict(page.evaluate(CONTENT)))
    committed = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert execute.differences(committed, ran) == []
    widget = next(i for i, cell in enumerate(committed.cells) if VIEW.search(cell.source))
    page.evaluate("i => window.jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", widget)
    expect(page.locator(LIVE).first).to_be_visible()


STORED = ("cut", "gamma", "prototypes", "anchor")
SHOW = """import json
from IPython.display import display
for output in json.load(open("outputs.json"))[KIND]:
    display(output["data"], raw=True)"""
GONE = """async root => {
    const frames = async () => { for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame); };
    root.remove(); // as when its cell is run again, which no error may follow
    await frames();
    document.body.classList.toggle('another-theme');
    await frames();
}"""
WORDS = """from tiny import ToyDataset, make_tiny_backbone
from clipviz import METHODS, DescriptionPlayground, ModelProbe, adapt, record
data = ToyDataset(12)
method = METHODS["zero_shot"](make_tiny_backbone(), data.prompts)
DescriptionPlayground(record(adapt(method, data, eval_dataset=data)), ModelProbe(method, data, data))"""


def test_explorables_move_where_they_were_run_and_are_pictures_where_nobody_trusts_them(lab, put_on_desk, run_cells):
    cell, _ = committed("softmax")
    opened = nbformat.v4.new_notebook(cells=[cell], metadata=execute.METADATA)
    nbformat.write(opened, lab.root / "untrusted.ipynb")
    page = put_on_desk("untrusted.ipynb")
    expect(page.get_by_text("To move it, run this cell, or trust the notebook.")).to_be_visible()
    expect(page.locator(".jp-RenderedImage img")).to_be_visible()
    assert page.get_by_role("slider").count() == 0

    source = "from clipviz.figures import explorables\nexplorables.softmax(['owl', 'duck'], [0.3, 0.25], 100.0)"
    kept = {kind: committed(kind) for kind in STORED}
    (lab.root / "outputs.json").write_text(json.dumps({kind: cell.outputs for kind, (cell, _) in kept.items()}))
    page = run_cells(source, *(SHOW.replace("KIND", repr(kind)) for kind in STORED), WORDS)
    said = page.locator(".clipviz-explorable p[role=status]").first
    expect(said).to_contain_text("The label is owl, with confidence 0.993")
    for picture in page.locator(".jp-RenderedImage img").all():
        expect(picture).to_be_hidden()
    slider = page.get_by_role("slider", name="cosine of owl")
    slider.focus()
    for _ in range(11):  # and no key may move the notebook instead
        page.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("The label is duck, with confidence 0.622")
    expect(slider).to_be_focused()

    steps = {"cut": f"tau = {kept['cut'][1]['taus'][0]:.2f}", "gamma": "gamma = 0.00", "prototypes": "Before training",
             "anchor": "alpha = 0:"}  # fmt: skip
    for place, (kind, first) in enumerate(steps.items(), 1):
        root = page.locator(".clipviz-explorable").nth(place)
        slider = root.get_by_role("slider").first
        for key in ("End", "Home"):
            slider.press(key)
        expect(root.get_by_role("status")).to_contain_text(first)
        slider.press("ArrowRight")
        expect(root.get_by_role("status")).not_to_contain_text(first)
        expect(slider, kind).to_be_focused()
    patch = page.locator(".clipviz-explorable").nth(1)
    patch.locator("canvas").press("ArrowUp")
    expect(patch.get_by_role("status")).to_contain_text("Chosen: row 4, column 5")
    write_words(page)
    page.locator(".clipviz-explorable").first.evaluate(GONE)


def write_words(page):
    """Letters that are commands of a notebook (a, b, dd, x) change the words, and with them the row; no cell."""
    n_cells = page.locator(".jp-Notebook .jp-Cell").count()
    backbone, prompts = make_tiny_backbone(), ToyDataset(1).prompts
    box = page.locator(".widget-textarea textarea")
    box.press("Control+a")
    box.press_sequentially("a bad dd fox")
    given, new = text_classifier(backbone, [prompts.description_sentences(prompts.names[0]), ("a bad dd fox",)])
    expect(page.get_by_text(re.compile(f"The new row has cosine {float(given @ new):.3f} with"))).to_be_visible()
    expect(page.locator(".clipviz-chart > svg")).to_have_count(2)
    expect(box).to_have_value("a bad dd fox")
    assert page.locator(".jp-Notebook .jp-Cell").count() == n_cells
