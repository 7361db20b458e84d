"""Pump: from many events to a few drawings, the last one never lost."""

import threading
import time
from collections.abc import Callable

Clock = Callable[[], float]


class Pump:
    """Draws in a thread of its own, at most `rate` times a second, and only when something is new.

    Whoever trains calls `offer`, which costs nothing but setting a flag; frames in between are dropped. `has_changed`
    is asked once per interval, for news that nobody offers (a run that came to rest). When it `is_over` the pump draws
    once more, so that the last state is shown, and its thread ends.
    """

    def __init__(
        self,
        draw: Callable[[], None],
        rate: float = 5.0,
        has_changed: Callable[[], bool] = lambda: False,
        is_over: Callable[[], bool] = lambda: False,
        clock: Clock = time.monotonic,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self.interval = 1.0 / rate
        self._draw, self._has_changed, self._is_over, self._clock = draw, has_changed, is_over, clock
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn_at = float("-inf")

    def offer(self) -> None:
        """There is something new; returns at once."""
        self._news.set()

    def start(self) -> None:
        """Begin to draw; a pump that runs goes on."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="clipviz view", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Draw no more."""
        self._is_over, self._draw = (lambda: True), (lambda: None)
        self._news.set()

    def turn(self) -> bool:
        """Draw if there is news and the interval since the last drawing is over; says whether it drew."""
        is_due = self._clock() - self._drawn_at >= self.interval
        if not is_due or not (self._news.is_set() or self._has_changed()):
            return False
        self._news.clear()  # before drawing: what comes meanwhile is news for the next turn
        self._drawn_at = self._clock()
        self._draw()
        return True

    def _loop(self) -> None:
        while not self._is_over():
            self.turn()
            # News is waited for, the rest of the interval is slept through, and rest is looked for once per interval.
            self._news.wait(self.interval)
            time.sleep(max(0.0, self._drawn_at + self.interval - self._clock()))
        self._news.clear()
        self._draw()
