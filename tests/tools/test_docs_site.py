"""The documentation site: built offline and strictly, complete, and asking nobody for anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from forked import as_module, start

import clipviz
from clipviz.cli.options import COMMANDS
from clipviz.methods import METHODS
from tools import docs_site

ROOT = Path(clipviz.__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("said") / "stderr"
    options = ("--strict", "--site-dir", str(folder))
    build = start(as_module, "mkdocs", "build", *options, folder=ROOT, said=said, more={"NO_MKDOCS_2_WARNING": "1"})
    build.join()
    assert build.exitcode == 0, said.read_text(encoding="utf-8")[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page, with tags and their attributes."""
    return {page: Links(page).tags for page in site.rglob("*.html")}


class Links(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_no_page_asks_a_network_for_anything(pages):
    asked = []
    for page, tags in pages.items():
        for tag, attributes in tags:
            fetched = attributes.get("src") or (attributes.get("href") if tag == "link" else None) or ""
            if re.match(r"(https?:)?//", fetched):
                asked.append((page.name, tag, fetched))
    assert asked == []


def test_every_picture_is_there_and_says_what_it_shows(pages):
    pictures = 0
    for page, tags in pages.items():
        for tag, attributes in tags:
            if tag == "img" and not attributes["src"].startswith("data:"):
                pictures += 1
                assert (page.parent / attributes["src"]).is_file(), (page.name, attributes["src"])
                assert len(attributes.get("alt", "")) > 3, (page.name, attributes["src"])
    assert pictures > 80


def test_every_page_of_the_repository_is_a_page_and_has_a_place_in_the_menu(site):
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for pattern in docs_site.PAGES:
        for path in ROOT.glob(pattern):
            name = path.relative_to(ROOT).as_posix()
            page = site / re.sub(r"(README)?\.(md|ipynb)$", lambda m: "index.html" if m[1] else ".html", name)
            assert page.is_file(), name
            assert name in menu, f"{name} has no place in mkdocs.yml"


def test_the_reference_has_every_public_name_and_every_command(site):
    names = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    for name, home in clipviz._HOME.items():
        if home and name != "METHODS":
            assert re.search(rf"^::: clipviz\.{home}(\.\w+)?\.{name}$", names, flags=re.M), name
    shown = (site / "docs/reference/command_line.html").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"usage: clipviz {command}" in shown


def test_the_methods_have_their_equations_and_the_code_unfolded(site):
    page = (site / "docs/methods.html").read_text(encoding="utf-8")
    assert "(5) DKA      z = gamma b W_fix^T" in page
    for method in METHODS.values():
        assert f'id="{method.__module__}"' in page
    assert page.count('<details class="mkdocstrings-source" open>') > 40
    assert page.count('<details class="mkdocstrings-source">') == 0
    assert "<li>The sign of the Fiedler vector" in page


def test_the_notebooks_are_there_with_outputs_and_formulas(site):
    page = (site / "notebooks/06_soap.html").read_text(encoding="utf-8")
    assert "CLS: (1, 128)  patches: (1, 64, 128)  grid: 8 x 8" in page
    assert page.count("<math ") > 20
    assert [word for each in site.rglob("*.html") for word in re.findall(r"<m\w+>\\\w+", each.read_text("utf-8"))] == []
    assert "$" not in re.sub(r"<(pre|code|script|style).*?</\1>", "", page, flags=re.S)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("costs $5", "costs $5"),
        ("`$x$` and\n```bash\necho $HOME $PATH\n```", "`$x$` and\n```bash\necho $HOME $PATH\n```"),
        ("You learn\n- one\n- two", "You learn\n\n- one\n- two"),
        ("```\nYou learn\n- one\n```", "```\nYou learn\n- one\n```"),
        ("| a | b |\n|---|---|", "| a | b |\n|---|---|"),
    ],
)
def test_what_this_markdown_does_not_understand_is_mended_and_nothing_else(text, expected):
    mended = "\n".join(docs_site.ListsApart().run(text.split("\n")))
    assert docs_site.on_page_markdown(mended, None, None, None) == expected


def test_a_formula_is_drawn_by_the_browser():
    block, inline = (docs_site.on_page_markdown(text, None, None, None) for text in ("$$a_i$$", "the $a_i$."))
    assert block.startswith('<div class="equation"><math')
    assert 'display="block"' in block
    assert inline.startswith('the <span class="formula"><math')
    assert inline.endswith("</math></span>.")
