"""DKAPlayground: the labels of another mixture of the sources, and the patches that another cut would have kept."""

from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from clipviz.figures.explorables import html, mixed
from clipviz.figures.saliency import kind_name, unit_range
from clipviz.figures.sources import DIAGNOSTIC, SourceLogits, softmax, source_title
from clipviz.figures.style import BLACK, MIXED_ACCURACY, MIXED_CHANGES, Look, apart, class_name, decider_look, shorten
from clipviz.trace import Trace
from clipviz.widgets.album import Album
from clipviz.widgets.canvases import COLUMNS, ChartCanvas, GalleryCanvas, OverlayCanvas, Panel, Picture, Row
from clipviz.widgets.charts import Chart, Series
from clipviz.widgets.controls import PLAIN, dropdown, said, show_if, slider, wrapped
from clipviz.widgets.inspector import probe_of
from clipviz.widgets.view import Newest, View, ViewState, follow, one_at_a_time, state_of

_SHOWN = 30
_TOP = 6
_CURVE_POINTS = 21
_CURVE_IMAGES = 2000
"""The curve over gamma is drawn from so many images, spread evenly, so that it follows the sliders at once."""

_TAU_RANGES = {"cosine": (0.0, 1.0, 0.01), "dot": (0.0, 200.0, 0.5)}
_KINDS = ("ncut", "fiedler", "soap")
_NO_SOURCES = "This trace does not hold the logits of exactly two sources."


class DKAPlayground(View):
    """Recomputes the mixture of the stored source logits of the last epoch while the sliders move.

    It shows what another `gamma` or crop `temperature` would have labeled, not what training with it would have led
    to; `result` is a sentence about it. With a model, `cutting` recomputes the normalized cut of the chosen image.

    Args:
        trace: of a method with two sources, such as microCLIP.
        model: a `Run` or `ModelProbe`, to show images and their cuts; or None.
        state: shared with other views; `selected` is the image whose source logits are shown.
    """

    def __init__(self, trace: Trace, model: Any = None, *, state: ViewState | None = None) -> None:
        self.state = state_of(state, [trace])
        self._stored = self._now = SourceLogits.of(trace)  # at the run's crop temperature, and at the slider's
        self.album, self.names = Album(trace, probe_of(model)), trace.class_names
        self._labels = self._reference = np.zeros(0, np.int64)
        self._changed: list[str] = []
        self._charts: dict[str, Chart] = {}
        self._make_controls()
        self.cutting = Cutting(trace, self.album.model_probe)
        self.widget = ipywidgets.VBox([*self._mixing, self.cutting.widget])
        follow(self.state, self._image_chosen, "selected")
        if self._stored is not None:
            self._reference = self._stored.labels(self._stored.reference)
            self._mix()
        if self._changed and not self.state.selected:
            self.state.selected = (self._changed[0],)
        else:
            self._image_chosen()

    def __repr__(self) -> str:
        return f"DKAPlayground({shorten(self.album.trace.method, 40)})"

    def _make_controls(self) -> None:
        crops = self._stored.crops if self._stored else None
        self.gamma = slider("gamma", self._stored.reference if self._stored else 0.5, 0, 1, 0.01, self._mix)
        self.temperature = ipywidgets.FloatLogSlider(
            crops.temperature if crops else 1.0, base=10, min=-2.5, max=0.5, step=0.05,
            description="crop temp.", readout_format=".3g", style=PLAIN,
        )  # fmt: skip
        self.temperature.observe(lambda _: self._mix(), "value")
        show_if(crops is not None, self.temperature)
        self.result = said("" if self._stored else _NO_SOURCES)
        self.what_if, self.ballot = (ChartCanvas(layout={"flex": "1 1 350px", "min_width": "0"}) for _ in range(2))
        self.gallery = GalleryCanvas(empty="No shown image changes its pseudo-label.")
        self.gallery.link(self.state)
        sliders, charts = wrapped(self.gamma, self.temperature), wrapped(self.what_if, self.ballot)
        self._mixing = [sliders, self.result, charts, self.gallery]

    @one_at_a_time
    def _mix(self) -> None:
        """Labels, sentence, charts and changed images for the sliders' rule."""
        if (stored := self._stored) is None:
            return
        temperature, crops = self.temperature.value, stored.crops
        is_own = crops is None or np.isclose(temperature, crops.temperature)  # then the stored logits are exact
        self._now = now = stored if is_own else stored.reweighed(temperature)
        self._labels = now.labels(self.gamma.value)
        hypothetical = "" if stored.gamma is not None else "; hypothetical: this method mixes its sources differently"
        self.result.value = f"{now.compare(self._labels, self._reference)}{hypothetical}"
        self._show("what_if", self._curve(now))
        self._show_ballot()
        self._fill_gallery(now)

    def _curve(self, now: SourceLogits) -> Chart:
        """Changed labels and accuracy against gamma, at the slider's crop temperature."""
        n = len(now.index)
        rows = np.unique(np.linspace(0, n - 1, min(n, _CURVE_IMAGES)).astype(int))
        some, gammas = now.rows(rows), np.linspace(0, 1, _CURVE_POINTS)
        labels = [some.labels(gamma) for gamma in gammas]
        changed = [100 * (row != self._reference[rows]).mean() for row in labels]
        right = [100 * accuracy for row in labels if (accuracy := some.accuracy(row)) is not None]
        series = [Series("labels that differ from the run's", MIXED_CHANGES, gammas, changed)]
        if right:
            series.append(Series(f"right {DIAGNOSTIC}", MIXED_ACCURACY, gammas, right))
        marks = [(now.reference, "this run" if now.gamma is not None else "reference")]
        if abs(self.gamma.value - now.reference) > 0.005:
            marks.append((self.gamma.value, "slider"))
        first, second = (shorten(source_title(name), 14) for name in now.sources)
        y_label = "% of the images" if n <= _CURVE_IMAGES else f"% of {_CURVE_IMAGES:,} images"
        x_label = f"gamma (0: only {second}; 1: only {first})"
        return Chart("Pseudo-labels of the last epoch", x_label, y_label, series, marks=marks)

    @one_at_a_time
    def _show_ballot(self) -> None:
        title, now, row = "Sources on the chosen image", self._now, self._row()
        if now is None or row is None:
            self._show("ballot", Chart(title, "class", "probability", empty="Choose a training image."))
            return
        gamma, one = self.gamma.value, now.rows(np.array([row]))
        probs = [softmax(logits[0]) for logits in (one.first, one.second, one.mix(gamma))]
        top = np.argsort(-np.max(probs, 0))[:_TOP]
        looks = {source_title(name): decider_look(name, now.sources) for name in now.sources}
        looks[f"mixed, gamma {gamma:.2f}"] = Look(BLACK, "x", "none")
        series = [
            Series(name, look._replace(dash="none", hatch=""), range(len(top)), values[top])
            for (name, look), values in zip(looks.items(), probs, strict=True)
        ]
        names = apart([class_name(self.names, int(label)) for label in top], 18)
        is_true = [label == one.target[0] for label in top]
        ticks = [(float(i), ("✓ " if is_true[i] else "") + name) for i, name in enumerate(names)]
        named = shorten(class_name(self.names, int(self._labels[row])), 60)
        chart = Chart(f"{title}: {named}", "class", "probability", series, y_range=(0, 1), ticks=ticks, names=True)
        self._show("ballot", chart)

    def _row(self) -> int | None:
        """Row of the chosen image among the images that were learned from."""
        if self._stored is None or not self.state.selected:
            return None
        split, index = self.state.selected[0].split("/")
        found = np.flatnonzero(self._stored.index == int(index))
        return int(found[0]) if len(found) and split == self.album.train_split else None

    def _show(self, name: str, chart: Chart) -> None:
        self._charts[name] = chart
        getattr(self, name).spec = chart.to_json()

    def _fill_gallery(self, now: SourceLogits) -> None:
        """The images whose label the rule changes; while it changes none, those that the sources disagree on."""
        moved, label = np.flatnonzero(self._labels != self._reference), "Images whose pseudo-label changes"
        if not len(moved):
            label = "Images on which the sources disagree"
            moved = np.flatnonzero(now.first.argmax(1) != now.second.argmax(1))
        ids = {f"{self.album.train_split}/{int(now.index[row])}": row for row in moved.tolist()}
        self._changed = [image for image in ids if self.album.has(image)][:_SHOWN]
        captions = [self._change(now, ids[image]) for image in self._changed]
        self.gallery.fill(self._changed, captions, [*map(self.album.pixels, self._changed)], label)

    def _change(self, now: SourceLogits, row: int) -> str:
        labels = (self._reference[row], self._labels[row], now.target[row])
        before, after, true = apart([class_name(self.names, int(label)) for label in labels])
        text = after if before == after else f"{before} → {after}"
        is_right = labels[1] == labels[2]
        return text if now.target[row] < 0 else f"✓ {text}" if is_right else f"✗ {text}, is {true}"

    def _image_chosen(self) -> None:
        self._show_ballot()
        image = self.state.selected[0] if self.state.selected else ""
        self.cutting.show(image, self.album.pixels(image) if image and self.album.has(image) else None)

    @property
    def alt(self) -> str:
        """The rule and what it changes."""
        return f"{self!r}: gamma {self.gamma.value:.2f}: {self.result.value}."

    def page(self, picture: str) -> str:
        """Images that the two sources call different classes, those that can be shown first, with a slider."""
        if (stored := self._stored) is None:
            return ""
        ids = {row: f"{self.album.train_split}/{stored.index[row]}" for row in stored.disputed().tolist()}
        rows = sorted(ids, key=lambda row: not self.album.has(ids[row]))[:_TOP]
        if not rows:
            return ""
        photos = [self.album.pixels(ids[row]) if self.album.has(ids[row]) else None for row in rows]
        chart, data = self._charts["what_if"], mixed(self.names, stored, rows, photos)
        data |= {"curve": [line.y for line in chart.series], "share": chart.y_label, "isOwn": stored.gamma is not None}
        return html("gamma", data, source=f"data:image/jpeg;base64,{picture}", alt=self.alt)

    def draw(self) -> Figure:
        """Both charts, the images that change, and the cut of the chosen one."""
        shown, rows = self._changed[: 2 * COLUMNS], [self.cutting.row] if self.cutting.row else []
        height = 4.02 + 0.22 * bool(shown) + Picture.inches(shown, rows)
        picture = Picture(height, f"gamma {self.gamma.value:.2f}: {self.result.value}")
        grid = {"left": 0.075, "right": 0.955, "top": 1 - 0.6 / height, "bottom": 1 - 2.6 / height, "wspace": 0.2}
        for axes, name in zip(picture.figure.subplots(1, 2, gridspec_kw=grid), ("what_if", "ballot"), strict=True):
            self._charts.get(name, Chart("Pseudo-labels of the last epoch", "gamma", "%", empty=_NO_SOURCES)).draw(axes)
        picture.skip(3.5)
        if shown:
            picture.write(self.gallery.label)
        picture.thumbnails([*map(self.album.pixels, shown)])
        picture.rows(rows)
        return picture.figure


class Cutting:
    """Mask, Fiedler vector and attention of an image, for a tau, an affinity, a rule and a side: the controls.

    They begin with the settings of the trace. Without a `ModelProbe`, or with one that cannot cut, all is hidden.
    `maps` are (kind, (h, w) in [0, 1]) pairs of the shown image, `row` is what is shown of it.
    """

    def __init__(self, trace: Trace, model_probe: Any) -> None:
        self._model_probe = model_probe if model_probe is not None and "ncut" in model_probe.kinds else None
        self._newest, self._is_fitting = Newest(), False
        self._chosen: tuple[str, np.ndarray | None] = ("", None)
        self.maps: list[tuple[str, np.ndarray]] = []
        self.row: Row | None = None
        self._make_controls((trace.meta.get("settings") or {}).get("method") or {})

    def _make_controls(self, own: dict[str, Any]) -> None:
        def choice(name: str, options: list[str], setting: str) -> ipywidgets.Dropdown:
            value = own.get(setting)
            return dropdown(name, options, self._changed, value if value in options else options[0], width=150)

        self.affinity = choice("affinity", list(_TAU_RANGES), "affinity")
        low, high, step = _TAU_RANGES[self.affinity.value]
        self.tau = slider("tau", min(max(float(own.get("tau", 0.2)), low), high), low, high, step, self._changed)
        self.rule = choice("rule", ["std", "mean"], "mask_rule")
        self.side = choice("side", ["peak", "border"], "side")
        self.canvas = OverlayCanvas(empty="Choose an image to cut it.")
        heading = ipywidgets.HTML("<b>Normalized cut of the chosen image, by the current model</b>")
        self.widget = ipywidgets.VBox([heading, wrapped(self.tau, self.affinity, self.rule, self.side), self.canvas])
        show_if(self._model_probe is not None, self.widget)

    def _changed(self) -> None:
        if not self._is_fitting:
            self._fit_tau()
            self._again()

    @one_at_a_time
    def _fit_tau(self) -> None:
        """Give tau the range that goes with the affinity, without cutting for it."""
        low, high, step = _TAU_RANGES[self.affinity.value]
        self._is_fitting = True
        with self.tau.hold_trait_notifications():
            self.tau.value = min(max(self.tau.value, low), high)
            self.tau.min, self.tau.max, self.tau.step = low, high, step
        self._is_fitting = False

    def show(self, image: str, pixels: np.ndarray | None) -> None:
        """Cut another image (H, W, 3) uint8; None shows none."""
        self._chosen = image, pixels
        self._again()

    def _again(self) -> None:
        question = self._newest.ask()
        (image, pixels), model_probe = self._chosen, self._model_probe
        maps: list[tuple[str, np.ndarray]] = []
        row = None
        if pixels is not None and model_probe is not None and pixels.shape[0] == model_probe.image_size:
            chosen = {"affinity": self.affinity.value, "mask_rule": self.rule.value, "side": self.side.value}
            options = {**chosen, "tau": self.tau.value}
            title = f"tau {self.tau.value:g}, {', '.join(chosen.values())}"
            try:
                for kind in _KINDS:
                    known = {name: value for name, value in options.items() if name in model_probe.options(kind)}
                    maps.append((kind, unit_range(model_probe.saliency(pixels, kind, **known)[None])[0]))
                title += f": {100 * float(maps[0][1].mean()):.0f} % of the patches kept"
            except (ValueError, TimeoutError) as error:
                maps, title = [], f"{title}: {shorten(str(error) or 'no answer in time', 120)}"
            panels = [Panel(kind_name(kind), values, kind == "ncut") for kind, values in maps]
            row = Row(title, [Panel(image), *panels], pixels)
        self._newest.show(question, lambda: self._publish(maps, row))

    def _publish(self, maps: list[tuple[str, np.ndarray]], row: Row | None) -> None:
        self.maps, self.row = maps, row
        self.canvas.fill([row] if row else [])
