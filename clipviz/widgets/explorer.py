"""SaliencyExplorer: from a filter or a confusion to images, from an image to its saliency maps."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from clipviz.figures import confusion_info
from clipviz.figures.moments import when
from clipviz.trace import Trace
from clipviz.widgets.album import PAIR, Album
from clipviz.widgets.canvases import COLUMNS, GalleryCanvas, MatrixCanvas, Picture
from clipviz.widgets.controls import button, dropdown, said, show_if, wrapped
from clipviz.widgets.finder import Finder
from clipviz.widgets.inspector import Inspector
from clipviz.widgets.view import Newest, View, ViewState, follow, one_at_a_time, state_of

PAGE = 60


class ImageExplorer(View):
    """A list of images in pages, found by the controls of a `Finder`, and the chosen one in an `Inspector`."""

    def __init__(self, traces: Sequence[Trace], models: Sequence[Any], state: ViewState | None) -> None:
        self.state, self.traces = state_of(state, traces), traces
        self.inspector = Inspector(traces, models, self.state)
        self.finder = Finder(self, traces[0].folder or str(getattr(models[0], "folder", None) or ""))
        self.gallery = GalleryCanvas(layout={"flex": "1 1 300px", "min_width": "240px"})
        if not any(len(trace.epochs) for trace in traces):
            self.gallery.empty = "This run has recorded nothing yet; run the cell again when it has."
        self.back = button("previous", "chevron-left", lambda: self._turn(-1), width="auto")
        self.next = button("next", "chevron-right", lambda: self._turn(1), width="auto")
        self.count = said()
        self._pages = (self.back, self.next, self.count, self.finder.more)
        self._ids: list[str] = []
        self._page, self._lacking, self._newest = 0, 0, Newest()

    def _begin(self) -> None:
        """Show the first list and choose its first image, once all controls are there."""
        self.gallery.link(self.state)
        follow(self.state, self.refill, ["epoch", "method"])
        self.refill()
        if not self.state.selected:
            self.choose_listed()

    def choose_listed(self) -> None:
        """Choose the first image of the list, unless one of them is chosen."""
        if self._ids and not {*self.state.selected} & {*self._ids}:
            self.state.selected = (self._ids[0],)

    @abstractmethod
    def _listed(self) -> list[str]:
        """Ids of the images before the finder narrows them."""

    def more_columns(self) -> Mapping[str, pd.Series]:
        """Further columns of an exported list, by id."""
        return {}

    def refill(self) -> None:
        """New images for a new filter, epoch or method; only the result of the newest request is shown."""
        question = self._newest.ask()
        ids = self.finder.narrowed(self._listed(), self.state.epoch)
        self._newest.show(question, lambda: self._publish(ids))

    @one_at_a_time
    def _publish(self, ids: list[str]) -> None:
        self._ids, self._page = ids, 0
        self._fill_gallery()

    @one_at_a_time
    def _turn(self, pages: int) -> None:
        self._page = min(max(self._page + pages, 0), (len(self._ids) - 1) // PAGE)
        self._fill_gallery()

    def _fill_gallery(self) -> None:
        shown = self.shown
        self.gallery.show(self.inspector.album, shown, self.state.epoch)
        self.count.value = self._place(len(shown))
        self.back.disabled = self._page == 0
        self.next.disabled = (self._page + 1) * PAGE >= len(self._ids)

    def _place(self, n: int) -> str:
        first, lacking = self._page * PAGE, f"; not in the trace, open the run to see them: {self._lacking}"
        return (f"{first + 1}-{first + n} of {len(self._ids)}" if n else "no images") + lacking * (self._lacking > 0)

    @property
    def shown(self) -> list[str]:
        """Ids of the images on this page."""
        return self._ids[self._page * PAGE : (self._page + 1) * PAGE]

    @property
    @abstractmethod
    def _what(self) -> str:
        """Which images are listed, in words."""

    @property
    def alt(self) -> str:
        """Filter, and prediction for the chosen image."""
        said = "".join(f" {row.title}." for row in self.inspector.rows)
        listed = f"{(n := len(self._ids))} image{'s' * (n != 1)}, filter: {self._what}{self.finder.said}"
        return f"{self!r}: {listed}.{' Chosen:' * bool(said)}{said}"

    def draw(self) -> Figure:
        """The first images of the gallery, and the chosen one with its maps."""
        shown, rows = self.shown[: 2 * COLUMNS], self.inspector.rows
        headline = f"{self._what}{self.finder.said}: {self._place(len(shown))}"
        picture = Picture(0.5 + Picture.inches(shown or "-", rows or "-"), headline)
        picture.thumbnails([self.inspector.album.pixels(image) for image in shown])
        self.inspector.draw(picture)
        return picture.figure


class SaliencyExplorer(ImageExplorer):
    """Browse the images of one or several runs and see where the models looked.

    Stored maps need only the trace. With a model, all images can be shown, and kinds that were not stored are
    computed on demand: by the current model of a `Run` or a `ModelProbe`, or by that of any kept epoch of a run from
    `clipviz.open`.

    Args:
        traces: one trace, or several with the same classes.
        models: for each trace one of these, or None.
        state: shared with other views.
    """

    def __init__(self, traces: Trace | Sequence[Trace], models: Any = None, *, state: ViewState | None = None) -> None:
        traces = list(traces) if isinstance(traces, Iterable) and not isinstance(traces, str) else [traces]
        models = list(models) if isinstance(models, list | tuple) else [models, *[None] * (len(traces) - 1)]
        super().__init__(traces, models, state)
        self._drawn: tuple[str, int] | None = None  # the run and the epoch whose matrix is shown
        self._chosen = lru_cache(4)(Album.chosen)  # a control of the finder narrows the same list again
        filters, albums = self.inspector.album.filters(), self.inspector.albums
        self.filter = dropdown("show", filters, self.refill, width=215)
        has_learned = any(album.train_split == "train" and len(album.trace.samples) for album in albums.values())
        parts = [("evaluation images", "eval"), ("training images", "train")]
        first = "train" if has_learned and not any(len(trace.predictions) for trace in traces) else "eval"
        self.split = dropdown("of the", parts, self.refill, first, width=205)
        show_if(has_learned, self.split)
        self.method = dropdown("method", list(albums))
        self.state.link("method", self.method, "value", self.inspector.known)
        show_if(len(albums) > 1, self.method)
        bar = wrapped(self.filter, self.split, self.method, *self._pages)
        self.matrix = MatrixCanvas(layout={"flex": "0 1 430px", "display": "block" if PAIR in filters else "none"})
        self.matrix.observe(self._cell_chosen, "selected")
        lists = wrapped(self.matrix, self.gallery)
        self.widget = ipywidgets.VBox([bar, self.finder.widget, lists, self.inspector.widget])
        self._begin()

    def __repr__(self) -> str:
        return f"SaliencyExplorer({self.inspector.named})"

    def _cell_chosen(self, change: Any) -> None:
        if len(change["new"]) == 2:
            if self.filter.value == PAIR:
                self.refill()
            else:
                self.filter.value = PAIR
            self.choose_listed()

    def _listed(self) -> list[str]:
        asked = self.filter.value, self.state.epoch, tuple(self.matrix.selected), self.split.value
        return [*self._chosen(self.inspector.album, *asked)]

    def _publish(self, ids: list[str]) -> None:
        album, several = self.inspector.album, len(self.inspector.albums) > 1
        measured, name = album.measured(self.state.epoch), self.inspector.known(self.state.method)
        if self._drawn != (drawn := (name, measured)):  # of many classes it takes its time
            self._drawn = drawn
            info = confusion_info(album.trace, measured)
            title = f"{name}: confusion matrix" if several else "Confusion matrix"
            moment = "not measured" if info.epoch is None else when(info.epoch)
            self.matrix.fill(info.counts, info.names, f"{title}, {moment}")
        index = album.table(self.state.epoch, self.split.value).index
        self._lacking = len(index) - len(album.shown(index, self.split.value))  # whatever the filter
        super()._publish(ids)

    @property
    def _what(self) -> str:
        classes = " → ".join(self.matrix.labels[c] for c in self.matrix.selected) if self.filter.value == PAIR else ""
        return f"{self.filter.value} {classes}".strip() + " of the training images" * (self.split.value == "train")
