"""Every view in a real JupyterLab, shown what should not be: markup for names, names of a thousand lines, one pixel."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

SETUP = """
import numpy as np
import torch
from synthetic import synthetic_trace
from tiny import ToyDataset, make_tiny_backbone
import clipviz
from clipviz.events import EpochFinished, Probe, RunStarted
from clipviz.training.recorder import Recorder

names = ["<img src=x onerror=alert(1)>", "a line\\n" * 1000, "</script><script>alert(2)</script>", "$x^2$ {} %s",
         "<a href='javascript:alert(3)'>x</a>", "x" * 5000, "", *(f"class {i}" for i in range(493))]
trace = synthetic_trace(epochs=2, n_images=600, n_eval=600, class_names=names, labelled=LABELLED)
trace.arrays["embeddings/target"] = trace.arrays.get("embeddings/target", np.full(0, -1))
for name in ("probe/images", "gallery/images"):
    trace.arrays[name] = trace.arrays[name][:, :1, :1]
trace.arrays["probe/soap"] = np.full_like(trace.arrays["probe/soap"][..., :1, :1], np.nan)
if not len(trace.arrays["embeddings/target"]):
    del trace.arrays["embeddings/target"]
data = ToyDataset(8)
method = clipviz.METHODS["microclip"](make_tiny_backbone(), data.prompts)
run = clipviz.Run(method, data)
run.recorder = Recorder(trace)
monitor = clipviz.LiveMonitor(run)
targets = torch.arange(7) if LABELLED else torch.full((7,), -1)
monitor(RunStarted("microclip", {}, tuple(names), 600, 2, 30, Probe(torch.zeros(7, 3, 1, 1), torch.arange(7), targets)))
monitor(EpochFinished(0, {}, None, {}, {"soap": torch.full((7, 1, 1), torch.nan)}))
monitor.refresh()
state = clipviz.ViewState(epoch=1, selected=("probe/0",))
"""
VIEWS = (
    "monitor",
    "clipviz.SaliencyExplorer(trace, state=state)",
    "clipviz.PrototypeExplorer(trace, state=state)",
    "clipviz.DKAPlayground(trace, state=clipviz.ViewState(selected=('train/3',)))",
)
OUTER = ".jp-OutputArea-output .widget-vbox:not(.widget-vbox .widget-vbox)"
LONGEST = """() => Math.max(...[...document.querySelectorAll('.clipviz *, .jupyter-widgets option')]
    .filter(node => !node.children.length).map(node => node.textContent.length))"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_every_view_stays_usable_and_inert(run_cells, labelled):
    page = run_cells(SETUP.replace("LABELLED", str(labelled)), *VIEWS)
    views = page.locator(OUTER)
    expect(views).to_have_count(4)
    monitor, explorer, prototypes, playground = (views.nth(i) for i in range(4))
    expect(monitor.locator(".clipviz-probe canvas")).to_have_count(14)
    expect(monitor.locator(".clipviz-chart > svg")).to_have_count(4)
    for view in (explorer, prototypes):
        expect(view.locator(".clipviz-panels canvas")).to_have_count(2)
    expect(playground.locator(".clipviz-chart > svg")).to_have_count(2)
    matrix = explorer.locator(".clipviz-matrix canvas")
    if labelled:
        matrix.focus()  # five hundred classes are finer than pixels: the keys reach every cell
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        expect(explorer.locator(".clipviz-readout")).to_contain_text(
            "images of “<img src=x onerror=alert(1)>” predicted as"
        )
    else:
        expect(matrix).to_be_hidden()
    plane = prototypes.locator(".clipviz-scatter canvas")
    plane.focus()
    page.keyboard.press("ArrowRight")
    expect(prototypes.locator(".clipviz-readout")).to_contain_text("“<img src=x onerror=alert(1)>”")
    page.keyboard.press("Enter")
    expect(prototypes.get_by_text(re.compile(r"^\d+ images? chosen"))).to_be_visible()
    slider = playground.locator(".widget-hslider", has_text="gamma").locator(".noUi-handle")
    slider.focus()
    page.keyboard.press("Home")
    expect(playground.get_by_text(re.compile(r"^[1-9]\d* of 600 pseudo-labels differ"))).to_be_visible()
    assert page.locator(".clipviz img, .clipviz script, .clipviz a, img[src=x]").count() == 0
    assert page.evaluate(LONGEST) < 400
    for view in views.all():
        assert view.evaluate("view => view.scrollWidth <= view.clientWidth + 1")
        assert view.bounding_box()["height"] < 1600
    words = page.locator(".clipviz").all_inner_texts()
    assert labelled == any("right" in text for text in words)


SHOWN = """
from synthetic import synthetic_trace
from tiny import ToyDataset, make_tiny_backbone
import clipviz
from clipviz.training.recorder import Recorder
trace = synthetic_trace(n_classes=8, epochs=3, n_images=200)
data = ToyDataset(8)
run = clipviz.Run(clipviz.METHODS["microclip"](make_tiny_backbone(), data.prompts), data)
run.recorder = Recorder(trace)
"""
FAINTEST = """() => {
    const light = color => {
        const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = color.match(/[\\d.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const page = getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor;
    const lines = document.querySelectorAll('.clipviz-chart path[stroke-width="1.8"]');
    const drawn = [...lines].map(line => getComputedStyle(line).stroke).filter(stroke => stroke !== 'none');
    const texts = [...document.querySelectorAll('.clipviz-chart text')].map(text => getComputedStyle(text).fill);
    const contrast = color => {
        const [a, b] = [light(color), light(page)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    return [drawn.length, texts.length, Math.min(...drawn.map(contrast)), Math.min(...texts.map(contrast))];
}"""


@pytest.mark.timeout(400)
def test_views_are_readable_on_a_dark_page_too(run_cells):
    page = run_cells(SHOWN, "clipviz.LiveMonitor(run)", "clipviz.SaliencyExplorer(trace)")
    expect(page.locator(".clipviz-chart > svg")).to_have_count(4)
    before = page.locator(".clipviz-matrix canvas").evaluate("canvas => canvas.toDataURL()")
    for theme, is_light in (("JupyterLab Light", "true"), ("JupyterLab Dark", "false")):
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=is_light)
        page.wait_for_function(
            "light => { const c = getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor; "
            "return (c.match(/\\d+/g)[0] > 128) === (light === 'true'); }", arg=is_light,
        )  # fmt: skip
        n_lines, n_texts, line, text = page.evaluate(FAINTEST)
        assert n_lines >= 5
        assert n_texts >= 20
        assert line >= 3, theme  # what WCAG asks of graphics, and of text below
        assert text >= 4.5, theme
    page.wait_for_function(
        "before => document.querySelector('.clipviz-matrix canvas').toDataURL() !== before", arg=before
    )
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'true'")
