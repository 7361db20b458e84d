"""The images of a run as a table: filtered, sorted and exported alike in views and pages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clipviz.errors import choose, inert
from clipviz.figures.sources import deciders, source_names
from clipviz.figures.style import class_name
from clipviz.trace import Trace

#: Split -> table of the trace, its column of labels, and how `Trace.file_name` calls the images.
SPLITS = {"eval": ("predictions", "prediction", "measured"), "train": ("samples", "pseudo_label", "learned")}
#: What to sort by -> column.
SORTS = {"as listed": None, "confidence": "confidence", "margin": "margin", "flips": "flips", "true class": "target",
         "predicted class": "label", "decided by": "decider", "file name": "file"}  # fmt: skip
OUTCOMES = ("right", "wrong", "fixed", "broken", "changed")
_CLASSES = {"target": "true class", "label": "predicted class", "before": "first predicted class"}


def image_table(trace: Trace, split: str = "eval", epoch: int | None = None) -> pd.DataFrame:
    """What a run says of its images at an epoch, a row for each.

    Args:
        trace: the run.
        split: "eval": predictions on the evaluation images; "train": pseudo-labels, of a stream all until then.
        epoch: -1 is before training; the last one by default. Predictions are those of the last measurement up to it.

    Returns:
        By position: label, confidence, margin (NaN unknown), target (-1 unknown), before (the first label, -1 unknown),
        flips (how often the label changed until then), decider ("" unknown), file ("" of images that are no files).
    """
    name, column, part = SPLITS[choose("split", split, SPLITS)]
    table, epoch = getattr(trace, name), trace.final_epoch if epoch is None else epoch
    at = table.loc[table["epoch"] <= epoch, "epoch"].max()
    rows = table[table["epoch"] == at] if split == "eval" else trace.guesses(epoch)
    rows = rows.drop_duplicates("index").set_index("index").rename(columns={column: "label"})
    before, flips = _history(table, column, epoch)
    return rows[["label", "confidence", "target"]].assign(
        margin=pd.to_numeric(rows["margin"], errors="coerce") if "margin" in rows else np.float32(np.nan),
        before=before.reindex(rows.index, fill_value=-1), flips=flips.reindex(rows.index, fill_value=0),
        decider=_deciders(trace, split, epoch).reindex(rows.index, fill_value=""),
        file=pd.Series([trace.file_name(index, part) or "" for index in rows.index], rows.index, dtype=object),
    )  # fmt: skip


def _history(table: pd.DataFrame, column: str, epoch: int) -> tuple[pd.Series, pd.Series]:
    """The first label of every image, and how often it changed up to an epoch."""
    epochs, row = np.unique(table["epoch"], return_inverse=True)
    index, place = np.unique(table["index"], return_inverse=True)
    labels = np.full((len(epochs), len(index)), -1)
    labels[row, place] = table[column]
    first, last, flips = (np.full(len(index), value) for value in (-1, -1, 0))
    for at, now in zip(epochs, labels, strict=True):
        first = np.where(first < 0, now, first)
        if at <= epoch:
            flips += (now >= 0) & (last >= 0) & (now != last)
            last = np.where(now >= 0, now, last)
    return pd.Series(first, index), pd.Series(flips, index)


def _deciders(trace: Trace, split: str, epoch: int) -> pd.Series:
    """Who decided the pseudo-labels of an epoch, by position; evaluation images have one if they are learned from."""
    if split == "eval" and trace.meta.get("accuracy_is") != "transductive":
        return pd.Series(dtype=object)
    rows = trace.guesses(epoch).drop_duplicates("index")
    return decided(trace, rows).set_axis(rows["index"])


def decided(trace: Trace, samples: pd.DataFrame) -> pd.Series:
    """Who decided each row of samples; "" where fewer than two sources were asked."""
    sources = source_names(trace)
    named = samples[[f"{name}_label" for name in sources]]
    if len(sources) < 2 or not len(samples):
        return pd.Series("", samples.index, dtype=object)
    found = deciders(named.to_numpy(), samples["pseudo_label"].to_numpy(), sources)
    return pd.Series(found, samples.index).where(named.notna().all(axis=1), "")


def disputed_rows(trace: Trace, epoch: int) -> pd.DataFrame:
    """Those samples of an epoch that sources call different classes, first where even the least sure is sure."""
    sources, samples = source_names(trace), trace.guesses(epoch)
    if len(sources) < 2:
        return samples[:0]
    labels, confidence = ([f"{name}_{what}" for name in sources] for what in ("label", "confidence"))
    rows = samples.dropna(subset=[*labels, *confidence])
    rows = rows[rows[labels].where(rows[labels] >= 0).nunique(axis=1) > 1]
    return rows.iloc[np.argsort(-rows[confidence].min(axis=1).to_numpy(), kind="stable")]


class Filter(NamedTuple):
    """What an image must be to pass; as it is, all pass."""

    target: Sequence[int] | None = None  # one of these classes
    label: Sequence[int] | None = None
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
        "right": known & is_right, "wrong": known & ~is_right, "fixed": known & is_right & has_first & ~was_right,
        "broken": known & ~is_right & was_right, "changed": has_first & (table["label"] != table["before"]),
    }  # fmt: skip


def passing(table: pd.DataFrame, wanted: Filter) -> pd.DataFrame:
    """The rows of an `image_table` that pass a filter."""
    passes = table["flips"] >= wanted.flips
    for column in ("target", "label"):
        if (classes := getattr(wanted, column)) is not None:
            passes &= table[column].isin(classes)
    if wanted.decider:
        passes &= table["decider"] == wanted.decider
    for column in ("confidence", "margin"):
        if (between := getattr(wanted, column)) != (0.0, 1.0):
            passes &= table[column].between(*between)
    if wanted.outcome:
        passes &= outcomes(table)[wanted.outcome]
    if wanted.text:
        passes &= table["file"].str.contains(wanted.text, case=False, regex=False)
    return table[passes]


def ordered(table: pd.DataFrame, by: str, *, falling: bool = False) -> pd.DataFrame:
    """The rows of an `image_table` sorted by one of `SORTS`; what is unknown comes last."""
    if (column := SORTS[by]) is None:
        return table[::-1] if falling else table
    return table.sort_values(column, ascending=not falling, kind="stable")


def export_csv(table: pd.DataFrame, class_names: tuple[str, ...], tags: Mapping[Any, Iterable[str]]) -> str:
    """An `image_table` as CSV with names for classes and the tags of images; columns of others follow.

    No cell is a formula to a spreadsheet: a text that begins with = + - @ or a control character gets an apostrophe.
    """
    made = table.reset_index(names="image").round(6)
    for column in _CLASSES:
        made[column] = [class_name(class_names, label) if label >= 0 else "" for label in made[column]]
    made.insert(1, "file", made.pop("file"))
    made.insert(2, "tags", ["; ".join(tags.get(image, ())) for image in made["image"]])
    text = made.select_dtypes(include=["object", "string"])
    return made.assign(**text.map(_inert_cell)).rename(columns=_CLASSES).to_csv(index=False)


def _inert_cell(value: Any) -> Any:
    is_order = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r", "\n")
    return f"{chr(39) * is_order}{inert(value)}" if isinstance(value, str) else value
