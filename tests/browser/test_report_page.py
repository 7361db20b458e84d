"""The report in a real browser with the network off: it draws everything, says nothing on the console, runs no name."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from synthetic import synthetic_comparison, synthetic_trace

from clipviz.report import write_report
from tools.docs_gallery import WIDTH, write_gallery

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<a href='javascript:alert(3)'>x</a>",
    "x" * 1000, "$\\text{x}$", "{{7*7}}",
]  # fmt: skip
SMALL = {"n_images": 90, "n_eval": 60, "n_probe": 3}


@pytest.fixture
def offline(chromium):
    """Opens a file without a network; the page must stay silent and ask for nothing but itself."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900}, offline=True)
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    said: list[str] = []
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))

    def open_page(path: Path):
        tab.goto(path.as_uri())
        tab.wait_for_function("document.querySelectorAll('.chart').length > 0")
        tab.wait_for_function(
            "[...document.querySelectorAll('.plotly-graph-div')].every(p => p.querySelector('.main-svg'))"
        )
        return tab

    yield open_page
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [asked[0]]
    context.close()


def test_the_report_draws_all_charts_and_pictures_within_the_page(offline, tmp_path):
    path = write_report(synthetic_comparison(epochs=2, n_classes=24, **SMALL)[::4], tmp_path / "report.html")
    tab = offline(path)
    charts = tab.locator(".chart")
    assert charts.count() == 14
    assert tab.locator("img").count() == 6  # where it looked, instructive images, three times why, images worth a look
    drawn = tab.locator(".chart .js-plotly-plot .main-svg:first-of-type")
    assert drawn.count() >= charts.count()
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth >= 400 && i.alt)")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.emulate_media(media="print")
    assert tab.locator("nav").is_hidden()


def test_no_name_of_a_class_or_file_runs_or_loads_anything(offline, tmp_path):
    traces = synthetic_comparison(epochs=2, class_names=HOSTILE, **SMALL)[::4]
    for trace in traces:
        trace.meta["data"] = "<img src=x onerror=alert(4)>"
    tab = offline(write_report(traces, tmp_path / "report.html"))
    assert tab.locator("img[src=x], a[href^=javascript]").count() == 0
    tab.locator("#run-0-confusion-0").scroll_into_view_if_needed()
    hover_until_it_speaks(tab, "#run-0-confusion-0")  # what it says holds class names
    assert "<img src=x" in tab.locator("#run-0-confusion-0 .hoverlayer").text_content()
    assert tab.locator("img[src=x], a[href^=javascript]").count() == 0


def hover_until_it_speaks(tab, chart):
    """Plotly looks at the mouse when it finds the time, and drops moves that come too fast."""
    box = tab.locator(f"{chart} .nsewdrag").first.bounding_box()
    for i in range(200):
        tab.mouse.move(box["x"] + 20 + i % 3, box["y"] + 20)
        if tab.locator(f"{chart} .hoverlayer text").count():
            return
        tab.wait_for_timeout(300)
    raise AssertionError("no hover text appeared")


def test_the_gallery_has_a_picture_of_notebook_width_for_every_figure(tmp_path):
    index = write_gallery([synthetic_trace(epochs=2, n_classes=8, **SMALL)], tmp_path / "gallery")
    text = index.read_text(encoding="utf-8")
    pictures = sorted(path.name for path in index.parent.glob("*.png"))
    assert sorted(line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")) == pictures
    assert len(pictures) >= 19
    for name in pictures:
        picture = Image.open(index.parent / name)
        assert picture.width == WIDTH, name
        assert len(picture.convert("L").getcolors(256)) > 8, f"{name} is blank"
    assert sum(path.stat().st_size for path in index.parent.iterdir()) < 2_000_000
