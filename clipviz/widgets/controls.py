"""RunControls: the buttons and the slider that drive a run. A part of LiveMonitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import ipywidgets

if TYPE_CHECKING:
    from clipviz.training.run import Run

OVER = ("stopped", "finished", "failed")


class RunControls:
    """Start, pause, step, stop, and a gamma to try out and to apply.

    Args:
        run: that they drive.
        pressed: called after each press, with what went wrong in a sentence, or "".
        moved: called when the slider moves.

    Attributes:
        start, pause, step, stop: the buttons. `start` goes on with a paused run.
        gamma: slider over the mixing weight, hidden for methods that have none.
        apply: hands the slider's gamma to the run.
        what_if: text beside the slider.
        rows: all of them.
    """

    def __init__(self, run: Run, pressed: Callable[[str], None], moved: Callable[[], None]) -> None:
        self.run = run
        self._pressed = pressed
        self._status = ""
        self.start = self._button("Start", "play", "start the run, or go on after a pause", self._start)
        self.pause = self._button("Pause", "pause", "rest at the next step boundary", run.pause)
        self.step = self._button("Step", "step-forward", "do one optimizer step, then rest", self._step)
        self.stop = self._button("Stop", "stop", "end the run at the next step boundary", run.stop)
        own = getattr(run.method.config, "gamma", None)
        self.gamma = ipywidgets.FloatSlider(
            0.5 if own is None else float(own), min=0, max=1, step=0.01, description="gamma", readout_format=".2f",
            style={"description_width": "initial"},
        )  # fmt: skip
        self.gamma.observe(lambda _: moved(), "value")
        self.apply = self._button("Apply", "check", "use this gamma from the next step on", self._apply)
        self.what_if = ipywidgets.Label()
        mixing = ipywidgets.VBox([ipywidgets.HBox([self.gamma, self.apply]), self.what_if])
        mixing.layout.display = "none" if own is None else "flex"
        buttons = ipywidgets.HBox([self.start, self.pause, self.step, self.stop])
        self.rows = (buttons, mixing)

    def enable(self, status: str) -> None:
        """Buttons that can do something in this state of the run; written only when that changes."""
        if self._status == status:
            return
        self._status = status
        over = status in OVER
        self.start.disabled = over or status == "running"
        self.start.description = "Resume" if status == "paused" else "Start"
        self.pause.disabled = status != "running"
        self.step.disabled = self.apply.disabled = over
        self.stop.disabled = over or status == "ready"

    def _button(self, text: str, icon: str, tooltip: str, act: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=text, icon=icon, tooltip=tooltip, layout={"width": "100px"})
        button.on_click(lambda _: self._do(act))
        return button

    def _do(self, act: Callable[[], None]) -> None:
        problem = ""
        try:
            act()
        except (RuntimeError, ValueError) as error:
            problem = str(error)
        self._pressed(problem)

    def _start(self) -> None:
        if self.run.status == "ready":
            self.run.start()
        else:
            self.run.resume()

    def _step(self) -> None:
        self.run.step()
        if self.run.status == "ready":
            self.run.start()

    def _apply(self) -> None:
        self.run.set(gamma=self.gamma.value)
