"""What linked views share: which images, which epoch, which method, which kind of map. Nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod, ref

from traitlets import HasTraits, Int, Tuple, Unicode


class ViewState(HasTraits):
    """The bus between views: hand the same one to several views and a choice in one shows in all.

    Attributes:
        selected: ids of images, the one in focus first: `"eval/12"` and `"train/7"` are positions in the evaluation and
            the training images, `"probe/3"` is a probe image whose place in either is not known.
        epoch: -1 before training.
        method: label of a trace, as `clipviz.figures.trace_labels` gives it.
        kind: of saliency, for example `"soap"`.
    """

    selected = Tuple()
    epoch = Int(-1)
    method = Unicode("")
    kind = Unicode("soap")

    def link(self, name: str, widget: HasTraits, trait: str, there: Callable[[Any], Any] = lambda value: value) -> None:
        """Keep a trait of a widget equal to what it can show of one of these, and tell what is chosen there.

        By the values of the moment, not by those of a change: it may be told of late, by a thread that waited for a
        model, and `traitlets.link` would then bring the old choice back.

        Args:
            name: of the choice.
            widget: that shows it.
            trait: of the widget.
            there: what the widget shows of a choice; one that it cannot show stays as it is.
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
        return (
            f"ViewState({len(self.selected)} selected, epoch {self.epoch}, {self.method or 'no method'}, {self.kind})"
        )


def follow(state: ViewState, method: Callable[[], None], names: str | list[str]) -> None:
    """Call a view's method when shared choices change, for as long as there is the view: a state may outlive it."""
    reference = WeakMethod(method)

    def tell(_: Any) -> None:
        heard = reference()
        if heard is None:
            state.unobserve(tell, names)
        else:
            heard()

    state.observe(tell, names)
