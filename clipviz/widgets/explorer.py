"""SaliencyExplorer: from a filter or a confusion to images, from an image to what the model looked at."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from clipviz.figures import confusion_info
from clipviz.figures.moments import when
from clipviz.trace import Trace
from clipviz.widgets.canvases import COLUMNS, GalleryCanvas, MatrixCanvas, Picture
from clipviz.widgets.controls import button, dropdown, show_if, wrapped
from clipviz.widgets.inspector import Inspector
from clipviz.widgets.view import View, ViewState, follow, one_at_a_time

PAGE = 60
_PAIR = "one taken for another"


class SaliencyExplorer(View):
    """Browse the images of one or several runs and see where the models looked.

    Stored maps need nothing but the trace. With a `Run` or a `ModelProbe` for a trace, all its images can be shown, and
    kinds that were not stored are computed by the current model when they are asked for.

    Args:
        traces: one trace, or several with the same classes.
        models: a `Run` or `ModelProbe` for each trace, or None.
        state: shared with other views.
    """

    def __init__(self, traces: Trace | Sequence[Trace], models: Any = None, *, state: ViewState | None = None) -> None:
        traces = [traces] if isinstance(traces, Trace) else list(traces)
        models = list(models) if isinstance(models, list | tuple) else [models, *[None] * (len(traces) - 1)]
        self.state = state or ViewState(epoch=max((trace.final_epoch for trace in traces), default=-1))
        self.inspector = Inspector(traces, models, self.state)
        self.gallery = GalleryCanvas(layout={"flex": "1 1 300px", "min_width": "240px"})
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
        return f"SaliencyExplorer({self.inspector.named})"

    def _make_controls(self) -> None:
        filters, albums = self.inspector.album.filters(), self.inspector.albums
        self.filter = dropdown("show", filters, self._refill)
        self.method = dropdown("method", list(albums))
        self.state.link("method", self.method, "value", self.inspector.known)
        show_if(len(albums) > 1, self.method)
        self.back = button("previous", "chevron-left", lambda: self._turn(-1))
        self.next = button("next", "chevron-right", lambda: self._turn(1))
        self.count = ipywidgets.Label()
        bar = wrapped(self.filter, self.method, self.back, self.next, self.count)
        self.matrix = MatrixCanvas(layout={"flex": "0 0 430px", "display": "block" if _PAIR in filters else "none"})
        self.widget = ipywidgets.VBox([bar, wrapped(self.matrix, self.gallery), self.inspector.widget])

    def _cell_chosen(self, change: Any) -> None:
        if len(change["new"]) == 2:
            if self.filter.value == _PAIR:
                self._refill()
            else:
                self.filter.value = _PAIR

    @one_at_a_time
    def _turn(self, pages: int) -> None:
        self._page = min(max(self._page + pages, 0), (len(self._ids) - 1) // PAGE)
        self._fill_gallery()

    @one_at_a_time
    def _refill(self) -> None:
        """Other images for another filter, epoch or method."""
        album, epoch, chosen = self.inspector.album, self.state.epoch, self.matrix.selected
        self._ids = album.chosen(self.filter.value, epoch, chosen)
        self._page = 0
        info = confusion_info(album.trace, album.measured(epoch))
        whose = f"{self.inspector.known(self.state.method)}: which" if len(self.inspector.albums) > 1 else "Which"
        moment = "not measured" if info.epoch is None else when(info.epoch)
        self.matrix.fill(info.counts, info.names, f"{whose} class is taken for which, {moment}")
        self._fill_gallery()

    def _fill_gallery(self) -> None:
        album, shown, first = self.inspector.album, self.shown, self._page * PAGE
        self.gallery.show(album, shown, self.state.epoch)
        self.count.value = f"{first + 1}-{first + len(shown)} of {len(self._ids)}" if shown else "no images"
        self.back.disabled = self._page == 0
        self.next.disabled = first + PAGE >= len(self._ids)

    @property
    def shown(self) -> list[str]:
        """Ids of the images on this page."""
        return self._ids[self._page * PAGE : (self._page + 1) * PAGE]

    @property
    def alt(self) -> str:
        """Filter, and what is said of the chosen image."""
        rows = self.inspector.rows
        chosen = f" Chosen: {rows[0].title}." if rows else ""
        return f"{self!r}: {len(self._ids)} images, filter: {self.filter.value}.{chosen}"

    def draw(self) -> Figure:
        """The first images of the gallery, and the chosen one with its maps."""
        shown, rows = self.shown[: 2 * COLUMNS], self.inspector.rows
        picture = Picture(0.5 + Picture.inches(shown or "-", rows or "-"), f"{self.filter.value}: {self.count.value}")
        picture.thumbnails([self.inspector.album.pixels(image) for image in shown])
        self.inspector.draw(picture)
        return picture.figure
