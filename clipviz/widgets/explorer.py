"""SaliencyExplorer: from a filter or a confusion to images, from an image to what the model looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from clipviz.figures import confusion_info
from clipviz.figures.moments import when
from clipviz.figures.style import bare, shorten
from clipviz.trace import Trace
from clipviz.widgets.canvases import COLUMNS, GalleryCanvas, MatrixCanvas, draw_thumbnails
from clipviz.widgets.images import laid_over, thumbnail
from clipviz.widgets.inspector import Inspector, Row
from clipviz.widgets.state import ViewState, follow
from clipviz.widgets.view import View, one_at_a_time

PAGE = 60
_CELL = 128


class SaliencyExplorer(View):
    """Browse the images of one or several runs and see where the models looked.

    Stored maps need nothing but the trace. With a `Run` or a `ModelProbe` for a trace, all its images can be shown, and
    kinds that were not stored are computed by the current model when they are asked for.

    Args:
        traces: one trace, or several with the same classes.
        models: a `Run` or `ModelProbe` for each trace, or None.
        state: shared with other views.

    Attributes:
        filter: dropdown of filters.
        matrix: the confusion matrix; a click chooses "one taken for another".
        gallery: the images of the page.
        inspector: the chosen image with its maps.
    """

    def __init__(self, traces: Trace | Sequence[Trace], models: Any = None, *, state: ViewState | None = None) -> None:
        traces = [traces] if isinstance(traces, Trace) else list(traces)
        models = list(models) if isinstance(models, list | tuple) else [models, *[None] * (len(traces) - 1)]
        self.state = state or ViewState(epoch=max((trace.final_epoch for trace in traces), default=-1))
        self.inspector = Inspector(traces, models, self.state)
        self.gallery = GalleryCanvas()
        self.matrix = MatrixCanvas()
        self._ids: list[str] = []
        self._page = 0
        self._make_controls()
        self.gallery.link(self.state)
        self.matrix.observe(self._cell_chosen, "selected")
        follow(self.state, self._refill, ["epoch", "method"])
        self._refill()
        if not self.state.selected and self._ids:
            self.state.selected = (self._ids[0],)

    def __repr__(self) -> str:
        names = ", ".join(shorten(label, 30) for label in self.inspector.albums)
        return f"SaliencyExplorer({names})"

    def _make_controls(self) -> None:
        albums = self.inspector.albums
        self.filter = ipywidgets.Dropdown(options=self.inspector.album.filters(), description="show")
        self.filter.observe(lambda _: self._refill(), "value")
        self.method = ipywidgets.Dropdown(options=list(albums), description="method", value=self.state.method)
        self.state.link("method", self.method, "value")
        self.method.layout.display = "flex" if len(albums) > 1 else "none"
        self.back = ipywidgets.Button(description="previous", icon="chevron-left", layout={"width": "110px"})
        self.next = ipywidgets.Button(description="next", icon="chevron-right", layout={"width": "110px"})
        self.back.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self.count = ipywidgets.Label()
        bar = ipywidgets.HBox(
            [self.filter, self.method, self.back, self.next, self.count], layout={"flex_flow": "row wrap"}
        )
        self.gallery.layout = {"flex": "1 1 300px", "min_width": "240px"}
        has_matrix = "one taken for another" in self.inspector.album.filters()
        self.matrix.layout = {"flex": "0 0 430px", "display": "block" if has_matrix else "none"}
        middle = ipywidgets.HBox([self.matrix, self.gallery], layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([bar, middle, self.inspector.widget])

    # ------------------------------------------------------------------------------------------- choosing

    def _cell_chosen(self, change: Any) -> None:
        if len(change["new"]) == 2:
            if self.filter.value == "one taken for another":
                self._refill()
            else:
                self.filter.value = "one taken for another"

    @one_at_a_time
    def _turn(self, pages: int) -> None:
        self._page = min(max(self._page + pages, 0), (len(self._ids) - 1) // PAGE)
        self._fill_gallery()

    @one_at_a_time
    def _refill(self) -> None:
        """Other images for another filter, epoch or method."""
        album, epoch = self.inspector.album, self.state.epoch
        pair = (self.matrix.selected[0], self.matrix.selected[1]) if len(self.matrix.selected) == 2 else None
        self._ids = album.chosen(self.filter.value, epoch, pair)
        self._page = 0
        info = confusion_info(album.trace, album.measured(epoch))
        whose = f"{self.state.method}: which" if len(self.inspector.albums) > 1 else "Which"
        moment = "not measured" if info.epoch is None else when(info.epoch)
        self.matrix.fill(info.counts, info.names, f"{whose} class is taken for which, {moment}")
        self._fill_gallery()

    def _fill_gallery(self) -> None:
        album = self.inspector.album
        shown = self.shown
        captions = [album.caption(image, self.state.epoch) for image in shown]
        self.gallery.fill(shown, captions, [album.pixels(image) for image in shown])
        first = self._page * PAGE
        self.count.value = f"{first + 1}-{first + len(shown)} of {len(self._ids)}" if shown else "no images"
        self.back.disabled = self._page == 0
        self.next.disabled = first + PAGE >= len(self._ids)

    @property
    def shown(self) -> list[str]:
        """Ids of the images on this page."""
        return self._ids[self._page * PAGE : (self._page + 1) * PAGE]

    # ------------------------------------------------------------------------------------------- picture

    @property
    def alt(self) -> str:
        """Filter, and what is said of the chosen image."""
        rows = self.inspector.rows
        chosen = f" Chosen: {rows[0].title}." if rows else ""
        return f"{self!r}: {len(self._ids)} images, filter: {self.filter.value}.{chosen}"

    def draw(self) -> Figure:
        """The first images of the gallery, and the chosen one with its maps."""
        album, inspector = self.inspector.album, self.inspector
        shown, rows = self.shown[: 2 * COLUMNS], inspector.rows
        height = 0.5 + 0.72 * max(1, -(-len(shown) // COLUMNS)) + 1.9 * max(1, len(rows))
        figure = Figure(figsize=(7.2, height), dpi=100)
        title = f"{self.filter.value}: {self.count.value}"
        figure.text(0.01, 1 - 0.06 / height, title, fontsize=10, weight="bold", va="top", parse_math=False)
        top = 1 - 0.32 / height
        if shown:
            top = draw_thumbnails(figure, [album.pixels(image) for image in shown], top, height)
        for row in rows:
            draw_row(figure, inspector, row, top - 0.08 / height, height)
            top -= 1.9 / height
        return figure


def draw_row(figure: Figure, inspector: Inspector, row: Row, top: float, height: float) -> None:
    """Image and maps of one method side by side below `top` (in figure coordinates)."""
    plain: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(0.01, top, shorten(row.title, 105), fontsize=8.5, weight="bold", **plain)
    tiles = []
    for i, panel in enumerate(row.panels[:5]):
        if panel.values is None:
            tiles.append(thumbnail(row.image, _CELL))
        else:
            look = {"opacity": inspector.opacity.value, "contour": inspector.contour.value}
            tiles.append(laid_over(row.image, panel.values, _CELL, is_mask=panel.is_mask, **look))
        figure.text(0.01 + 0.198 * i, top - 1.62 / height, shorten(panel.title, 26), fontsize=7, **plain)
    gap = np.full((_CELL, 6, 3), 255, np.uint8)
    strip = np.concatenate([part for tile in tiles for part in (tile, gap)], axis=1)
    width = 0.198 * len(tiles)
    axes = bare(figure.add_axes((0.01, top - 1.58 / height, width, 1.36 / height)))
    axes.imshow(strip, aspect="auto", interpolation="bilinear")
