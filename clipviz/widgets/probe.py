"""ProbeStrip: the images that a run follows, and what the model looks at in them. A part of LiveMonitor."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from clipviz.events import RunStarted
from clipviz.figures.saliency import unit_range
from clipviz.figures.style import apart, bare, class_name, folded
from clipviz.widgets.canvases import PLAIN_TEXT, PROBE_SIDE
from clipviz.widgets.images import jpeg, laid_over, sheet
from clipviz.widgets.watch import array

_MOST = 12
_MOST_DRAWN = 8


class ProbeStrip:
    """At most twelve of the probe images (n, S, S, 3) uint8, spread evenly, and their newest maps (n, h, w) in [0, 1].

    `captions` are true classes, or numbers where these are not known; `kind` is "" while there are no maps.
    """

    def __init__(self) -> None:
        self.images = np.zeros((0, 1, 1, 3), np.uint8)
        self.captions: list[str] = []
        self.kind, self.maps = "", np.zeros((0, 1, 1))
        self._places = np.zeros(0, int)

    def take_images(self, started: RunStarted | None) -> bool:
        """Take over what a run follows; says whether that was new."""
        if started is None or started.probe is None or len(self.images):
            return False
        probe = started.probe
        self._places = spread(len(probe.index), _MOST)
        self.images = (array(probe.images)[self._places].transpose(0, 2, 3, 1) * 255 + 0.5).astype(np.uint8)
        targets, numbers = array(probe.target)[self._places], array(probe.index)[self._places]
        self.captions = apart(
            [class_name(started.class_names, int(target)) if target >= 0 else f"image {int(number)}"
             for target, number in zip(targets, numbers, strict=True)], 60,
        )  # fmt: skip
        return True

    def take_maps(self, explanation: Mapping[str, Any], kind: str) -> None:
        """Take over the newest maps of a kind, or of another kind where there is none of it."""
        self.kind = kind if kind in explanation else next(iter(explanation))
        self.maps = unit_range(array(explanation[self.kind]))[self._places]

    def sheet(self) -> bytes:
        """All images side by side, as JPEG."""
        return jpeg(sheet(list(self.images), PROBE_SIDE, max(1, len(self.images))))

    def draw(self, figure: Figure, title: str) -> None:
        """At most eight images over their maps, along the lower edge, as one picture: axes are slow."""
        shown, height = spread(len(self.images), _MOST_DRAWN), figure.get_figheight()
        figure.text(0.01, 1.72 / height, title, fontsize=9, weight="bold", va="center")
        rows = [sheet([*self.images[shown]], PROBE_SIDE, _MOST_DRAWN)]
        if self.kind:
            overlays = [laid_over(self.images[i], self.maps[i], PROBE_SIDE, self.kind == "ncut") for i in shown]
            rows.append(sheet(overlays, PROBE_SIDE, _MOST_DRAWN))
        axes = bare(figure.add_axes((0.01, 0.18 / height, 0.98, 1.44 / height)))
        axes.imshow(np.concatenate(rows), aspect="auto", interpolation="bilinear")
        for place, name in enumerate(apart([self.captions[i] for i in shown], 34)):
            left, text = 0.01 + 0.98 * place / _MOST_DRAWN, folded(name, 18)
            figure.text(left, 0.17 / height, text, fontsize=6, linespacing=0.95, **PLAIN_TEXT)


def spread(n: int, most: int) -> np.ndarray:
    """At most so many of n places, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.zeros(0, int)
