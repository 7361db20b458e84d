"""View: what every widget of clipviz is: controls and canvas for a live kernel, and a picture for everybody else."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterable
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
