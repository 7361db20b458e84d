"""What a trace holds, as `schema.toml` has it: names, shapes, types and ranges, checked when a trace is loaded."""

import fnmatch
import reprlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipviz.trace.folder import Refused

_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TABLES: dict[str, dict[str, str]] = _FILE["tables"]
ARRAYS: dict[str, str] = _FILE["arrays"]
_ONCE: dict[str, list[str]] = _FILE["once"]
_NEEDED: dict[str, list[str]] = _FILE["needed"]
META: dict[str, Any] = _FILE["meta"]
_KINDS: dict[str, tuple[str, str, str, float, float]] = _FILE["kinds"]
_TYPES = {"text": str, "whole number": int, "number": int | float, "list": list, "object": dict}
DTYPES = {kind: dtype for kind, (_, dtype, *_) in _KINDS.items()}
SHEET_COLUMNS = 20
_SLACK = 1e-3  # of a softmax in half precision


@dataclass(frozen=True, eq=False)
class ImageGroup:
    """Images with what was recorded of each, in the shapes of `ARRAYS`; none of them where a trace has none.

    `maps` by kind: of the probe for every epoch, of the highlights by the final model. These alone have `probs` of the
    method, and `branches`: probabilities of a part of its inference path by name.
    """

    images: np.ndarray
    index: np.ndarray
    target: np.ndarray
    parts: np.ndarray | None
    maps: dict[str, np.ndarray]
    probs: np.ndarray | None
    branches: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Sources:
    """Scaled logits of the last epoch by source, and its crops alone; no rows where that was too much to keep."""

    index: np.ndarray
    target: np.ndarray
    logits: dict[str, np.ndarray]
    crop_similarity: np.ndarray | None
    crop_logits: np.ndarray | None
    crop_gram: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Cache:
    """The heaviest cache entries of each highlight: class, what it adds to the logit, and whence it came."""

    labels: np.ndarray
    contributions: np.ndarray
    index: np.ndarray | None
    images: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Examples:
    """The images that are most surely called a class, and that class."""

    images: np.ndarray
    label: np.ndarray


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of evaluation images by epoch, with their positions and targets."""

    images: np.ndarray
    index: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Exploration:
    """Evaluation images spread over the classes: the most probable ones (Q,L) in the end, and maps (Q,h,w) by moment.

    `sheet`: thumbnails, `SHEET_COLUMNS` in a row, as bytes of a JPEG; `logits` by part of the method, `maps` by kind.
    """

    sheet: np.ndarray | None
    index: np.ndarray
    target: np.ndarray
    top: np.ndarray
    probs: np.ndarray
    logits: dict[str, np.ndarray]
    maps: dict[str, dict[str, np.ndarray]]


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, by the rest of their names, in order."""
    return {name.removeprefix(prefix): arrays[name] for name in sorted(arrays) if name.startswith(prefix)}


def places(own: dict[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Take positions and targets of n images; a trace that does not name them numbers them, and knows no target."""
    return own.pop("index", np.arange(n)), own.pop("target", np.full(n, -1))


def image_group(arrays: Mapping[str, np.ndarray], prefix: str) -> ImageGroup:
    """Read a group of images: "probe/", or "gallery/": the highlights, as they are called on disk."""
    own = under(arrays, prefix)
    images = own.pop("images", np.zeros((0, 1, 1, 3), np.uint8))
    index, target = places(own, len(images))
    parts, probs, *_ = (own.pop(name, None) for name in ("parts", "probs", "prediction", "confidence"))
    branches = under(own, "branch/")
    maps = {kind: array for kind, array in own.items() if not kind.startswith("branch/")}
    return ImageGroup(images, index, target, parts, maps, probs, branches)


def check_table(name: str, table: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """A table in the types of its columns; `Refused` if one is missing or holds what it cannot, or says it twice."""
    columns = [str(column) for column in table.columns]
    kinds = _sample_kinds(columns) if name == "samples" else TABLES[name]
    if missing := [column for column in kinds if column not in columns]:
        raise Refused(f"lacks the columns {missing}; it has {columns}")
    if len(set(columns)) < len(columns):
        raise Refused(f"has two columns with the same name; it has {columns}")
    table = table.assign(**{c: _checked(f"column {c!r}", kind, table[c], n_classes) for c, kind in kinds.items()})
    keys = _ONCE.get(name, [])
    if keys and len(again := table.loc[table.duplicated(keys), keys]):
        which = f"{', '.join(keys)} are {', '.join(map(str, again.iloc[0]))}"
        raise Refused(f"has two rows whose {which}; only one can be true")
    return table


def _sample_kinds(columns: list[str]) -> dict[str, str]:
    """Kinds of the columns of `samples`, with those of the sources and of the crops, where there are any."""
    kinds = dict(TABLES["samples"])
    for column in columns:
        if column.endswith("_label") and column not in kinds:
            kinds |= {column: "label or none", f"{column.removesuffix('_label')}_confidence": "share"}
    return kinds | ({"crop_effective": "weight", "crop_weight_max": "share"} if "crop_effective" in columns else {})


def check_arrays(arrays: Mapping[str, np.ndarray], n_classes: int) -> dict[str, np.ndarray]:
    """Arrays in the types they should have; `Refused` if one is missing, or has a shape or numbers that it cannot.

    Those that `ARRAYS` does not name are kept as they are.
    """
    found, sizes, left = dict(arrays), {"C": n_classes} if n_classes else {}, sorted(arrays)
    for group, needed in _NEEDED.items():
        names = [name for name in arrays if name.startswith(f"{group}/")]
        if names and (missing := [name for one in needed if (name := f"{group}/{one}") not in names]):
            raise Refused(f"holds {names[0]!r}, but lacks {', '.join(map(repr, missing))}")
    for pattern, spec in ARRAYS.items():
        kind, *axes = spec.split()
        for name in fnmatch.filter(left, pattern):
            left.remove(name)
            shape = arrays[name].shape
            for axis, size in zip(axes, shape, strict=False):
                if axis.isupper():
                    sizes.setdefault(axis, size)
            wanted = [int(axis) if axis.isdigit() else sizes.get(axis, axis) for axis in axes]
            fits = [size > 0 and want in (size, axis) for size, want, axis in zip(shape, wanted, axes, strict=False)]
            if len(shape) != len(axes) or not all(fits):
                raise Refused(f"array {name!r} needs the shape ({', '.join(map(str, wanted))}), got {shape}")
            found[name] = _checked(f"array {name!r}", kind, arrays[name], n_classes)
    return found


def _checked(what: str, kind: str, values: Any, n_classes: int) -> Any:  # in the type of its kind
    letters, dtype, noun, low, high = _KINDS[kind]
    if values.size == 0:
        return values.astype(dtype)
    if kind == "text":
        is_good = pd.api.types.is_string_dtype(values) and not values.isna().any()
    else:
        is_good = isinstance(values.dtype, np.dtype) and values.dtype.kind in letters
    if not is_good:
        raise Refused(f"{what} needs {noun}, got {values.dtype}")
    if high < inf:
        numbers = np.asarray(values)
        high += n_classes if noun.startswith("class") else 0
        is_bad = (numbers < low - _SLACK) | (numbers > high + _SLACK)
        if kind == "label or none":
            is_bad |= np.floor(numbers) < numbers
        if is_bad.any():
            among = f"of the {n_classes} in class_names" if noun.startswith("class") else f"from {low} to {high}"
            raise Refused(f"{what} needs {noun} {among}, got {numbers[is_bad][0]}")
    is_float = values.dtype.kind == "f" and (isinstance(values, np.ndarray) or values.dtype.itemsize > 2)
    return values if is_float else values.astype(dtype)  # pandas has no quantiles of half precision


def check_meta(meta: Any) -> dict[str, Any]:
    """The metadata; `Refused` if a fact that is read has another type than it should."""
    if not isinstance(meta, dict):
        raise Refused(f"wanted a JSON object, got {type(meta).__name__}")
    for key, kind in META.items():
        if meta.get(key) is not None and not _is(meta[key], kind):
            raise Refused(f"{key} must be {_words(kind)}, got {reprlib.repr(meta[key])}")
    return meta


def _is(value: Any, kind: Any) -> bool:
    match kind:
        case [each]:
            return isinstance(value, list) and all(_is(item, each) for item in value)
        case [*kinds]:
            return isinstance(value, list) and len(value) == len(kinds) and all(map(_is, value, kinds))
        case dict():
            return isinstance(value, dict) and all(value.get(key) is None or _is(value[key], kind[key]) for key in kind)
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool)


def _words(kind: Any) -> str:
    if isinstance(kind, list):
        each = kind[0] if isinstance(kind[0], str) else ""
        return "a list of " + {"text": "strings", "object": "objects"}.get(each, "[position, class, sentence, cosine]")
    return {"text": "text", "whole number": "a whole number", "number": "a number"}.get(str(kind), "an object")
