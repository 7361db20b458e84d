"""The documentation site: what mkdocs is told about this repository (`mkdocs.yml` names this file under `hooks`).

Pages are Markdown files and notebooks where they lie, so that a link works on a code host and on the site alike.
Notebooks become Markdown with their stored outputs, formulas MathML, the help of the command line a page. Nothing
is executed, and no page asks a network for anything.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import isfunction
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from clipviz.cli.main import build_parser
from clipviz.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md", "notebooks/README.md", "notebooks/*.ipynb",
         "clipviz/birds/MODEL_CARD.md")  # fmt: skip
PICTURES = ("docs/**/*.png", "docs/**/*.webp", "docs/**/*.svg")

METHODS_PAGE = "docs/methods.md"

#: Code, which is left alone; a formula between two dollar signs, or one.
_CODE_OR_FORMULA = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.S | re.M
)

#: Where an explorable of a notebook comes in.
_EXPLORABLE = re.compile(r'<div data-explorable="(?P<path>[^":]+):(?P<cell>\d+):(?P<place>\d+)"></div>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages and their pictures, by their paths in the repository."""
    own = [file for file in files if file.src_uri == "site.css" or file.src_dir != config.docs_dir]  # and the theme's
    paths = sorted({path.relative_to(ROOT).as_posix() for pattern in PAGES + PICTURES for path in ROOT.glob(pattern)})
    own += [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    own.append(File.generated(config, "docs/reference/command_line.md", content=command_line()))
    own.append(File.generated(config, "docs/explorables.md", content="\n\n".join(explorables())))
    own.append(File.generated(config, METHODS_PAGE, content="\n\n".join(methods())))
    for path in paths:
        if path.endswith(".ipynb"):
            own += [File.generated(config, name, content=data) for name, data in pictures(ROOT / path)]
    for file in own:
        if file.src_uri.endswith(".ipynb"):  # mkdocs knows Markdown only
            file.dest_uri = file.src_uri.removesuffix("ipynb") + "html"
            file.is_documentation_page = lambda: True  # type: ignore[method-assign]
    return Files(own)


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """A notebook as Markdown; other pages are read as they are."""
    path = page.file.src_uri
    return "\n\n".join(markdown(ROOT / path)) if path.endswith(".ipynb") else None


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The explorables, put in last: no Markdown reads their scripts, and no search; code of the methods unfolded."""
    if page.file.src_uri == METHODS_PAGE:
        return output.replace('<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>')
    return _EXPLORABLE.sub(_explorable, output)


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What code hosts understand and this Markdown does not: formulas; lists see `ListsApart`."""
    return _CODE_OR_FORMULA.sub(_formula, text)


class ListsApart(Extension, Preprocessor):
    """A list right after a line of text is one, as code hosts have it: on pages and in docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Before code is taken out, which has lists of its own."""
        md.preprocessors.register(self, "lists_apart", 29)

    def run(self, lines: list[str]) -> list[str]:
        """The lines, with an empty one where a list begins."""
        return list(_with_lists_apart(lines))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """For docstrings as well, which no page has."""
    config.markdown_extensions.append(ListsApart())
    return config


def _with_lists_apart(lines: list[str]) -> Iterator[str]:
    before, is_code = "", False
    for line in lines:
        is_code ^= line.startswith("```")
        if not is_code and re.match(r"- |1\. ", line) and re.match(r"[^\s-]", before):
            yield ""
        yield line
        before = line


def _formula(match: re.Match[str]) -> str:
    if match["code"]:
        return match["code"]
    if match["block"]:
        return f'<div class="equation">{_mathml(match["block"], display="block")}</div>'
    return f'<span class="formula">{_mathml(match["inline"])}</span>'


def _mathml(formula: str, display: str = "inline") -> str:
    return convert(formula.replace(r"\arg\max", r"\operatorname{argmax}"), display=display)  # it knows no \arg


def command_line() -> str:
    """The help of every command, as a page."""
    os.environ["COLUMNS"] = "100"  # argparse breaks its lines at the width of the terminal
    parser = build_parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts = ["# Command line", f"```text\n{parser.format_help()}```"]
    parts += [f"## clipviz {name}\n\n```text\n{command.format_help()}```" for name, command in commands.choices.items()]
    return "\n\n".join(parts)


def methods() -> Iterator[str]:
    """A page of the equations of every method, each with the function that computes it."""
    homes = [*reversed(dict.fromkeys(method.__module__ for method in METHODS.values())), "clipviz.ncut", "clipviz.ops"]
    yield "---\nhide: [toc]\n---"  # for its room: the equations are wide
    yield "# The methods, equation by equation"
    yield (
        "Each method is one file. At its top stand its equations, and where they differ from the authors' code; below "
        "stand its functions, each with the code that computes its equation. This page is made of those files."
    )
    yield " · ".join(f"[{home.rsplit('.')[-1]}][{home}]" for home in homes)
    for home in homes:
        members = [
            name
            for name, each in vars(import_module(home)).items()
            if isfunction(each) and home == each.__module__ and not name.startswith("_")
        ]
        yield f"::: {home}\n    options: {{heading_level: 2, members: {json.dumps(members)}}}"


def pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """The pictures that are stored in a notebook: their names beside it, and what they hold."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        for place, output in enumerate(cell.get("outputs", [])):
            if kind := _picture(output):
                yield _picture_name(path, number, place, kind), base64.b64decode(output["data"][kind])


def _picture(output: dict[str, Any]) -> str:
    return next((kind for kind in ("image/png", "image/jpeg") if kind in output.get("data", {})), "")


def _picture_name(path: Path, cell: int, place: int, kind: str) -> str:
    return f"notebooks/{path.stem}_{cell}_{place}.{kind.removeprefix('image/')}"


def markdown(path: Path) -> Iterator[str]:
    """A notebook's cells: text, code, and what the code printed and drew."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield _with_markdown_inside(source)
            continue
        yield f"```python\n{source}\n```"
        for place, output in enumerate(cell["outputs"]):
            yield _shown(path, number, place, output)


def _shown(path: Path, number: int, place: int, output: dict[str, Any], folder: str = "") -> str:
    said = "".join(output.get("text", "") or output["data"].get("text/plain", ""))
    if _is_explorable(output):
        name = path.relative_to(ROOT).as_posix()
        return f'<div class="output"><div data-explorable="{name}:{number}:{place}"></div></div>'
    if kind := _picture(output):
        alt = re.sub(r"[\[\]\n]", " ", said).strip()
        shown = f"![{alt}]({folder}{Path(_picture_name(path, number, place, kind)).name})"
    else:
        shown = f"```text\n{said.rstrip()}\n```"
    return f'<div class="output" markdown="1">\n\n{shown}\n\n</div>'


def _is_explorable(output: dict[str, Any]) -> bool:
    return "clipviz-explorable" in "".join(output.get("data", {}).get("text/html", ""))


def _explorable(match: re.Match[str]) -> str:
    cells = json.loads((ROOT / match["path"]).read_text(encoding="utf-8"))["cells"]
    return "".join(cells[int(match["cell"])]["outputs"][int(match["place"])]["data"]["text/html"])


def explorables() -> Iterator[str]:
    """A page of all that can be moved, from the notebooks in which it stands."""
    yield "# Explorables"
    yield (
        "Small interactive figures. They need no kernel: clipviz computed the numbers when the notebook was run, "
        "and they are stored in the page. Use the mouse, a finger or the arrow keys. One more needs a kernel, because "
        "the model embeds what you write: sentences for a class, in "
        "[notebook 2](../notebooks/02_zero_shot.ipynb#other-words-for-a-class)."
    )
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            outputs = cell.get("outputs", [])
            for place in (i for i, output in enumerate(outputs) if _is_explorable(output)):
                html = "".join(outputs[place]["data"]["text/html"])
                lesson = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
                yield f"## {re.search('<b>(.+?)[.]</b>', html)[1]}"  # type: ignore[index]
                yield f"In notebook [{lesson}](../{path.relative_to(ROOT).as_posix()})."
                yield from (_shown(path, number, i, outputs[i], "../notebooks/") for i in (place - 1, place))


def _with_markdown_inside(text: str) -> str:
    """Folded solutions are HTML; what they fold is Markdown."""
    return text.replace("<details>", '<details markdown="1">')
