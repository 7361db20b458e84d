"""The report in a real browser with the network off: it draws everything, says nothing on the console, runs no name.

On paper every chart is there however little was scrolled, and no sheet stays half empty.
"""

from __future__ import annotations

from functools import partial
from importlib.resources import files

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from playwright.sync_api import expect
from synthetic import TRAINED, explorable, synthetic_comparison, synthetic_trace
from tiny import ToyDataset, make_tiny_backbone

from clipviz import METHODS, adapt, record
from clipviz.figures import why_wrong_info
from clipviz.figures.image_table import image_table
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import DPA, DPAConfig
from clipviz.methods.zero_shot import Descriptions
from clipviz.report import write_report
from clipviz.report.views import CHAPTERS
from tools.docs_gallery import WIDTH, write_gallery

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<a href='javascript:alert(3)'>x</a>",
    "x" * 1000, "$\\text{x}$", "{{7*7}}",
]  # fmt: skip
MARGIN, HEIGHT = 14, 297  # millimeters of A4
SMALL = {"n_images": 90, "n_eval": 60, "n_probe": 3}


def comparison(**options):
    """Two baselines and three trained methods on the same images, which can be explored."""
    made = synthetic_comparison(epochs=2, **{**SMALL, **options})
    target = last_of(made[0])["target"]
    for trace in made:  # as right as before, on the same classes
        rows, n_classes = trace.predictions, len(trace.class_names)
        own = target[rows["index"]].to_numpy()
        rows["prediction"] = (
            (rows["prediction"] - rows["target"] + own) % n_classes if (own >= 0).all() else rows["prediction"]
        )
        rows["target"] = own
    return [explorable(trace, 60) for trace in made]


@pytest.fixture(scope="module")
def traces():
    made = comparison(n_classes=24)
    made[4].arrays["exploration/logits/fg"] = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float16)
    for trace in made:
        trace.meta["files"] = {"learned": [], "measured": [f"day {i % 3}/bird-{i}.jpg" for i in range(60)]}
    return made


@pytest.fixture(scope="module")
def report(traces, tmp_path_factory):
    return write_report(traces, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def report_of_two(traces, tmp_path_factory):
    """Of DPA and of descriptions, where it does not matter how many runs there are: it has a third of the charts."""
    return write_report([traces[3], traces[1]], tmp_path_factory.mktemp("two") / "report.html")


@pytest.fixture(scope="module")
def report_of_three(traces, tmp_path_factory):
    """Of a baseline, NtUA and microCLIP: it has every kind of chart, and two of most, but no third."""
    return write_report([traces[0], traces[2], traces[4]], tmp_path_factory.mktemp("three") / "report.html")


@pytest.fixture(scope="module")
def unlabelled():
    return comparison(labelled=False)[3:]


@pytest.fixture(scope="module")
def report_of_unlabelled(unlabelled, tmp_path_factory):
    return write_report(unlabelled, tmp_path_factory.mktemp("unlabelled") / "report.html")


# In one go, as each look from outside has the browser paint another frame.
SCROLL = """async most => {
    const isDrawn = chart => chart.querySelector('.main-svg');
    const charts = [...document.querySelectorAll('.chart')].slice(0, most);
    const end = Date.now() + 120000;
    for (const chart of charts) {
        chart.scrollIntoView({ block: 'center', behavior: 'instant' });
        while (!isDrawn(chart) && Date.now() < end) await new Promise(next => setTimeout(next, 20));
    }
    return charts.filter(chart => !isDrawn(chart)).map(chart => chart.id);
}"""


def scroll_through(tab, most=1000):
    """As a reader does: charts are drawn when they come near."""
    assert tab.evaluate(SCROLL, most) == [], "charts that are not drawn"


@pytest.fixture(scope="module")
def turn_to(opened_once):
    """Opens a page and closes the one before, unless it is that: with many open ones all take longer.

    The tests are therefore in the order of their pages. `begin` is done in a page that was just opened.
    """
    asked, tab = None, None

    def turn(path, begin=lambda tab: None, **how):
        nonlocal asked, tab
        if asked != (path, how):
            before, asked, tab = tab, (path, how), opened_once(path, **how)
            if before:
                before.close()  # only now, else the process would end with its last tab
            begin(tab)
        return tab

    return turn


def draw_all(tab):
    assert tab.locator(".chart .main-svg").count() < tab.locator(".chart").count(), "those far away wait"
    scroll_through(tab)


@pytest.fixture
def drawn(turn_to, report_of_three):
    """The page in a width and a color scheme; it was opened on a phone, and scrolled through."""

    def draw_in(width, scheme):
        tab = turn_to(report_of_three, draw_all, width=390)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.wait_for_function(FITTED)
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function(PAPERS, arg="#15181c" if scheme == "dark" else "#ffffff")
        return tab

    return draw_in


FITTED = "() => [...document.querySelectorAll('.chart')].every(c => c.dataset.drawn === `${Math.floor(c.clientWidth)}`)"
# Plotly draws all again when labels lack room; how much they need is known from the first chart of a view.
TWICE = """() => [...document.querySelectorAll('.figures')]
    .flatMap(group => [...group.querySelectorAll('.chart')].slice(1))
    .filter(chart => '_redrawFromAutoMarginCount' in chart._fullLayout).map(chart => chart.id)"""
PAPERS = "color => [...document.querySelectorAll('.chart')].every(c => c._fullLayout.paper_bgcolor === color)"


@pytest.fixture
def page_of_all(turn_to, report):
    return turn_to(report)


@pytest.fixture
def read(page_of_all):
    """The page, of which others have read, with all images of the first trained method and its newest epoch."""
    page_of_all.get_by_role("button", name="all images").click()
    for name in ("microCLIP", "NtUA"):
        page_of_all.locator("#run").select_option(name)
    return page_of_all


def hardly_read(tab):
    tab.locator(".chart .main-svg").first.wait_for()
    n_charts = tab.locator(".chart").count()
    assert tab.locator(".chart[data-drawn]").count() < n_charts, "most are far away"


@pytest.fixture
def page_to_print(turn_to, report):
    return turn_to(report, hardly_read, color_scheme="dark")


@pytest.fixture
def page_of_two(turn_to, report_of_two):
    return turn_to(report_of_two)


@pytest.fixture
def mailed(turn_to, report_of_two):
    """The page as a link to an image opens it where all is dark."""
    return turn_to(report_of_two, address="#image=eval/7", color_scheme="dark")


@pytest.fixture
def page_of_unlabelled(turn_to, report_of_unlabelled):
    return turn_to(report_of_unlabelled)


@pytest.fixture(scope="module")
def runs_of_tiny(tmp_path_factory):
    """Three runs of a tiny model, and their report."""
    prompts, test, config = ToyDataset(3).prompts, ToyDataset(9, seed=1, split="test"), AdaptConfig(1, 8, 1e-2)
    methods = [Descriptions, METHODS["tda"], partial(DPA, config=DPAConfig(window=3))]
    made = [
        record(adapt(method(make_tiny_backbone(0), prompts), ToyDataset(17), config, eval_dataset=test))
        for method in methods
    ]
    return made, write_report(made, tmp_path_factory.mktemp("recorded") / "report.html")


@pytest.fixture
def recorded(turn_to, runs_of_tiny):
    """Their page, and the runs."""
    made, path = runs_of_tiny
    return turn_to(path), made


def last_of(trace):
    rows = trace.predictions
    return rows[rows["epoch"] == rows["epoch"].max()].set_index("index")


def shown_ids(tab):
    """Positions of the images in the gallery, by their file names in the captions' order, page by page."""
    return tab.evaluate("[...document.querySelectorAll('#gallery [role=option]')].map(o => o.ariaLabel)")


def first_images(tab, n):
    """Positions of the first images that a filter lets through, as the address names them."""
    tab.locator(".clipviz-thumb").first.click()
    found = [tab.evaluate("location.hash")]
    for _ in range(min(n, tab.locator(".clipviz-thumb").count()) - 1):
        tab.keyboard.press("ArrowRight")
        found.append(tab.evaluate("location.hash"))
    return [int(address.rpartition("/")[2]) for address in found]


def test_contents_fold_on_a_phone(drawn):
    phone = drawn(390, "light")
    link = phone.get_by_role("link", name="Loss terms")
    expect(link).to_be_hidden()
    phone.locator("nav summary").click()
    link.click()
    expect(link).to_be_hidden()
    expect(phone.locator("#loss_terms-title")).to_be_in_viewport()


def every_chart_is_drawn_within_the_page(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    wide = (
        "[...document.querySelectorAll('.chart .main-svg')].filter(c => c.getBoundingClientRect().right > innerWidth)"
    )
    assert tab.evaluate(f"{wide}.length") == 0
    assert tab.evaluate(TWICE) == []
    for image in tab.locator("main img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
    assert tab.evaluate("[...document.images].every(i => i.naturalWidth >= 400 && i.alt)")


# Axes of matrices and of bars whose names are less than a line apart.
CROWDED = """() => [...document.querySelectorAll('.chart')].flatMap(chart => chart.data
    .filter(trace => trace.type === 'heatmap' || trace.orientation === 'h')
    .flatMap(({ xaxis, yaxis }) => [xaxis || 'x', yaxis || 'y'])
    .map(name => [name, chart._fullLayout[name.replace(/^./, '$&axis')]])
    .filter(([, { tickvals, range, _length, tickfont }]) => tickvals && tickvals.length > 1
        && (tickvals[1] - tickvals[0]) * _length / Math.abs(range[1] - range[0]) < tickfont.size)
    .map(([name]) => `${chart.id} ${name}`))"""
# Names beside points that stand on one another.
ON_NAMES = """() => [...document.querySelectorAll('.chart[id^=prototype_paths-]')].flatMap(chart => {
    const names = [...chart.querySelectorAll('.annotation')];
    const boxes = names.map(name => [name.textContent, name.getBoundingClientRect()]);
    const isOn = (a, b) => a.left < b.right - 4 && b.left < a.right - 4 && a.top < b.bottom - 4 && b.top < a.bottom - 4;
    return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) => isOn(a, b)).map(([two]) => [one, two]));
})"""


def names_beside_a_matrix_do_not_overlap_and_pairs_stay_pairs(tab):
    assert tab.evaluate(CROWDED) == []
    assert tab.evaluate(ON_NAMES) == []
    pairs = tab.evaluate("document.querySelector('.chart[id^=confusion-]').layout.yaxis2.ticktext")
    assert {pair.count(" → ") for pair in pairs} == {1}, pairs


def axe_finds_nothing_serious(tab):
    tab.evaluate("location.hash = '#image=eval/7'")
    expect(tab.locator("#card h3")).to_have_text("day 1/bird-7.jpg")
    if not tab.evaluate("'axe' in window"):
        tab.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
        tab.evaluate("axe.configure({ noHtml: true })")  # of every node it looks at; where a fault is, it says anyway
    found = tab.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in serious] == []


# Each time all charts are drawn anew, so that all is asked at once; from one to the next only one of both changes.
STATES = [(390, "light"), (390, "dark"), (1280, "dark"), (1280, "light"), (1920, "light"), (768, "light")]


@pytest.mark.parametrize(("width", "scheme"), STATES)
def test_a_page_of_any_width_and_color_is_whole_and_legible(drawn, width, scheme):
    tab = drawn(width, scheme)
    every_chart_is_drawn_within_the_page(tab)
    rim = "getComputedStyle(document.querySelector('#reliability .textpoint text')).stroke"
    assert tab.evaluate(rim) == ("rgb(21, 24, 28)" if scheme == "dark" else "none"), "light numbers on light bars"
    names_beside_a_matrix_do_not_overlap_and_pairs_stay_pairs(tab)
    if width in (390, 1280):
        axe_finds_nothing_serious(tab)


def test_who_fixed_whose_mistakes_and_where_it_looked_takes_two_clicks(read, traces):
    tab = read
    tab.evaluate("() => { window.clicks = 0; addEventListener('pointerdown', () => window.clicks++, true); }")
    tab.get_by_role("button", name="DPA right, descriptions wrong").click()
    ours, theirs = (last_of(trace) for trace in (traces[3], traces[1]))
    wanted = ours.index[(ours["prediction"] == ours["target"]) & (theirs["prediction"] != theirs["target"])]
    expect(tab.locator(".clipviz-thumb")).to_have_count(len(wanted))
    assert all(caption.startswith("✓") for caption in shown_ids(tab)), "as DPA calls them"
    tab.locator(".clipviz-thumb").first.click()
    card = tab.locator("#card")
    expect(card).to_be_visible()
    expect(card.get_by_role("heading", level=3)).to_have_text(f"day {wanted[0] % 3}/bird-{wanted[0]}.jpg")
    maps = card.get_by_role("img", name="CLS attention, ")
    expect(maps.first).to_be_visible()
    names = [each.get_attribute("aria-label") for each in maps.all()]
    assert {name.split(", of ")[0] for name in names} == {"CLS attention, before", "CLS attention, after"}
    pixels = [each.evaluate("c => c.toDataURL()") for each in maps.all()]
    assert pixels[0] != pixels[1], "before is not after"
    names = traces[0].class_names
    rows = [
        row.inner_text()
        for row in card.get_by_role("region", name="Top classes of every method").get_by_role("row").all()
    ]
    assert f"✓ {names[ours.loc[wanted[0], 'prediction']]}" in rows[4]
    assert f"{names[theirs.loc[wanted[0], 'prediction']]}" in rows[2]
    history = card.get_by_role("region", name="Label over the epochs")
    assert history.get_by_role("columnheader").all_inner_texts() == ["method", "before", "epoch 0", "epoch 1"]
    assert tab.url.endswith(f"#image=eval/{wanted[0]}")
    assert tab.evaluate("window.clicks") == 2, "from the question to the answer"


def test_points_of_the_plane_lead_to_their_images(read, traces):
    tab = read
    plane = tab.locator("#plane canvas")
    plane.scroll_into_view_if_needed()
    plane.focus()
    plane.press("ArrowRight")  # the first prototype: images that NtUA gives its class
    plane.press("Enter")
    last = last_of(traces[2])
    expect(tab.locator(".clipviz-thumb")).to_have_count(sum(last["prediction"] == 0))
    tab.locator("#epoch").press("Home")
    expect(tab.locator("#plane .clipviz-caption")).to_have_text("Prototypes and images, before training")
    tab.get_by_role("button", name="all images").click()
    expect(tab.locator(".clipviz-thumb")).to_have_count(60)


def test_filters_and_search_show_what_they_say(read, traces):
    tab = read
    last = [last_of(trace) for trace in traces]
    right = [rows["prediction"] == rows["target"] for rows in last]
    tab.locator("#filter").select_option("all methods wrong, most confident first")
    expect(tab.locator(".clipviz-thumb")).to_have_count(sum(~(right[0] | right[1] | right[2] | right[3] | right[4])))
    first = traces[4].predictions[traces[4].predictions["epoch"] == -1].set_index("index")
    fixed = (first["prediction"] != first["target"]) & right[4]
    tab.locator("#filter").select_option("fixed by microCLIP")
    expect(tab.locator(".clipviz-thumb")).to_have_count(sum(fixed))
    broken = (first["prediction"] == first["target"]) & ~right[4]
    tab.locator("#filter").select_option("broken by microCLIP")
    expect(tab.locator(".clipviz-thumb")).to_have_count(sum(broken))
    flips = image_table(traces[4])["flips"]
    tab.locator("#filter").select_option("changed most often by microCLIP")
    expect(tab.locator(".clipviz-thumb")).to_have_count(int(sum(flips > 0)))
    logits = np.stack([traces[4].arrays[f"exploration/logits/{name}"] for name in ("cls", "fg")]).astype(float)
    ordered, top = np.sort(logits, -1), logits.argmax(-1)
    lead = np.where(top[0] == top[1], 0, (ordered[..., -1] - ordered[..., -2]).min(0))
    tab.locator("#filter").select_option("parts of microCLIP disagree, most confident first")
    expect(tab.locator(".clipviz-thumb")).to_have_count(int(sum(lead > 0)))
    least, own = np.min([rows["confidence"] for rows in last], 0), last[4]["confidence"].to_numpy()
    said = np.array([rows["prediction"] for rows in last])
    for name, rank in {
        "changed most often by microCLIP": flips.to_numpy(),
        "parts of microCLIP disagree, most confident first": lead,
        "mistakes of microCLIP, most confident first": np.where(right[4], -1, np.round(100 * own) / 100),
        "methods disagree, most confident first": np.where((said != said[0]).any(0), np.round(100 * least) / 100, -1),
        "least confident images of microCLIP": -np.round(100 * own) / 100,
    }.items():
        tab.locator("#filter").select_option(name)
        values = [rank[i] for i in first_images(tab, 5)]
        assert values == sorted(values, reverse=True), name
        assert values[0] == max(rank), name
    tab.get_by_role("button", name="all images").click()
    expect(tab.locator(".clipviz-thumb")).to_have_count(60)
    tab.locator("#query").fill("day 2 bird-1")
    names = [traces[0].file_name(i) for i in range(60)]
    expect(tab.locator(".clipviz-thumb")).to_have_count(sum("2" in name and "bird-1" in name for name in names))
    tab.locator("#query").fill("nothing like it")
    expect(tab.get_by_role("status")).to_have_text("no images")


def test_a_cell_of_the_confusion_leads_to_its_images(read, traces):
    tab = read
    rows = last_of(traces[2])  # NtUA, the first that is trained
    canvas = tab.locator("#matrix canvas")
    canvas.focus()
    target, prediction = rows[rows["prediction"] != rows["target"]].iloc[0][["target", "prediction"]].astype(int)
    for key, times in (("ArrowRight", prediction + 1), ("ArrowDown", target)):
        for _ in range(times):
            canvas.press(key)
    canvas.press("Enter")
    of_cell = (rows["target"] == target) & (rows["prediction"] == prediction)
    expect(tab.locator(".clipviz-thumb")).to_have_count(sum(of_cell))


def test_runs_stand_side_by_side_on_equal_axes_and_can_be_left_out(page_of_all):
    tab = page_of_all
    assert tab.locator(".chart .main-svg").count() < tab.locator(".chart").count(), "those far away wait"
    tab.locator("#reliability").scroll_into_view_if_needed()
    charts = tab.locator("#reliability .chart")
    assert charts.count() == 3
    expect(tab.locator("#reliability .chart .main-svg").last).to_be_attached()
    ranges = "[...document.querySelectorAll('#reliability .chart')].map(c => `${c._fullLayout?.yaxis2?.range}`)"
    tab.wait_for_function(f"new Set({ranges}).size === 1 && !{ranges}[0].includes('undefined')")
    boxes = [chart.bounding_box() for chart in charts.all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]
    tab.get_by_role("checkbox", name="DPA").uncheck()
    expect(tab.locator("#reliability figure:visible")).to_have_count(2)
    tab.set_viewport_size({"width": 800, "height": 900})
    tab.get_by_text("Contents", exact=True).click()
    tab.get_by_role("checkbox", name="DPA").check()
    chart = tab.locator("#reliability-3")
    fits = "c => Math.abs(c.querySelector('.main-svg').getBoundingClientRect().width - c.clientWidth) < 2"
    tab.wait_for_function(f"({fits})(document.querySelector('#reliability-3'))")
    expect(chart).to_be_visible()
    tab.wait_for_function(f"new Set({ranges}).size === 1")


def empty_share(page):
    """How much of a sheet's height between its margins is white below what is printed last."""
    pixels = np.asarray(page.render(scale=0.5).to_pil().convert("L"))
    last = np.flatnonzero((pixels < 245).any(1)).max(initial=0) * HEIGHT / len(pixels)
    return 1 - (last - MARGIN) / (HEIGHT - 2 * MARGIN)


@pytest.mark.parametrize("address", ["", "#image=eval/7"])
def test_sheets_are_filled_and_have_every_chart(page_to_print, tmp_path, address):
    tab = page_to_print
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


def test_the_keyboard_alone_gets_to_an_image(page_of_two):
    tab = page_of_two
    expect(tab.locator("nav [aria-current]")).to_have_text("Results")
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab.keyboard.press("Enter")
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    expect(tab.locator("#card h3")).to_have_text("day 1/bird-1.jpg")


def test_contents_follow_the_reader(page_of_two):
    tab = page_of_two
    tab.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    expect(tab.locator("nav [aria-current]")).to_have_text("Results")
    tab.get_by_role("link", name="Per class, before and after").click()
    expect(tab.locator("nav [aria-current]")).to_have_text("Per class, before and after")


def test_of_two_runs_a_table_says_who_is_right_both_ways(page_of_two, traces):
    tab = page_of_two
    a, b = (last_of(trace) for trace in (traces[3], traces[1]))
    right = [run["prediction"] == run["target"] for run in (a, b)]
    cells = {
        "both right": right[0] & right[1], "DPA right, descriptions wrong": right[0] & ~right[1],
        "descriptions right, DPA wrong": right[1] & ~right[0], "both wrong": ~right[0] & ~right[1],
    }  # fmt: skip
    for name, among in cells.items():
        button = tab.get_by_role("button", name=name)
        expect(button).to_have_text(f"{among.sum()}")
        if among.any():
            button.click()
            expect(button).to_have_attribute("aria-pressed", "true")
            expect(tab.locator("#fixes [aria-pressed=true]")).to_have_count(1)
            expect(tab.locator(".clipviz-thumb")).to_have_count(int(among.sum()))


def test_a_mailed_link_opens_the_image_and_arrow_keys_go_on(mailed):
    tab = mailed
    heading = tab.locator("#card h3")
    expect(heading).to_have_text("day 1/bird-7.jpg")
    expect(heading).to_be_in_viewport()
    tab.keyboard.press("ArrowRight")
    expect(heading).to_have_text("day 2/bird-8.jpg")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    expect(heading).to_have_text("day 0/bird-6.jpg")
    assert tab.url.endswith("#image=eval/6")
    tab.get_by_role("button", name="next image").click()
    expect(heading).to_have_text("day 1/bird-7.jpg")
    tab.evaluate("location.hash = '#image=eval/12'")
    expect(heading).to_have_text("day 0/bird-12.jpg")
    for address in ("#image%3Deval%2F7", "#100%"):  # as some programs write it; of no image, and no error
        tab.evaluate("address => { location.hash = address; }", address)
        expect(heading).to_have_text("day 1/bird-7.jpg")


def test_dark_is_dark_and_paper_is_white_without_what_only_a_screen_needs(mailed):
    tab = mailed
    tab.locator("#confidence_evolution").scroll_into_view_if_needed()
    expect(tab.locator("#confidence_evolution .main-svg").first).to_be_attached()
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(ground) == "rgb(21, 24, 28)"
    paper = "document.querySelector('#confidence_evolution .chart')._fullLayout.paper_bgcolor"
    assert tab.evaluate(paper) == "#15181c"
    tool = tab.locator("#confidence_evolution .modebar-btn").first
    tab.keyboard.press("Tab")  # after a click no ring is shown
    tool.focus()
    ring = tool.evaluate("tool => [getComputedStyle(tool).outlineColor, getComputedStyle(tool).outlineWidth]")
    assert ring == ["rgb(124, 192, 245)", "2px"], "plotly's own is thin and black"
    tab.emulate_media(media="print")
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(paper) == "#ffffff"
    assert tab.locator("figcaption .dot").first.evaluate("dot => getComputedStyle(dot).printColorAdjust") == "exact"
    for hidden in ("nav", ".controls", "#gallery"):
        assert tab.locator(hidden).first.is_hidden()
    assert tab.locator("#shared-settings").is_visible(), "nobody can unfold paper"


def test_without_scripts_there_is_no_room_for_what_they_draw_and_no_word_of_it(chromium, report_of_two):
    tab = chromium.new_page(java_script_enabled=False)
    tab.goto(report_of_two.as_uri())
    expect(tab.locator("noscript p")).to_be_visible()
    expect(tab.locator("#results table")).to_be_visible()
    for nothing in (".chart", ".figures figcaption", ".runs", "#explore", '.contents a[href="#explore"]'):
        assert tab.locator(nothing).first.is_hidden(), nothing
    tab.close()


def test_of_two_runs_without_labels_a_table_says_whether_they_agree(page_of_unlabelled, unlabelled):
    first, second = unlabelled
    assert not first.has_targets
    tab = page_of_unlabelled
    same = int((last_of(first)["prediction"] == last_of(second)["prediction"]).sum())
    expect(tab.get_by_role("button", name="the same class")).to_have_text(f"{same}")
    expect(tab.get_by_role("button", name="another class")).to_have_text(f"{60 - same}")


@pytest.mark.parametrize("case", ["no labels", "200 classes", "one class", "one method", "ten runs", "no images"])
def test_other_reports_open_and_draw(opened, request, tmp_path, monkeypatch, case):
    if case == "ten runs":  # whose charts are like those of three; of these eight are looked at
        monkeypatch.setattr("clipviz.report.sections.CHAPTERS", {"Pseudo-labels": CHAPTERS["Pseudo-labels"][:1]})
    made = {
        "200 classes": lambda: [explorable(synthetic_trace(200, 2, **SMALL), 60)],
        "one class": lambda: [explorable(synthetic_trace(1, 2, method="dpa", **SMALL), 60)],
        "one method": lambda: [explorable(synthetic_trace(6, 0, method="zero_shot", **SMALL), 60)],
        "ten runs": lambda: [
            explorable(synthetic_trace(6, 1, seed=i, method=TRAINED[i % 3], **SMALL), 60) for i in range(10)
        ],
        "no images": lambda: [synthetic_trace(6, 0, method="descriptions", **SMALL)],
    }
    if case in made:
        tab = opened(write_report(made[case](), tmp_path / "report.html"))
    else:
        tab = request.getfixturevalue("page_of_unlabelled")
    scroll_through(tab, 8)
    if case == "no images":
        assert tab.locator("#explore").count() == 0
        return
    tab.locator(".clipviz-thumb").first.click()
    expect(tab.locator("#card")).to_be_visible()
    assert tab.locator("#matrix canvas").count() == (case != "no labels")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_card_says_why_as_fully_as_the_page_of_one_image(recorded):
    tab, (_, tda, _) = recorded
    tab.evaluate("image => { location.hash = `#image=eval/${image}`; }", int(tda.highlights.index[0]))
    info = why_wrong_info(tda, 0)
    card = tab.locator("#card")
    logits = card.get_by_role("region", name="Logits of TDA")
    expect(logits.get_by_role("columnheader", name="sum")).to_be_visible()
    assert "the largest sum wins" in logits.inner_text()
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in logits.locator("tbody tr").all()
    }
    for one in info.classes:
        shown = [float(text.replace("−", "-")) for text in rows["✓ " * one.is_target + one.name]]
        names = logits.get_by_role("columnheader").all_inner_texts()[1:-1]
        wanted = [one.addends[name.replace(" ", "_")] for name in names]
        assert shown == pytest.approx([*wanted, one.addends["method"]], abs=0.12)
    cached = card.get_by_role("list", name="Cache entries").get_by_role("listitem").all_inner_texts()
    assert [text.split()[-1] for text in cached] == [f"{one.contribution:+.2f}".replace("-", "−") for one in info.cache]
    surest = card.get_by_role("list", name="Most confident images").get_by_role("listitem").all_inner_texts()
    assert {text.removeprefix("✓ ") for text in surest} == {one.name for one in info.examples if one.image is not None}
    blank = "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, 84, 84).data.buffer)).size"
    assert all(canvas.evaluate(blank) > 1 for canvas in card.locator(".pictures canvas").all())
    card.get_by_role("button", name="DPA").click()
    expect(card.get_by_role("heading", name="Why DPA predicts this")).to_be_visible()
    expect(card.get_by_role("list", name="Cache entries")).to_have_count(0)


def test_what_a_run_recorded_is_what_the_page_shows(recorded):
    tab, made = recorded
    tab.evaluate("location.hash = '#image=eval/3'")
    card = tab.locator("#card")
    expect(card).to_be_visible()
    looks = card.locator(".clipviz-overlay > div")
    expect(looks).to_have_count(2)
    assert looks.locator("figcaption").all_inner_texts() == [
        "image", "CLS attention, before and after", "CLS attention, before", "CLS attention, after",
    ]  # fmt: skip
    said = made[2].meta["exploration_sentences"]
    assert next(row[2] for row in said if row[0] == 3) in card.inner_text()


def test_no_name_of_a_class_or_file_runs_or_loads_anything(opened, tmp_path):
    traces = comparison(class_names=HOSTILE)[::4]
    for trace in traces:
        trace.meta["data"] = "<img src=x onerror=alert(4)>"
        trace.meta["files"] = {"learned": [], "measured": ["<img src=x onerror=alert(5)>.png"] * 60}
    tab = opened(write_report(traces, tmp_path / "report.html"))
    tab.evaluate("location.hash = '#image=eval/0'")
    expect(tab.locator("#card h3")).to_have_text("<img src=x onerror=alert(5)>.png")
    assert tab.locator("img[src=x], a[href^=javascript]").count() == 0
    chart = "#confusion-1"
    tab.locator(chart).scroll_into_view_if_needed()
    expect(tab.locator(f"{chart} .main-svg").first).to_be_attached()
    hover_until_it_speaks(tab, chart)  # what it says holds class names
    assert "<img src=x" in tab.locator(f"{chart} .hoverlayer").text_content()
    assert tab.locator("img[src=x], a[href^=javascript]").count() == 0


def hover_until_it_speaks(tab, chart):
    """Plotly looks at the mouse when it finds the time, and drops moves that come too fast."""
    plane = tab.locator(f"{chart} .nsewdrag").first
    for i in range(200):
        plane.scroll_into_view_if_needed()  # charts above it that are drawn meanwhile move it
        box = plane.bounding_box()
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
    assert len(pictures) >= 18
    for name in pictures:
        picture = Image.open(index.parent / name)
        assert picture.width == WIDTH, name
        assert len(picture.convert("L").getcolors(256)) > 8, f"{name} is blank"
    assert sum(path.stat().st_size for path in index.parent.iterdir()) < 2_000_000
