"""Explorers: all views of a run, or of several side by side, in one."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from clipviz.trace import Trace
from clipviz.widgets.explorer import SaliencyExplorer
from clipviz.widgets.playground import DKAPlayground
from clipviz.widgets.prototypes import PrototypeExplorer
from clipviz.widgets.view import View, ViewState


class Explorers(View):
    """The explorers on tabs, linked: images and maps of all runs, prototypes and mixtures of the first.

    Args:
        traces: runs with the same classes.
        models: a `Run` or a `ModelProbe` for each, or None.
        state: shared with other views.

    Attributes:
        saliency, prototypes, mixtures: the views; `mixtures` is None for a method that does not mix two sources.
    """

    def __init__(self, traces: Sequence[Trace], models: Sequence[Any], *, state: ViewState | None = None) -> None:
        self.saliency = SaliencyExplorer(traces, models, state=state)
        self.state = self.saliency.state
        self.prototypes = PrototypeExplorer(traces[0], models[0], state=self.state)
        mixes = len(traces[0].sources.logits) == 2
        self.mixtures = DKAPlayground(traces[0], models[0], state=self.state) if mixes else None
        views = {"Images and maps": self.saliency, "Prototypes": self.prototypes, "Mixtures": self.mixtures}
        shown = {name: view for name, view in views.items() if view is not None}
        self.widget = ipywidgets.Tab([view.widget for view in shown.values()], titles=list(shown))

    def __repr__(self) -> str:
        return f"Explorers({self.saliency.inspector.named})"

    @property
    def alt(self) -> str:
        """The text of the images."""
        return self.saliency.alt

    def draw(self) -> Figure:
        """The images and maps."""
        return self.saliency.draw()
