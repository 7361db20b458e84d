"""Buttons, sliders and lists to choose from; and RunControls, those that drive a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ipywidgets

from clipviz.training.follow import OVER

if TYPE_CHECKING:
    from clipviz.training.follow import FollowedRun
    from clipviz.training.run import Run

T = TypeVar("T", bound=ipywidgets.Widget)

PLAIN = {"description_width": "initial"}


def button(
    text: str, icon: str, act: Callable[[], None], tooltip: str = "", width: str = "110px"
) -> ipywidgets.Button:  # fmt: skip
    """A button with an icon of Font Awesome."""
    made = ipywidgets.Button(description=text, icon=icon, tooltip=tooltip, layout={"width": width})
    made.on_click(lambda _: act())
    return made


def dropdown(
    name: str, options: Sequence[Any], changed: Callable[[], None] | None = None, value: Any = None, width: int = 230
) -> ipywidgets.Dropdown:
    """A list to choose from; the first option unless another value is given."""
    made = ipywidgets.Dropdown(options=options, description=name, style=PLAIN, layout={"width": f"{width}px"})
    made.value = made.value if value is None else value
    return _told(made, changed)


def slider(
    name: str, value: float, low: float, high: float, step: float, changed: Callable[[], None] | None = None
) -> ipywidgets.FloatSlider:
    """A slider over numbers of two digits."""
    return _told(ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=name, style=PLAIN), changed)


def _told(control: T, changed: Callable[[], None] | None) -> T:
    if changed is not None:
        control.observe(lambda _: changed(), "value")
    return control


def said(text: str = "") -> ipywidgets.Label:
    """A text that takes as many lines as it needs."""
    return ipywidgets.Label(text, _dom_classes=("clipviz-said",))


def wrapped(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    """Widgets side by side, in as many lines as they need."""
    return ipywidgets.HBox(widgets, layout={"flex_flow": "row wrap"})


def show_if(is_shown: bool, widget: ipywidgets.Widget) -> None:
    """Show a widget, or take it off the page."""
    widget.layout.display = "flex" if is_shown else "none"


class RunControls:
    """Start (or resume), pause, step and stop; for methods that mix, a gamma to try out and to apply, and a text.

    `pressed` is called after each press, with what went wrong in a sentence, or "".
    """

    def __init__(self, run: Run | FollowedRun, pressed: Callable[[str], None], moved: Callable[[], None]) -> None:
        self.run, self._pressed, self._status = run, pressed, ""
        self.start = self._button("Start", "play", "start the run, or resume it after a pause", self._start)
        self.pause = self._button("Pause", "pause", "pause at the next step boundary", run.pause)
        self.step = self._button("Step", "step-forward", "do one optimizer step, then pause", self._step)
        self.stop = self._button("Stop", "stop", "end the run at the next step boundary", run.stop)
        own = run.gamma
        self.gamma = slider("gamma", 0.5 if own is None else float(own), 0, 1, 0.01, moved)
        self.apply = self._button("Apply", "check", "use this gamma from the next step on", self._apply)
        self.what_if = said()
        mixing = ipywidgets.VBox([wrapped(self.gamma, self.apply), self.what_if])
        show_if(own is not None, mixing)
        self.rows = (wrapped(self.start, self.pause, self.step, self.stop), mixing)

    def enable(self, status: str) -> None:
        """Buttons that can do something in this state of the run; written only when that changes."""
        if self._status == status:
            return
        self._status, over = status, status in OVER
        self.start.disabled = over or status == "running"
        self.start.description = "Resume" if status == "paused" else "Start"
        self.pause.disabled = status != "running"
        self.step.disabled = self.apply.disabled = over
        self.stop.disabled = over or status == "ready"

    def _button(self, text: str, icon: str, tooltip: str, act: Callable[[], Any]) -> ipywidgets.Button:
        def press() -> None:
            problem = ""
            try:
                act()
            except (RuntimeError, ValueError) as error:
                problem = str(error)
            self._pressed(problem)

        return button(text, icon, press, tooltip)

    def _start(self) -> None:
        (self.run.start if self.run.status == "ready" else self.run.resume)()

    def _apply(self) -> None:
        self.run.set(gamma=self.gamma.value)

    def _step(self) -> None:
        self.run.step()
        if self.run.status == "ready":
            self.run.start()
