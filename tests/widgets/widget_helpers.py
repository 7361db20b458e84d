"""What the tests of the views share."""

import time

HOSTILE = '<img src=x onerror="alert(1)">\n"quoted" {braces} $x^2$ ' + "long " * 300


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)
