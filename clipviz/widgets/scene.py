"""Scene: prototypes and images of a trace as points in one fixed plane, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipviz.figures.prototypes import finite_snapshots, prototype_plane
from clipviz.figures.style import BLUE, GRAY, VERMILLION, Look, class_name, prototype_look
from clipviz.trace import Trace
from clipviz.widgets.source_logits import DIAGNOSTIC

UNKNOWN, RIGHT, WRONG = 0, 1, 2
MARKS = (("images", GRAY), (f"images, right {DIAGNOSTIC}", BLUE), (f"images, wrong {DIAGNOSTIC}", VERMILLION))
IMAGES = "images"


@dataclass(frozen=True)
class Scene:
    """Points of all epochs, prototypes first.

    Attributes:
        places: (E1, n, 2) float32.
        groups: name of each group -> its look, `IMAGES` last where there are images.
        group: (n,) uint8, number of each point's group.
        label: (n,) int32, class of a prototype; of an image its true class, -1 unknown.
        index: (n,) int64, position of an image in the evaluation images; -1 for prototypes.
        marks: (E1, n) uint8, whether the image is predicted right at the epoch.
        names: class names.
        explained: (2,) shares of the variance of the prototypes, in [0, 1].
    """

    places: np.ndarray
    groups: dict[str, Look]
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
        """What a trace holds: no points where it holds no prototypes."""
        snapshots, plane = finite_snapshots(trace), prototype_plane(trace)
        if plane is None:
            none = np.zeros(0, np.uint8)
            return cls(np.zeros((1, 0, 2), np.float32), {}, none, none, none, none[None], [], np.zeros(2))
        n_epochs, n_classes = next(iter(snapshots.values())).shape[:2]
        parts = [(plane.place(array), np.arange(n_classes), np.full(n_classes, -1)) for array in snapshots.values()]
        groups = {name: prototype_look(i) for i, name in enumerate(snapshots)}
        images = trace.embeddings
        if images is not None and images.images.shape[-1] == len(plane.center):
            # A tower that stands still may have been recorded less often.
            stretched = images.images[np.minimum(np.arange(n_epochs), len(images.images) - 1)]
            parts.append((plane.place(stretched.astype(np.float32)), images.target, images.index))
            groups[IMAGES] = Look(GRAY, "circle", "none")
        places, labels, indices = zip(*parts, strict=True)
        index = np.concatenate(indices).astype(np.int64)
        return cls(
            np.concatenate(places, axis=1).astype(np.float32),
            groups,
            np.repeat(np.arange(len(groups)), [len(part) for part in labels]).astype(np.uint8),
            np.concatenate(labels).astype(np.int32),
            index,
            _marks(trace, n_epochs, index),
            [class_name(trace.class_names, i) for i in range(n_classes)],
            plane.explained,
        )


def _marks(trace: Trace, n_epochs: int, index: np.ndarray) -> np.ndarray:
    marks = np.full((n_epochs, len(index)), UNKNOWN, np.uint8)
    table = trace.predictions[trace.predictions["target"] >= 0]
    for place in range(n_epochs):
        rows = table[table["epoch"] == place - 1].drop_duplicates("index").set_index("index")
        found = (rows["prediction"] == rows["target"]).map({True: RIGHT, False: WRONG})
        marks[place, index >= 0] = found.reindex(index[index >= 0], fill_value=UNKNOWN)
    return marks
