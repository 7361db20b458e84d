"""Inspector: the chosen image with its maps, by kind, epoch and method. A part of the explorers."""

import warnings
from collections.abc import Sequence
from concurrent.futures import TimeoutError as TooLate
from functools import lru_cache
from typing import Any

import ipywidgets
import numpy as np

from clipviz.errors import one_line
from clipviz.figures import trace_labels
from clipviz.figures.compare import share_images
from clipviz.figures.image_table import SPLITS
from clipviz.figures.moments import when
from clipviz.figures.saliency import kind_name, unit_range
from clipviz.figures.style import apart, class_name, shorten
from clipviz.trace import Trace
from clipviz.widgets.album import Album, parsed, same_classes
from clipviz.widgets.canvases import OverlayCanvas, Panel, Picture, Row
from clipviz.widgets.controls import PLAIN, dropdown, show_if, slider, wrapped
from clipviz.widgets.view import Newest, ViewState, follow

NOBODY = "(none)"


class Inspector:
    """Shows the first selected image of a state, by one of several runs with the same classes or by two of them.

    `models` has for each trace a `Run`, a `ModelProbe`, what `clipviz.open` opened, or None. The slider of epochs is
    among its controls unless its owner shows it. `albums` are by label in the order of the traces, `rows` what is shown
    of `image` (H, W, 3) uint8.
    """

    def __init__(
        self, traces: Sequence[Trace], models: Sequence[Any], state: ViewState, *, with_epoch: bool = True
    ) -> None:
        same_classes(traces)
        self.state, labels = state, trace_labels(traces)
        self._models = dict(zip(labels, models, strict=True))
        self.albums = dict(zip(labels, map(Album, traces, map(probe_of, models)), strict=True))
        state.method = state.method or next(iter(self.albums))
        self._at: dict[tuple[str, int], Any] = {}
        self.rows: list[Row] = []
        self.always: list[str] = []  # the runs that are shown whatever is looked at
        self.image: np.ndarray | None = None
        self._newest, self._share_images = Newest(), lru_cache(64)(share_images)
        self.canvas = OverlayCanvas()
        self._make_controls(max(trace.final_epoch for trace in traces), with_epoch)
        follow(self.state, self.show, ["selected", "epoch", "method"])
        follow(self.state, self._take_kind, "kind")
        self.show()

    @property
    def album(self) -> Album:
        """That of the method that is looked at."""
        return self.albums[self.known(self.state.method)]

    def known(self, method: str) -> str:
        """A method, or the first one where a linked view has chosen one that is not among these."""
        return method if method in self.albums else next(iter(self.albums))

    def at_most(self, epoch: int) -> int:
        """An epoch, or the nearest one that the slider has."""
        return min(max(epoch, -1), int(self.epoch.max))

    @property
    def named(self) -> str:
        """The runs, for the text form of a view."""
        return ", ".join(shorten(label, 30) for label in self.albums)

    def _make_controls(self, final_epoch: int, with_epoch: bool) -> None:
        probes = [album.model_probe for album in self.albums.values() if album.model_probe is not None]
        self._make_kinds(probes)
        looks = self._make_looks(final_epoch)
        self._asking = ipywidgets.HBox(self._make_questions(probes))
        controls = [self.play, self.epoch, *looks] if with_epoch else looks
        self.widget = ipywidgets.VBox([wrapped(*self.kinds.values()), wrapped(*controls), self._asking, self.canvas])

    def _make_kinds(self, probes: Sequence[Any]) -> None:
        """A button for each kind of map that is kept or can be computed."""
        stored = [kind for album in self.albums.values() for kind in album.stored_kinds()]
        self.kinds = {
            kind: ipywidgets.ToggleButton(
                description=kind_name(kind), layout={"width": "auto"},
                tooltip="kept in the trace" if kind in stored else "computed by the current model",
            )
            for kind in dict.fromkeys([*stored, *[kind for probe in probes for kind in probe.kinds]])
        }  # fmt: skip
        first = self.state.kind if self.state.kind in self.kinds else next(iter(self.kinds), "")
        for kind, toggle in self.kinds.items():
            toggle.value = kind == first
            toggle.observe(lambda change, kind=kind: self._toggled(kind, change["new"]), "value")

    def _make_looks(self, final_epoch: int) -> list[ipywidgets.Widget]:
        """Epoch, opacity, contour and the method beside it: how maps are shown, not what they are."""
        self.epoch = ipywidgets.IntSlider(min=-1, max=max(-1, final_epoch), description="epoch", style=PLAIN)
        self.state.link("epoch", self.epoch, "value", self.at_most)
        self.play = ipywidgets.Play(min=-1, max=self.epoch.max, interval=700)
        self.state.link("epoch", self.play, "value", self.at_most)
        self.change = ipywidgets.ToggleButton(False, description="before | after", layout={"width": "auto"},
                                              tooltip="maps before training, at the epoch, and the change")  # fmt: skip
        self.change.observe(lambda _: self.show(), "value")
        show_if(final_epoch >= 0, self.change)
        self.opacity = slider("opacity", 0.7, 0, 1, 0.05)
        self.contour = ipywidgets.Checkbox(False, description="contour at 0.5", indent=False)
        self.contour.layout = {"width": "auto", "margin": "2px 16px 2px 2px"}
        # In the browser, so that they answer at once and without the kernel.
        ipywidgets.jslink((self.opacity, "value"), (self.canvas, "opacity"))
        ipywidgets.jslink((self.contour, "value"), (self.canvas, "contour"))
        self.beside = dropdown("compare with", [NOBODY, *self.albums], self.show)
        show_if(len(self.albums) > 1, self.beside)
        return [self.opacity, self.contour, self.change, self.beside]

    def _make_questions(self, probes: Sequence[Any]) -> list[ipywidgets.Widget]:
        """For computed maps: contrast, layer and head of the attention, layer of the kinds that add up several."""
        names = apart(self.album.trace.class_names, 60)
        options = [(NOBODY, -1), ("the runner-up", -2), *((name, i) for i, name in enumerate(names))]
        self.contrast = dropdown("contrast class", options, self.show, width=320)
        n_layers, n_heads = (max([0, *(getattr(probe, name) for probe in probes)]) for name in ("n_layers", "n_heads"))
        self.layer = dropdown("layer", range(n_layers), self.show, n_layers - 1 if n_layers else None, width=120)
        self.head = dropdown("head", [("mean", -1), *((str(i), i) for i in range(n_heads))], self.show, width=120)
        layers = [("as published", -1), *((str(i), i) for i in range(n_layers))]
        self.layers = dropdown("layers added up", layers, self.show, width=250)
        return [self.contrast, self.layer, self.head, self.layers]

    def _toggled(self, kind: str, is_on: bool) -> None:
        if is_on:
            self.state.kind = kind
        self.show()

    def _take_kind(self) -> None:
        if self.state.kind in self.kinds:
            self.kinds[self.state.kind].value = True

    @property
    def chosen_kinds(self) -> list[str]:
        """The kinds whose maps are shown."""
        return [kind for kind, toggle in self.kinds.items() if toggle.value]

    def show(self) -> None:
        """Bring the canvas up to date."""
        question = self._newest.ask()
        image = self.state.selected[0] if self.state.selected else ""
        pixels, rows = None, []
        albums = [album for album in (self.album, *self.albums.values()) if image and self._knows(album, image)]
        having = [album for album in albums if album.has(image)]
        if image and (having or self.album.verdict(image, self.state.epoch).confidence is not None):
            pixels = (having or [self.album])[0].pixels(image)
            beside = [self.beside.value] if self.beside.value in self.albums else []
            labels = self.always or dict.fromkeys([self.known(self.state.method), *beside])
            rows = [self._row(label, image, pixels) for label in labels]
        self._newest.show(question, lambda: self._publish(pixels, rows))

    def _knows(self, album: Album, image: str) -> bool:
        """Whether an id means the same image in a run as in the one that is looked at."""
        split, own = parsed(image)[0], self.album
        return album is own or split not in SPLITS or self._share_images(own.trace, album.trace, split)

    def _publish(self, image: np.ndarray | None, rows: list[Row]) -> None:
        self.image, self.rows = image, rows
        show_if(any(_asks(self.album.model_probe, kind) for kind in self.chosen_kinds), self._asking)
        self.canvas.fill(rows)

    def _row(self, label: str, image: str, pixels: np.ndarray) -> Row:
        album = self.albums[label]
        if not self._knows(album, image):
            return Row(f"{label}: was not asked about this image", [], pixels)
        epoch = album.epoch(self.state.epoch)
        said, measured = album.caption(image, epoch, 60), album.measured(epoch)
        if image.startswith("eval/") and measured != epoch and len(album.trace.predictions):
            said += f" (measured {when(measured)})"
        panels = [Panel(album.name(image) + " is in the run but not in the trace" * (pixels.size == 3))]
        for kind in self.chosen_kinds:
            panels += self._panels(label, image, kind, epoch)
        return Row(f"{label}, {when(epoch, album.part)}: {said}", panels, pixels)

    def _panels(self, label: str, image: str, kind: str, epoch: int) -> list[Panel]:
        """The map of an epoch; if that is wanted, before it the one from before training, and after it the change."""
        if not self.change.value:
            return [self._panel(label, image, kind, epoch)]
        before, after = (self._panel(label, image, kind, at) for at in (-1, epoch))
        if before.values is None or after.values is None:
            return [before, after]
        change, said = 0.5 + (after.values - before.values) / 2, after.title.removesuffix(", now")
        return [
            before._replace(title=f"{before.title}, {when(-1)}"), after._replace(title=f"{said}, {when(epoch)}"),
            Panel(f"{said}: more (purple) or less (orange) than before", change, is_change=True),
        ]  # fmt: skip

    def _probe(self, label: str, epoch: int) -> Any:
        """What answers for the model of an epoch; None where that is not kept."""
        model, album = self._models[label], self.albums[label]
        if hasattr(model, "at") and album.model_probe is not None and epoch in model.epochs:
            return self._at.setdefault((label, epoch), model.at(epoch).model_probe)
        return album.model_probe if epoch == album.last else None

    def _panel(self, label: str, image: str, kind: str, epoch: int) -> Panel:
        album, name = self.albums[label], kind_name(kind)
        model_probe = self._probe(label, epoch)
        values = None if _asks(model_probe, kind) else album.stored_map(image, kind, epoch)
        if values is not None:
            return Panel(name, unit_range(values[None])[0], kind == "ncut")
        if model_probe is None and album.model_probe is not None:
            return Panel(f"{name}: not kept {when(epoch)}; the loaded model is that of {when(album.last)}")
        if model_probe is None or kind not in model_probe.kinds:
            return Panel(f"{name}: not in this trace")
        pixels = album.pixels(image)
        if pixels.shape[0] != model_probe.image_size:
            return Panel(f"{name}: the image does not have the model's size")
        try:
            options, asked = self._options(model_probe, pixels, kind)
            now = ", now" if epoch == album.last else ""
            return Panel(f"{name}{asked}{now}", model_probe.saliency(pixels, kind, **options), kind == "ncut")
        except (ValueError, TooLate) as error:
            return Panel(f"{name}: {shorten(str(error) or 'no answer in time', 120)}")

    def _options(self, model_probe: Any, pixels: np.ndarray, kind: str) -> tuple[dict[str, Any], str]:
        """Layer, head and contrast where the kind has them, and how to say so."""
        options: dict[str, Any] = {}
        possible = model_probe.options(kind)
        if "layer" in possible and self.layer.value is not None and kind == "cls_attention":
            options["layer"] = self.layer.value
        if "head" in possible and self.head.value >= 0:
            options["head"] = self.head.value
        text = "".join(f", {name} {value}" for name, value in options.items())
        if "layers" in possible and self.layers.value >= 0:
            options["layers"] = [self.layers.value]
            text += f", layer {self.layers.value}"
        if model_probe.contrasts(kind) and self.contrast.value != -1:
            order = np.argsort(-model_probe.probs(pixels), kind="stable")
            other = int(order[1]) if self.contrast.value == -2 and len(order) > 1 else int(self.contrast.value)
            if other >= 0 and other != order[0]:
                options |= {"target": int(order[0]), "contrast": other}
                names = model_probe.class_names
                text += ": " + ", not ".join(apart([class_name(names, int(order[0])), names[other]]))
        return options, text

    def draw(self, picture: Picture) -> None:
        """The rows one below the other."""
        picture.rows(self.rows, self.opacity.value, self.contour.value)


def probe_of(model: Any) -> Any:
    """What answers for the newest model; None if there is none, or its weights or images cannot be had."""
    try:
        return getattr(model, "model_probe", model)
    except (OSError, ValueError) as error:
        warnings.warn(one_line(error, 600), stacklevel=3)
        return None


def _asks(model_probe: Any, kind: str) -> bool:
    """Whether the model can be asked for such a map in more than one way, so that a kept one is not the answer."""
    can_make_it = model_probe is not None and kind in model_probe.kinds
    return can_make_it and (model_probe.contrasts(kind) or "layer" in model_probe.options(kind))
