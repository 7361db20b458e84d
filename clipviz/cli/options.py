"""The commands of the command line and their options, from `options.toml`; nothing here needs torch."""

import argparse
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


def gigabytes(text: str) -> float:
    """A finite number above 0."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"wanted a number of gigabytes above 0, got {text!r}")


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or len(text) > 1000 or int(text) < least:  # Python reads no more than 4300 digits
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least {least}, got {text!r}")
    return int(text)


_TYPES: dict[str, Callable[[str], Any]] = {
    "positive": partial(_whole_number, least=1), "natural": partial(_whole_number, least=0),
    "gigabytes": gigabytes, "number": float,
}  # fmt: skip
_ONE_OF, _ONE_OF_AT_MOST = "file, one of", "commands to the run"
"""The groups whose options exclude each other; of the first one is wanted."""


class Command(NamedTuple):
    """What a command does in one line, in a few sentences, an example of it, and its options by group ("": of none)."""

    purpose: str
    more: str
    example: str
    groups: Mapping[str, Mapping[str, Any]]

    def add_options(self, command: argparse.ArgumentParser) -> None:
        """Add all options to the parser of the command."""
        for title, options in self.groups.items():
            group = command.add_argument_group(title) if title else command
            if title in (_ONE_OF, _ONE_OF_AT_MOST):
                group = group.add_mutually_exclusive_group(required=title == _ONE_OF)
            for usage, how in options.items():
                for each, of in _SHARED[usage].items() if how is True else ((usage, how),):
                    group.add_argument(each.partition(" ")[0], **_arguments(each, of))


def _arguments(usage: str, how: str | Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"help": how} if isinstance(how, str) else dict(how)
    if "type" in arguments:
        arguments["type"] = _TYPES[arguments["type"]]
    metavar = usage.partition(" ")[2]
    is_switch = not metavar and "choices" not in arguments
    return ({"action": "store_true"} if is_switch else {"metavar": metavar or None}) | arguments


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_SHARED: Mapping[str, Mapping[str, Any]] = _FILE["shared"]

EXAMPLES: str = _FILE["examples"]
COMMANDS = {name: Command(**command) for name, command in _FILE["command"].items()}
"""By name, in the order of the help."""
