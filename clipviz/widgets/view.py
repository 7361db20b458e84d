"""View: what every widget of clipviz is: controls and canvas for a live kernel, and a picture for everybody else."""

from __future__ import annotations

import base64
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.resources import files
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from clipviz.widgets.images import figure_jpeg
from clipviz.widgets.state import ViewState

_WIDGET = "application/vnd.jupyter.widget-view+json"


def source(*names: str) -> str:
    """Scripts or styles from the package, one after the other: nothing is built and nothing is fetched."""
    folder = files("clipviz.widgets") / "static"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


class Newest:
    """Questions that take their time, asked in several threads: a kernel's own and those of its subshells.

    `ask` before the controls are read, `show` when the answer is there: it is dropped if a newer question was asked
    since. Nobody waits for another's answer.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last = 0

    def ask(self) -> int:
        """The number of a new question."""
        with self._lock:
            self._last += 1
            return self._last

    def show(self, question: int, publish: Callable[[], None]) -> None:
        """Publish the answer to a question, unless it is an old one."""
        with self._lock:
            if question == self._last:
                publish()


def one_at_a_time(handler: Callable[..., None]) -> Callable[..., None]:
    """Have threads take turns in such methods of a view; not for what waits for a model or changes a shared state."""

    @wraps(handler)
    def in_turn(self: Any, *args: Any) -> None:
        with vars(self).setdefault("_turns", threading.RLock()):
            handler(self, *args)

    return in_turn


class View(ABC):
    """Base of the views.

    Shown in JupyterLab it is `widget`; where there is no kernel behind it (a notebook on a web page, reopened,
    converted) it is a picture of the state it was shown in, with `alt` as its alternative text. Its text form is short
    and the same in every process, so that notebooks can be compared.

    Attributes:
        state: shared with linked views.
        widget: the ipywidgets box.
    """

    state: ViewState
    widget: ipywidgets.Widget

    @abstractmethod
    def draw(self) -> Figure:
        """The current state as a matplotlib figure."""

    @property
    @abstractmethod
    def alt(self) -> str:
        """The current state in a sentence, for those who cannot see the picture."""

    def picture(self) -> bytes:
        """The current state as JPEG, at most 60 kB."""
        return figure_jpeg(self.draw())

    def close(self) -> None:
        """Give up the widgets and their connection to the browser."""
        _close(self.widget)

    def _repr_mimebundle_(
        self, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {
            "text/plain": repr(self),
            "image/jpeg": base64.b64encode(self.picture()).decode(),
            _WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id},
        }
        return data, {"image/jpeg": {"alt": self.alt}}


def _close(widget: ipywidgets.Widget) -> None:
    for part in (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, ipywidgets.Widget):
            _close(part)
    widget.close()
