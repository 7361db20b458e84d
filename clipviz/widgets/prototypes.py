"""PrototypeExplorer: prototypes and images in one plane, from points to images to saliency."""

from typing import Any

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipviz.figures.moments import when
from clipviz.figures.prototypes import IMAGES, MARKS, WRONG, Scene
from clipviz.figures.style import MARKERS, apart, shorten
from clipviz.trace import Trace
from clipviz.widgets.canvases import COLUMNS, GalleryCanvas, Picture, ScatterCanvas
from clipviz.widgets.charts import label_axes, legend_below
from clipviz.widgets.controls import said, wrapped
from clipviz.widgets.explorer import PAGE
from clipviz.widgets.inspector import Inspector
from clipviz.widgets.view import View, ViewState, follow, one_at_a_time, state_of


class PrototypeExplorer(View):
    """Prototypes and, where the trace holds their embeddings, images, in the main plane of all prototypes.

    The plane is the same at every epoch. A lasso or a click chooses images (on a prototype: its assigned
    images), which are shown below with their saliency.

    Args:
        trace: the run.
        model: a `Run` or `ModelProbe`, to show images and kinds that the trace does not hold; or None.
        state: shared with other views.
    """

    def __init__(self, trace: Trace, model: Any = None, *, state: ViewState | None = None) -> None:
        self.state, self.traces = state_of(state, [trace]), (trace,)
        self.scene = Scene.of(trace)
        self.inspector = Inspector([trace], [model], self.state, with_epoch=False)
        beside = {"flex": "1 1 220px", "min_width": "200px"}
        self.gallery = GalleryCanvas(empty="Draw around points, or click one, to see images.", layout=beside)
        self._ids: list[str] = []
        arrays = {name: getattr(self.scene, name).tobytes() for name in ("places", "group", "label", "marks")}
        names, room = apart(self.scene.names, 60), {"flex": "0 1 570px", "min_width": "0"}
        self.scatter = ScatterCanvas(**arrays, **self.scene.words, names=names, layout=room)
        self.play, self.count = self.inspector.play, said("no images chosen")
        bar = wrapped(self.play, self.inspector.epoch, self.count)
        self.widget = ipywidgets.VBox([bar, wrapped(self.scatter, self.gallery), self.inspector.widget])
        self.gallery.link(self.state)
        self.scatter.observe(lambda _: self._points_chosen(), "chosen")
        follow(self.state, self._turned, "epoch")
        self._turned()

    def __repr__(self) -> str:
        return f"PrototypeExplorer({self.inspector.named})"

    def _turned(self) -> None:
        """Another epoch: what the chosen images are called there, and what a prototype is given there."""
        epoch = min(self.state.epoch, len(self.scene.places) - 2)
        self.scatter.epoch = self.state.epoch
        self.scatter.title = when(epoch) if epoch < 0 else f"after {when(epoch)}"
        if self.scatter.chosen:
            self._fill()

    def _points_chosen(self) -> None:
        self._fill()
        if self._ids:
            self.state.selected = (self._ids[0],)

    @one_at_a_time
    def _fill(self) -> None:
        """From points to images: their own, or those that a prototype is given."""
        scene, album, epoch = self.scene, self.inspector.album, self.state.epoch
        chosen = np.array([i for i in self.scatter.chosen if 0 <= i < len(scene.index)], dtype=np.int64)
        images = scene.index[chosen[scene.is_image[chosen]]]
        if len(images) == 0 and len(chosen):
            frame = album.table(epoch)
            images = frame.index[frame["label"].isin(scene.label[chosen])].to_numpy()
        n = max(len(images), self.scatter.n_chosen * scene.is_image[chosen].any())  # of more only the first are named
        self._ids = [f"eval/{index}" for index in images if album.has(f"eval/{index}")]
        shown, hidden = self._ids[:PAGE], len(images) - len(self._ids)
        self.gallery.show(album, shown, epoch)
        lacking = f"; the pixels of {hidden} are not in the trace; open the run to see them" if hidden else ""
        self.count.value = f"{n} image{'' if n == 1 else 's'} chosen, {len(shown)} shown{lacking}"

    @property
    def alt(self) -> str:
        """What is drawn, and what is chosen."""
        n, n_images = len(self.scene.index), int(self.scene.is_image.sum())
        drawn = f"{n - n_images} prototypes and {n_images} image{'s' * (n_images != 1)} in one plane"
        return f"{self!r}: {drawn}, {self.scatter.title}; {self.count.value}."

    def draw(self) -> Figure:
        """The plane at the current epoch, and below it the chosen images."""
        shown, rows = self._ids[:COLUMNS], self.inspector.rows
        picture = Picture(5.0 + Picture.inches(shown, rows))
        picture.skip(0.34)
        self._draw_plane(picture.axes(0.1, 0.87, 3.65))
        picture.skip(0.85)
        picture.thumbnails([*map(self.inspector.album.pixels, shown)])
        self.inspector.draw(picture)
        return picture.figure

    def _draw_plane(self, axes: Axes) -> None:
        scene = self.scene
        axes.set_title(f"Prototypes and images, {self.scatter.title}", fontsize=10, loc="left", weight="bold")
        label_axes(axes, *self.scatter.axes)
        if not len(scene.index):
            axes.text(0.5, 0.5, "This trace holds no prototypes.", ha="center", transform=axes.transAxes)
            return
        at = min(max(self.state.epoch + 1, 0), len(scene.places) - 1)
        places, marks = scene.places[at], scene.marks[at]
        for mark, (name, color) in enumerate(MARKS):
            points = places[scene.is_image & (marks == mark)]
            if len(points):
                look: dict[str, Any] = {"marker": "x" if mark == WRONG else "o", "linewidths": 0.7, "alpha": 0.6}
                axes.scatter(points[:, 0], points[:, 1], 12 if len(points) < 3000 else 2, color, label=name, **look)
        for i, (name, shape) in enumerate(scene.groups.items()):
            mine = scene.group == i
            if name != IMAGES:
                path, size = scene.places[: at + 1, mine], max(12, 52 - 26 * i)
                axes.plot(path[..., 0], path[..., 1], color=shape.color, linewidth=0.8, alpha=0.7)
                look = {"marker": MARKERS[shape.symbol], "edgecolors": "black", "linewidths": 0.5}
                axes.scatter(places[mine, 0], places[mine, 1], size, shape.color, label=shorten(name, 40), **look)
        legend_below(axes, 0.46)
