"""The drawing surfaces: what the scripts under `static/` read, as traits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import anywidget
import numpy as np
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipviz.figures.style import CHANGE_COLORS, apart, bare, color_table, fitting, shorten
from clipviz.widgets.album import Album
from clipviz.widgets.images import jpeg, laid_over, sheet, thumbnail, to_bytes
from clipviz.widgets.view import ViewState, source

THUMBNAIL, PROBE_SIDE, LARGE = 72, 96, 224
COLUMNS = 10
PLAIN_TEXT: dict[str, Any] = {"va": "top", "parse_math": False}
_TILE = 128


class Canvas(anywidget.AnyWidget):
    """What all of them share."""

    _css = source("widgets.css")


class GalleryCanvas(Canvas):
    """Thumbnails in one sheet; the browser writes what is `selected`, how large they are, and what it points at."""

    _esm = source("common.js", "gallery.js")

    sheet = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(THUMBNAIL).tag(sync=True)
    columns = traitlets.Int(COLUMNS).tag(sync=True)
    ids: traitlets.List[Any] = traitlets.List().tag(sync=True)
    captions: traitlets.List[Any] = traitlets.List().tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    empty = traitlets.Unicode("No image that can be shown matches this filter.").tag(sync=True)
    selected: traitlets.List[Any] = traitlets.List().tag(sync=True)
    pointed = traitlets.Unicode("").tag(sync=True)
    large = traitlets.Bytes().tag(sync=True)
    large_of = traitlets.Unicode("").tag(sync=True)
    _images: Mapping[str, np.ndarray] = {}

    def link(self, state: ViewState) -> None:
        """Share the selected images with a state, both ways."""
        state.link("selected", self, "selected", list)

    def show(self, album: Album, images: Sequence[str], epoch: int) -> None:
        """Show other images, with what is said of them at an epoch."""
        self.fill(images, [album.caption(image, epoch) for image in images], [*map(album.pixels, images)])

    def fill(self, ids: Sequence[str], captions: Sequence[str], images: Sequence[np.ndarray], label: str = "") -> None:
        """Show other images under a heading, in one message."""
        with self.hold_sync():
            self._images = dict(zip(ids, images, strict=True))
            self.label, self.ids = label, list(ids)
            self.captions = [shorten(caption, 90) for caption in captions]
            self._draw_sheet()

    @traitlets.observe("side")
    def _draw_sheet(self, _: Any = None) -> None:
        self.sheet = jpeg(sheet([*self._images.values()], min(max(self.side, 16), LARGE), COLUMNS))

    @traitlets.observe("pointed")
    def _enlarge(self, _: Any) -> None:
        if (image := self._images.get(self.pointed)) is not None:
            with self.hold_sync():
                self.large_of, self.large = self.pointed, jpeg(thumbnail(image, LARGE), 90)


class MonitorCanvas(Canvas):
    """What LiveMonitor shows; written by its pump alone."""

    _esm = source("common.js", "monitor.js")
    frame = traitlets.Dict().tag(sync=True)
    losses = traitlets.Dict().tag(sync=True)
    labels = traitlets.Dict().tag(sync=True)
    decisions = traitlets.Dict().tag(sync=True)
    trajectories = traitlets.Dict().tag(sync=True)
    sheet = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(PROBE_SIDE).tag(sync=True)
    captions: traitlets.List[Any] = traitlets.List().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    shape = traitlets.List([0, 0, 0]).tag(sync=True)
    colors = traitlets.Bytes(color_table()).tag(sync=True)


class ScatterCanvas(Canvas):
    """Points by epoch; `chosen` holds the positions of at most 500 of the `n_chosen` points of a lasso or a click."""

    _esm = source("common.js", "scatter.js")

    places = traitlets.Bytes().tag(sync=True)
    group = traitlets.Bytes().tag(sync=True)
    label = traitlets.Bytes().tag(sync=True)
    marks = traitlets.Bytes().tag(sync=True)
    n_epochs = traitlets.Int(1).tag(sync=True)
    epoch = traitlets.Int(-1).tag(sync=True)
    groups: traitlets.List[Any] = traitlets.List().tag(sync=True)
    names: traitlets.List[Any] = traitlets.List().tag(sync=True)
    axes: traitlets.List[Any] = traitlets.List(["first direction", "second direction"]).tag(sync=True)
    chosen: traitlets.List[Any] = traitlets.List().tag(sync=True)
    n_chosen = traitlets.Int(0).tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)


class Panel(NamedTuple):
    """One map (h, w) in [0, 1], of a change with one half for none; without values the image, or why there is none."""

    title: str
    values: np.ndarray | None = None
    is_mask: bool = False
    is_change: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the browser, without the values."""
        shape = [0, 0] if self.values is None else list(self.values.shape)
        label = f"{self.title} of the chosen image"
        return {"title": self.title, "label": label, "shape": shape, "mask": self.is_mask, "change": self.is_change}


class Row(NamedTuple):
    """What one method looked at in an image (H, W, 3) uint8."""

    title: str
    panels: list[Panel]
    image: np.ndarray


class OverlayCanvas(Canvas):
    """One image with rows of maps over it."""

    _esm = source("common.js", "overlay.js")

    image = traitlets.Bytes().tag(sync=True)
    rows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    maps = traitlets.Bytes().tag(sync=True)
    side = traitlets.Int(186).tag(sync=True)
    opacity = traitlets.Float(0.7).tag(sync=True)
    contour = traitlets.Bool(False).tag(sync=True)
    colors = traitlets.Bytes(color_table()).tag(sync=True)
    changes = traitlets.Bytes(color_table(CHANGE_COLORS)).tag(sync=True)
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


class MatrixCanvas(Canvas):
    """A confusion matrix of any size; `selected` is [true, predicted] or empty."""

    _esm = source("common.js", "matrix.js")

    counts = traitlets.Bytes().tag(sync=True)
    names: traitlets.List[Any] = traitlets.List().tag(sync=True)
    labels: traitlets.List[Any] = traitlets.List().tag(sync=True)
    title = traitlets.Unicode("Confusion").tag(sync=True)
    selected: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def fill(self, counts: np.ndarray, names: Sequence[str], title: str) -> None:
        """Show other counts (C, C), in one message."""
        with self.hold_sync():
            self.names, self.labels = apart(names, 60), apart(names, 16)
            self.counts, self.title = counts.astype(np.uint32).tobytes(), title


class ChartCanvas(Canvas):
    """One `clipviz.widgets.charts.Chart`, as wide as there is room."""

    _esm = source("common.js", "chart.js")

    spec = traitlets.Dict().tag(sync=True)


class Picture:
    """What a view leaves where there is no kernel, 7.2 inches wide, filled from the top."""

    def __init__(self, height: float, headline: str = "") -> None:
        self.figure = Figure(figsize=(7.2, height), dpi=100)
        self._left = self._height = height  # inches
        self.skip(0.06)
        if headline:
            self.write(shorten(headline, 110), 0.26)

    def skip(self, inches: float) -> None:
        """Leave room."""
        self._left -= inches

    def write(self, text: str, inches: float = 0.22) -> None:
        """A line of bold text."""
        size = fitting(text, 705, "bold", 8.5)
        self.figure.text(0.01, self._left / self._height, text, fontsize=size, weight="bold", **PLAIN_TEXT)
        self.skip(inches)

    def axes(self, left: float, width: float, inches: float) -> Axes:
        """Axes between two fractions of the width, so high."""
        self.skip(inches)
        return self.figure.add_axes((left, self._left / self._height, width, inches / self._height))

    @staticmethod
    def inches(images: Sequence[Any], rows: Sequence[Any]) -> float:
        """How high thumbnails and rows of maps will be."""
        return 0.72 * -(-len(images) // COLUMNS) + 1.9 * len(rows)

    def thumbnails(self, images: Sequence[np.ndarray]) -> None:
        """Images as in a gallery, ten in a row."""
        if images:
            pixels = sheet(images, THUMBNAIL, COLUMNS)
            bare(self.axes(0, 1, len(pixels) / 100)).imshow(pixels, aspect="auto")
            self.skip(0.06)

    def rows(self, rows: Sequence[Row], opacity: float = 0.7, contour: bool = False) -> None:
        """The first panels of rows of maps, each row 1.9 inches high."""
        for row in rows:
            self.write(shorten(row.title, 120))
            tiles = [_tile(row.image, panel, opacity, contour) for panel in row.panels[:5]]
            strip = np.concatenate([np.pad(tile, ((0, 0), (0, 6), (0, 0)), constant_values=255) for tile in tiles], 1)
            bare(self.axes(0.01, 0.198 * len(tiles), 1.36)).imshow(strip, aspect="auto", interpolation="bilinear")
            for i, panel in enumerate(row.panels[:5]):
                place = 0.01 + 0.198 * i, (self._left - 0.04) / self._height
                title = shorten(panel.title, 25)
                self.figure.text(*place, title, fontsize=fitting(title, 132, most=7), **PLAIN_TEXT)
            self.skip(0.32)


def _tile(image: np.ndarray, panel: Panel, opacity: float, contour: bool) -> np.ndarray:
    if panel.values is None:
        return thumbnail(image, _TILE)
    how = {"is_mask": panel.is_mask, "is_change": panel.is_change}
    return laid_over(image, panel.values, _TILE, **how, opacity=opacity, contour=contour)
