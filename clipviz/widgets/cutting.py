"""Cutting: the normalized cut of one image, made again by another rule. A part of DKAPlayground."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from clipviz.figures.saliency import unit_range
from clipviz.figures.style import bare, shorten
from clipviz.trace import Trace
from clipviz.widgets.canvases import OverlayCanvas
from clipviz.widgets.images import jpeg, laid_over, sheet, to_bytes
from clipviz.widgets.inspector import NAMES
from clipviz.widgets.view import Newest, one_at_a_time

_TAU_RANGES = {"cosine": (0.0, 1.0, 0.01), "dot": (0.0, 200.0, 0.5)}
_KINDS = ("ncut", "fiedler", "soap")
_TILE = 128


class Cutting:
    """Mask, Fiedler vector and attention of an image, for a tau, an affinity, a rule and a side.

    Args:
        trace: whose settings the controls begin with.
        model_probe: a `ModelProbe`, which cuts; None, or one that cannot, hides everything.

    Attributes:
        tau, affinity, rule, side: the controls.
        maps: (kind, (h, w) in [0, 1]) pairs of the shown image, empty while none is.
        pixels: the shown image (H, W, 3) uint8, or None.
        canvas: shows them.
        widget: controls and canvas.
    """

    def __init__(self, trace: Trace, model_probe: Any) -> None:
        self._model_probe = model_probe if model_probe is not None and "ncut" in model_probe.kinds else None
        self._newest, self._is_fitting = Newest(), False
        self._chosen: tuple[str, np.ndarray | None] = ("", None)
        self.maps: list[tuple[str, np.ndarray]] = []
        self.pixels: np.ndarray | None = None
        self._make_controls((trace.meta.get("settings") or {}).get("method") or {})

    def _make_controls(self, own: dict[str, Any]) -> None:
        affinity = str(own.get("affinity"))
        affinity = affinity if affinity in _TAU_RANGES else "cosine"
        low, high, step = _TAU_RANGES[affinity]
        tau = min(max(float(own.get("tau", 0.2)), low), high)
        plain = {"description_width": "initial"}
        narrow: dict[str, Any] = {"style": plain, "layout": {"width": "150px"}}
        self.tau = ipywidgets.FloatSlider(tau, min=low, max=high, step=step, description="tau", style=plain)
        self.affinity = ipywidgets.Dropdown(options=list(_TAU_RANGES), value=affinity, description="affinity", **narrow)
        rule = own.get("mask_rule") if own.get("mask_rule") in ("std", "mean") else "std"
        self.rule = ipywidgets.Dropdown(options=["std", "mean"], value=rule, description="rule", **narrow)
        side = own.get("side") if own.get("side") in ("peak", "border") else "peak"
        self.side = ipywidgets.Dropdown(options=["peak", "border"], value=side, description="side", **narrow)
        self.affinity.observe(lambda _: self._affinity_chosen(), "value")
        for control in (self.tau, self.rule, self.side):
            control.observe(lambda _: None if self._is_fitting else self._again(), "value")
        self.canvas = OverlayCanvas(empty="Choose an image to cut it.")
        heading = ipywidgets.HTML("<b>Normalized cut of the chosen image, by the current model</b>")
        controls = ipywidgets.HBox([self.tau, self.affinity, self.rule, self.side], layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([heading, controls, self.canvas])
        self.widget.layout.display = "none" if self._model_probe is None else "flex"

    def _affinity_chosen(self) -> None:
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
        maps, title = [], "Cut"
        if pixels is not None and model_probe is not None and pixels.shape[0] == model_probe.image_size:
            tau, chosen = self.tau.value, (self.affinity.value, self.rule.value, self.side.value)
            options = dict(zip(("affinity", "mask_rule", "side"), chosen, strict=True)) | {"tau": tau}
            title = f"tau {tau:g}, {', '.join(chosen)}"
            try:
                for kind in _KINDS:
                    known = {name: value for name, value in options.items() if name in model_probe.options(kind)}
                    maps.append((kind, unit_range(model_probe.saliency(pixels, kind, **known)[None])[0]))
                title += f": {100 * float(maps[0][1].mean()):.0f} % of the patches kept"
            except (ValueError, TimeoutError) as error:
                maps, title = [], f"{title}: {shorten(str(error) or 'no answer in time', 120)}"
        self._newest.show(question, lambda: self._publish(image, pixels, maps, title))

    def _publish(self, image: str, pixels: np.ndarray | None, maps: list[tuple[str, np.ndarray]], title: str) -> None:
        panels = [{"title": image, "label": "the chosen image", "shape": [0, 0], "mask": False}]
        panels += [
            {"title": NAMES[kind], "label": f"{NAMES[kind]} of the chosen image", "shape": list(values.shape),
             "mask": kind == "ncut"}
            for kind, values in maps
        ]  # fmt: skip
        self.maps, self.pixels = maps, pixels
        with self.canvas.hold_sync():
            self.canvas.image = jpeg(pixels, 92) if pixels is not None and maps else b""
            self.canvas.rows = [{"title": title, "panels": panels}]
            self.canvas.maps = b"".join(to_bytes(values) for _, values in maps)

    def draw(self, figure: Figure, top: float, height: float) -> None:
        """The image and its maps side by side below `top`, in a figure so many inches high."""
        assert self.pixels is not None
        figure.text(0.01, top, self.canvas.rows[0]["title"], fontsize=9, weight="bold", va="top")
        overlays = [laid_over(self.pixels, values, _TILE, is_mask=kind == "ncut") for kind, values in self.maps]
        tiles = sheet([self.pixels, *overlays], _TILE, 1 + len(overlays))
        axes = bare(figure.add_axes((0.01, top - 1.52 / height, 0.74, 1.3 / height)))
        axes.imshow(tiles, aspect="auto", interpolation="bilinear")
        for i, name in enumerate(["image", *(NAMES[kind] for kind, _ in self.maps)]):
            figure.text(0.01 + 0.185 * i, top - 1.54 / height, name, fontsize=7, va="top")
