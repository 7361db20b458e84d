"""Small charts as data: one description that the browser draws as SVG and the static picture with matplotlib."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from clipviz.figures.style import DASHES, MARKERS, Look, length, shorten


class Series(NamedTuple):
    """One line (dash "none": markers alone; symbol "": none), or one color of stacked bars; None and NaN are gaps."""

    name: str
    look: Look
    x: Sequence[float] | np.ndarray
    y: Sequence[float | None] | np.ndarray


@dataclass(frozen=True)
class Chart:
    """A chart with its labels; `series` are "lines" or stacked "bars", `y_range` None fits the data.

    `ticks` are (value, text) pairs of the x axis, empty for numbers; as `names` they are set in rows, to have room,
    with half a step left and right. `marks` are dotted vertical lines with their text, `empty` what to say instead.
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

    def to_json(self) -> dict[str, Any]:
        """For the browser: plain lists, four digits, gaps as None."""
        series = [
            {"name": shorten(name, 44), **look._asdict(), "x": short(x, 7), "y": short(y)}
            for name, look, x, y in self.series
        ]
        ticks, marks = ([[float(value), text] for value, text in pairs] for pairs in (self.ticks, self.marks))
        return {**vars(self), "series": series, "ticks": ticks, "marks": marks}

    def draw(self, axes: Axes) -> None:
        """The same with matplotlib."""
        axes.set_title(self.title, fontsize=9, loc="left", weight="bold", wrap=True)
        label_axes(axes, self.x_label, self.y_label)
        if not any(len(series.x) for series in self.series):
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, self.empty, ha="center", va="center", fontsize=8.5, color="#555", wrap=True)
            return
        (self._draw_bars if self.kind == "bars" else self._draw_lines)(axes)
        for i, (value, text) in enumerate(self.marks):  # one below the other, as in the browser
            axes.axvline(value, color="black", linestyle=":", linewidth=1)
            side, shift = ("right", -3) if value > sum(axes.get_xlim()) / 2 else ("left", 3)  # where there is more room
            axes.annotate(text, (value, 1), xycoords=("data", "axes fraction"), fontsize=7.5, ha=side, va="top",
                          xytext=(shift, -9 * (i % 4)), textcoords="offset points", parse_math=False,
                          bbox={"facecolor": "white", "linewidth": 0, "pad": 0.3})  # fmt: skip
        if self.ticks:
            every = 1 if self.names else -(-len(self.ticks) // 9)  # more would touch; the last always, as in common.js
            ticks = [*self.ticks[: len(self.ticks) - every : every], self.ticks[-1]]
            texts = ["\n" * (i % 3 if self.names else 0) + text for i, (_, text) in enumerate(ticks)]
            axes.set_xticks([value for value, _ in ticks], texts)
            for label in axes.get_xticklabels():
                label.set_parse_math(False)
        if self.names:
            axes.set_xlim(-0.5, len(self.ticks) - 0.5)
        if self.y_range:
            axes.set_ylim(*self.y_range)
        if self.marks:  # their texts stand above the lines
            share = 0.14 * min(len(self.marks), 4) * axes.figure.dpi / axes.bbox.height
            low, high = axes.get_ylim()
            axes.set_ylim(low, low + (high - low) / (1 - share))
        axes.locator_params(axis="y", nbins=5)
        legend_below(axes, 0.72 if self.names else 0.46)

    def _draw_lines(self, axes: Axes) -> None:
        for name, look, x, y in self.series:
            marker = MARKERS[look.symbol] or ("o" if len(y) == 1 else "")
            axes.plot(x, np.asarray(y, float), color=look.color, linestyle=DASHES[look.dash], linewidth=1.6,
                      marker=marker, markersize=4, label=shorten(name, 44))  # fmt: skip

    def _draw_bars(self, axes: Axes) -> None:
        below = np.zeros(len(self.series[0].x))
        for name, look, x, y in self.series:
            height = np.nan_to_num(np.asarray(y, float))
            shown = np.where(height > 0, height, np.nan)  # a bar of no height would leave a line
            axes.bar(x, shown, bottom=below, width=0.75, color=look.color, hatch=look.hatch * 2 or None,
                     edgecolor="white", linewidth=0, label=shorten(name, 44))  # fmt: skip
            below += height


def label_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels of small axes, without a frame above and on the right."""
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, inches: float) -> None:
    """The legend so many inches under the axes, in as many columns as its names leave room for in the final figure."""
    box, figure = axes.get_position(), axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    _, names = axes.get_legend_handles_labels()
    column = 0.45 + 0.056 * max(map(length, names), default=0)  # inches at 7 points
    columns = max(1, min(len(names), int(box.width * width / column)))
    legend = axes.legend(
        fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -inches / (box.height * height)),
        ncols=columns, handlelength=2.4, borderaxespad=0, borderpad=0, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_parse_math(False)


def short(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Numbers with few digits, so that messages stay small; not finite becomes None (JSON has no NaN)."""
    return [float(f"{x:.{digits}g}") if x is not None and math.isfinite(x) else None for x in values]
