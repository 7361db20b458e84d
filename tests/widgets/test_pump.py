"""At most so many drawings a second, and never without the last one."""

import threading
import time
from itertools import pairwise

import pytest

from clipviz.widgets.live import Pump


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_at_most_five_drawings_a_second_and_the_last_offer_is_drawn():
    clock, drawn = Clock(), []
    offered = []
    pump = Pump(lambda: drawn.append((clock.now, offered[-1])), rate=5, clock=clock)
    for i in range(1, 1001):  # a thousand offers in two seconds
        offered.append(i)
        pump.offer()
        pump.turn()
        clock.now += 0.002
    clock.now += 0.2
    pump.turn()
    assert 10 <= len(drawn) <= 11
    gaps = [late - early for (early, _), (late, _) in pairwise(drawn)]
    assert min(gaps) >= 0.2 - 1e-9
    assert drawn[-1][1] == 1000


def test_nothing_is_drawn_without_news():
    clock, drawn = Clock(), []
    pump = Pump(lambda: drawn.append(clock.now), clock=clock)
    for _ in range(100):
        pump.turn()
        clock.now += 0.1
    assert drawn == []
    pump.offer()
    assert pump.turn()
    assert not pump.turn()


def test_news_that_nobody_offers_are_found():
    clock, drawn, status = Clock(), [], ["running"]
    pump = Pump(lambda: drawn.append(status.pop()), has_changed=lambda: bool(status), clock=clock)
    assert pump.turn()
    clock.now += 1
    assert not pump.turn()
    assert drawn == ["running"]


def test_the_thread_draws_once_more_at_the_end_and_goes():
    over, drawn = threading.Event(), []
    pump = Pump(lambda: drawn.append(over.is_set()), rate=50, is_over=over.is_set)
    pump.start()
    pump.offer()
    over.set()
    pump._thread.join(5)
    assert not pump._thread.is_alive()
    assert drawn[-1] is True


def test_an_interpreter_that_ends_waits_for_a_drawing_and_for_no_run(monkeypatch):
    at_exit, begun, drawn = [], threading.Event(), []

    def draw():
        begun.set()
        time.sleep(0.2)
        drawn.append(True)

    monkeypatch.setattr("atexit.register", at_exit.append)
    pump = Pump(draw, is_over=lambda: False)
    pump.offer()
    pump.start()
    assert begun.wait(5)
    for end in at_exit:
        end()
    assert not pump._thread.is_alive()
    assert drawn == [True]


def test_a_pump_that_is_done_leaves_nothing_to_do_at_exit(monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr("atexit.unregister", at_exit.remove)
    pump = Pump(lambda: None, is_over=lambda: True)
    pump.start()
    pump._thread.join(5)
    assert at_exit == []


def test_a_rate_that_is_no_rate_is_refused():
    with pytest.raises(ValueError, match="rate must be positive"):
        Pump(lambda: None, rate=0)
