"""Changes of a method's constants while it runs."""

import operator
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress

import numpy as np

from clipviz.errors import one_line


class Change(Future[int]):
    """Constants (name -> new value) that were handed to a run; `result()` is the first step that they hold for."""

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__()
        self.constants = dict(constants)

    def __repr__(self) -> str:
        what = ", ".join(f"{name} = {value:g}" for name, value in self.constants.items())
        if not self.done():
            return f"{what} from the next step on"
        return f"{what}: {self.exception()}" if self.exception() else f"{what} from step {self.result()} on"


def plain_numbers(values: Mapping[str, object]) -> dict[str, float]:
    """Numbers as JSON takes them, those of numpy and torch as Python's; a ValueError for anything else."""
    plain = {}
    for name, value in values.items():
        number = value
        if callable(item := getattr(value, "item", None)):
            with suppress(RuntimeError, ValueError, TypeError, NotImplementedError):  # several numbers, or none
                number = item()
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} must be a number, got {one_line(repr(value), 60)}")
        plain[name] = number
    return plain


def whole_number(name: str, value: object, least: int) -> int:
    """A whole number of Python or numpy; a ValueError for anything else, True included, or less than `least`."""
    try:
        number = least - 1 if isinstance(value, bool | np.bool_) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {one_line(repr(value), 60)}")
    return number
