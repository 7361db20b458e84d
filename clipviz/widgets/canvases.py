"""The drawing surfaces: what the scripts under `static/` read, as traits."""

from __future__ import annotations

from collections.abc import Sequence

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from clipviz.figures.style import apart, bare, shorten
from clipviz.widgets.images import color_table, jpeg, sheet
from clipviz.widgets.state import ViewState
from clipviz.widgets.view import source

THUMBNAIL = 72
COLUMNS = 10


class GalleryCanvas(anywidget.AnyWidget):
    """Thumbnails in one sheet; `selected` is written by the browser and by Python."""

    _esm = source("common.js", "gallery.js")
    _css = source("widgets.css")

    sheet = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(THUMBNAIL).tag(sync=True)
    columns = traitlets.Int(COLUMNS).tag(sync=True)
    ids: traitlets.List = traitlets.List().tag(sync=True)
    captions: traitlets.List = traitlets.List().tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    empty = traitlets.Unicode("No image passes this filter.").tag(sync=True)
    selected: traitlets.List = traitlets.List().tag(sync=True)

    def link(self, state: ViewState) -> None:
        """Share the selected images with a state, both ways."""
        state.link("selected", self, "selected", list)

    def fill(self, ids: Sequence[str], captions: Sequence[str], images: Sequence[np.ndarray], label: str = "") -> None:
        """Show other images under a heading, in one message."""
        with self.hold_sync():
            self.label = label
            self.ids = list(ids)
            self.captions = [shorten(caption, 90) for caption in captions]
            self.sheet = jpeg(sheet(images, THUMBNAIL, COLUMNS))


class OverlayCanvas(anywidget.AnyWidget):
    """One image with rows of maps over it; a row is {title, panels}, a panel {title, label, shape, mask}."""

    _esm = source("common.js", "overlay.js")
    _css = source("widgets.css")

    image = traitlets.Bytes().tag(sync=True)
    rows: traitlets.List = traitlets.List().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(196).tag(sync=True)
    opacity = traitlets.Float(0.7).tag(sync=True)
    contour = traitlets.Bool(False).tag(sync=True)
    colors = traitlets.Bytes().tag(sync=True)
    empty = traitlets.Unicode("Choose an image above to see where the model looked.").tag(sync=True)

    def __init__(self, **traits: object) -> None:
        super().__init__(colors=color_table(), **traits)


class MatrixCanvas(anywidget.AnyWidget):
    """A confusion matrix of any size; `selected` is [true, predicted] or empty."""

    _esm = source("common.js", "matrix.js")
    _css = source("widgets.css")

    counts = traitlets.Bytes().tag(sync=True)
    names: traitlets.List = traitlets.List().tag(sync=True)
    labels: traitlets.List = traitlets.List().tag(sync=True)
    title = traitlets.Unicode("Confusion").tag(sync=True)
    selected: traitlets.List = traitlets.List().tag(sync=True)

    def fill(self, counts: np.ndarray, names: Sequence[str], title: str) -> None:
        """Show other counts (C, C), in one message."""
        with self.hold_sync():
            self.names, self.labels = apart(names, 60), apart(names, 18)
            self.counts = counts.astype(np.uint32).tobytes()
            self.title = title


class ChartCanvas(anywidget.AnyWidget):
    """One `clipviz.widgets.charts.Chart`, as wide as there is room."""

    _esm = source("common.js", "chart.js")
    _css = source("widgets.css")

    spec = traitlets.Dict().tag(sync=True)


def draw_thumbnails(figure: Figure, images: Sequence[np.ndarray], top: float, height: float) -> float:
    """Draw images as in a gallery, ten in a row, below `top` on a figure so many inches high; returns their lower edge.

    Edges are fractions of the figure, whose ten columns of 72 pixels make it 7.2 inches wide.
    """
    pixels = sheet(images, THUMBNAIL, COLUMNS)
    tall = len(pixels) / 100 / height
    bare(figure.add_axes((0, top - tall, 1, tall))).imshow(pixels, aspect="auto")
    return top - tall
