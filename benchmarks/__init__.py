"""Measurements: speed, accuracy, saliency. Never part of the tests; results live in benchmarks/results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from clipviz.cli.main import is_about_the_input
from clipviz.errors import one_line


def positive(text: str) -> int:
    """The type of an argument that counts something: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least 1, got {text!r}")
    return int(text)


def command(main: Callable[[], None]) -> None:
    """Run a command; what clipviz refuses is one line and status 2, as it is for its own commands."""
    try:
        main()
    except ValueError as error:
        if not is_about_the_input(error):
            raise
        print(f"{Path(sys.argv[0]).name}: error: {one_line(error, None)}", file=sys.stderr)
        sys.exit(2)
