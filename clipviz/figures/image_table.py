"""The images of a run as a table: filtered, sorted and exported alike in views and pages."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clipviz.errors import inert
from clipviz.figures.sources import deciders, source_names
from clipviz.figures.style import class_name
from clipviz.trace import Trace

#: Split -> table of the trace, its column of labels, and how `Trace.file_name` calls the images.
_SPLITS = {"eval": ("predictions", "prediction", "measured"), "train": ("samples", "pseudo_label", "learned")}
#: What to sort by -> column; the order of the table is that of the images.
SORTS = {"position": None, "confidence": "confidence", "margin": "margin", "flips": "flips", "true class": "target",
         "predicted class": "label", "who decided": "decider", "file name": "file"}  # fmt: skip
OUTCOMES = ("right", "wrong", "fixed", "broken", "changed")


def image_table(trace: Trace, split: str = "eval", epoch: int | None = None) -> pd.DataFrame:
    """What a run says of its images at an epoch, a row for each.

    Args:
        trace: the run.
        split: "eval": predictions on the evaluation images; "train": pseudo-labels of the training images.
        epoch: -1 is before training; the last one by default. Predictions are those of the last measurement up to it.

    Returns:
        By position: label, confidence, margin (NaN unknown), target (-1 unknown), before (the first label, -1 unknown),
        flips (how often the label changed until then), decider ("" unknown), file ("" of images that are no files).
    """
    name, column, part = _SPLITS[split]
    table = getattr(trace, name)
    if epoch is None:
        epoch = trace.final_epoch
    measured = table.loc[table["epoch"] <= epoch, "epoch"].max() if split == "eval" else epoch
    rows = table[table["epoch"] == measured].drop_duplicates("index").set_index("index")
    margin = pd.to_numeric(rows.get("margin"), errors="coerce") if "margin" in rows else np.nan
    found = rows[[column, "confidence", "target"]].set_axis(["label", "confidence", "target"], axis=1)
    before, flips = _history(table, column, epoch)
    return found.assign(
        margin=margin,
        before=before.reindex(found.index, fill_value=-1),
        flips=flips.reindex(found.index, fill_value=0),
        decider=_deciders(trace, split, epoch).reindex(found.index, fill_value=""),
        file=pd.Series([trace.file_name(index, part) or "" for index in found.index], found.index, dtype=object),
    )


def _history(table: pd.DataFrame, column: str, epoch: int) -> tuple[pd.Series, pd.Series]:
    """The first label of every image, and how often it changed up to an epoch."""
    epochs, row = np.unique(table["epoch"], return_inverse=True)
    index, place = np.unique(table["index"], return_inverse=True)
    labels = np.full((len(epochs), len(index)), -1)
    labels[row, place] = table[column]
    first, last, flips = (np.full(len(index), value) for value in (-1, -1, 0))
    for at, now in zip(epochs, labels, strict=True):
        seen = now >= 0
        first = np.where(first < 0, now, first)
        if at <= epoch:
            flips += seen & (last >= 0) & (now != last)
            last = np.where(seen, now, last)
    return pd.Series(first, index), pd.Series(flips, index)


def _deciders(trace: Trace, split: str, epoch: int) -> pd.Series:
    """Who decided the pseudo-labels of an epoch, by position; evaluation images have one if they are learned from."""
    sources, samples = source_names(trace), trace.samples
    if len(sources) < 2 or (split == "eval" and trace.meta.get("accuracy_is") != "transductive"):
        return pd.Series(dtype=object)
    columns = [f"{name}_label" for name in sources]
    rows = samples[samples["epoch"] == epoch].drop_duplicates("index").dropna(subset=columns)
    votes = rows[columns].to_numpy() == rows[["pseudo_label"]].to_numpy()
    return pd.Series(deciders(votes, sources) if len(rows) else [], rows["index"].to_numpy(), dtype=object)


class Filter(NamedTuple):
    """What an image must be to pass; as it is, all pass."""

    target: int | None = None
    label: int | None = None
    confidence: tuple[float, float] = (0.0, 1.0)
    margin: tuple[float, float] = (0.0, 1.0)  # unknown margins pass the whole range only
    flips: int = 0  # at least
    decider: str = ""
    outcome: str = ""  # one of `OUTCOMES`
    text: str = ""  # in the name of its file, in any case of the letters


def outcomes(table: pd.DataFrame) -> dict[str, pd.Series]:
    """`OUTCOMES` -> which images have it: right or wrong now, fixed or broken since the first label, another label."""
    known, has_first = table["target"] >= 0, table["before"] >= 0
    is_right, was_right = table["label"] == table["target"], table["before"] == table["target"]
    return {
        "right": known & is_right,
        "wrong": known & ~is_right,
        "fixed": known & is_right & has_first & ~was_right,
        "broken": known & ~is_right & was_right,
        "changed": has_first & (table["label"] != table["before"]),
    }


def passing(table: pd.DataFrame, wanted: Filter) -> pd.DataFrame:
    """The rows of an `image_table` that pass a filter."""
    passes = np.ones(len(table), bool)
    for column in ("target", "label"):
        if (value := getattr(wanted, column)) is not None:
            passes &= table[column] == value
    for column in ("confidence", "margin"):
        low, high = getattr(wanted, column)
        if (low, high) != (0.0, 1.0):
            passes &= table[column].between(low, high)
    if wanted.flips:
        passes &= table["flips"] >= wanted.flips
    if wanted.decider:
        passes &= table["decider"] == wanted.decider
    if wanted.outcome:
        passes &= outcomes(table)[wanted.outcome]
    if wanted.text:
        passes &= table["file"].str.contains(wanted.text, case=False, regex=False)
    return table[passes]


def ordered(table: pd.DataFrame, by: str, *, falling: bool = False) -> pd.DataFrame:
    """The rows of an `image_table` sorted by one of `SORTS`; what is unknown comes last."""
    column = SORTS[by]
    if column is None:
        return table[::-1] if falling else table
    return table.sort_values(column, ascending=not falling, kind="stable")


def export_csv(table: pd.DataFrame, class_names: tuple[str, ...], tags: dict[int, list[str]] | None = None) -> str:
    """An `image_table` as CSV with names for classes; no cell is a formula to a spreadsheet.

    A text that begins with = + - @ or a control character gets an apostrophe before it.
    """

    def name(label: int) -> str:
        return class_name(class_names, label) if label >= 0 else ""

    columns: dict[str, Any] = {
        "position": table.index,
        "file": table["file"],
        "true class": table["target"].map(name),
        "predicted class": table["label"].map(name),
        "first predicted class": table["before"].map(name),
        **{column: table[column].round(6) for column in ("confidence", "margin")},
        "flips": table["flips"],
        "who decided": table["decider"],
        "tags": ["; ".join((tags or {}).get(int(index), ())) for index in table.index],
    }
    made = pd.DataFrame({column: list(values) for column, values in columns.items()})
    text = made.select_dtypes(include=["object", "string"])
    return made.assign(**text.map(_inert_cell)).to_csv(index=False)


def _inert_cell(text: str) -> str:
    return f"'{inert(text)}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else inert(text)
