"""What all figures share: one color and one marker per method, one layout, and safe text.

Colors are Okabe and Ito's color-blind-safe set; a marker shape and a dash tell methods apart without
color. Plotly reads a small markup (`<b>`, `<a href>`, entities) in every text, so whatever comes from data
goes through `escape` or `short_names` first.
"""

import functools
import html
import inspect
import json
import textwrap
import tomllib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import plotly.graph_objects as go
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from clipviz.errors import inert, one_line
from clipviz.trace import Trace

LOOKS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("looks.toml").read_text(encoding="utf-8"))
_COLORS: dict[str, str] = LOOKS["colors"]
BLACK, ORANGE, SKY, GREEN, BLUE = (_COLORS[name] for name in ("black", "orange", "sky", "green", "blue"))
VERMILLION, PURPLE, GRAY, SILVER = (_COLORS[name] for name in ("vermillion", "purple", "gray", "silver"))

#: Continuous color maps: monotone in lightness (or diverging from white), never jet.
SALIENCY_COLORS, COUNT_COLORS = "magma", "Blues"
SIMILARITY_COLORS, CHANGE_COLORS = "Cividis", "PuOr"
#: At most so many names on an axis; more would overlap at 900 pixels.
MAX_LABELS = 32
#: Pixels of a figure's width, the text column of a notebook; points of its ordinary letters, 13 pixels.
WIDTH, FONT = 900, 9.5

#: Invisible, and as a letter from left to right for the order of what is beside it.
_LEFT_TO_RIGHT = "\u200e"

#: Dashes and markers by plotly's names, which the scripts of the widgets know too, and what matplotlib calls them.
DASHES: dict[str | None, Any] = {
    "solid": "-", "dot": ":", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)), "none": "",
}  # fmt: skip
MARKERS: dict[str, Any] = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "x": "X", "star": "*",
    "hexagon": "h", "cross": "P", "pentagon": "p", "hourglass": [(-1, 1), (1, 1), (-1, -1), (1, -1), (-1, 1)],
    "bowtie": [(-1, 1), (-1, -1), (1, 1), (1, -1), (-1, 1)], "": "",
}  # fmt: skip


class Look(NamedTuple):
    """How a thing looks in every figure and view."""

    color: str
    symbol: str
    dash: str
    hatch: str = ""


#: Images by whether their class is right, with a marker beside the color, wherever these are told apart.
CORRECT, INCORRECT = Look(BLUE, "circle", "solid"), Look(VERMILLION, "x", "dash")
UNKNOWN = Look(GRAY, "square", "solid")
#: A class before and after training.
BEFORE, AFTER = Look(GRAY, "circle-open", "solid"), Look(BLUE, "circle", "solid")
#: What another mixture of the sources does to the pseudo-labels.
MIXED_ACCURACY, MIXED_CHANGES = Look(BLUE, "", "solid"), Look(VERMILLION, "", "dash")


def _look(color: str, *others: str) -> Look:
    return Look(_COLORS[color], *others)


def _in_turn(looks: str, place: int) -> Look:
    """A look of a list in `looks.toml`; after the last comes the first again."""
    return _look(*LOOKS[looks][place % len(LOOKS[looks])])


#: Those of a source of pseudo-labels, and of a snapshot's prototypes, by their place among the others.
source_look, prototype_look = functools.partial(_in_turn, "sources"), functools.partial(_in_turn, "prototypes")


def outcome_looks(of: str) -> dict[str, Look]:
    """Those of what became of pseudo-labels, "with_target" or "without_target"."""
    return {name: _look(*look) for name, look in LOOKS[of].items()}


def decider_look(name: str, sources: Sequence[str]) -> Look:
    """That of a source, or of "all agree", "several", "neither"."""
    return source_look(list(sources).index(name)) if name in sources else _look(*LOOKS["deciders"][name])


def term_look(place: int) -> Look:
    """That of a term of the loss; the first one is their sum."""
    return _in_turn("terms", place - 1) if place else _look("black", "", "solid")


class MethodStyle(NamedTuple):
    """How a method looks in every figure."""

    name: str
    color: str
    symbol: str
    dash: str


def method_style(method: str) -> MethodStyle:
    """Name, color, marker and dash of a method; unknown methods are gray."""
    name, color, *how = LOOKS["methods"].get(method, (method, "gray", "hexagon", "solid"))
    return MethodStyle(name, _COLORS[color], *how)


def trace_styles(traces: Sequence[Trace]) -> list[MethodStyle]:
    """How each trace looks: further runs of one method keep its color, with an open marker and another dash."""
    styles, seen = list[MethodStyle](), Counter[str]()
    for trace in traces:
        style = method_style(trace.method)
        dashes = [dash for dash in ("dash", "dot", "dashdot", "longdash", "longdashdot", "solid") if dash != style.dash]
        if earlier := seen[style.name]:
            style = style._replace(symbol=f"{style.symbol}-open", dash=dashes[(earlier - 1) % len(dashes)])
        seen[style.name] += 1
        styles.append(style)
    return styles


def is_trained(trace: Trace) -> bool:
    """Whether labels changed from epoch to epoch, by training or without; methods that guess once are baselines."""
    return len(trace.steps) > 0 or bool(trace.meta.get("labels_are"))


def _on_one_line(text: object) -> str:
    """Without orders to a terminal; what is written from right to left keeps numbers and arrows beside it in place."""
    plain = inert(" ".join(str(text).split())).replace(r"\u200e", _LEFT_TO_RIGHT)
    if plain.isascii() or not any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in plain):
        return plain
    return f"{_LEFT_TO_RIGHT}{plain.strip(_LEFT_TO_RIGHT)}{_LEFT_TO_RIGHT}"


def escape(text: object) -> str:
    """`text` for plotly: shown letter by letter, no markup, no formula, on one line."""
    return html.escape(_on_one_line(text), quote=False).replace("$", "&#36;")


def length(text: str) -> float:
    """The room that a text takes, in ordinary letters: those of Chinese, Japanese, Korean, and emoji, are wider."""
    return len(text) + 0.6 * sum(unicodedata.east_asian_width(letter) in ("F", "W") for letter in text)


def letters_in(width: int, text: str) -> int:
    """How many letters of a text there is room for instead of so many ordinary ones."""
    return int(width * len(text) / length(text)) if text else width


def shorten(text: object, width: int = 26) -> str:
    """`text` on one line, cut in the middle so that both of its ends can be read."""
    plain = _on_one_line(text)
    keep = letters_in(width, plain) - 1
    return plain if len(plain) <= keep + 1 else f"{plain[: keep - keep // 2]}…{plain[-(keep // 2) :]}"


def apart(names: Sequence[str], width: int = 26) -> list[str]:
    """Names on one line, shortened so that different ones stay different: what several share is cut, not what differs.

    Names that are alike after that are given whole, up to 60 letters.
    """
    plain = [shorten(name, 400) for name in names]
    found = [shorten(name, width) for name in plain]
    for mend in (lambda name, alike: _cut(name, alike, width), lambda name, alike: shorten(name, 60)):
        pairs, alike = list(zip(found, plain, strict=True)), defaultdict[str, set[str]](set)
        for cut, name in pairs:
            alike[cut].add(name)
        found = [mend(name, alike[cut]) if len(alike[cut]) > 1 else cut for cut, name in pairs]
    return found


def _cut(name: str, alike: set[str], width: int) -> str:
    """The beginning of a name, and it from where the first of those that are alike has another letter."""
    width = letters_in(width, name)
    start = next(i for i in range(len(name) + 1) if len({other[i : i + 1] for other in alike}) > 1)
    word = name.rfind(" ", 0, start) + 1
    start = word if start - word <= width // 3 else start
    head = max(width // 3, width - 1 - (len(name) - start))
    return f"{name[:head]}…{name[start:][: width - 1 - head]}"


def short_names(names: Sequence[str], width: int = 26) -> list[str]:
    """Names for plotly, see `apart`: shortened, then escaped."""
    return [escape(name) for name in apart(names, width)]


def folded(name: str, width: int) -> str:
    """A name in lines of so many ordinary letters at most."""
    return textwrap.fill(name, letters_in(width, name))


def class_name(names: Sequence[str], label: int) -> str:
    """Name of class `label`, or its number when the trace names no such class."""
    return names[label] if 0 <= label < len(names) else f"class {label}"


def thinned(names: Sequence[str], limit: int = MAX_LABELS, width: int = 26) -> dict[str, Any]:
    """Ticks for an axis of numbered classes: every name, or evenly spaced ones when they are too many.

    Positions are numbers, so that names which look like numbers or dates, or are equal, stay apart.
    """
    ticks = list(range(0, len(names), max(1, -(-len(names) // limit))))
    return {"tickvals": ticks, "ticktext": short_names([names[tick] for tick in ticks], width)}


#: Where the panels of a chart are, two in a row.
PANELS: list[dict[str, Any]] = [{"row": 1 + place // 2, "col": 1 + place % 2} for place in range(4)]
LEFT, RIGHT = PANELS[:2]


def new_chart(
    title: str, height: int = 420, legend_rows: int = 1, *, x: str = "", y: str = "", panels: Sequence[str] = (),
    **grid: Any,
) -> go.Figure:  # fmt: skip
    """A chart in the shared fonts, grid and margins; title, legend and panel titles stack from the top.

    `title` is ours, never data; `legend_rows` are those at 900 pixels that need room; `x` and `y` name the axes.
    `panels` are titles of several, side by side unless `grid`, more about them as for `make_subplots`, has rows.
    """
    empty = _empty_panels(json.dumps({"cols": len(panels), "subplot_titles": panels, **grid})) if panels else None
    figure = go.Figure(empty)  # which keeps where `row` and `col` are
    look, names = LOOKS["chart"], {"x": x or None, "y": y or None}
    axes = {key: figure.layout[key].to_plotly_json() for key in sorted(figure.layout) if key[1:5] == "axis"}
    for key in axes or ("xaxis", "yaxis"):
        axes[key] = axes.get(key, {}) | LOOKS["axis"]
        axes[key]["title"] = axes[key]["title"] | {"text": names[key[0]]}
    own = {
        "title": look["title"] | {"text": title}, "height": height, "legend": look["legend"] | {"y": 1 - 38 / height},
        "margin": look["margin"] | {"t": 44 + 22 * legend_rows + 28 * bool(panels)},
        "annotations": [note.to_plotly_json() | {"font": {"size": 14}} for note in figure.layout.annotations],
    }  # fmt: skip
    figure.layout = look | axes | own  # at once: update_layout and its kind take four to eight times as long
    return figure


@functools.cache
def _empty_panels(grid: str) -> go.Figure:
    """Panels of settings for `make_subplots`, as JSON: once for all charts, and no template for each to check again."""
    return make_subplots(**json.loads(grid)).update_layout(template=None)


def add_line(figure: go.Figure, x: Any, y: Any, name: str, look: Look | MethodStyle, hover: str, **more: Any) -> None:
    """A line, with markers if its look has one; `more` are a scatter trace's own settings, and `row` and `col`."""
    line = {"color": look.color, "dash": look.dash, "width": 2.5} | more.pop("line", {})
    marker = {"color": look.color, "symbol": look.symbol or None, "size": 8} | more.pop("marker", {})
    settings = {"mode": "lines+markers" if look.symbol else "lines", **more}
    said = f"{hover}<extra></extra>" if hover else None
    figure.add_scatter(x=x, y=y, name=name, line=line, marker=marker, hovertemplate=said, **settings)


def add_bars(figure: go.Figure, x: Any, y: Any, name: str | None, look: Look, hover: str = "", **more: Any) -> None:
    """Bars with white hatching if their look has it, the second channel beside color; `more` as for `add_line`."""
    hatching = {"shape": look.hatch, "bgcolor": look.color, "fgcolor": "white", "size": 7, "solidity": 0.25}
    marker = {"color": look.color, "pattern": hatching if look.hatch else {}} | more.pop("marker", {})
    said = f"{hover}<extra></extra>" if hover else None
    figure.add_bar(x=x, y=y, name=name, marker=marker, hovertemplate=said, **more)


#: What the label of a figure without data is.
_EMPTY = "empty"


def empty_chart(title: str, why: str, x: str = "", y: str = "", height: int = 300) -> go.Figure:
    """A labeled chart without data that says why (in our words, never data) it is empty."""
    figure = new_chart(title, height, x=x, y=y)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(showticklabels=False, range=[0, 1])
    text = {"text": "<br>".join(textwrap.wrap(why, 70)), "font": {"size": 15, "color": "#555"}, "showarrow": False}
    figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", **text)
    return figure.update_layout(meta=_EMPTY)


def empty_picture(title: str, why: str) -> Figure:
    """The same for image grids."""
    page = Page(180, title)
    page.figure.text(0.5, 0.4, textwrap.fill(why, 80), fontsize=11, color="#555", ha="center", va="center")
    page.figure.set_label(_EMPTY)
    return page.figure


def is_empty(figure: go.Figure | Figure) -> bool:
    """Whether a figure only says what is missing."""
    return (figure.get_label() if isinstance(figure, Figure) else figure.layout.meta) == _EMPTY


class Page:
    """A picture of 900 pixels' width under a title, addressed in pixels from its upper left corner."""

    def __init__(self, height: float, title: str, size: float = 12) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100)
        self.write(8, 10, title, size, weight="bold")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes in a rectangle."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def write(self, left: float, top: float, text: str, size: float = FONT, **more: Any) -> None:
        """Text, letter by letter, with its upper left corner there."""
        place = left / WIDTH, 1 - top / self.height
        self.figure.text(*place, text, **{"fontsize": size, "va": "top", "parse_math": False, **more})


def fitting(text: str, room: float, weight: str = "normal", most: float = 9.5) -> float:
    """The size in points at which a text of a picture fits into so many pixels, from 6 to `most`."""
    return min(most, max(6.0, room / (0.86 + 0.1 * (weight == "bold")) / max(length(text), 1)))


def bare(axes: Axes) -> Axes:
    """Take ticks and frame off an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def color_table(name: str = SALIENCY_COLORS) -> bytes:
    """256 RGB triples of a color map."""
    return (colormaps[name](np.arange(256))[:, :3] * 255 + 0.5).astype(np.uint8).tobytes()


def percent(fraction: np.ndarray | float) -> np.ndarray:
    """Fractions in [0, 1] as percent, for axes."""
    return 100 * np.asarray(fraction, dtype=float)


P = ParamSpec("P")
Info = TypeVar("Info")
Drawn = TypeVar("Drawn")


def check_traces(what: str, traces: Iterable[object]) -> None:
    """Refuse what is no trace, such as the name of a run folder, with a ValueError."""
    if strange := [one_line(repr(trace)) for trace in traces if not isinstance(trace, Trace)]:
        raise ValueError(f"{what} needs traces, got {strange[0]}; Trace.load reads that of a run folder")


def figure_of(info: Callable[P, Info], draw: Callable[[Info], Drawn]) -> Callable[P, Drawn]:
    """The figure `draw(info(trace, ...))`: it is called as `info` is, and its help says what both do."""

    @functools.wraps(info)
    def figure(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        check_traces("a figure", args[0] if args and isinstance(args[0], list | tuple) else args[:1])
        return draw(info(*args, **kwargs))

    figure.__name__ = figure.__qualname__ = info.__name__.removesuffix("_info")
    figure.__doc__ = f"{inspect.getdoc(draw)}\n\n{inspect.getdoc(info)}"
    returned = inspect.signature(draw).return_annotation
    figure.__dict__["__signature__"] = inspect.signature(info).replace(return_annotation=returned)
    return figure
