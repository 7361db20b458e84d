"""Signals that end a run: Ctrl-C, and what a closing terminal or a scheduler sends."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StoppedBySignal(SystemExit):
    """SIGTERM or SIGHUP; the exit status is 128 plus its number, as a shell has it."""


def raise_for(signum: int) -> NoReturn:
    """Raise what a signal means to Python: `KeyboardInterrupt` or `StoppedBySignal`."""
    raise KeyboardInterrupt if signum == signal.SIGINT else StoppedBySignal(128 + signum)


@contextmanager
def on_signal(handle: Callable[[int], None]) -> Iterator[dict[int, object]]:
    """Call a function for each signal that would end this process; yields the handlers of before.

    SIGTERM and SIGHUP stay ignored where they are (nohup), and outside the main thread Python has no signals.
    """
    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        before = {n: old for n, old in before.items() if n == signal.SIGINT or old not in (signal.SIG_IGN, None)}
    for signum in before:
        signal.signal(signum, lambda number, frame: handle(number))
    try:
        yield dict(before)
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@contextmanager
def stopping(stop: Callable[[], None], is_urgent: Callable[[], bool], patience: float = 0.0) -> Iterator[list[int]]:
    """Turn signals into `stop()`, which has whatever goes on come to an end soon; yields the list of those that came.

    Where it `is_urgent`, there being nothing to bring to an end, a signal interrupts at once. So does another Ctrl-C
    more than `patience` seconds after the first signal; a sooner one changes nothing.
    """
    came: list[int] = []
    since = 0.0

    def handle(signum: int) -> None:
        nonlocal since
        if is_urgent() or (came and signum == signal.SIGINT and time.monotonic() - since > patience):
            raise_for(signum)
        since = since if came else time.monotonic()
        came.append(signum)
        stop()

    with on_signal(handle) as before:
        yield came
    for signum in dict.fromkeys(came):
        handler = before[signum]
        if signum != signal.SIGINT and callable(handler):  # a script's own
            handler(signum, None)
