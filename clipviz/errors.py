"""Ways to say things in one line: that a name is unknown and what is nearest to it, and which of many are meant."""

import difflib
import json
import math
import operator
import os
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

_MOST_CHOICES_SHOWN = 12
_DEEPEST = 64
_KEPT = "\u200c\u200d"  # joiners within words of several scripts
_MOST_LISTED = 20


def listed(texts: Iterable[str], joint: str = ", ") -> str:
    """Things that a message names: all of a few, of many the first and how many more there are; each of one line."""
    every = list(texts)
    more = f" and {len(every) - _MOST_LISTED:,} more" if len(every) > _MOST_LISTED else ""
    return joint.join(one_line(text, 600) for text in every[:_MOST_LISTED]) + more


def unknown(kind: str, name: object, choices: Iterable[str], also: Iterable[str] = ()) -> ValueError:
    """Build the error for a name that is not among `choices`, to be raised; `kind`, as "model", is what it should be.

    `choices` are the valid names in the order to show them; of many, those most like `name` are shown, the most alike
    first. `also` may have been meant, too, and is not listed. What came is quoted, so it stays on one line.
    """
    valid = list(choices)
    by_lower = {choice.lower(): choice for choice in (*also, *valid)}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[nearest[0]]!r}?" if nearest else "."
    shown = valid
    if len(valid) > _MOST_CHOICES_SHOWN:
        alike = {choice: difflib.SequenceMatcher(None, str(name).lower(), choice.lower()).ratio() for choice in valid}
        shown = sorted(valid, key=lambda choice: -alike[choice])[:_MOST_CHOICES_SHOWN]
    more = f" and {len(valid) - len(shown)} more" if len(valid) > len(shown) else ""
    return ValueError(f"unknown {kind} {name!r}{hint} Choose from {', '.join(map(repr, shown))}{more}")


def inert(text: object) -> str:
    r"""Text of others for a terminal: orders to it (ESC, bidi overrides, line ends) become `\x1b` and the like."""
    plain = str(text)
    return plain if plain.isprintable() else "".join(map(_visible, plain))


def _visible(character: str) -> str:
    is_order = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _KEPT
    return character.encode("unicode_escape").decode() if is_order else character


def one_line(error: object, limit: int | None = 200) -> str:
    """What an error of another library says, in one line that is not too long and gives no orders to a terminal."""
    text = inert(" ".join(str(error).split()))
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What a file of others holds: JSON of finite numbers, at most 64 deep, so that whoever walks it comes back."""
    try:
        content = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number, **options)
        is_deep = _depth(content) > _DEEPEST
    except RecursionError:
        is_deep = True
    if is_deep:
        raise ValueError("it is nested too deeply")
    return content


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, items), default=0) if isinstance(value, dict | list | tuple) else 1


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < 1e300:  # NaN as well
        raise ValueError(f"it holds the number {text[:20]}, which is not finite")
    return int(text) if text.lstrip("-").isdigit() else value


def choose(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return `name` if it is one of `choices`, else raise the error that `unknown` builds."""
    valid = list(choices)
    if name not in valid:
        raise unknown(kind, name, valid)
    return name


def whole_number(name: str, value: Any, least: int) -> int:
    """A whole number of Python or numpy; a ValueError for anything else, True included, or less than `least`."""
    try:
        number = least - 1 if "bool" in type(value).__name__ else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {one_line(repr(value), 60)}")
    return number


def finite_number(name: str, value: Any, least: float = -math.inf) -> Any:
    """A finite number of Python, numpy or torch; a ValueError for anything else, NaN included, or less than `least`."""
    try:
        fits = bool(math.isfinite(value) and value >= least)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # text; several numbers, of numpy or torch
        fits = False
    if not fits:
        more = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name} must be a finite number{more}, got {one_line(repr(value), 60)}")
    return value


def plain_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers as JSON takes them, those of numpy and torch as Python's; a ValueError for anything else, or NaN."""
    plain = {}
    for name, value in values.items():
        number = value
        with suppress(AttributeError, RuntimeError, ValueError, TypeError, NotImplementedError):  # several, or none
            number = value.item()
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} must be a number, got {one_line(repr(value), 60)}")
        plain[name] = finite_number(name, number)
    return plain


def path_text(what: str, path: Any) -> str:
    """A path, or a name in its place, as text; a ValueError for what is neither, or empty: that would be any folder."""
    if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path):
        raise ValueError(f"{what} must be named by a text or a path, got {one_line(repr(path), 60)}")
    return os.fsdecode(path)


def several_texts(what: str, texts: Any) -> tuple[Any, ...]:
    """Names or sentences as a tuple; a ValueError for one text, which would be taken for its letters, or no list."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ValueError(f"{what}: wanted a list of texts, got {one_line(repr(texts), 60)}")
    return tuple(texts)
