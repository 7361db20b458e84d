"""The bricks of the page: escaped text, charts, pictures, tables, and the frame that needs no network."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from clipviz.trace import storable_text

# Nothing may be fetched, whatever a class name tries: scripts and styles are inline, pictures are data.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)

_RESOLUTIONS = ((130, 82), (100, 82), (100, 65), (80, 60), (70, 45))


class Html(str):
    """Markup that is ours or escaped already; plain `str` is escaped where it enters the page."""

    __slots__ = ()


def markup(text: object) -> Html:
    """`text` as HTML: escaped, unless it is `Html` already."""
    return text if isinstance(text, Html) else Html(html.escape(storable_text(str(text)), quote=True))


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

    def cell(tag: str, column: Column, content: object) -> Html:
        return element(tag, content, class_="number") if column.is_number else element(tag, content)

    head = element("tr", *(cell("th", column, column.title) for column in columns))
    body = [
        element(
            "tr",
            *(cell("td", column, content) for column, content in zip(columns, row, strict=True)),
            **({"class_": "best"} if i == best else {}),
        )
        for i, row in enumerate(rows)
    ]
    inner = element("table", element("thead", head), element("tbody", *body))
    return element("div", inner, class_="scroll")


def chart(figure: go.Figure, name: str, what: str) -> Html:
    """A plotly figure; `name` is unique in the page, `what` describes it to those who cannot see it."""
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]},
    )
    return element("figure", element("div", Html(drawn), class_="chart", role="img", aria_label=what))


def picture(figure: Figure, what: str, most_bytes: int = 400_000) -> Html:
    """A matplotlib figure as an embedded JPEG with `what` as its alternative text.

    It is drawn as finely as `most_bytes` (of base64 text) allow, at least at the coarsest of a few resolutions.
    """
    for dots_per_inch, quality in _RESOLUTIONS:
        encoded = base64.b64encode(_jpeg(figure, dots_per_inch, quality)).decode()
        if len(encoded) <= most_bytes:
            break
    return element("figure", Html(f'<img src="data:image/jpeg;base64,{encoded}" alt="{markup(what)}">'))


def _jpeg(figure: Figure, dots_per_inch: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks become boxes, which says as much as a warning on a terminal would.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="jpeg", dpi=dots_per_inch, pil_kwargs={"quality": quality, "optimize": True})
    return buffer.getvalue()


def page(title: str, body: Iterable[Html]) -> str:
    """The whole document: own style, plotly.js once, and a policy that forbids any request."""
    style = (files("clipviz.report") / "style.css").read_text(encoding="utf-8")
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            element("title", title),
            f"\n<style>\n{style}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<main>\n",
            *(f"{part}\n" for part in body),
            "</main>\n</body>\n</html>\n",
        ]
    )
