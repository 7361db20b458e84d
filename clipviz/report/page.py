"""The frame of the page: templates that escape, scripts and data packed into it, and a policy that forbids requests."""

import base64
import gzip
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from clipviz.errors import inert
from clipviz.figures.static import pixels, small_jpeg

# Nothing may be fetched and only these scripts run, whatever a class name tries; pictures are data.
_POLICY = (
    "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_CANVASES = ("gallery", "matrix", "overlay", "scatter")
_SCRIPTS = ("model", "place", "charts", "paper", "filters", "card", "explore", "main")
_FINEST = 130  # dots per inch
_RESOLUTIONS = ((1.0, 82), (0.77, 82), (0.77, 65), (0.62, 60), (0.54, 45))  # scale, JPEG quality


def _shown(value: Any) -> Any:
    """Names of others with orders to a terminal or a reader made visible; lines stay lines."""
    is_foreign = isinstance(value, str) and not isinstance(value, Markup)
    return "\n".join(map(inert, value.split("\n"))) if is_foreign else value


_TEMPLATES = Environment(
    loader=PackageLoader("clipviz.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=StrictUndefined, finalize=_shown,
)  # fmt: skip


def page(title: str, **contents: Any) -> str:
    """The whole document, by `templates/page.html` and what it includes."""
    source_hash, license_, plotly = _plotly()
    return rendered("page.html", source_hash, title=title, license=license_, plotly=plotly, **contents)


@cache
def _plotly() -> tuple[str, str, str]:
    """The hash of plotly's script, its license, and the script packed, which takes a fifth of a second."""
    source = get_plotlyjs()
    return _hash(source), source[: source.index("*/")].strip("/* \n"), packed(source)


def rendered(template: str, scripts: str = "", **contents: Any) -> str:
    """A template, with the scripts and the style of the page; `scripts`: hashes of others that may run."""
    policy = _POLICY.format(f"{_hash(_script())} {scripts}")
    style = Markup(_read("widgets", "widgets.css") + _read("report", "report.css"))
    look = {"policy": Markup(policy), "style": style, "script": Markup(_script())}
    return _TEMPLATES.get_template(template).render(**look, **contents)


def packed(text: str) -> str:
    """Text as base64 of its gzip, which every browser since 2023 unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def array(values: npt.ArrayLike, kind: str) -> str:
    """Numbers for `numbers` in model.js, by their kind in numpy's letters: "u1", "u2", "i4", "f2", ..."""
    return f"{kind}:{base64.b64encode(np.ascontiguousarray(values, dtype=f'<{kind}').tobytes()).decode()}"


def charts(figures: dict[str, go.Figure]) -> str:
    """Plotly figures by name, packed."""
    return packed("{" + ",".join(f"{json.dumps(name)}:{figure.to_json()}" for name, figure in figures.items()) + "}")


def picture(figure: Figure, most_bytes: int = 400_000) -> str:
    """A matplotlib figure as the address of an embedded JPEG, as fine as `most_bytes` (of base64 text) allow."""
    data = small_jpeg(pixels(figure, _FINEST), 0.75 * most_bytes, _RESOLUTIONS)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _read(room: str, name: str) -> str:
    return (files("clipviz") / room / "static" / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """One module of all scripts: the canvases of the widgets, each in a scope of its own, and those of the page."""
    parts = [_read("widgets", "common.js"), "const canvases = {};"]
    for name in _CANVASES:
        own = _read("widgets", f"{name}.js").replace("export default { render };", "return render;")
        parts.append(f"canvases.{name} = (() => {{\n{own}}})();")
    return "\n".join([*parts, *(_read("report", f"{name}.js") for name in _SCRIPTS)])


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
