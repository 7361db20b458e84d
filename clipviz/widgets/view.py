"""Base of all views: controls and canvas with a live kernel, a picture without one, and shared choices."""

import base64
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from importlib.resources import files
from typing import Any
from weakref import WeakMethod, ref

import ipywidgets
from matplotlib.figure import Figure
from traitlets import HasTraits, Int, Tuple, Unicode

from clipviz.figures.style import check_traces
from clipviz.report.explored import alive
from clipviz.trace import Trace
from clipviz.widgets.images import figure_jpeg

_WIDGET = "application/vnd.jupyter.widget-view+json"


def source(*names: str) -> str:
    """Scripts or styles from the package, one after the other: nothing is built and nothing is fetched."""
    return "\n".join((files("clipviz.widgets") / "static" / name).read_text(encoding="utf-8") for name in names)


class ViewState(HasTraits):
    """Choices shared by views: give the same state to several views, and a choice in one shows in all.

    Ids of images: `"eval/12"` and `"train/7"` are positions in the evaluation and the training images, `"probe/3"` is a
    probe image whose place in either is not known.
    """

    selected = Tuple()  # ids of images, the one in focus first
    epoch = Int(-1)  # -1 before training
    method = Unicode("")  # label of a trace, as `clipviz.figures.trace_labels` gives it
    kind = Unicode("soap")  # of saliency

    def link(self, name: str, widget: HasTraits, trait: str, there: Callable[[Any], Any] = lambda value: value) -> None:
        """Keep a trait of a widget equal to what it can show of a choice (`there`), and take what is chosen in it.

        What it cannot show stays as it is, for other views. By the values of the moment, not by those of a change: it
        may be told of late, by a thread that waited for a model, and `traitlets.link` would bring the old choice back.
        """
        back, reference = type(getattr(self, name)), ref(widget)  # a state may outlive it

        def take(_: Any = None) -> None:
            if (known := reference()) is not None:
                setattr(known, trait, there(getattr(self, name)))

        def give(_: Any) -> None:
            chosen = getattr(widget, trait)
            if chosen != there(getattr(self, name)):
                setattr(self, name, back(chosen))

        take()
        self.observe(take, name)
        widget.observe(give, trait)

    def __repr__(self) -> str:
        method = self.method or "no method"
        return f"ViewState({len(self.selected)} selected, epoch {self.epoch}, {method}, {self.kind})"


def state_of(state: ViewState | None, traces: Sequence[Trace]) -> ViewState:
    """The state that was given, else one for a view alone, at the end of its traces."""
    check_traces("a view", traces)
    return state or ViewState(epoch=max((trace.final_epoch for trace in traces), default=-1))


def follow(state: ViewState, method: Callable[[], None], names: str | list[str]) -> None:
    """Call a view's method when shared choices change, for as long as there is the view: a state may outlive it."""
    reference = WeakMethod(method)

    def tell(_: Any) -> None:
        if (heard := reference()) is not None:
            heard()
        else:
            state.unobserve(tell, names)

    state.observe(tell, names)


class Newest:
    """Questions that take their time, asked in several threads: a kernel's own and those of its subshells.

    `ask` before the controls are read, `show` when the answer is there: it is dropped if a newer question was asked
    since. Nobody waits for another's answer.
    """

    def __init__(self) -> None:
        self._lock, self._last = threading.RLock(), 0

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
    converted) it is a page to explore if scripts may run, and a picture of the state it was shown in, with `alt` as its
    alternative text. Its text form is short and the same in every process, so that notebooks can be compared. `state`
    is shared with linked views.
    """

    state: ViewState
    widget: ipywidgets.Widget
    traces: Sequence[Trace] = ()  # of views whose images can be explored without a kernel
    note = "a static picture: run the cell to interact"

    @abstractmethod
    def draw(self) -> Figure:
        """The current state as a matplotlib figure."""

    @property
    @abstractmethod
    def alt(self) -> str:
        """The current state in a sentence, for those who cannot see the picture."""

    def picture(self) -> bytes:
        """The current state as JPEG, at most 60 kB, and that it is a picture."""
        return figure_jpeg(self.draw(), self.note)

    def page(self, picture: str) -> str:
        """HTML that is alive without a kernel, with the picture (base64) for where no script runs; or ""."""
        return alive(self.traces, picture, self.alt, self.state.selected) if self.traces else ""

    def close(self) -> None:
        """Release the widgets and their connection to the browser."""
        _close(self.widget)

    def _repr_mimebundle_(
        self, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        picture = base64.b64encode(self.picture()).decode()
        data = {
            "text/plain": repr(self), "image/jpeg": picture,
            _WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id},
        }  # fmt: skip
        if html := self.page(picture):
            data["text/html"] = html
        return data, {"image/jpeg": {"alt": self.alt}}


def _close(widget: ipywidgets.Widget) -> None:
    for part in (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, ipywidgets.Widget):
            _close(part)
    widget.close()
