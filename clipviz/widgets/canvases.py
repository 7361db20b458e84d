"""The drawing surfaces: what the scripts under `static/` read, as traits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from clipviz.figures.style import apart, bare, shorten
from clipviz.widgets.album import Album
from clipviz.widgets.images import color_table, jpeg, laid_over, sheet, thumbnail, to_bytes
from clipviz.widgets.view import ViewState, source

THUMBNAIL, PROBE_SIDE = 72, 96
COLUMNS = 10
ROW_INCHES = 1.9
"""Of a row of maps in a static picture."""

PLAIN_TEXT: dict[str, Any] = {"va": "top", "parse_math": False}
_TILE = 128


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

    def show(self, album: Album, images: Sequence[str], epoch: int) -> None:
        """Show other images, with what is said of them at an epoch."""
        self.fill(images, [album.caption(image, epoch) for image in images], [*map(album.pixels, images)])

    def fill(self, ids: Sequence[str], captions: Sequence[str], images: Sequence[np.ndarray], label: str = "") -> None:
        """Show other images under a heading, in one message."""
        with self.hold_sync():
            self.label, self.ids = label, list(ids)
            self.captions = [shorten(caption, 90) for caption in captions]
            self.sheet = jpeg(sheet(images, THUMBNAIL, COLUMNS))


class MonitorCanvas(anywidget.AnyWidget):
    """What LiveMonitor shows; written by its pump alone."""

    _esm = source("common.js", "monitor.js")
    _css = source("widgets.css")

    frame = traitlets.Dict().tag(sync=True)
    losses = traitlets.Dict().tag(sync=True)
    labels = traitlets.Dict().tag(sync=True)
    decisions = traitlets.Dict().tag(sync=True)
    trajectories = traitlets.Dict().tag(sync=True)
    sheet = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(PROBE_SIDE).tag(sync=True)
    captions: traitlets.List = traitlets.List().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    shape = traitlets.List([0, 0, 0]).tag(sync=True)
    colors = traitlets.Bytes(color_table()).tag(sync=True)


class ScatterCanvas(anywidget.AnyWidget):
    """Points by epoch; `chosen` holds the positions of at most 500 of the `n_chosen` points of a lasso or a click."""

    _esm = source("common.js", "scatter.js")
    _css = source("widgets.css")

    places = traitlets.Bytes().tag(sync=True)
    group = traitlets.Bytes().tag(sync=True)
    label = traitlets.Bytes().tag(sync=True)
    marks = traitlets.Bytes().tag(sync=True)
    n_epochs = traitlets.Int(1).tag(sync=True)
    epoch = traitlets.Int(-1).tag(sync=True)
    groups: traitlets.List = traitlets.List().tag(sync=True)
    names: traitlets.List = traitlets.List().tag(sync=True)
    axes: traitlets.List = traitlets.List(["first direction", "second direction"]).tag(sync=True)
    chosen: traitlets.List = traitlets.List().tag(sync=True)
    n_chosen = traitlets.Int(0).tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)


class Panel(NamedTuple):
    """One map (h, w) in [0, 1]; without values the image itself, or why there is no map."""

    title: str
    values: np.ndarray | None = None
    is_mask: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the browser, without the values."""
        shape = [0, 0] if self.values is None else list(self.values.shape)
        return {"title": self.title, "label": f"{self.title} of the chosen image", "shape": shape, "mask": self.is_mask}


class Row(NamedTuple):
    """What one method looked at in an image (H, W, 3) uint8."""

    title: str
    panels: list[Panel]
    image: np.ndarray


class OverlayCanvas(anywidget.AnyWidget):
    """One image with rows of maps over it."""

    _esm = source("common.js", "overlay.js")
    _css = source("widgets.css")

    image = traitlets.Bytes().tag(sync=True)
    rows: traitlets.List = traitlets.List().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(196).tag(sync=True)
    opacity = traitlets.Float(0.7).tag(sync=True)
    contour = traitlets.Bool(False).tag(sync=True)
    colors = traitlets.Bytes(color_table()).tag(sync=True)
    empty = traitlets.Unicode("Choose an image above to see where the model looked.").tag(sync=True)

    def fill(self, rows: Sequence[Row]) -> None:
        """Show other rows, all of one image, in one message."""
        maps = [panel.values for row in rows for panel in row.panels if panel.values is not None]
        with self.hold_sync():
            self.image = jpeg(rows[0].image, 92) if rows else b""
            self.rows = [
                {"title": shorten(row.title, 200), "panels": [panel.to_json() for panel in row.panels]} for row in rows
            ]
            self.maps = b"".join(map(to_bytes, maps))


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


def draw_thumbnails(figure: Figure, images: Sequence[np.ndarray], top: float) -> float:
    """Draw images as in a gallery, ten in a row, below `top` on a figure 7.2 inches wide; returns their lower edge."""
    pixels = sheet(images, THUMBNAIL, COLUMNS)
    tall = len(pixels) / 100 / figure.get_figheight()
    bare(figure.add_axes((0, top - tall, 1, tall))).imshow(pixels, aspect="auto")
    return top - tall


def draw_row(figure: Figure, row: Row, top: float, opacity: float = 0.7, contour: bool = False) -> float:
    """Draw the first panels of a row, 1.9 inches high, below `top` (a fraction); returns its lower edge."""
    height, plain = figure.get_figheight(), PLAIN_TEXT
    figure.text(0.01, top, shorten(row.title, 105), fontsize=8.5, weight="bold", **plain)
    tiles = []
    for i, (title, values, is_mask) in enumerate(row.panels[:5]):
        if values is None:
            tiles.append(thumbnail(row.image, _TILE))
        else:
            tiles.append(laid_over(row.image, values, _TILE, is_mask, opacity, contour))
        figure.text(0.01 + 0.198 * i, top - 1.62 / height, shorten(title, 26), fontsize=7, **plain)
    strip = np.concatenate([np.pad(tile, ((0, 0), (0, 6), (0, 0)), constant_values=255) for tile in tiles], axis=1)
    axes = bare(figure.add_axes((0.01, top - 1.58 / height, 0.198 * len(tiles), 1.36 / height)))
    axes.imshow(strip, aspect="auto", interpolation="bilinear")
    return top - ROW_INCHES / height
