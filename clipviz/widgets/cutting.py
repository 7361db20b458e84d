"""Cutting: the normalized cut of one image, made again by another rule. A part of DKAPlayground."""

from typing import Any

import ipywidgets
import numpy as np

from clipviz.figures.saliency import unit_range
from clipviz.figures.style import shorten
from clipviz.trace import Trace
from clipviz.widgets.canvases import OverlayCanvas, Panel, Row
from clipviz.widgets.controls import dropdown, show_if, slider, wrapped
from clipviz.widgets.inspector import kind_name
from clipviz.widgets.view import Newest, one_at_a_time

_TAU_RANGES = {"cosine": (0.0, 1.0, 0.01), "dot": (0.0, 200.0, 0.5)}
_KINDS = ("ncut", "fiedler", "soap")


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
        controls = wrapped(self.tau, self.affinity, self.rule, self.side)
        self.widget = ipywidgets.VBox([heading, controls, self.canvas])
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
