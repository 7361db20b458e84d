"""How the class prototypes moved, in one fixed plane among images, how far each turned, and how alike they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import Moments, draw_epochs, epochs_of, moments
from clipviz.figures.sources import DIAGNOSTIC
from clipviz.trace import Trace

_NAMED_CLASSES = 10
UNKNOWN, RIGHT, WRONG = 0, 1, 2
MARKS = (("images", style.GRAY), (f"images, right {DIAGNOSTIC}", style.CORRECT.color),
         (f"images, wrong {DIAGNOSTIC}", style.INCORRECT.color))  # fmt: skip
IMAGES = "images"
_DRIFT_ROWS, _SIMILARITY_NAMES = 30, 24
_NO_SNAPSHOTS = "This trace holds no class prototypes."


def finite_snapshots(trace: Trace) -> dict[str, np.ndarray]:
    """Snapshot arrays (E1,C,D) in one space: those that share C and D with the first one, finite."""
    found = {name: array for name, array in trace.snapshots.items() if array.size and np.isfinite(array).all()}
    shape = next((array.shape[1:] for array in found.values()), ())
    return {name: array.astype(np.float64) for name, array in found.items() if array.shape[1:] == shape}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) scaled to unit length; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class Plane(NamedTuple):
    """A plane in the embedding space: points (...,D) are seen at (points - center) @ directions.

    `center` (D,), `directions` (D,2) orthonormal, 0 for none; `explained` (2,) their shares of the variance in [0, 1].
    """

    center: np.ndarray
    directions: np.ndarray
    explained: np.ndarray

    @classmethod
    def through(cls, points: np.ndarray) -> Plane:
        """The main plane of points (n,D); each direction's largest loading is positive, so that two runs agree."""
        center = points.mean(0)
        # The (D,D) covariance is far smaller than the points of many epochs: exact, and fast enough to be live.
        variances, vectors = np.linalg.eigh((points - center).T @ (points - center))
        missing = max(0, 2 - len(variances))  # one-dimensional embeddings still get a plane
        directions = np.pad(vectors[:, ::-1][:, :2], ((0, 0), (0, missing)))
        shares = np.pad(variances[::-1][:2], (0, missing)) / max(float(variances.sum()), np.finfo(float).tiny)
        directions *= shares > 1e-12  # what is less is rounding, which would fill the axis: two points are on a line
        largest = directions[np.abs(directions).argmax(0), [0, 1]]
        return cls(center, directions * np.where(largest < 0, -1.0, 1.0), np.clip(shares, 0, 1))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points (...,D) in the plane, (...,2)."""
        return (points - self.center) @ self.directions


class PrototypePaths(NamedTuple):
    """Trajectories {snapshot: (E1,C,2)} in the main plane of all snapshots and epochs, the same for every epoch.

    Without snapshots there is no plane, and `explained` (2,) is 0.
    """

    names: list[str]
    paths: dict[str, np.ndarray]
    explained: np.ndarray
    plane: Plane | None = None


def prototype_paths_info(trace: Trace) -> PrototypePaths:
    """Joint PCA of the stored prototypes over all epochs."""
    snapshots = finite_snapshots(trace)
    if not snapshots:
        return PrototypePaths([], {}, np.zeros(2))
    plane = Plane.through(np.concatenate([array.reshape(-1, array.shape[-1]) for array in snapshots.values()]))
    paths = {name: plane.place(array) for name, array in snapshots.items()}
    return PrototypePaths(_names(trace, paths), paths, plane.explained, plane)


def _names(trace: Trace, by_class: dict[str, np.ndarray]) -> list[str]:
    return [style.class_name(trace.class_names, i) for i in range(next(iter(by_class.values())).shape[1])]


def draw_prototype_paths(info: PrototypePaths) -> go.Figure:
    """A trajectory per class from an open marker (before) to a filled one (now); the farthest are named."""
    title = "Trajectories of the class prototypes (one fixed projection for all epochs)"
    axes: dict[str, Any] = {"x": "first direction", "y": "second direction"}
    if not info.paths:
        return style.empty_chart(title, _NO_SNAPSHOTS, **axes)
    shares = zip(axes.items(), info.explained, strict=True)
    axes = {side: f"{name} ({share:.0%} of the variance)" for (side, name), share in shares}
    figure = style.new_chart(title, 620, 2, **axes)
    for i, (name, path) in enumerate(info.paths.items()):
        _add_paths(figure, info.names, style.escape(name), path, style.prototype_look(i))
    _name_farthest(figure, info)
    return figure


def _add_paths(figure: go.Figure, names: list[str], label: str, path: np.ndarray, look: style.Look) -> None:
    path = path.astype(np.float32)  # more digits than pixels only make a page heavier
    gap = np.full((1, path.shape[1], 2), np.nan, np.float32)
    x, y = np.concatenate([path, gap]).transpose(2, 1, 0).reshape(2, -1)
    opacity = 0.6 if path.shape[1] <= 40 else 0.25  # many trajectories would hide their ends
    hidden = {"showlegend": False, "hoverinfo": "skip", "legendgroup": label, "opacity": opacity}
    style.add_line(figure, x, y, label, look, "", mode="lines", line={"width": 1.3}, **hidden)
    ends = [("before", 0, f"{look.symbol}-open"), ("last epoch", -1, look.symbol)]
    if np.array_equal(path[0], path[-1]):
        ends = [("fixed", 0, look.symbol)]
    more: dict[str, Any] = {"mode": "markers", "legendgroup": label, "text": style.short_names(names, 40)}
    for when, at, symbol in ends:
        name, shown = f"{label}, {when}", look._replace(symbol=symbol)
        style.add_line(figure, path[at, :, 0], path[at, :, 1], name, shown, "%{text}, " + name, **more)


def _name_farthest(figure: go.Figure, info: PrototypePaths) -> None:
    """Names beside the ends that moved farthest and do not sit on a name already written."""
    path = max(info.paths.values(), key=lambda p: float(np.linalg.norm(p[-1] - p[0], axis=-1).max()))
    points = np.concatenate([p.reshape(-1, 2) for p in info.paths.values()])
    low, span = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-12)
    written, names = list[np.ndarray](), style.short_names(info.names, 22)
    look = {"showarrow": False, "yshift": 13, "font_size": 12, "bgcolor": "rgba(255,255,255,0.6)", "borderpad": 0}
    for label in np.argsort(-np.linalg.norm(path[-1] - path[0], axis=-1), kind="stable"):
        place = ((path[-1, label] - low) / span).clip([0.05, 0], [0.95, 1])  # the middle of a name that stays inside
        # A name is about a fifth of the width and a thirtieth of the height.
        if len(written) < _NAMED_CLASSES and all((abs(place - other) >= (0.24, 0.045)).any() for other in written):
            written.append(place)
            x, y = low + place * span
            figure.add_annotation(x=x, y=y, text=names[label], **look)


class PrototypeDrift(NamedTuple):
    """Degrees between each prototype before training and at epochs (E1,), {snapshot: (E1,C)}."""

    names: list[str]
    epochs: np.ndarray
    angles: dict[str, np.ndarray]
    moments: Moments = Moments()


def prototype_drift_info(trace: Trace) -> PrototypeDrift:
    """How far every prototype turned since before training."""
    angles = {name: _angles(unit(array)) for name, array in finite_snapshots(trace).items()}
    if not angles:
        return PrototypeDrift([], np.zeros(0, int), {})
    epochs = np.arange(len(next(iter(angles.values())))) - 1
    return PrototypeDrift(_names(trace, angles), epochs, angles, moments(trace))


def _angles(directions: np.ndarray) -> np.ndarray:
    # 2 atan2(|a-b|, |a+b|) keeps its digits near zero, where arccos of a rounded cosine has none left.
    apart, together = (np.linalg.norm(directions + sign * directions[:1], axis=-1) for sign in (-1, 1))
    return np.degrees(2 * np.arctan2(apart, together))


def draw_prototype_drift(info: PrototypeDrift) -> go.Figure:
    """Median and middle 90 % over the epochs, beside the classes that turned most."""
    title, axis = "Drift: how far the class prototypes turned", "angle (degrees)"
    if not any(angles.any() for angles in info.angles.values()):
        return style.empty_chart(title, "No class prototype turned." if info.angles else _NO_SNAPSHOTS, "epoch", axis)
    moving = max(info.angles, key=lambda name: float(info.angles[name][-1].mean()))
    order = np.argsort(-info.angles[moving][-1], kind="stable")[:_DRIFT_ROWS]
    panels = ("over the epochs", f"{style.escape(moving)}: turned most")
    grid: dict[str, Any] = {"column_widths": [0.46, 0.54], "horizontal_spacing": 0.28}
    figure = style.new_chart(title, max(420, 180 + 20 * len(order)), x=axis, panels=panels, **grid)
    for i, (name, angles) in enumerate(info.angles.items()):
        low, median, high = np.quantile(angles, [0.05, 0.5, 0.95], axis=1)
        error = {"array": high - median, "arrayminus": median - low, "symmetric": False, "thickness": 1.2}
        label, hover = f"{style.escape(name)} (median, middle 90 %)", "epoch %{x}: %{y:.1f} degrees"
        style.add_line(figure, info.epochs, median, label, style.prototype_look(i), hover, error_y=error, **style.LEFT)
    rows, names = list(range(len(order))), style.short_names([info.names[label] for label in order])
    bars, look = {"orientation": "h", "showlegend": False}, style.Look(style.GRAY, "", "")
    x, hover = info.angles[moving][-1][order], "%{x:.1f} degrees"
    style.add_bars(figure, x, rows, None, look, hover, **bars, **style.RIGHT)
    draw_epochs(figure, info.epochs, info.moments, style.LEFT)
    figure.update_yaxes(title_text=axis, rangemode="tozero", **style.LEFT)
    figure.update_xaxes(rangemode="tozero", **style.RIGHT)
    return figure.update_yaxes(tickvals=rows, ticktext=names, autorange="reversed", **style.RIGHT)


class PrototypeSimilarity(NamedTuple):
    """Cosines (C,C) in [-1, 1] of every row prototype with every column prototype, before training and after.

    `rows` and `columns` name the snapshots; where they are one and the same, the diagonal is 1. `rows` is None
    without snapshots.
    """

    names: list[str]
    rows: str | None
    columns: str | None
    before: np.ndarray
    after: np.ndarray


def prototype_similarity_info(trace: Trace, rows: str | None = None, columns: str | None = None) -> PrototypeSimilarity:
    """Cosines between the stored prototypes.

    Args:
        trace: The run.
        rows: Snapshot of the rows; by default the first that moved (text prototypes, say).
        columns: Snapshot of the columns; by default another one that moved (image prototypes), or `rows`.

    Raises:
        ValueError: If there is no such snapshot.
    """
    snapshots = finite_snapshots(trace)
    if not snapshots:
        return PrototypeSimilarity([], None, None, *np.zeros((2, 0, 0)))
    # Last in the alphabet first, so that text prototypes are the rows and image prototypes the columns.
    moved = [name for name in reversed(snapshots) if not np.array_equal(snapshots[name][0], snapshots[name][-1])]
    rows = rows or (moved or list(snapshots))[0]
    columns = columns or next((name for name in moved if name != rows), rows)
    for name in (rows, columns):
        if name not in snapshots:
            raise ValueError(f"no snapshot {name!r} in this trace; it has {', '.join(snapshots)}")
    units = [unit(snapshots[name][[0, -1]]) for name in (rows, columns)]
    before, after = (units[0][when] @ units[1][when].T for when in (0, 1))
    names = [style.class_name(trace.class_names, label) for label in range(len(before))]
    return PrototypeSimilarity(names, rows, columns, before, after)


def draw_prototype_similarity(info: PrototypeSimilarity) -> go.Figure:
    """Two heat maps: the cosines after the last epoch, and how they changed since before training."""
    title = "Geometry: how similar the class prototypes are"
    panels = ("cosine, last epoch", "change since before training")
    if info.rows is None:
        return style.empty_chart(title, _NO_SNAPSHOTS, "class", "class")
    figure = style.new_chart(title, 660, 0, panels=panels, shared_yaxes=True, horizontal_spacing=0.03)
    own, change = info.rows == info.columns, info.after - info.before
    others = ~np.eye(len(info.after), dtype=bool) if own and len(info.after) > 1 else np.ones_like(change, bool)
    largest = max(float(np.abs(change[others]).max()), 0.01)
    low, high = float(info.after[others].min()), float(info.after[others].max())
    _add_heatmap(figure, info.after, style.SIMILARITY_COLORS, (low, max(high, low + 0.01)), 0)
    _add_heatmap(figure, change, style.CHANGE_COLORS, (-largest, largest), 1)
    ticks = style.thinned(info.names, _SIMILARITY_NAMES, 20)
    figure.update_layout(margin_b=210).update_xaxes(tickangle=-60, **ticks)
    figure.update_yaxes(autorange="reversed", **ticks, col=1).update_yaxes(autorange="reversed", ticks="", col=2)
    if not own:
        figure.update_yaxes(title_text=style.escape(info.rows), col=1)
        figure.update_xaxes(title_text=style.escape(info.columns))
    return figure


def _add_heatmap(figure: go.Figure, values: np.ndarray, colors: str, bounds: tuple[float, float], side: int) -> None:
    """A matrix in the left (`side` 0) or the right panel (1), with its color bar below."""
    # Hundredths as bytes: a matrix of 200 classes then weighs 50 kB in a page instead of 400. On a narrow scale they
    # are too coarse: small changes would be none, and two ticks would have one text.
    digits, kind = (2, np.int8) if bounds[1] - bounds[0] >= 0.2 else (3, np.int16)
    unit, edge = 10**digits, ("left", "right")[side]
    ticks = np.linspace(unit * bounds[0], unit * bounds[1], 5)
    figure.add_heatmap(
        z=(unit * values.clip(-1.27, 1.27)).round().astype(kind), zmin=ticks[0], zmax=ticks[-1], colorscale=colors,
        colorbar={"orientation": "h", "thickness": 12, "len": 0.46, "x": float(side), "xanchor": edge, "y": 0.01,
                  "yref": "container", "yanchor": "bottom", "tickvals": ticks,
                  "ticktext": [f"{tick / unit:z.{digits}f}" for tick in ticks]},
        hovertemplate=("cosine", "change of the cosine")[side] + f" %{{z}}/{unit}<extra></extra>", **style.PANELS[side],
    )  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Points of all epochs, prototypes first."""

    places: np.ndarray  # (E1, n, 2) float32
    groups: dict[str, style.Look]  # `IMAGES` last where there are images
    group: np.ndarray  # (n,) uint8, number of each point's group
    label: np.ndarray  # (n,) int32, class of a prototype; of an image its true class, -1 unknown
    index: np.ndarray  # (n,) int64, position of an image in the evaluation images; -1 for prototypes
    marks: np.ndarray  # (E1, n) uint8, whether the image is predicted right at the epoch
    names: list[str]
    explained: np.ndarray  # (2,) shares of the variance of the prototypes, in [0, 1]

    @property
    def is_image(self) -> np.ndarray:
        """(n,) bool."""
        return self.index >= 0

    @property
    def words(self) -> dict[str, Any]:
        """What the canvas calls things, and how many epochs there are."""
        shares = [f"{share:.0%} of the variance of the prototypes" for share in self.explained]
        return {
            "n_epochs": len(self.places),
            "groups": [{"name": style.shorten(name, 40), **look._asdict()} for name, look in self.groups.items()],
            "axes": [f"first direction ({shares[0]})", f"second direction ({shares[1]})"],
        }

    @classmethod
    def of(cls, trace: Trace) -> Scene:
        """What a trace holds: no points where it holds no prototypes."""
        info = prototype_paths_info(trace)
        if (plane := info.plane) is None:
            none = np.zeros(0, np.uint8)
            return cls(np.zeros((1, 0, 2), np.float32), {}, none, none, none, none[None], [], np.zeros(2))
        n_epochs, n_classes = next(iter(info.paths.values())).shape[:2]
        parts = [(path, np.arange(n_classes), np.full(n_classes, -1)) for path in info.paths.values()]
        groups = {name: style.prototype_look(i) for i, name in enumerate(info.paths)}
        images = trace.embeddings
        if images is not None and images.images.shape[-1] == len(plane.center):
            last = np.searchsorted(epochs_of(trace.predictions), np.arange(n_epochs) - 1, "right") - 1  # measurement
            stretched = images.images[last.clip(0, len(images.images) - 1)]
            parts.append((plane.place(stretched.astype(np.float32)), images.target, images.index))
            groups[IMAGES] = style.Look(style.GRAY, "circle", "none")
        places, labels, indices = zip(*parts, strict=True)
        index = np.concatenate(indices).astype(np.int64)
        group = np.repeat(np.arange(len(groups)), [len(part) for part in labels]).astype(np.uint8)
        marks, label = _marks(trace, n_epochs, index), np.concatenate(labels).astype(np.int32)
        places = np.concatenate(places, axis=1).astype(np.float32)
        return cls(places, groups, group, label, index, marks, info.names, info.explained)


def _marks(trace: Trace, n_epochs: int, index: np.ndarray) -> np.ndarray:
    """Whether each image is predicted right, (E1, n) uint8."""
    table = trace.predictions[trace.predictions["target"] >= 0].drop_duplicates(["epoch", "index"])
    table = table.assign(mark=np.where(table["prediction"] == table["target"], RIGHT, WRONG))
    marks = table.pivot(index="epoch", columns="index", values="mark").reindex(range(-1, n_epochs - 1))
    return marks.reindex(columns=index).fillna(UNKNOWN).to_numpy(np.uint8)  # of prototypes, at -1, nothing is known
