"""CompareExplorer: two runs on the same images: which is right, where each looked, and each label over the epochs."""

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from clipviz.figures.compare import RIGHT_CELLS, SAME_CELLS, comparison_info, timeline_info
from clipviz.figures.moments import epoch_name, when
from clipviz.figures.sources import decision_name, kinds_of_decision
from clipviz.figures.style import SKY, Look, apart, class_name, decider_look, escape, shorten
from clipviz.trace import Trace
from clipviz.widgets.album import Album
from clipviz.widgets.canvases import COLUMNS, ChartCanvas, Picture
from clipviz.widgets.charts import Chart, Series
from clipviz.widgets.controls import dropdown, show_if, wrapped
from clipviz.widgets.explorer import ImageExplorer
from clipviz.widgets.view import ViewState, follow

_ALL = "all"


class CompareExplorer(ImageExplorer):
    """Two runs side by side: a table of which is right, whose cells list their images, each with maps and timelines.

    Args:
        runs: two of: run folders, traces, runs that `clipviz.open` opened, `Run`s. They were measured on the same
            images, with true labels or without.
        state: shared with other views.
    """

    def __init__(self, runs: Sequence[Any], *, state: ViewState | None = None) -> None:
        if isinstance(runs, str) or len(runs) != 2:
            got = repr(runs) if isinstance(runs, str) else len(runs)
            raise ValueError(f"two runs are compared, got {got}; give two folders, traces or opened runs")
        traces, models = zip(*map(_opened, runs), strict=True)
        self.info = comparison_info(*traces)
        self._compared = lru_cache(4)(partial(comparison_info, *traces))
        super().__init__(traces, models, state)
        self.inspector.always = list(self.info.names)
        show_if(False, self.inspector.beside)
        self.timelines = [ChartCanvas(layout={"flex": "1 1 350px", "min_width": "0"}) for _ in runs]
        self._charts: list[Chart] = []
        lists = wrapped(ipywidgets.VBox(self._make_table(), layout={"flex": "0 1 400px"}), self.gallery)
        self.widget = ipywidgets.VBox([lists, self.finder.widget, self.inspector.widget, wrapped(*self.timelines)])
        follow(self.state, self._draw_timelines, "selected")
        self._begin()
        self.inspector.show()
        self._draw_timelines()

    def __repr__(self) -> str:
        return f"CompareExplorer({self.inspector.named})"

    def _make_table(self) -> list[ipywidgets.Widget]:
        """Two by two: a right or wrong, b right or wrong; without labels whether they agree; and all images."""
        splits = {"evaluation images": "eval", "training images": "train"}
        known = {name: cells for name, split in splits.items() if (cells := self._cells(split))}
        self.split = dropdown("of the", [(name, splits[name]) for name in known], self.refill)
        shown = {cell for cells in known.values() for cell in cells}
        self.cells = {cell: ipywidgets.ToggleButton(cell == _ALL, layout={"width": "auto"})
                      for cell in (_ALL, *RIGHT_CELLS, *SAME_CELLS) if cell in {_ALL, *shown}}  # fmt: skip
        self._cell = _ALL
        for cell, toggle in self.cells.items():
            toggle.observe(lambda change, cell=cell: self._pressed(cell, change["new"]), "value")
        rows = [("", _ALL, "")]
        if RIGHT_CELLS[0] in shown:
            rows += [("", "b right", "b wrong"), ("a right", *RIGHT_CELLS[:2]), ("a wrong", *RIGHT_CELLS[2:])]
        rows += [("a and b", *SAME_CELLS)] * (SAME_CELLS[0] in shown)
        parts = [self.cells.get(text) or ipywidgets.Label(text) for row in rows for text in row]
        names = [f"{letter}: {shorten(name, 60)}" for letter, name in zip("ab", self.info.names, strict=True)]
        heading = ipywidgets.HTML("<br>".join(map(escape, names)))
        table = ipywidgets.GridBox(parts, layout={"grid_template_columns": "70px 150px 150px"})
        return [heading, self.split, table, wrapped(*self._pages)]

    def _cells(self, split: str) -> list[str]:
        """The cells for images of a split; none where the runs say nothing of the same ones."""
        try:
            return list(self._compared(self.inspector.epoch.max, split).cells)
        except ValueError:
            return []

    def _pressed(self, cell: str, is_on: bool) -> None:
        """One cell at a time; what is let go of gives way to all images."""
        if is_on or cell == self._cell:
            self._cell = cell if is_on else _ALL
            for other, toggle in self.cells.items():
                toggle.value = other == self._cell
            self.refill()
            self.choose_listed()

    def _listed(self) -> list[str]:
        info = self._compared(self.state.epoch, self.split.value)
        rows = info.table if self._cell == _ALL else info.table[info.table["cell"] == self._cell]
        ids = [f"{info.split}/{index}" for index in rows.index]
        return sorted(ids, key=lambda image: not self.inspector.album.has(image))  # what can be seen comes first

    def _publish(self, ids: list[str]) -> None:
        self.info, epoch = self._compared(self.state.epoch, self.split.value), when(self.state.epoch)
        counts = {_ALL: len(self.info.table), **self.info.cells}
        for cell, toggle in self.cells.items():
            toggle.description = f"{cell.removesuffix(' right')}: {counts.get(cell, 0)}"
            toggle.tooltip = f"{self.info.said(cell)}, {epoch}: list these images"
        super()._publish(ids)

    def _draw_timelines(self) -> None:
        image = self.state.selected[0] if self.state.selected else ""
        self._charts = [timeline_chart(label, album, image) for label, album in self.inspector.albums.items()]
        for canvas, chart in zip(self.timelines, self._charts, strict=True):
            canvas.spec = chart.to_json()

    def more_columns(self) -> dict[str, pd.Series]:
        """The prediction of the second run, and the cell."""
        table, names = self.info.table, self.inspector.album.trace.class_names
        table = table.set_axis([f"{self.info.split}/{index}" for index in table.index])
        called = table["b"].map(lambda label: class_name(names, label))
        confidence, run = table["confidence_b"], self.info.names[1]
        return {f"{run}: predicted class": called, f"{run}: confidence": confidence, "cell": table["cell"]}

    @property
    def _what(self) -> str:
        return self.info.said(self._cell)

    def draw(self) -> Figure:
        """The numbers, the first images, the chosen one by both runs, and its timelines."""
        shown, rows = self.shown[:COLUMNS], self.inspector.rows
        height = 3.4 + Picture.inches(shown or "-", rows or "-")
        picture = Picture(height, ", ".join(toggle.description for toggle in self.cells.values()))
        picture.thumbnails([self.inspector.album.pixels(image) for image in shown])
        self.inspector.draw(picture)
        grid = {"left": 0.075, "right": 0.955, "top": 2.35 / height, "bottom": 0.95 / height, "wspace": 0.2}
        for axes, chart in zip(picture.figure.subplots(1, 2, gridspec_kw=grid), self._charts, strict=True):
            chart.draw(axes)
        return picture.figure


def _opened(run: Any) -> tuple[Trace, Any]:
    if isinstance(run, str | os.PathLike):
        from clipviz.training.opened import open as open_run  # with the model, where that can be had

        run = open_run(run)
    return (run, None) if isinstance(run, Trace) else (run.trace, run)


def timeline_chart(name: str, album: Album, image: str) -> Chart:
    """Confidence over the epochs, in the color of the deciding source; a mark where the label changed."""
    title, empty = shorten(name, 60), "Choose an image that this run has labeled."
    info = timeline_info(album.trace, image)
    kinds, bars = kinds_of_decision(info.sources), [*zip(info.confidence, info.deciders, strict=True)]
    looks = {kind: (decision_name(kind, info.sources), decider_look(kind, info.sources)) for kind in kinds}
    looks[""] = ("no decision recorded" if any(info.deciders) else "confidence", Look(SKY, "", "solid"))
    series = [
        Series(text, look, info.epochs, [confidence * (decider == kind) for confidence, decider in bars])
        for kind, (text, look) in looks.items() if kind in info.deciders
    ]  # fmt: skip
    names, tick = apart(info.labels, 24), {True: "✓ ", False: "✗ ", None: ""}
    marks = [(info.epochs[i] - 0.5, f"{tick[info.is_right[i]]}{names[i]}") for i in info.turns()]
    ticks = [(epoch, info.part.tick(epoch) if epoch >= 0 else epoch_name(epoch)) for epoch in info.epochs]
    return Chart(title, "epoch", "confidence", series, "bars", (0, 1.3), ticks, marks, empty=empty)
