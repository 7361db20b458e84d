"""DKAPlayground: what another mixture of the sources would have labelled, and what another cut would have kept."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from clipviz.figures.style import BLACK, BLUE, VERMILLION, Look, apart, class_name, decider_look, shorten
from clipviz.trace import Trace
from clipviz.widgets.album import Album
from clipviz.widgets.canvases import COLUMNS, ChartCanvas, GalleryCanvas, draw_thumbnails
from clipviz.widgets.charts import Chart, Series
from clipviz.widgets.cutting import Cutting
from clipviz.widgets.state import ViewState, follow
from clipviz.widgets.view import View, one_at_a_time
from clipviz.widgets.votes import Votes, compare

_SHOWN = 30
_TOP = 6
_CURVE_POINTS = 21
_CURVE_IMAGES = 2000
"""The curve over gamma is drawn from so many images, spread evenly, so that it follows the sliders at once."""

_NO_VOTES = "This trace does not hold the logits of exactly two sources."


class DKAPlayground(View):
    """Mixes the stored votes of the last epoch again, while the sliders move.

    It shows what another gamma or crop temperature would have labelled, not what training with it would have led to.
    With a model, the normalized cut of the chosen image is computed again for another tau, affinity and rule.

    Args:
        trace: of a method with two sources, such as microCLIP.
        model: a `Run` or `ModelProbe`, to show images and to cut them; or None.
        state: shared with other views; `selected` is the image whose votes are shown.

    Attributes:
        gamma: share of the first source.
        temperature: of the softmax over crops.
        result: what changes, in a sentence.
        cutting: the cut of the chosen image, with its controls `tau`, `affinity`, `rule` and `side`.
    """

    def __init__(self, trace: Trace, model: Any = None, *, state: ViewState | None = None) -> None:
        self.state = state or ViewState(epoch=trace.final_epoch)
        self.votes = Votes.of(trace)
        self.album = Album(trace, getattr(model, "model_probe", model))
        self.names = trace.class_names
        self._reference = np.zeros(0, np.int64)
        self._labels = self._reference
        self._changed: list[str] = []
        self._charts: dict[str, Chart] = {}
        self._make_controls()
        self.cutting = Cutting(trace, self.album.model_probe)
        self.widget = ipywidgets.VBox([*self._mixing, self.cutting.widget])
        follow(self.state, self._image_chosen, "selected")
        if self.votes is not None:
            self._reference = self.votes.labels(self._own_gamma)
            self._mix()
        if self._changed and not self.state.selected:
            self.state.selected = (self._changed[0],)
        else:
            self._image_chosen()

    def __repr__(self) -> str:
        return f"DKAPlayground({shorten(self.album.trace.method, 40)})"

    @property
    def _own_gamma(self) -> float:
        return 0.5 if self.votes is None or self.votes.gamma is None else self.votes.gamma

    # ------------------------------------------------------------------------------------------- controls

    def _make_controls(self) -> None:
        crops = self.votes.crops if self.votes else None
        plain = {"description_width": "initial"}
        self.gamma = ipywidgets.FloatSlider(self._own_gamma, min=0, max=1, step=0.01, description="gamma", style=plain)
        self.temperature = ipywidgets.FloatLogSlider(
            crops.temperature if crops else 1.0, base=10, min=-2.5, max=0.5, step=0.05,
            description="crop temp.", readout_format=".3g", style=plain,
        )  # fmt: skip
        self.temperature.layout.display = "flex" if crops else "none"
        self.result = ipywidgets.Label(_NO_VOTES if self.votes is None else "")
        self.what_if, self.ballot = (ChartCanvas(layout={"flex": "1 1 350px", "min_width": "0"}) for _ in range(2))
        self.gallery = GalleryCanvas(empty="No pseudo-label of an image that can be shown changes.")
        self.gallery.link(self.state)
        for slider in (self.gamma, self.temperature):
            slider.observe(lambda _: self._mix(), "value")
        row = {"flex_flow": "row wrap"}
        self._mixing = [
            ipywidgets.HBox([self.gamma, self.temperature], layout=row),
            self.result,
            ipywidgets.HBox([self.what_if, self.ballot], layout=row),
            self.gallery,
        ]

    # ------------------------------------------------------------------------------------------- mixing

    @one_at_a_time
    def _mix(self) -> None:
        """Labels, sentence, charts and changed images for the sliders' rule."""
        votes = self.votes
        if votes is None:
            return
        temperature = self._temperature
        self._labels = votes.labels(self.gamma.value, temperature)
        hypothetical = "" if votes.gamma is not None else "; this method mixes otherwise, so this is hypothetical"
        self.result.value = f"{compare(votes, self._labels, self._reference)}{hypothetical}"
        self._show("what_if", self._curve(votes, temperature))
        self._show_ballot()
        self._fill_gallery(votes)

    @property
    def _temperature(self) -> float | None:
        """The slider's, or None where it stands at the run's own: then the stored logits are exact."""
        crops = self.votes.crops if self.votes else None
        return (
            None if crops is None or np.isclose(self.temperature.value, crops.temperature) else self.temperature.value
        )

    def _curve(self, votes: Votes, temperature: float | None) -> Chart:
        """Changed labels and accuracy against gamma, at the slider's crop temperature."""
        n = len(votes.index)
        some = np.unique(np.linspace(0, n - 1, min(n, _CURVE_IMAGES)).astype(int))
        first, second = votes.first_logits(temperature)[some], votes.second[some]
        gammas = np.linspace(0, 1, _CURVE_POINTS)
        labels = [(gamma * first + (1 - gamma) * second).argmax(1) for gamma in gammas]
        changed = [100 * float((row != self._reference[some]).mean()) for row in labels]
        series = [Series("labels that differ from the run's", VERMILLION, list(gammas), changed, "dash")]
        known = votes.target[some] >= 0
        if known.any():
            right = [100 * float((row == votes.target[some])[known].mean()) for row in labels]
            series.append(Series("right (for measuring only)", BLUE, list(gammas), right))
        marks = [(self._own_gamma, "this run" if votes.gamma is not None else "reference")]
        if abs(self.gamma.value - self._own_gamma) > 0.005:
            marks.append((self.gamma.value, "slider"))
        first_name, second_name = (shorten(name, 14) for name in votes.sources)
        x_label = f"gamma (0: only {second_name}; 1: only {first_name})"
        return Chart("Pseudo-labels of the last epoch", x_label, "% of the images", series, marks=marks)

    @one_at_a_time
    def _show_ballot(self) -> None:
        """The votes on the chosen image: probabilities of each source alone, and of their mixture."""
        votes, row = self.votes, self._row()
        title = "Votes on the chosen image"
        if votes is None or row is None:
            self._show("ballot", Chart(title, "class", "probability", empty="Choose an image that was learned from."))
            return
        first, second = votes.first_logits(self._temperature)[row], votes.second[row]
        mixed = self.gamma.value * first + (1 - self.gamma.value) * second
        top = np.argsort(-np.maximum(np.maximum(_softmax(first), _softmax(second)), _softmax(mixed)))[:_TOP]
        x = list(map(float, range(len(top))))
        looks = [(name, decider_look(name, votes.sources), logits)
                 for name, logits in zip(votes.sources, (first, second), strict=True)]  # fmt: skip
        looks.append((f"mixed, gamma {self.gamma.value:.2f}", Look(BLACK, "x", "none"), mixed))
        series = [
            Series(name, look.color, x, [float(p) for p in _softmax(logits)[top]], "none", look.symbol)
            for name, look, logits in looks
        ]
        names = apart([class_name(self.names, int(label)) for label in top], 18)
        marks = ["✓ " if label == votes.target[row] else "" for label in top]
        ticks = [(float(i), mark + name) for i, (mark, name) in enumerate(zip(marks, names, strict=True))]
        named = shorten(class_name(self.names, int(self._labels[row])), 60)
        chart = Chart(f"{title}: {named}", "class", "probability", series, y_range=(0, 1), ticks=ticks, names=True)
        self._show("ballot", chart)

    def _row(self) -> int | None:
        """Row of the chosen image among the votes."""
        if self.votes is None or not self.state.selected:
            return None
        split, index = self.state.selected[0].split("/")
        if split != self.album.train_split:
            return None
        found = np.flatnonzero(self.votes.index == int(index))
        return int(found[0]) if len(found) else None

    def _show(self, name: str, chart: Chart) -> None:
        self._charts[name] = chart
        getattr(self, name).spec = chart.to_json()

    def _fill_gallery(self, votes: Votes) -> None:
        """The images whose label the rule changes; while it changes none, those that the sources disagree on."""
        moved, label = np.flatnonzero(self._labels != self._reference), "Images whose pseudo-label changes"
        if not len(moved):
            label = "Images on which the sources disagree"
            moved = np.flatnonzero(votes.first.argmax(1) != votes.second.argmax(1))
        rows = [row for row in moved.tolist() if self.album.has(self._id(row))][:_SHOWN]
        self._changed = [self._id(row) for row in rows]
        self.gallery.fill(
            self._changed,
            [self._change(votes, row) for row in rows],
            [self.album.pixels(i) for i in self._changed],
            label,
        )

    def _id(self, row: int) -> str:
        assert self.votes is not None
        return f"{self.album.train_split}/{int(self.votes.index[row])}"

    def _change(self, votes: Votes, row: int) -> str:
        target = int(votes.target[row])
        labels = (self._reference[row], self._labels[row], target)
        before, now, true = apart([class_name(self.names, int(label)) for label in labels])
        text = now if before == now else f"{before} → {now}"
        return text if target < 0 else f"{text}, is {true}"

    def _image_chosen(self) -> None:
        self._show_ballot()
        image = self.state.selected[0] if self.state.selected else ""
        self.cutting.show(image, self.album.pixels(image) if image and self.album.has(image) else None)

    # ------------------------------------------------------------------------------------------- picture

    @property
    def alt(self) -> str:
        """The rule and what it changes."""
        return f"{self!r}: gamma {self.gamma.value:.2f}: {self.result.value}."

    def draw(self) -> Figure:
        """Both charts, the images that change, and the cut of the chosen one."""
        shown = self._changed[: 2 * COLUMNS]
        strips = 0.72 * -(-len(shown) // COLUMNS) + 0.25 * bool(shown)
        height = 3.7 + strips + 1.75 * bool(self.cutting.maps)
        figure = Figure(figsize=(7.2, height), dpi=100)
        headline = f"gamma {self.gamma.value:.2f}: {self.result.value}"
        plain: dict[str, Any] = {"va": "top", "weight": "bold", "fontsize": 8.5, "parse_math": False}
        figure.text(0.01, 1 - 0.06 / height, shorten(headline, 110), **plain)
        grid = {"left": 0.075, "right": 0.955, "top": 1 - 0.6 / height, "bottom": 1 - 2.6 / height, "wspace": 0.2}
        for axes, name in zip(figure.subplots(1, 2, gridspec_kw=grid), ("what_if", "ballot"), strict=True):
            self._charts.get(name, Chart("Pseudo-labels of the last epoch", "gamma", "%", empty=_NO_VOTES)).draw(axes)
        top = 1 - 3.7 / height
        if shown:
            figure.text(0.01, top, self.gallery.label, fontsize=9, weight="bold", va="top")
            images = [self.album.pixels(image) for image in shown]
            top = draw_thumbnails(figure, images, top - 0.22 / height, height)
        if self.cutting.maps:
            self.cutting.draw(figure, top - 0.05 / height, height)
        return figure


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max())
    return exp / exp.sum()
