"""The bricks of the page: escaped text, charts, pictures, tables, and the frame that needs no network."""

from __future__ import annotations

import base64
import gzip
import html
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure
from PIL import Image
from plotly.offline import get_plotlyjs

from clipviz.errors import inert
from clipviz.figures.static import encoded, pixels

# Nothing may be fetched, whatever a class name tries: scripts and styles are inline, pictures are data.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)

#: Charts that come before plotly.js is unpacked wait for it.
_LOADER = """
window.Plotly = {waiting: [], newPlot(...call) { this.waiting.push(call); }};
addEventListener("DOMContentLoaded", async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script"), {waiting} = window.Plotly;
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  for (const call of waiting) Plotly.newPlot(...call);
});
"""

_FINEST = 130  # dots per inch
_RESOLUTIONS = ((1.0, 82), (0.77, 82), (0.77, 65), (0.62, 60), (0.54, 45))  # scale, JPEG quality


class Html(str):
    """Markup that is ours or escaped already; plain `str` is escaped where it enters the page."""

    __slots__ = ()


def markup(text: object) -> Html:
    """`text` as HTML: escaped, unless it is `Html` already."""
    lines = map(inert, str(text).split("\n"))
    return text if isinstance(text, Html) else Html(html.escape("\n".join(lines), quote=True))


def element(name: str, *contents: object, **attributes: object) -> Html:
    """`<name attributes>contents</name>`; contents and attribute values are escaped, `class_` means class."""
    names = [key.rstrip("_").replace("_", "-") for key in attributes]
    written = "".join(f' {key}="{markup(value)}"' for key, value in zip(names, attributes.values(), strict=True))
    return Html(f"<{name}{written}>{''.join(markup(content) for content in contents)}</{name}>")


def paragraphs(*texts: object) -> Html:
    """One `<p>` for each text."""
    return Html("".join(element("p", text) for text in texts))


class Column(NamedTuple):
    """A column's heading, and whether its cells are numbers (set flush right)."""

    title: str
    is_number: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], best: int | None = None) -> Html:
    """A table; row `best` is set in bold."""

    def row(tag: str, contents: Sequence[object], **attributes: str) -> Html:
        cells = zip(columns, contents, strict=True)
        numbers = {"class_": "number"}
        return element("tr", *(element(tag, cell, **numbers if c.is_number else {}) for c, cell in cells), **attributes)

    head = row("th", [column.title for column in columns])
    body = [row("td", contents, **({"class_": "best"} if i == best else {})) for i, contents in enumerate(rows)]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def chart(figure: go.Figure, name: str, what: str) -> Html:
    """A plotly figure; `name` is unique in the page, `what` describes it to those who cannot see it."""
    config = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return element("figure", element("div", Html(drawn), class_="chart", role="img", aria_label=what))


def picture(figure: Figure, what: str, most_bytes: int = 400_000) -> Html:
    """A matplotlib figure as an embedded JPEG with `what` as its alternative text.

    It is drawn as finely as `most_bytes` (of base64 text) allow, at least at the coarsest of a few resolutions.
    """
    drawn = pixels(figure, _FINEST)  # once: drawing takes far longer than making it smaller
    for scale, quality in _RESOLUTIONS:
        size = round(drawn.width * scale), round(drawn.height * scale)
        small = drawn.resize(size, Image.Resampling.LANCZOS)
        data = base64.b64encode(encoded(small, "JPEG", quality=quality)).decode()
        if len(data) <= most_bytes:
            break
    return element("figure", Html(f'<img src="data:image/jpeg;base64,{data}" alt="{markup(what)}">'))


@cache
def _plotly() -> str:
    """plotly.js under its license, packed: 1.9 MB instead of 4.8 in a page."""
    source = get_plotlyjs()
    banner = source[: source.index("*/") + 2]
    packed = base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()
    return f'<script>{banner}{_LOADER}</script>\n<script type="text/plain" id="plotly">{packed}</script>\n'


def page(title: str, body: Iterable[Html]) -> str:
    """The whole document: own style, plotly.js once, and a policy that forbids any request."""
    style = (files("clipviz.report") / "style.css").read_text(encoding="utf-8")
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            element("title", title),
            f"\n<style>\n{style}</style>\n{_plotly()}</head>\n<body>\n<main>\n",
            *(f"{part}\n" for part in body),
            "</main>\n</body>\n</html>\n",
        ]
    )
