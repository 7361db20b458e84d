"""Small charts as data: one description that the browser draws as SVG and the static picture with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from clipviz.figures.style import DASHES, MARKERS, shorten


@dataclass(frozen=True)
class Series:
    r"""One line, or one color of a stack of bars.

    Attributes:
        name: for the legend; plain text.
        color: "#rrggbb".
        x: (n,) numbers.
        y: (n,) numbers; None and NaN are gaps.
        dash: of `clipviz.figures.style.DASHES`; "none" for markers alone.
        symbol: of `MARKERS` there: "circle", "square", "diamond", "triangle-up", "x" or "" for none.
        hatch: of bars: "", "/", "\\", "|", "x" or ".".
    """

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float | None]
    dash: str = "solid"
    symbol: str = ""
    hatch: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart with its labels.

    Attributes:
        title: headline.
        x_label: unit included.
        y_label: unit included.
        series: what to draw.
        kind: "lines" or "bars" (stacked).
        y_range: (low, high); None fits the data.
        ticks: (value, text) pairs of the x axis; empty for numbers.
        marks: x positions of dotted vertical lines, with their text.
        names: whether `ticks` are names, which are set in two rows to have room, with half a step left and right.
        empty: what to say while there is nothing to draw.
        height: in pixels, in the browser.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    kind: str = "lines"
    y_range: tuple[float, float] | None = None
    ticks: Sequence[tuple[float, str]] = ()
    marks: Sequence[tuple[float, str]] = ()
    names: bool = False
    empty: str = "nothing yet"
    height: int = 170

    def to_json(self) -> dict[str, Any]:
        """For the browser: plain lists, four digits, gaps as None."""
        return {
            "title": self.title,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "kind": self.kind,
            "yRange": list(self.y_range) if self.y_range else None,
            "ticks": [[float(value), text] for value, text in self.ticks],
            "marks": [[float(value), text] for value, text in self.marks],
            "names": self.names,
            "empty": self.empty,
            "height": self.height,
            "series": [
                {
                    "name": shorten(series.name, 44),
                    "color": series.color,
                    "dash": series.dash,
                    "symbol": series.symbol,
                    "hatch": series.hatch,
                    "x": short(series.x, 7),
                    "y": short(series.y),
                }
                for series in self.series
            ],
        }

    def draw(self, axes: Axes) -> None:
        """The same with matplotlib."""
        axes.set_title(self.title, fontsize=9, loc="left", weight="bold")
        axes.set_xlabel(self.x_label, fontsize=8)
        axes.set_ylabel(self.y_label, fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
        if not any(len(series.x) for series in self.series):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.text(0.5, 0.5, self.empty, ha="center", va="center", fontsize=8.5, color="#555", wrap=True)
            return
        draw_series = self._draw_bars if self.kind == "bars" else self._draw_lines
        draw_series(axes)
        for value, text in self.marks:
            axes.axvline(value, color="black", linestyle=":", linewidth=1)
            axes.annotate(text, (value, 1), xycoords=("data", "axes fraction"), fontsize=7.5, ha="left", va="top",
                          xytext=(3, 0), textcoords="offset points", parse_math=False)  # fmt: skip
        if self.ticks:
            texts = [("\n" if self.names and i % 2 else "") + text for i, (_, text) in enumerate(self.ticks)]
            axes.set_xticks([value for value, _ in self.ticks], texts)
            for label in axes.get_xticklabels():
                label.set_parse_math(False)
        if self.names:
            axes.set_xlim(-0.5, len(self.ticks) - 0.5)
        if self.y_range:
            axes.set_ylim(*self.y_range)
        legend_below(axes, 0.6 if self.names else 0.46)

    def _draw_lines(self, axes: Axes) -> None:
        for series in self.series:
            y = [math.nan if value is None else value for value in series.y]
            marker = MARKERS[series.symbol] or ("o" if len(y) == 1 else "")
            axes.plot(series.x, y, color=series.color, linestyle=DASHES[series.dash], marker=marker, markersize=4,
                      linewidth=1.6, label=shorten(series.name, 44))  # fmt: skip

    def _draw_bars(self, axes: Axes) -> None:
        below = np.zeros(len(self.series[0].x))
        for series in self.series:
            height = np.nan_to_num(np.asarray(series.y, dtype=float))
            axes.bar(series.x, height, bottom=below, width=0.75, color=series.color, hatch=series.hatch * 2 or None,
                     edgecolor="white", linewidth=0, label=shorten(series.name, 44))  # fmt: skip
            below = below + height


def legend_below(axes: Axes, inches: float) -> None:
    """The legend under the axes, where it covers nothing, in as many columns as its names leave room for.

    Args:
        axes: whose figure has its final size.
        inches: from the lower edge of the axes to the legend.
    """
    box, figure = axes.get_position(), axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    _, names = axes.get_legend_handles_labels()
    column = 0.45 + 0.056 * max((len(name) for name in names), default=0)  # inches at 7 points
    columns = max(1, min(len(names), int(box.width * width / column)))
    legend = axes.legend(
        fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -inches / (box.height * height)),
        ncols=columns, handlelength=2.4, borderaxespad=0, borderpad=0, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_parse_math(False)


def short(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Numbers with few digits, so that messages stay small; not finite becomes None (JSON has no NaN)."""
    return [
        None if value is None or not math.isfinite(value) else float(f"{float(value):.{digits}g}") for value in values
    ]
