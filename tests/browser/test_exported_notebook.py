"""A notebook that was exported as HTML: its views are alive from disk, without a kernel and a network."""

from __future__ import annotations

import base64

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import expect
from synthetic import explorable, synthetic_trace
from test_report_page import comparison, last_of

from clipviz.figures.sources import SourceLogits
from clipviz.report.explored import MOST_BYTES
from clipviz.widgets import CompareExplorer, DKAPlayground, PrototypeExplorer, SaliencyExplorer

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "a", "b", "c", "d"]


@pytest.fixture
def exported(chromium, tmp_path):
    """Opens a page with the outputs of some views; it must run nothing but its own scripts, and ask for nothing."""
    contexts, said = [], []

    def open_page(*views):
        bundles = [view._repr_mimebundle_() for view in views]
        outputs = [nbformat.v4.new_output("display_data", data, metadata=more) for data, more in bundles]
        cells = [nbformat.v4.new_code_cell("view", outputs=[output]) for output in outputs]
        notebook = nbformat.v4.new_notebook(cells=cells)
        path = tmp_path / "notebook.html"
        path.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        # nbconvert's own page asks for the scripts of formulas.
        tab.on("console", lambda message: "ERR_INTERNET" in message.text or said.append(message.text))
        tab.goto(path.as_uri())
        return tab, notebook

    yield open_page
    assert said == []
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def trace():
    made = synthetic_trace(6, 2, method="dpa", n_images=90, n_eval=60, n_probe=3, class_names=HOSTILE)
    return explorable(made, 60)


def test_views_are_alive_with_the_same_canvases(exported, trace):
    tab, notebook = exported(SaliencyExplorer(trace), PrototypeExplorer(trace))
    assert len(nbformat.writes(notebook)) < 1_000_000
    frames = [tab.frame_locator("iframe").nth(i) for i in range(2)]
    for frame in frames:
        expect(frame.locator(".clipviz-thumb")).to_have_count(60)
        expect(frame.locator("#matrix canvas")).to_be_visible()
        expect(frame.get_by_text("No kernel is running here")).to_be_visible()
    first, second = frames
    first.locator(".clipviz-thumb").nth(7).click()
    expect(first.locator("#card h3")).to_have_text("image 7")
    expect(first.locator("#card .clipviz-overlay canvas").nth(2)).to_be_visible()
    expect(second.locator("#card")).to_be_hidden()  # each is a page of its own
    height = "f => f.getBoundingClientRect().height >= f.contentDocument.body.offsetHeight"
    tab.wait_for_function(f"[...document.querySelectorAll('iframe')].every({height})")
    rows = trace.predictions[trace.predictions["epoch"] == 1]
    plane = second.locator("#plane canvas")
    plane.focus()
    plane.press("ArrowRight")
    plane.press("Enter")
    expect(second.locator(".clipviz-thumb")).to_have_count(sum(rows["prediction"] == 0))
    assert tab.url.endswith("notebook.html"), "the page that it is part of stays where it is"


def test_what_does_not_fit_is_left_out_and_said(exported):
    trace = explorable(synthetic_trace(24, 3, n_images=600, n_eval=480), 480, 24, ("soap", "ncut", "cls_attention"))
    tab, notebook = exported(SaliencyExplorer(trace))
    assert len(notebook.cells[0].outputs[0].data["text/html"]) <= MOST_BYTES
    text = tab.frame_locator("iframe").locator("#explore")
    expect(text).to_contain_text(" of 480 evaluation images: spread over the classes")
    expect(text).to_contain_text("this page holds only one kind of map")


def test_two_compared_runs_are_alive(exported):
    traces = comparison(n_classes=6)[3:]
    tab, notebook = exported(CompareExplorer(traces))
    assert len(nbformat.writes(notebook)) < 1_000_000
    frame = tab.frame_locator("iframe")
    dpa, microclip = (last_of(trace) for trace in traces)
    fixed = (dpa["prediction"] == dpa["target"]) & (microclip["prediction"] != microclip["target"])
    button = frame.get_by_role("button", name="DPA right, microCLIP wrong")
    expect(button).to_have_text(f"{fixed.sum()}")
    button.click()
    expect(frame.locator(".clipviz-thumb")).to_have_count(int(fixed.sum()))
    frame.locator(".clipviz-thumb").first.click()
    expect(frame.locator("#card h3")).to_have_text(f"image {fixed.index[fixed.to_numpy()][0]}")
    expect(frame.locator("#card .clipviz-overlay canvas").nth(2)).to_be_visible()


def test_the_playground_is_alive_and_says_what_a_gamma_does_to_all_images(exported):
    trace = synthetic_trace(6, 2, n_images=90, n_eval=60, n_probe=3, class_names=HOSTILE)
    tab, _ = exported(DKAPlayground(trace))
    said, slider = tab.get_by_role("status"), tab.get_by_role("slider", name="gamma")
    expect(said).to_contain_text("gamma = 0.70: the pseudo-label is ")
    assert tab.locator("img").count() == 0, "the picture has made room"
    stored = SourceLogits.of(trace)
    for key, gamma in (("Home", 0), ("End", 1)):
        slider.press(key)
        labels = stored.labels(gamma)
        changed = 100 * (labels != stored.labels(0.7)).mean()
        expect(said).to_contain_text(f"At gamma = {gamma}.00, {changed:.1f} % of the images get another label")
        expect(said).to_contain_text(f"and {100 * stored.accuracy(labels):.1f} % a right one")


def test_what_needs_a_kernel_is_a_picture(exported):
    tab, _ = exported(DKAPlayground(synthetic_trace(6, 2, method="ntua", n_images=90, n_eval=60)))  # has three sources
    assert tab.locator("iframe").count() == 0
    expect(tab.locator("img[src^='data:image/jpeg']")).to_be_visible()


def test_without_scripts_the_picture_stays(chromium, trace):
    bundle, metadata = SaliencyExplorer(trace)._repr_mimebundle_()
    tab = chromium.new_page(java_script_enabled=False)
    tab.set_content(bundle["text/html"])
    picture = tab.locator("img")
    expect(picture).to_have_attribute("alt", metadata["image/jpeg"]["alt"])
    assert picture.get_attribute("src").split(",")[1] == bundle["image/jpeg"]
    assert len(base64.b64decode(bundle["image/jpeg"])) > 1000
    tab.close()
