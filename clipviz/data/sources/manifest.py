"""Manifests: a table that says which images there are, and what they show.

A `.csv` or `.parquet` file with the columns

    path     relative to the folder of the manifest; absolute ones and ".." only if allowed
    label    the class name, or a number where a class list says what it means; empty = unlabeled      optional
    split    train, val or test                                                                         optional

Other columns are passed over.
"""

import contextlib
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipviz.data.base import Skipped
from clipviz.data.sources import layout
from clipviz.data.sources.layout import Layout, NoSuchSplit
from clipviz.errors import choose, listed, one_line
from clipviz.events import UNLABELLED
from clipviz.prompts import check_class_names, normalize_name

MANIFEST_SUFFIXES = (".csv", ".parquet")


def read_manifest(path: str, split: str, classes: Sequence[str] | None, *, allow_outside: bool = False) -> Layout:
    """Read which images a manifest lists; without a column `split` all of them.

    Classes are the given ones in their order, else the labels of all splits, sorted. Images outside the manifest's
    folder need leave: one made by somebody else could name any file of yours.
    """
    choose("split", split, (*layout.SPLITS, layout.ALL))
    source = f"manifest {layout.display_name(path)!r}"
    table = _read_table(path, source)
    labels = [_label(row, cell, source) for row, cell in enumerate(table.get("label", [None] * len(table)), start=1)]
    class_names, class_of = _class_names(labels, classes, source)
    used, rows = _rows_of_split(table, split, source)
    found = Layout(used, class_names)
    entries = [(table["path"].iloc[i], class_of.get(labels[i], UNLABELLED)) for i in rows]
    outside = _add(found, os.path.dirname(os.path.abspath(path)), entries)
    if outside and not allow_outside:
        raise ValueError(
            f"{source}: {len(outside)} of its images lie outside its folder, for example {outside[0]!r}; put them "
            "below it, or allow it if you trust this file (allow_outside=True, --allow-outside)"
        )
    return found


def _read_table(path: str, source: str) -> pd.DataFrame:
    try:
        if path.lower().endswith(".parquet"):
            table = pd.read_parquet(path)
        else:  # as text: a class may be called "NA" or "007"
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror or one_line(error)})") from error
    except Exception as error:  # both parsers raise many kinds for a damaged file
        raise ValueError(f"{source}: {_why_no_table(error)}") from error
    if not isinstance(table.index, pd.RangeIndex) and table.index.name is None:  # pandas takes first cells for names
        raise ValueError(f"{source}: has rows with more cells than its first line; put names with a comma in quotes")
    columns = [str(column).strip().lower() for column in table.columns]
    for column in ("path", "label", "split"):
        if columns.count(column) > 1:
            raise ValueError(f"{source}: has the column {column!r} twice")
    if "path" not in columns:
        advice = "call the one with the file names path"
        if len(columns) == 1 and any(separator in columns[0] for separator in ";\t"):
            advice = "separate the columns with commas"
        elif any(os.path.splitext(column)[1] in layout.IMAGE_SUFFIXES for column in columns):
            advice = "put the line path,label before the first image"
        held = ", ".join(map(repr, columns[:10]))
        raise ValueError(f"{source}: wanted the columns path and (if known) label, found {held}; {advice}")
    if not len(table):
        raise ValueError(f"{source}: lists no image; it has its header only")
    return table.set_axis(columns, axis=1)


def _why_no_table(error: Exception) -> str:
    """What is wrong with a file that the parsers refuse, and what to do."""
    if isinstance(error, pd.errors.EmptyDataError):
        return "is empty; wanted a line path,label and then one for each image"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start}); save it again as UTF-8"
    reason = f"{type(error).__name__}: {one_line(error)}"
    return f"is not a table ({reason}); wanted Parquet, or UTF-8 text that begins with the line path,label"


def _label(row: int, value: Any, source: str) -> str | None:
    """A cell as text, numbers without ".0", as tables with gaps have them; None if it is empty or -1."""
    if isinstance(value, str):
        text = value.strip()
        number = text.removesuffix(".0")
        return None if number in ("", "-1") else number if number.isdecimal() else text
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bytes) and not np.ndim(value) and value == int(value):
            return None if value == UNLABELLED else str(int(value))
    raise ValueError(f"{source}: row {row} has the label {repr(value)[:80]}; labels are text or whole numbers")


def _class_names(
    labels: Sequence[str | None], classes: Sequence[str] | None, source: str
) -> tuple[tuple[str, ...], Mapping[str | None, int]]:
    """Return the class names, and the class index of every label that occurs; no label has none."""
    found = sorted({label for label in labels if label is not None})
    are_numbers = bool(found) and all(label.isdecimal() for label in found)
    if classes is None and are_numbers:
        raise ValueError(
            f"{source}: its labels are numbers ({', '.join(found[:3])}, ...), which a text tower cannot use; "
            "give a class list with one name per line, number 0 first"
        )
    if classes is None:
        check_class_names(found, source)
        return tuple(found), {label: i for i, label in enumerate(found)}
    by_name = {normalize_name(name): i for i, name in enumerate(classes)} | {name: i for i, name in enumerate(classes)}
    by_number = {str(i): i for i in range(len(classes))} if are_numbers else {}
    class_of = {label: by_name.get(label, by_name.get(normalize_name(label), by_number.get(label))) for label in found}
    if unknown := [label for label, target in class_of.items() if target is None]:
        advice = f"its names are number 0 to {len(classes) - 1}" if are_numbers else "add them to the list"
        raise ValueError(f"{source}: labels that are not in the class list: {listed(map(repr, unknown))}; {advice}")
    return tuple(classes), {label: target for label, target in class_of.items() if target is not None}


def _rows_of_split(table: pd.DataFrame, split: str, source: str) -> tuple[str, list[int]]:
    """Return the split that is used and the positions of its rows; a test split may be called val."""
    if "split" not in table.columns or split == layout.ALL:
        return layout.ALL, list(range(len(table)))
    cells = [str(value).strip().lower() for value in table["split"]]
    if unknown := sorted(set(cells) - layout.SPLIT_FOLDERS.keys()):
        raise ValueError(f"{source}: the column split needs train, val or test, got {unknown[0]!r}")
    splits = [layout.SPLIT_FOLDERS[cell] for cell in cells]
    used = layout.used_split(split, splits)
    if used not in splits:
        there = ", ".join(sorted(set(splits)))
        raise NoSuchSplit(f"{source}: has no split {split!r}; it has {there}; leave the column out to use all rows")
    return used, [i for i, name in enumerate(splits) if name == used]


def _add(found: Layout, folder: str, entries: Sequence[tuple[Any, int]]) -> list[str]:
    """Turn (cell, target) into candidates, every image once; returns the cells that point out of the folder."""
    root = os.path.join(os.path.realpath(folder), "")
    real_folder = functools.cache(os.path.realpath)
    outside: list[str] = []
    seen: set[str] = set()
    for cell, target in entries:
        text = cell.strip() if isinstance(cell, str) else ""
        if not text or "\0" in text:
            found.skipped.append(Skipped(repr(cell)[:80], "the manifest names no file here"))
            continue
        path = os.path.normpath(os.path.join(folder, text))
        if path in seen:
            found.skipped.append(Skipped(layout.display_name(text), "listed more than once"))
            continue
        seen.add(path)
        found.add(path, target)
        real = os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path))
        if not (os.path.realpath(real) if os.path.islink(real) else real).startswith(root):
            outside.append(text)
    return outside
