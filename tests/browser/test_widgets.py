"""The views in a real JupyterLab, worked with mouse and keyboard."""

from __future__ import annotations

import ast
import re
import shutil
import time
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page, expect
from researcher import DAY, LINES, run_folders, walk

SETUP = """
import time
import numpy as np
from tiny import ToyDataset, make_tiny_backbone
from clipviz import Run
from clipviz.training.evaluate import spread_probe
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.events import StepFinished
from clipviz.widgets import *

data = ToyDataset(32)
method = METHODS["microclip"](make_tiny_backbone(), data.prompts)
config = AdaptConfig(epochs=EPOCHS, batch_size=4, lr=1e-3)
run = Run(method, data, config, eval_dataset=data, probe=spread_probe(data, 32, 32))
run.listeners.append(lambda event: time.sleep(PAUSE) if isinstance(event, StepFinished) else None)
"""
INTERRUPT = """async (code) => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const cell = kernel.requestExecute({code});
    await new Promise(done => (cell.onIOPub = message => message.header.msg_type === 'stream' && done()));
    await kernel.interrupt();
    return (await cell.done).content.status;
}"""
AGAIN = """
run = Run(METHODS["microclip"](make_tiny_backbone(), data.prompts), data, config)
run.listeners.append(lambda event: time.sleep(0.05) if isinstance(event, StepFinished) else None)
"""
EXECUTE = """async (code) => (await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
    .requestExecute({code}).done).content.status"""
VALUE = """async (it) => (await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
    .requestExecute({code: '', user_expressions: {it}}).done).content.user_expressions.it.data['text/plain']"""
LAST_PICTURE = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells[1].outputs[0]
    .metadata['image/jpeg'].alt.includes('finished')"""


CLICKS = """async (times) => {
    let seed = 7;
    const random = n => (seed = (seed * 16807) % 2147483647) % n;
    const press = (node, ...keys) => keys.forEach(key =>
        node.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})));
    const acts = Object.entries({
        'button:not(.widget-play button)': node => node.click(),
        'input[type=checkbox]': node => node.click(),
        '.clipviz-thumb': node => node.click(),
        '.noUi-handle': node => press(node, ['Home', 'End', 'PageUp', 'PageDown'][random(4)]),
        '.clipviz-matrix canvas, .clipviz-scatter canvas': node => press(node, 'ArrowRight', 'Enter'),
        'select': node => {
            node.selectedIndex = random(node.options.length);
            node.dispatchEvent(new Event('change', {bubbles: true}));
        },
    });
    const done = {};
    const act = ([where, how]) => {
        const nodes = [...document.querySelectorAll(where)].filter(node =>
            node.offsetParent && !node.disabled && node.closest('.jp-OutputArea-output'));
        if (!nodes.length) return;
        how(nodes[random(nodes.length)]);
        done[where] = 1;
    };
    for (let i = 0; i < times; i++) {
        act(acts[random(acts.length)]);
        await new Promise(next => setTimeout(next, 10));
    }
    act(acts[2]); // so that an image is chosen at the end
    return Object.keys(done).length;
}"""
OVERLAPS = """() => [...document.querySelectorAll('.clipviz-chart svg')].filter(chart => {
    const boxes = [...chart.querySelectorAll('text')].map(text => [text, text.getBoundingClientRect()]);
    return boxes.some(([one, a]) => boxes.some(([other, b]) => one !== other
        && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4));
}).map(chart => chart.textContent)"""
TOO_WIDE = """() => [...document.querySelectorAll('.clipviz canvas, .clipviz-said, .clipviz-chart')]
    .filter(node => node.scrollWidth > node.clientWidth + 1 ||
        node.getBoundingClientRect().right > node.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1)
    .map(node => node.className || node.getAttribute('aria-label'))"""
NAMES = """
import ipywidgets
from clipviz.figures.style import INCORRECT, apart
from clipviz.widgets.canvases import ChartCanvas
from clipviz.widgets.charts import Chart, Series

names = apart([f"{first}hynchus {last}ventris" for first in ("Acanthor", "Xenor") for last in ("albo", "nigri")], 18)
names += apart(["喜鹊（中国常见的留鸟）", "까치까치까치까치까치까치"], 18)
line = Series("cosine", INCORRECT, range(6), [0.9981, 0.9985, 0.9989, 0.9991, 0.9995, 0.9999])
bars = Chart("Decided", "epoch", "%", [Series("all agree", INCORRECT, range(12), [100] * 12)], "bars",
             ticks=[*((epoch, str(epoch)) for epoch in range(11)), (11, "batch")])
cosines = Chart("Cosines", "class", "cosine", [line], ticks=list(enumerate(names)), names=True)
ipywidgets.VBox([ChartCanvas(spec=chart.to_json()) for chart in (cosines, bars)])
"""
RISING = """() => [...document.querySelectorAll('.clipviz-thumb')]
    .map(one => Number(one.title.match(/\\d\\.\\d\\d/)[0])).every((value, i, all) => !i || all[i - 1] <= value)"""
FRESH = """
import ipywidgets
from unittest.mock import patch

def parts(widget):
    yield widget
    for part in getattr(widget, "children", ()):
        yield from parts(part)

controls = ipywidgets.Dropdown, ipywidgets.FloatSlider, ipywidgets.FloatLogSlider, ipywidgets.IntSlider, \
    ipywidgets.ToggleButton, ipywidgets.Checkbox, ipywidgets.FloatRangeSlider, ipywidgets.Combobox
with patch.object(ipywidgets.Widget, "open"):  # else the browser loads them, and complains of one that is closed before
    fresh = [LiveMonitor(run), SaliencyExplorer(trace, run), PrototypeExplorer(trace, run), DKAPlayground(trace, run)]
pairs = [pair for old, new in zip(views, fresh) for pair in zip(parts(old.widget), parts(new.widget), strict=True)]
for _ in range(3):  # some controls set others
    for old, new in pairs:
        for name in ["value"] * isinstance(old, controls) + ["selected", "chosen", "n_chosen"]:
            if old.has_trait(name):
                setattr(new, name, getattr(old, name))
names = {"sheet", "image", "maps", "rows", "captions", "ids", "counts", "title", "label", "spec", "epoch", "value"}
done = views[1].finder.message  # what the last button did, which no control says
for old, new in [pair for pair in pairs if pair[0] is not done]:
    for name in names & set(old.keys):
        assert getattr(old, name) == getattr(new, name), (type(old), name)
for view in fresh:
    view.close()
"""


def setup(epochs: int = 2, pause: float = 0.0) -> str:
    return SETUP.replace("EPOCHS", str(epochs)).replace("PAUSE", str(pause))


def steps_done(page: Page) -> int:
    found = re.search(r"step (\d+) of", page.locator(".clipviz-headline").inner_text())
    assert found
    return int(found[1])


def button_named(page: Page, name: str) -> Locator:
    # The icon in front of the text is a letter of its own.
    return page.locator(".jp-OutputArea").get_by_role("button", name=re.compile(rf"^\W*{name}$"))


def slider(page: Page | Locator, name: str) -> Locator:
    return page.locator(".widget-hslider", has_text=name).locator(".noUi-handle")


def press(page: Page, name: str) -> None:
    button = button_named(page, name)
    expect(button).to_be_enabled()
    button.click()


def test_live_monitor_obeys_its_buttons(run_cells):
    page = run_cells(setup(epochs=500, pause=0.05), "monitor = LiveMonitor(run)\nmonitor")
    headline = page.locator(".clipviz-headline")
    expect(headline).to_contain_text("ready")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell').then(() => null)")
    press(page, "Start")
    assert page.evaluate(VALUE, "run.listeners[1:] == [monitor]") == "True", "not that of the output before"
    expect(headline).to_contain_text(re.compile(r"running · step [1-9]"))
    assert page.evaluate(EXECUTE, "run.start()") == "ok", "the cell after the button"
    press(page, "Pause")
    expect(headline).to_contain_text("paused")
    before = steps_done(page)
    page.wait_for_timeout(600)
    assert steps_done(page) == before
    press(page, "Step")
    expect(headline).to_contain_text(f"paused · step {before + 1} of 4000")
    press(page, "Resume")
    expect(headline).to_contain_text("running")
    expect(headline).to_contain_text(re.compile(r" ([2-9]|\d\d+) of 500 epochs done"))
    expect(page.locator(".clipviz-chart > svg")).to_have_count(4)
    expect(page.locator(".clipviz-probe canvas")).to_have_count(24)
    what_if = page.get_by_text(re.compile("instead of 0.50"))
    slider(page, "gamma").focus()
    for _ in range(5):
        page.keyboard.press("PageDown")
    expect(what_if).to_contain_text("pseudo-labels differ")
    press(page, "Apply")
    expect(page.get_by_text(re.compile(r"Applied: gamma 0\.\d+, from step \d+ on"))).to_be_visible()
    expect(page.locator(".clipviz-mark")).to_have_count(3)
    press(page, "Stop")
    expect(headline).to_contain_text("stopped")
    expect(button_named(page, "Stop")).to_be_disabled()
    assert page.evaluate(EXECUTE, "monitor.canvas.shape, monitor.canvas.maps = [0, 0, 0], b''") == "ok", "of no method"
    expect(page.locator(".clipviz-probe canvas")).to_have_count(12)
    again = f"{AGAIN}run.start()\nprint('begun', flush=True)\nawait run"
    assert page.evaluate(INTERRUPT, again) == "error"
    status, steps = ast.literal_eval(page.evaluate(VALUE, "(run.status, run.steps_done)"))
    assert status == "stopped"
    assert steps < 100, "it ends at the next step, long before the 4000th"


def test_saliency_explorer_from_a_confusion_to_a_map(run_cells):
    page = run_cells(setup(), "trace = run.fit()", "explorer = SaliencyExplorer(trace, run)\nexplorer")
    matrix = page.locator(".clipviz-matrix canvas")
    thumbs = page.locator(".clipviz-thumb")
    expect(thumbs).to_have_count(32)
    expect(page.locator(".clipviz-panels canvas")).to_have_count(2)
    # The tiny model calls nearly everything by one name, so a true class that is not it fills a cell.
    wrong = page.get_by_role("option", name=re.compile("^✗ ")).first.get_attribute("aria-label")
    found = re.match(r"✗ (.+) \d\.\d\d, is (.+)", wrong)
    names = ["red square", "green square", "blue square"]
    row, column = names.index(found[2]), names.index(found[1])
    side = (420 - 118 - 4) / 3
    matrix.click(position={"x": 118 + (column + 0.5) * side, "y": 118 + (row + 0.5) * side})
    expect(page.locator(".clipviz-readout")).to_contain_text(f"“{found[2]}” predicted as “{found[1]}”")
    expect(thumbs).not_to_have_count(32)
    expect(thumbs.first).to_have_attribute("aria-label", re.compile(f"✗ {found[1]} .*, is {found[2]}"))
    thumbs.nth(1).click()
    expect(thumbs.nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".clipviz-overlay .clipviz-caption")).to_contain_text(f"✗ {found[1]}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(thumbs.nth(2)).to_have_attribute("aria-selected", "true")
    button_named(page, "relevance").click()
    expect(page.locator(".clipviz-panels canvas")).to_have_count(3)
    expect(page.locator(".clipviz-panels figcaption").nth(2)).to_have_text("relevance, now")
    before = canvas_bytes(page, 1)
    slider(page, "opacity").focus()
    page.keyboard.press("End")
    wait_for_another(page, 1, before)
    before = canvas_bytes(page, 1)
    slider(page, "epoch").focus()
    page.keyboard.press("Home")
    expect(page.locator(".clipviz-overlay .clipviz-caption")).to_contain_text("before training")
    wait_for_another(page, 1, before)


def wait_for_another(page: Page, i: int, before: str) -> None:
    changed = "([i, before]) => document.querySelectorAll('.clipviz-panels canvas')[i].toDataURL() !== before"
    page.wait_for_function(changed, arg=[i, before])


def canvas_bytes(page: Page, i: int) -> str:
    return page.locator(".clipviz-panels canvas").nth(i).evaluate("canvas => canvas.toDataURL()")


COMPARED = """
one, other = (Run(METHODS["microclip"](make_tiny_backbone(), data.prompts), data, config, eval_dataset=data, seed=seed,
                  probe=spread_probe(data, 32, 8), folder=f"compared/{seed}") for seed in (1, 2))
for each in (one, other):
    each.fit()
import clipviz
opened = [clipviz.open(f"compared/{seed}", model=make_tiny_backbone(), data=data, eval_data=data) for seed in (1, 2)]
"""


def test_two_runs_compared_filtered_and_turned_through_their_epochs(run_cells):
    page = run_cells(setup(), COMPARED, "view = CompareExplorer(opened)\nview")
    thumbs, captions = page.locator(".clipviz-thumb"), page.locator(".clipviz-overlay .clipviz-caption")
    expect(thumbs).to_have_count(32)
    expect(captions).to_have_count(2)
    expect(captions.nth(0)).to_contain_text("microCLIP, seed 1, epoch 1: ")
    expect(page.locator(".clipviz-chart > svg")).to_have_count(2)
    cell = button_named(page, r"both: \d+")
    n = int(cell.inner_text().split()[-1])
    cell.focus()
    page.keyboard.press("Enter")
    expect(thumbs).to_have_count(n)
    expect(page.get_by_role("option", name=re.compile("^✗ "))).to_have_count(0)
    button_named(page, r"all: \d+").click()
    expect(thumbs).to_have_count(32)
    thumbs.nth(3).hover()
    expect(page.locator(".clipviz-large")).to_be_visible()
    page.mouse.move(0, 0)
    expect(page.locator(".clipviz-large")).to_be_hidden()
    button_named(page, "Find").click()
    page.get_by_label("outcome").select_option("wrong")
    expect(page.get_by_role("option", name=re.compile("^✓ "))).to_have_count(0)
    expect(thumbs).not_to_have_count(32)
    page.get_by_label("sort by").select_option("confidence")
    page.wait_for_function(RISING)
    thumbs.first.click()
    button_named(page, "relevance").click()
    button_named(page, r"before \| after").click()
    titles = page.locator(".clipviz-panels figcaption")
    expect(titles.filter(has_text="relevance: more (purple) or less (orange) than before")).to_have_count(2)
    slider(page, "epoch").focus()
    page.keyboard.press("ArrowLeft")
    expect(captions.nth(0)).to_contain_text("microCLIP, seed 1, epoch 0: ")
    expect(titles.filter(has_text=re.compile("^relevance, epoch 0$"))).to_have_count(2)
    page.locator(".widget-play button").first.click()
    expect(captions.nth(0)).to_contain_text("microCLIP, seed 1, epoch 1: ")
    # else it stops when the next test has closed this notebook, and has nobody to tell it to
    expect(page.locator(".widget-play .fa-pause")).to_have_count(0)


def test_a_day_of_a_researcher_takes_the_lines_and_clicks_that_the_page_says(lab, put_on_desk):
    lab.write(DAY, *LINES)
    page = put_on_desk(DAY)
    size = page.viewport_size
    page.set_viewport_size({"width": 1400, "height": 5000})
    with run_folders(lab.root, 24, 2, "--batch-size", "12", "--set", "crops=2"):
        rows = [row for _, row in walk(page, cell=r"(only [ab]|both|neither): [1-9]")]
    table = (Path(__file__).parents[2] / "docs" / "researcher.md").read_text().splitlines()
    assert [row for row in table if row in rows] == rows
    # at once: the monitor may draw its charts again meanwhile
    patterns = page.locator(".clipviz-chart pattern").evaluate_all("nodes => nodes.map(node => node.id)")
    assert len(patterns) == len(set(patterns)) > 1, "or a chart is filled with the colors of another view"
    assert (lab.root / "fixed.pdf").read_bytes().startswith(b"%PDF")
    page.set_viewport_size(size)


def test_prototype_explorer_from_a_lasso_to_a_map(run_cells):
    page = run_cells(setup(), "trace = run.fit()", "explorer = PrototypeExplorer(trace, run)\nexplorer")
    plane = page.locator(".clipviz-scatter canvas")
    expect(page.locator(".clipviz-scatter .clipviz-legend")).to_contain_text("learned_classifier")
    box = plane.bounding_box()
    corners = [(50, 12), (548, 12), (548, 398), (50, 398), (50, 14)]
    page.mouse.move(box["x"] + corners[0][0], box["y"] + corners[0][1])
    page.mouse.down()
    for x, y in corners[1:]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
    page.mouse.up()
    expect(page.locator(".clipviz-scatter .clipviz-readout")).to_contain_text("32 points chosen")
    thumbs = page.locator(".clipviz-thumb")
    expect(thumbs).to_have_count(32)
    expect(page.locator(".clipviz-panels canvas")).to_have_count(2)
    thumbs.nth(2).click()
    expect(page.locator(".clipviz-overlay .clipviz-caption")).to_contain_text("microCLIP, epoch 1")
    expect(page.locator(".clipviz-panels figcaption").nth(1)).to_have_text("SOAP attention")
    slider(page, "epoch").first.focus()
    page.keyboard.press("Home")
    expect(page.locator(".clipviz-scatter .clipviz-caption")).to_contain_text("before training")
    plane.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".clipviz-scatter .clipviz-readout")).to_contain_text("learned_classifier: “red square”")
    expect(page.get_by_text(re.compile("images? chosen, "))).to_be_visible()
    everything_fits_beside_other_panels(page)


def test_playground_mixes_and_cuts_while_the_sliders_move(run_cells):
    mixing = (
        "from synthetic import synthetic_trace\nDKAPlayground(synthetic_trace(n_classes=8, epochs=2, n_images=200))"
    )
    cutting = "cut = DKAPlayground(run.fit(), run, state=ViewState(selected=('eval/0',)))\ncut"
    page = run_cells(setup(), mixing, cutting, NAMES)
    shown = page.locator(".jp-OutputArea-output", has_text="crop temp")
    expect(shown).to_have_count(2)
    mix, cut = shown.nth(0), shown.nth(1)
    expect(mix.get_by_text(re.compile(r"^0 of 200 pseudo-labels differ"))).to_be_visible()
    slider(mix, "gamma").focus()
    page.keyboard.press("End")
    expect(mix.get_by_text(re.compile(r"^[1-9]\d* of 200 pseudo-labels differ"))).to_be_visible()
    expect(mix.locator(".clipviz-chart text", has_text="slider")).to_be_visible()
    expect(cut.locator(".clipviz-panels canvas")).to_have_count(4)
    before = cut.locator(".clipviz-overlay .clipviz-caption").inner_text()
    cut.get_by_label("rule").select_option("mean")
    expect(cut.locator(".clipviz-overlay .clipviz-caption")).to_contain_text("dot, mean, peak: ")
    cut.get_by_label("side").select_option("border")
    expect(cut.locator(".clipviz-overlay .clipviz-caption")).to_contain_text("dot, mean, border: ")
    slider(cut, "tau").focus()
    page.keyboard.press("End")
    expect(cut.locator(".clipviz-overlay .clipviz-caption")).to_contain_text("tau 200, dot, mean, border: ")
    assert "std" in before
    expect(page.locator(".clipviz-chart", has_text="Cosines")).to_contain_text("0.999")
    expect(page.locator(".clipviz-chart", has_text="Decided")).to_contain_text("02468batch")
    everything_fits_beside_other_panels(page)


def everything_fits_beside_other_panels(page: Page) -> None:
    """In a narrow side panel a view shrinks and breaks its lines; it is not cut off."""
    size = page.viewport_size
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    page.set_viewport_size({"width": 460, "height": 1500})
    page.wait_for_function(f"({TOO_WIDE})().length === 0")
    page.wait_for_function(f"({OVERLAPS})().length === 0")
    page.set_viewport_size(size)


def clicks_end_with_the_right_pictures(page: Page) -> None:
    """Faster than the model answers, through all controls of all views; then they show what fresh views show."""
    assert page.evaluate(CLICKS, 150) == 6, "each kind of control"
    deadline = time.monotonic() + 60
    while page.evaluate(EXECUTE, FRESH) != "ok":
        assert time.monotonic() < deadline, page.evaluate(
            VALUE, "(type(old), name, getattr(old, name), getattr(new, name))"
        )
    titles = "[[panel['title'] for row in canvas.rows for panel in row['panels']] for canvas in canvases]"
    canvases = "[views[1].inspector.canvas, views[2].inspector.canvas, views[3].cutting.canvas]"
    expected = ast.literal_eval(page.evaluate(VALUE, titles.replace("in canvases", f"in {canvases}")))
    assert len(expected[0]) > 1
    page.wait_for_function(
        """expected => JSON.stringify(expected) === JSON.stringify([...document.querySelectorAll('.clipviz-overlay')]
            .map(view => [...view.querySelectorAll('figcaption')].map(caption => caption.textContent)))""",
        arg=expected,
    )


def test_a_reopened_notebook_without_a_kernel_shows_pictures_and_what_can_be_explored(lab, put_on_desk, run_cells):
    shows = [
        "views = [LiveMonitor(run)]\nviews[0]",
        "trace = run.start().wait()\nfor view in (SaliencyExplorer, PrototypeExplorer, DKAPlayground):\n"
        "    views.append(view(trace, run))",
        *(f"views[{i}]" for i in (1, 2, 3)),
    ]
    page = run_cells(setup(), *shows)
    expect(page.locator(".clipviz-headline")).to_contain_text("finished")
    expect(page.locator(".clipviz-overlay")).to_have_count(3)
    page.wait_for_function(LAST_PICTURE)  # the monitor was shown before the run began
    clicks_end_with_the_right_pictures(page)
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    saved = lab.root / page.evaluate("window.jupyterapp.shell.currentWidget.context.path")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    notebook = nbformat.read(saved, as_version=4)
    assert saved.stat().st_size < 1_000_000
    assert "widgets" not in notebook.metadata
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output["data"]["text/plain"] for output in outputs]
    assert texts == [
        "LiveMonitor(microclip on toy)",
        "SaliencyExplorer(microCLIP)",
        "PrototypeExplorer(microCLIP)",
        "DKAPlayground(microclip)",
    ]
    alts = [output["metadata"]["image/jpeg"]["alt"] for output in outputs]
    assert "finished" in alts[0]
    shutil.copy(saved, lab.root / "reopened.ipynb")
    put_on_desk("reopened.ipynb")
    left = "__import__('ipywidgets').Widget.get_manager_state()['state']"
    assert page.evaluate(VALUE, left) == "{}", "no kernel has them"
    pictures = page.locator(".jp-OutputArea img[alt*='(microclip'], .jp-OutputArea img[alt*='(microCLIP']")
    expect(pictures).to_have_count(2)
    for i, name in enumerate(("SaliencyExplorer(microCLIP)", "PrototypeExplorer(microCLIP)")):
        view = page.locator(".jp-OutputArea iframe").nth(i)
        expect(view).to_have_attribute("title", re.compile(re.escape(name)))
        expect(view.content_frame.locator(".clipviz-thumb").first).to_be_visible()
    view.content_frame.locator(".clipviz-thumb").nth(1).click()
    expect(view.content_frame.locator("#card")).to_be_visible()
    expect(page.get_by_text("model not found")).to_have_count(0)
    widths = pictures.evaluate_all("images => images.map(image => image.naturalWidth)")
    assert min(widths) >= 480
    expect(page.locator(".clipviz")).to_have_count(0)
