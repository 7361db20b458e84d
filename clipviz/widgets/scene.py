"""Scene: class vectors and images of a trace as points in one fixed plane, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipviz.figures.prototypes import finite_snapshots, prototype_plane
from clipviz.figures.style import BLUE, GRAY, VERMILLION, class_name
from clipviz.trace import Trace

UNKNOWN, RIGHT, WRONG = 0, 1, 2
MARK_COLORS = {UNKNOWN: GRAY, RIGHT: BLUE, WRONG: VERMILLION}
IMAGES = "images"


@dataclass(frozen=True)
class Scene:
    """Points of all epochs, class vectors first.

    Attributes:
        places: (E1, n, 2) float32.
        groups: names of the groups, `IMAGES` last where there are images.
        group: (n,) uint8, number of each point's group.
        label: (n,) int32, class of a class vector; of an image its true class, -1 unknown.
        index: (n,) int64, position of an image in the evaluation images; -1 for class vectors.
        marks: (E1, n) uint8, whether the image is predicted right at the epoch.
        names: class names.
        explained: (2,) shares of the variance of the class vectors, in [0, 1].
    """

    places: np.ndarray
    groups: list[str]
    group: np.ndarray
    label: np.ndarray
    index: np.ndarray
    marks: np.ndarray
    names: list[str]
    explained: np.ndarray

    @property
    def is_image(self) -> np.ndarray:
        """(n,) bool."""
        return self.index >= 0

    @classmethod
    def of(cls, trace: Trace) -> Scene:
        """What a trace holds: no points where it holds no class vectors."""
        snapshots, plane = finite_snapshots(trace), prototype_plane(trace)
        if plane is None:
            nothing = np.zeros(0)
            return cls(
                np.zeros((1, 0, 2), np.float32), [], nothing, nothing, nothing, np.zeros((1, 0)), [], np.zeros(2)
            )
        n_epochs, n_classes = next(iter(snapshots.values())).shape[:2]
        places = [plane.place(array) for array in snapshots.values()]
        labels = [np.arange(n_classes)] * len(snapshots)
        indices = [np.full(n_classes, -1)] * len(snapshots)
        groups = list(snapshots)
        images = trace.embeddings
        if images is not None and images.images.shape[-1] == len(plane.center) and len(images.images) >= 1:
            places.append(plane.place(_stretched(images.images, n_epochs).astype(np.float32)))
            indices.append(images.index)
            labels.append(images.target)
            groups.append(IMAGES)
        index = np.concatenate(indices).astype(np.int64)
        sizes = [len(part) for part in labels]
        return cls(
            np.concatenate(places, axis=1).astype(np.float32),
            groups,
            np.repeat(np.arange(len(groups)), sizes).astype(np.uint8),
            np.concatenate(labels).astype(np.int32),
            index,
            _marks(trace, n_epochs, index),
            [class_name(trace.class_names, i) for i in range(n_classes)],
            plane.explained,
        )


def _stretched(images: np.ndarray, n_epochs: int) -> np.ndarray:
    """Embeddings for every epoch; a tower that stands still may have been recorded less often."""
    return images[np.minimum(np.arange(n_epochs), len(images) - 1)]


def _marks(trace: Trace, n_epochs: int, index: np.ndarray) -> np.ndarray:
    marks = np.full((n_epochs, len(index)), UNKNOWN, np.uint8)
    table = trace.predictions[trace.predictions["target"] >= 0]
    for place in range(n_epochs):
        rows = table[table["epoch"] == place - 1].drop_duplicates("index").set_index("index")
        is_right = (rows["prediction"] == rows["target"]).reindex(index[index >= 0])
        marks[place, index >= 0] = np.where(is_right.isna(), UNKNOWN, np.where(is_right == True, RIGHT, WRONG))  # noqa: E712
    return marks
