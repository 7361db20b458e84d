"""How the class vectors moved: their paths in one fixed plane, and how far each turned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import Moments, draw_epochs, moments
from clipviz.trace import Trace

_NAMED_CLASSES = 10
_DRIFT_ROWS = 30
NO_SNAPSHOTS = "This trace holds no snapshots of class vectors."


def finite_snapshots(trace: Trace) -> dict[str, np.ndarray]:
    """Snapshot arrays (E1,C,D) in one space: those that share C and D with the first one, finite."""
    found = {name: array for name, array in trace.snapshots.items() if array.size and np.isfinite(array).all()}
    shape = next((array.shape[1:] for array in found.values()), ())
    return {name: array.astype(np.float64) for name, array in found.items() if array.shape[1:] == shape}


class PrototypePaths(NamedTuple):
    """Paths {snapshot: (E1,C,2)} in the plane of the two main directions of all snapshots and epochs.

    The projection is one and the same for every epoch; each direction's largest loading is positive, so
    that two computations agree. `explained` (2,) is each direction's share of the variance in [0, 1].
    """

    names: list[str]
    paths: dict[str, np.ndarray]
    explained: np.ndarray


class Plane(NamedTuple):
    """A plane in the embedding space: points (...,D) are seen at (points - center) @ directions.

    `center` (D,), `directions` (D,2) orthonormal, `explained` (2,) their shares of the variance in [0, 1].
    """

    center: np.ndarray
    directions: np.ndarray
    explained: np.ndarray

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points (...,D) in the plane, (...,2)."""
        return (points - self.center) @ self.directions


def prototype_plane(trace: Trace) -> Plane | None:
    """The main plane of the stored class vectors of all epochs; None without any."""
    snapshots = finite_snapshots(trace)
    if not snapshots:
        return None
    points = np.concatenate([array.reshape(-1, array.shape[-1]) for array in snapshots.values()])
    center = points.mean(0)
    return Plane(center, *_main_directions(points - center))


def prototype_paths_info(trace: Trace) -> PrototypePaths:
    """Joint PCA of the stored class vectors over all epochs."""
    snapshots, plane = finite_snapshots(trace), prototype_plane(trace)
    if plane is None:
        return PrototypePaths([], {}, np.zeros(2))
    paths = {name: plane.place(array) for name, array in snapshots.items()}
    n_classes = next(iter(snapshots.values())).shape[1]
    return PrototypePaths([style.class_name(trace.class_names, i) for i in range(n_classes)], paths, plane.explained)


def _main_directions(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two main directions (D,2) of centred points (n,D), signs fixed, and their variance shares (2,)."""
    # The (D,D) covariance is far smaller than the points of many epochs: exact, and fast enough to be live.
    variances, vectors = np.linalg.eigh(points.T @ points)
    directions = vectors[:, ::-1][:, :2]
    shares = variances[::-1][:2] / max(float(variances.sum()), np.finfo(float).tiny)
    if directions.shape[1] < 2:  # one-dimensional embeddings still get a plane
        directions = np.pad(directions, ((0, 0), (0, 1)))
        shares = np.pad(shares, (0, 1))
    largest = directions[np.abs(directions).argmax(0), [0, 1]]
    return directions * np.where(largest < 0, -1.0, 1.0), np.clip(shares, 0, 1)


def draw_prototype_paths(info: PrototypePaths) -> go.Figure:
    """A path per class from an open marker (before) to a filled one (now); the farthest are named."""
    title = "Paths of the class vectors (one fixed projection for all epochs)"
    if not info.paths:
        return style.empty_chart(title, NO_SNAPSHOTS, "first direction", "second direction")
    figure = style.new_chart(title, 620, legend_rows=2)
    for i, (name, path) in enumerate(info.paths.items()):
        _add_paths(figure, info.names, style.escape(name), path, style.prototype_look(i))
    _name_farthest(figure, info)
    labels = [f"{share:.0%} of the variance" for share in info.explained]
    figure.update_xaxes(title_text=f"first direction ({labels[0]})")
    figure.update_yaxes(title_text=f"second direction ({labels[1]})")
    return figure


def _add_paths(figure: go.Figure, names: list[str], label: str, path: np.ndarray, look: style.Look) -> None:
    path = path.astype(np.float32)  # more digits than pixels only make a page heavier
    gap = np.full((1, path.shape[1], 2), np.nan, np.float32)
    x, y = np.concatenate([path, gap]).transpose(2, 1, 0).reshape(2, -1)
    opacity = 0.6 if path.shape[1] <= 40 else 0.25  # many paths would hide their ends
    hidden = {"showlegend": False, "hoverinfo": "skip", "legendgroup": label, "opacity": opacity}
    style.add_line(figure, x, y, label, look, "", mode="lines", line={"width": 1.3}, **hidden)
    hover = style.short_names(names, 40)
    ends = [("before", 0, f"{look.symbol}-open"), ("last epoch", -1, look.symbol)]
    if np.array_equal(path[0], path[-1]):
        ends = [("never moves", 0, look.symbol)]
    for when, at, symbol in ends:
        name, shown = f"{label}, {when}", look._replace(symbol=symbol)
        x, y = path[at].T
        style.add_line(figure, x, y, name, shown, "%{text}, " + name, mode="markers", legendgroup=label, text=hover)


def _name_farthest(figure: go.Figure, info: PrototypePaths) -> None:
    """Names beside the ends that travelled farthest and do not sit on a name already written."""
    path = max(info.paths.values(), key=lambda p: float(np.linalg.norm(p[-1] - p[0], axis=-1).max()))
    distance = np.linalg.norm(path[-1] - path[0], axis=-1)
    everything = np.concatenate([p.reshape(-1, 2) for p in info.paths.values()])
    span = np.maximum(np.ptp(everything, axis=0), 1e-12)
    written, names = list[np.ndarray](), style.short_names(info.names, 22)
    for label in np.argsort(-distance, kind="stable"):
        place = path[-1, label] / span
        # A name is about a fifth of the width and a thirtieth of the height.
        if len(written) == _NAMED_CLASSES or any((abs(place - other) < (0.24, 0.045)).all() for other in written):
            continue
        written.append(place)
        x, y = path[-1, label]
        look = {"showarrow": False, "yshift": 13, "font": {"size": 12}, "bgcolor": "rgba(255,255,255,0.6)"}
        figure.add_annotation(x=x, y=y, text=names[label], **look, borderpad=0)


prototype_paths = style.figure_of(prototype_paths_info, draw_prototype_paths)


class PrototypeDrift(NamedTuple):
    """Degrees between each class vector before training and at epochs (E1,), {snapshot: (E1,C)}."""

    names: list[str]
    epochs: np.ndarray
    angles: dict[str, np.ndarray]
    moments: Moments = Moments()


def prototype_drift_info(trace: Trace) -> PrototypeDrift:
    """How far every class vector turned since before training."""
    snapshots = finite_snapshots(trace)
    if not snapshots:
        return PrototypeDrift([], np.zeros(0, int), {})
    angles = {name: _angles(array) for name, array in snapshots.items()}
    n_epochs, n_classes = next(iter(angles.values())).shape
    names = [style.class_name(trace.class_names, i) for i in range(n_classes)]
    return PrototypeDrift(names, np.arange(n_epochs) - 1, angles, moments(trace))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) scaled to unit length; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _angles(vectors: np.ndarray) -> np.ndarray:
    directions = unit(vectors)
    # 2 atan2(|a-b|, |a+b|) keeps its digits near zero, where arccos of a rounded cosine has none left.
    apart, together = (np.linalg.norm(directions + sign * directions[:1], axis=-1) for sign in (-1, 1))
    return np.degrees(2 * np.arctan2(apart, together))


def draw_prototype_drift(info: PrototypeDrift) -> go.Figure:
    """Median and middle 90 % over the epochs, beside the classes that turned most."""
    title = "Drift: how far the class vectors turned"
    if not info.angles:
        return style.empty_chart(title, NO_SNAPSHOTS, "epoch", "angle (degrees)")
    moving = max(info.angles, key=lambda name: float(info.angles[name][-1].mean()))
    order = np.argsort(-info.angles[moving][-1], kind="stable")[:_DRIFT_ROWS]
    titles = ("over the epochs", f"{style.escape(moving)}: turned most")
    grid = {"cols": 2, "column_widths": [0.46, 0.54], "horizontal_spacing": 0.28, "subplot_titles": titles}
    figure = style.new_chart(title, max(420, 180 + 20 * len(order)), grid=grid)
    left, right = {"row": 1, "col": 1}, {"row": 1, "col": 2}
    for i, (name, angles) in enumerate(info.angles.items()):
        low, median, high = np.quantile(angles, [0.05, 0.5, 0.95], axis=1)
        error = {"array": high - median, "arrayminus": median - low, "symmetric": False, "thickness": 1.2}
        label, hover = f"{style.escape(name)} (median, middle 90 %)", "epoch %{x}: %{y:.1f} degrees"
        style.add_line(figure, info.epochs, median, label, style.prototype_look(i), hover, error_y=error, **left)
    rows, names = list(range(len(order))), style.short_names([info.names[label] for label in order])
    look = {"orientation": "h", "marker_color": style.GRAY, "showlegend": False}
    hover = "%{x:.1f} degrees<extra></extra>"
    figure.add_bar(x=info.angles[moving][-1][order], y=rows, hovertemplate=hover, **look, **right)
    draw_epochs(figure, info.epochs, info.moments, [(1, 1)])
    figure.update_yaxes(title_text="angle (degrees)", rangemode="tozero", **left)
    figure.update_xaxes(title_text="angle (degrees)", rangemode="tozero", **right)
    figure.update_yaxes(tickvals=rows, ticktext=names, autorange="reversed", **right)
    return figure


prototype_drift = style.figure_of(prototype_drift_info, draw_prototype_drift)
