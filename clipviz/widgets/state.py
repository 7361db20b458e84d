"""What linked views share: which images, which epoch, which method, which kind of map. Nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

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
