"""A plotly figure drawn again by matplotlib, at the same size, fonts and colors: a picture without a browser.

The drawing follows the figure's traces and layout, so every chart has one description, not two. It knows
what the figures of this package use: scatter, bar and heatmap traces, subplots, annotations, straight lines, one
horizontal legend. Anything else is refused by name, never left out silently.
"""

import html
import re
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MultipleLocator

from clipviz.figures.fonts import lettered
from clipviz.figures.style import DASHES, MARKERS, WIDTH, length

_DPI = 100
_POINT = 72 / _DPI  # points in a pixel
_HATCHES = {"/": "//", "\\": "\\\\", "|": "||", "x": "xx", ".": ".."}


def plain(text: str | None) -> str:
    """Plotly's markup as the letters it shows."""
    return html.unescape(re.sub(r"<(?!br)[^>]*>", "", (text or "")).replace("<br>", "\n"))


def redraw(figure: go.Figure) -> Figure:
    """Draw a plotly figure of scatter, bar and heatmap traces with matplotlib; others are a ValueError."""
    if kinds := {trace.type for trace in figure.data} - {"scatter", "scattergl", "bar", "heatmap"}:
        raise ValueError(
            f"a static picture can hold scatter, bar and heatmap traces, got {', '.join(sorted(kinds))}; "
            "show this figure in a live notebook or in the report"
        )
    return _Redrawing(figure).figure


class _Redrawing:
    """One translation: axes by (x, y) name, then traces, lines, texts and legend."""

    def __init__(self, source: go.Figure) -> None:
        self.source, self.layout = source, source.layout
        self.size = (self.layout.width or WIDTH, self.layout.height or 450)
        margin = self.layout.margin
        self.margin = [margin.l or 64, margin.r or 24, margin.t or 60, margin.b or 56]
        self.figure = Figure(figsize=(self.size[0] / _DPI, self.size[1] / _DPI), dpi=_DPI)
        self.axes: dict[tuple[str, str], Axes] = {}
        self.bars: list[tuple[Axes, Axes, Any]] = []
        self._stacked: dict[tuple[str, str], dict[float, float]] = {}
        self._last: dict[tuple[str, str], np.ndarray] = {}
        for trace in source.data:
            if trace.visible is None or trace.visible is True:
                name, axes = self._at(trace)
                {"bar": self._bar, "heatmap": self._heatmap}.get(trace.type, self._scatter)(trace, name, axes)
        for name, axes in self.axes.items():
            self._axis(axes, name, 0)
            self._axis(axes, name, 1)
        self._legend()
        self._place()
        with lettered(self.figure):
            self._make_room()
        self._lines()
        self._texts()
        for text in self.figure.findobj(Text):
            text.set_parse_math(False)  # names of others are letters, whatever is in them

    def _axis_layout(self, name: str) -> Any:
        return self.layout[f"{name[0]}axis{name[1:]}"]

    def _with(self, name: str) -> Axes:  # "x2" or "y2 domain"
        return next(axes for names, axes in self.axes.items() if name.split()[0] in names)

    def _at(self, trace: Any) -> tuple[tuple[str, str], Axes]:
        name = (trace.xaxis or "x", trace.yaxis or "y")
        if name not in self.axes:
            others = [self._axis_layout(axis).matches for axis in name]
            known = [other for other in others if any(other in pair for pair in self.axes)]  # an empty panel has none
            shared: dict[str, Any] = {f"share{other[0]}": self._with(other) for other in known}
            axes = self.figure.add_axes((0.1, 0.1, 0.8, 0.8), label=str(name), **shared)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            self.axes[name] = axes
        return name, self.axes[name]

    def _axis(self, axes: Axes, names: tuple[str, str], which: int) -> None:
        """Ticks, grid, range and title of the x axis (0) or the y axis (1)."""
        layout = self._axis_layout(names[which])
        axis = (axes.xaxis, axes.yaxis)[which]
        side: Literal["x", "y"] = "y" if which else "x"
        if layout.visible is False:
            axes.set_axis_off()
            self._range(axes, layout, which)
            return
        if layout.tickvals is not None:
            axis.set_ticks(*_ticks(layout))
        elif layout.dtick:
            axis.set_major_locator(MultipleLocator(layout.dtick))
        axes.tick_params(side, labelsize=(self.layout.font.size or 12) * _POINT, length=4 * _POINT, color="#555555")
        if layout.showticklabels is False:
            axes.tick_params(side, length=0, **{("labelbottom", "labelleft")[which]: False})
        if layout.tickangle:
            for label in axis.get_ticklabels():
                label.set(rotation=-layout.tickangle, ha="right", rotation_mode="anchor")
        if layout.showgrid is not False and not axes.images:
            axis.grid(color="#e4e4e4", linewidth=0.7)
        if layout.title.text:
            axis.set_label_text(plain(layout.title.text), fontsize=(layout.title.font.size or 13) * _POINT)
        self._range(axes, layout, which)

    @staticmethod
    def _range(axes: Axes, layout: Any, which: int) -> None:
        get, put = ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim))[which]
        if layout.range is not None:
            put(*layout.range)
        elif layout.rangemode == "tozero":
            low, high = min(0.0, get()[0]), get()[1]
            put(low, high + 0.04 * (high - low))  # with room for a marker
        if layout.autorange == "reversed" and get()[0] < get()[1]:
            put(*reversed(get()))

    def _place(self) -> None:
        """Every pair of axes into its domain of the plot area, and color bars where the layout wants them."""
        for names, axes in self.axes.items():
            (left, right), (bottom, top) = (self._axis_layout(name).domain or (0, 1) for name in names)
            axes.set_position((*self._paper(left, bottom), *self._extent(right - left, top - bottom)))
        for axes, bar, layout in self.bars:
            self._place_bar(axes, bar, layout)

    def _paper(self, x: float, y: float) -> tuple[float, float]:
        """Paper coordinates (0..1 of the plot area) -> fractions of the whole figure."""
        left, right, top, bottom = self.margin
        width, height = self.size
        return (left + x * (width - left - right)) / width, (bottom + y * (height - top - bottom)) / height

    def _extent(self, width: float, height: float) -> tuple[float, float]:
        (x0, y0), (x1, y1) = self._paper(0, 0), self._paper(width, height)
        return x1 - x0, y1 - y0

    def _make_room(self) -> None:
        """Widen the margins by what tick labels and color bars stick out, as plotly's automargin does."""
        for _ in range(2):
            boxes = [box for axes in self.figure.axes if (box := axes.get_tightbbox()) is not None]
            left, bottom = (min((getattr(box, side) for box in boxes), default=0.0) for side in ("x0", "y0"))
            out = (-left, max((box.x1 for box in boxes), default=0.0) - self.size[0], 0.0, -bottom)
            self.margin = [margin + max(0.0, more + 8) for margin, more in zip(self.margin, out, strict=True)]
            self._place()

    def _scatter(self, trace: Any, name: tuple[str, str], axes: Axes) -> None:
        x, y = (np.array(() if values is None else values, dtype=float) for values in (trace.x, trace.y))
        mode, look = _mode(trace), _line_look(trace)
        if trace.fill == "toself":
            axes.fill(x, y, color=color(trace.fillcolor), alpha=trace.opacity, linewidth=0)
        elif trace.fill in ("tozeroy", "tonexty"):
            below = self._last.get(name, 0.0) if trace.fill == "tonexty" else 0.0
            axes.fill_between(x, below, y, color=color(trace.fillcolor), linewidth=0)
        self._last[name] = y
        if "lines" in mode and trace.line.width != 0:
            style = "steps-mid" if trace.line.shape == "hvh" else "default"
            axes.plot(x, y, **look, drawstyle=style, alpha=trace.opacity)
        if trace.error_y.array is not None and trace.error_y.visible is not False:
            below = trace.error_y.arrayminus if trace.error_y.arrayminus is not None else trace.error_y.array
            axes.errorbar(x, y, (below, trace.error_y.array), fmt="none", ecolor=look["color"], capsize=3)
        if "markers" in mode:
            axes.scatter(x, y, **_marker_look(trace), zorder=3, alpha=trace.opacity)
        if "text" in mode:
            for place in zip(x, y, trace.text, strict=True):
                size = (trace.textfont.size or 12) * _POINT
                axes.text(*place[:2], plain(place[2]), ha="center", va="center", fontsize=size)

    def _bar(self, trace: Any, name: tuple[str, str], axes: Axes) -> None:
        flat = trace.orientation == "h"
        place, length = (np.array(side, dtype=float) for side in ((trace.y, trace.x) if flat else (trace.x, trace.y)))
        length = np.nan_to_num(length)
        below = self._stacked.setdefault(name, {}) if self.layout.barmode == "stack" else {}
        start = np.array([below.get(at, 0.0) for at in place])
        below.update(zip(place, start + length, strict=True))
        width = 0.8 if trace.width is None else trace.width
        drawn = (axes.barh if flat else axes.bar)(place, length, width, start, **_bar_look(trace))
        if trace.text is not None:
            axes.bar_label(drawn, [plain(str(text)) for text in trace.text], padding=3, fontsize=12 * _POINT)

    def _heatmap(self, trace: Any, name: tuple[str, str], axes: Axes) -> None:
        z = np.array(trace.z, dtype=float)
        scale = LinearSegmentedColormap.from_list("scale", [(at, color(shade)) for at, shade in trace.colorscale])
        drawn = axes.imshow(z, scale, Normalize(trace.zmin, trace.zmax), aspect="auto", interpolation="nearest",
                            origin="lower")  # fmt: skip
        if trace.showscale is not False:
            bar = self.figure.add_axes((0, 0, 0.1, 0.1), label=f"bar {name}")
            side: Any = "horizontal" if trace.colorbar.orientation == "h" else "vertical"
            self.figure.colorbar(drawn, cax=bar, orientation=side)
            self.bars.append((axes, bar, trace.colorbar))

    def _place_bar(self, axes: Axes, cax: Axes, layout: Any) -> None:
        """A color bar: right of the plot area, or (horizontal) below the labels of its own axes."""
        flat, length, thick = layout.orientation == "h", layout.len or 1.0, layout.thickness or 16
        if flat:
            x, width = self._paper(layout.x or 0.0, 0)[0], self._extent(length, 0)[0]
            x -= {"right": width, "center": width / 2}.get(layout.xanchor or "center", 0.0)
            below = axes.get_tightbbox()
            y = (below.y0 - 14 - thick) / self.size[1] if below is not None else 0.0
            cax.set_position((x, y, width, thick / self.size[1]))
        else:
            (x, y), height = self._paper(1.0, 0.5 if layout.y is None else layout.y), self._extent(0, length)[1]
            y -= {"top": height, "middle": height / 2}.get(layout.yanchor or "middle", 0.0)
            cax.set_position((x + 14 / self.size[0], y, thick / self.size[0], height))
        cax.tick_params(labelsize=11 * _POINT)
        if layout.tickvals is not None:
            (cax.xaxis if flat else cax.yaxis).set_ticks(*_ticks(layout))
        if layout.title.text:
            cax.set_title(plain(layout.title.text), fontsize=11 * _POINT, loc="left")

    def _lines(self) -> None:
        for shape in self.layout.shapes:
            if shape.type != "line":
                continue
            look = {"color": color(shape.line.color), "linewidth": (shape.line.width or 2) * _POINT, "zorder": 1.5,
                    "linestyle": DASHES.get(shape.line.dash, "-")}  # fmt: skip
            if "domain" in (shape.yref or ""):
                self._with(shape.xref or "x").axvline(shape.x0, **look)
            else:
                self._with(shape.yref or "y").axhline(shape.y0, **look)

    def _texts(self) -> None:
        width, height = self.size
        title = self.layout.title
        if title.text:
            size = (title.font.size or 16) * _POINT
            self.figure.text(10 / width, 1 - 12 / height, plain(title.text), va="top", fontsize=size, weight="bold")
        for note in self.layout.annotations:
            x, y = self._where(note)
            self.figure.text(
                x + (note.xshift or 0) / width, y + (note.yshift or 0) / height, plain(note.text),
                ha=note.xanchor if note.xanchor in ("left", "right") else "center",
                va=note.yanchor if note.yanchor in ("top", "bottom") else "center",
                fontsize=(note.font.size or 13) * _POINT, color=color(note.font.color or "#222222"),
                bbox={"facecolor": color(note.bgcolor), "linewidth": 0, "pad": 1} if note.bgcolor else None,
            )  # fmt: skip

    def _where(self, note: Any) -> tuple[float, float]:
        place = []
        for which, ref, value in ((0, note.xref or "x", note.x), (1, note.yref or "y", note.y)):
            point: Any = self._paper(value, value)
            if ref != "paper":
                axes = self._with(ref)
                shown = (axes.transAxes if "domain" in ref else axes.transData).transform((value, value))
                point = self.figure.transFigure.inverted().transform(shown)
            place.append(float(point[which]))
        return place[0], place[1]

    def _legend(self) -> None:
        named = [trace for trace in self.source.data if trace.name and trace.type != "heatmap"]
        shown = [trace for trace in named if trace.showlegend is not False]
        if self.layout.showlegend is False or not shown:
            return
        labels = [plain(trace.name) for trace in shown]
        widest = 7.4 * max(map(length, labels)) + 58  # pixels of an entry in this font
        columns = max(1, min(len(shown), int((self.size[0] - self.margin[0]) / widest)))
        order = [i for column in range(columns) for i in range(column, len(shown), columns)]  # plotly fills rows
        self.figure.legend(
            [_key(shown[i]) for i in order], [labels[i] for i in order], loc="upper left", ncols=columns, frameon=False,
            bbox_to_anchor=(self.margin[0] / self.size[0], 1 - 34 / self.size[1]), fontsize=12 * _POINT, borderpad=0,
            columnspacing=1.2, handlelength=2.6,
        )  # fmt: skip


def _ticks(layout: Any) -> tuple[list[float], list[str]]:
    """Places and labels of the ticks of an axis or a color bar that has its own."""
    labels = layout.ticktext if layout.ticktext is not None else [f"{value:g}" for value in layout.tickvals]
    return list(layout.tickvals), [plain(str(label)) for label in labels]


def color(value: Any) -> Any:
    """A color of plotly's as one of matplotlib's."""
    found = re.fullmatch(r"rgba?\(([^)]*)\)", value) if isinstance(value, str) else None
    if not found:
        return value or "#444444"
    red, green, blue, *alpha = (float(number) for number in found.group(1).split(","))
    return (red / 255, green / 255, blue / 255, *(alpha or [1.0]))


def _mode(trace: Any) -> str:
    return trace.mode or ("lines+markers" if len(trace.x) < 20 else "lines")


def _line_look(trace: Any) -> dict[str, Any]:
    shade = trace.line.color or trace.marker.color
    return {
        "color": color(shade if isinstance(shade, str) else None), "linewidth": (trace.line.width or 2) * _POINT,
        "linestyle": DASHES.get(trace.line.dash, "-"),
    }  # fmt: skip


def _marker_look(trace: Any) -> dict[str, Any]:
    marker = trace.marker
    symbol = (marker.symbol if isinstance(marker.symbol, str) else None) or "circle"
    shade = marker.color if marker.color is not None else trace.line.color
    colors = [color(each) for each in shade] if isinstance(shade, list | tuple) else color(shade)
    look = {"facecolors": "none" if symbol.endswith("-open") else colors, "edgecolors": colors, "linewidths": 1.2}
    size = (marker.size if isinstance(marker.size, int | float) else 6) * _POINT
    return {"marker": MARKERS.get(symbol.removesuffix("-open"), "o"), "s": size**2, **look}


def _bar_look(trace: Any) -> dict[str, Any]:
    hatch = _HATCHES.get(trace.marker.pattern.shape or "")
    return {"color": color(trace.marker.color), "edgecolor": "white", "linewidth": 0.5, "hatch": hatch}


def _key(trace: Any) -> Any:
    if trace.type == "bar":
        look = _bar_look(trace)
        return Patch(facecolor=look.pop("color"), **look)
    if trace.fill == "toself":
        return Patch(facecolor=color(trace.fillcolor), alpha=trace.opacity)
    mode, look = _mode(trace), _line_look(trace)
    if "markers" not in mode:
        return Line2D([], [], **look)
    marker = _marker_look(trace)
    drawn = {"marker": marker["marker"], "markersize": min(marker["s"] ** 0.5, 8.0)}
    drawn |= {"markeredgecolor": marker["edgecolors"], "markerfacecolor": marker["facecolors"]}
    if "lines" not in mode:
        look["linestyle"] = "none"
    return Line2D([], [], **look, **drawn)
