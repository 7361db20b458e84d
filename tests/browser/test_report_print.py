"""The report on paper: every chart is there however little was scrolled, and no sheet stays half empty."""

from __future__ import annotations

import numpy as np
import pypdfium2
import pytest
from playwright.sync_api import expect
from test_report_page import comparison

from clipviz.report import write_report

MARGIN, HEIGHT = 14, 297  # millimeters of A4


def empty_share(page):
    """How much of a sheet's height between its margins is white below what is printed last."""
    pixels = np.asarray(page.render(scale=0.5).to_pil().convert("L"))
    last = np.flatnonzero((pixels < 245).any(1)).max(initial=0) * HEIGHT / len(pixels)
    return 1 - (last - MARGIN) / (HEIGHT - 2 * MARGIN)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(comparison(n_classes=24), tmp_path_factory.mktemp("print") / "report.html")


@pytest.fixture(scope="module")
def page(opened_once, report):
    tab = opened_once(report, color_scheme="dark")
    tab.locator(".chart .main-svg").first.wait_for()
    n_charts = tab.locator(".chart").count()
    assert tab.locator(".chart[data-drawn]").count() < n_charts, "most are far away"
    return tab


@pytest.mark.parametrize("address", ["", "#image=eval/7"])
def test_sheets_are_filled_and_have_every_chart(page, tmp_path, address):
    tab = page
    tab.evaluate("address => { location.hash = address; }", address)
    expect(tab.locator("#card")).to_be_visible(visible=bool(address))
    titles = tab.evaluate("[...document.querySelectorAll('.view h3')].map(title => title.textContent)")
    tab.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    sheets = list(pypdfium2.PdfDocument(tmp_path / "report.pdf"))
    empty = [round(float(empty_share(sheet)), 2) for sheet in sheets]
    assert max(empty[:-1]) < 1 / 3, f"{empty}"
    text = "\n".join(sheet.get_textpage().get_text_range() for sheet in sheets)
    assert set(titles) <= {*text.splitlines()}
    assert text.count("cosine, last epoch") == tab.locator("#prototype_similarity .chart").count()
    assert ("Where it looked" in text) == bool(address)
    chart = tab.locator(".chart").first  # the screen is as it was
    expect(chart).to_have_attribute("data-drawn", f"{chart.evaluate('c => c.clientWidth')}")
    assert chart.evaluate("c => [c.style.zoom, c._fullLayout.paper_bgcolor]") == ["", "#15181c"]
