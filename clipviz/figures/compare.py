"""Runs side by side: what they are called, which images each of two has right, what became of one image in a run."""

import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clipviz.figures import style
from clipviz.figures.image_table import SPLITS, decided, image_table
from clipviz.figures.moments import WHOLE, Part, part_of_epoch
from clipviz.figures.sources import source_names
from clipviz.trace import Trace

#: Facts beside the method's constants and its schedule, in the order in which they are told.
_OTHERS = (
    "epochs", "seed", "model", "pretrained", "data", "split", "n_images", "eval_data", "eval_split", "descriptions",
    "texts", "precision",
)  # fmt: skip
#: How a fact is said; all others by their name and value.
_SAID = {"epochs": "{} epochs", "n_images": "{} images", "model": "{}", "data": "on {}", "eval_data": "measured on {}"}
_MOST = 3


def trace_labels(traces: Sequence[Trace]) -> list[str]:
    """One distinct plain-text label per trace, see `run_labels`; `meta["label"]` takes the place of the method."""
    names = [str(trace.meta.get("label") or style.method_style(trace.method).name) for trace in traces]
    return run_labels(names, [trace.meta for trace in traces], [trace.folder for trace in traces])


def run_labels(names: Sequence[str], metas: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[str]:
    """One distinct label per run: its name, and for runs of one name what differs between them ("DPA, a 0.3").

    `metas` are what was chosen for each run, as in `Trace.meta`; `folders`, "" in memory, tell runs apart that
    differ in nothing else.
    """
    labels = list(names)
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        group = [i for i, other in enumerate(names) if other == name]
        texts = _differences([_facts(metas[i]) for i in group])
        for more in (_places([folders[i] for i in group]), [f"run {i}" for i in range(1, len(group) + 1)]):
            texts = [
                ", ".join(filter(None, pair)) if texts.count(pair[0]) > 1 else pair[0]
                for pair in zip(texts, more, strict=True)
            ]
        for i, text in zip(group, texts, strict=True):
            labels[i] = f"{name}, {text}"
    return labels


def _facts(meta: Mapping[str, Any]) -> dict[str, str]:
    """Everything that was chosen, as text: how many workers read the images, say, was not, and changes nothing."""
    settings = meta.get("settings") or {}
    method = {key: _text(value) for key, value in (settings.get("method") or {}).items() if key != "schedule"}
    for change in meta.get("changes") or ():
        for key in change.keys() - {"step"}:
            method[key] = f"{method.get(key, '')}, {_text(change[key])} from step {change.get('step')}".lstrip(", ")
    schedule = {key: _text(value) for key, value in (settings.get("schedule") or {}).items() if key != "workers"}
    return {key: _text(meta[key]) for key in _OTHERS if key in meta} | schedule | method


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " to ".join(map(_text, value)) if len(value) == 2 else "/".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def _differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """What differs, in words: the method's constants first; of many facts as many as tell the runs apart."""
    order = [key for fact in facts for key in fact if key not in _OTHERS or key == "epochs"]
    differing = [key for key in dict.fromkeys([*order, *_OTHERS]) if len({fact.get(key) for fact in facts}) > 1]

    def told(n: int) -> list[str]:
        keys = differing[:n]
        words = {key: _SAID.get(key, f"{key.replace('_', ' ')} {{}}") for key in keys}
        said = (", ".join(words[key].format(fact.get(key, "unknown")) for key in keys) for fact in facts)
        return [re.sub(r"\b1 (epoch|image)s\b", r"1 \1", text) for text in said]

    n_apart = len(set(told(len(differing))))
    n = next(n for n in count(min(_MOST, len(differing))) if len(set(told(n))) == n_apart)
    more = f" and {len(differing) - n} more" if n < len(differing) else ""
    return [text + more for text in told(n)]


def _places(folders: Sequence[str]) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    parts = [Path(folder).parts for folder in folders]
    n = next(n for n in count(1) if len({part[-n:] for part in parts}) == len(set(parts)))
    return ["/".join(part[-n:]) for part in parts]


#: Where true labels are known, who is right; where they are not, whether the runs say the same.
RIGHT_CELLS, SAME_CELLS = ("both right", "only a right", "only b right", "neither right"), ("agree", "differ")

_PLACES = {"eval": ("eval_data", "eval_split"), "train": ("data", "split")}


class Comparison(NamedTuple):
    """What two runs say of the same images, "eval" (predictions), or of runs that were not measured "train".

    `table` has a row for each image, by position: target (-1 unknown), a and b (the labels), confidence_a and
    confidence_b, and its cell. `cells` counts the images of each, those of `RIGHT_CELLS` where any true label is known,
    those of `SAME_CELLS` where any is not.
    """

    names: tuple[str, str]
    table: pd.DataFrame
    cells: dict[str, int]
    split: str

    def said(self, cell: str) -> str:
        """A cell in words, with the name of the run: "only DPA right"."""
        runs = dict(zip(RIGHT_CELLS[1:3], self.names, strict=True))
        return f"only {runs[cell]} right" if cell in runs else cell


def comparison_info(trace_a: Trace, trace_b: Trace, epoch: int | None = None, split: str | None = None) -> Comparison:
    """Compare two runs at an epoch, the last by default; one that was shorter at its end.

    Split is "eval" or "train", by default "eval" if any of the runs was measured.

    Raises:
        ValueError: if the runs have other classes, or say nothing of the same images.
    """
    traces = (trace_a, trace_b)
    split = split or ("eval" if any(len(trace.predictions) for trace in traces) else "train")
    at = [trace.final_epoch if epoch is None else min(epoch, trace.final_epoch) for trace in traces]
    one, other = (image_table(trace, split, e) for trace, e in zip(traces, at, strict=True))
    tables = zip((one, other), traces, strict=True)
    places = " and ".join(f"{len(table)} of {_place(trace, split)}" for table, trace in tables)
    if split == "eval" and bool(len(one)) != bool(len(other)):
        raise ValueError(
            f"the {'second' if len(one) else 'first'} run has no predictions of evaluation images ({places}), so these "
            "runs cannot be compared; wait for its first epoch, or give it eval_dataset when it is made"
        )
    if trace_a.class_names != trace_b.class_names:
        raise ValueError("these runs have different classes; compare runs on the same images")
    both = one.index.intersection(other.index, sort=True)
    if not share_images(*traces, split) or (split == "eval" and len(both) < max(len(one), len(other))):
        raise ValueError(f"these runs have no images in common ({places}); compare runs on the same images")
    one, other = one.loc[both], other.loc[both]
    target, a, b = one["target"].where(one["target"] >= 0, other["target"]), one["label"], other["label"]
    known, a_right, b_right = target >= 0, a == target, b == target
    cases = [known & a_right & b_right, known & a_right, known & b_right, known, a == b]
    table = pd.DataFrame({"target": target, "a": a, "b": b, "confidence_a": one["confidence"],
                          "confidence_b": other["confidence"]})  # fmt: skip
    table["cell"] = pd.Series(np.select(cases, [*RIGHT_CELLS, "agree"], "differ"), table.index, dtype=object)
    shown = [*RIGHT_CELLS * bool(known.any()), *SAME_CELLS * bool((~known).any())]
    name_a, name_b = trace_labels(traces)
    return Comparison((name_a, name_b), table, {cell: int((table["cell"] == cell).sum()) for cell in shown}, split)


def share_images(one: Trace, other: Trace, split: str) -> bool:
    """Whether the images of a split are the same in two runs: their files where these are known, else the data set."""
    names = [_files(trace, split) or [trace.meta.get(key) for key in _PLACES[split]] for trace in (one, other)]
    return names[0] == names[1] and not other_images([one, other], split)


def other_images(traces: Sequence[Trace], split: str = "eval") -> str:
    """In what images of one name differ between runs, where that is known; "" in nothing."""
    origins = [(trace.meta.get("origins") or {}).get(_PLACES[split][0]) for trace in traces]
    birds = [origin for origin in origins if origin and str(origin.get("spec")).partition("/")[0] == "birds"]
    drawn = [[origin.get("seed"), origin.get("severity")] for origin in birds]
    known = {"files": [files for trace in traces if (files := _files(trace, split))], "seed or severity": drawn}
    rows = pd.concat([getattr(trace, SPLITS[split][0])[["index", "target"]] for trace in traces])
    is_relabeled = rows[rows["target"] >= 0].drop_duplicates()["index"].duplicated().any()
    differing = (what for what, each in known.items() if any(one != each[0] for one in each))
    return next(differing, "true classes" * bool(is_relabeled))


def _files(trace: Trace, split: str) -> Any:
    return (trace.meta.get("files") or {}).get(SPLITS[split][2])


def _place(trace: Trace, split: str) -> str:
    name, part = (trace.meta.get(key) for key in _PLACES[split])
    return style.shorten(f"{name or 'no images'}{f' ({part})' if part else ''}", 60)


class Timeline(NamedTuple):
    """What a run called one image, epoch by epoch (E,): class, confidence in [0, 1], who decided ("" unknown).

    `is_right` is None where the truth is unknown, `sources` are those that decide.
    """

    epochs: Sequence[int] = ()
    labels: Sequence[str] = ()
    confidence: Sequence[float] = ()
    deciders: Sequence[str] = ()
    is_right: Sequence[bool | None] = ()
    sources: Sequence[str] = ()
    part: Part = WHOLE

    def turns(self) -> list[int]:
        """Places at which the label is another one than before, the first place among them."""
        return [i for i, label in enumerate(self.labels) if i == 0 or label != self.labels[i - 1]]


def timeline_info(trace: Trace, image: str) -> Timeline:
    """The predictions of an evaluation image ("eval/12"), or the pseudo-labels of a training image ("train/7")."""
    split, _, number = image.partition("/")
    name, column, _ = SPLITS.get(split, SPLITS["eval"])
    index = int(number) if split in SPLITS else -1
    rows, learned = (
        table[table["index"] == index].drop_duplicates("epoch", keep="last").sort_values("epoch")
        for table in (getattr(trace, name), trace.samples)
    )
    is_learned = split == "train" or trace.meta.get("accuracy_is") == "transductive"
    who = dict(zip(learned["epoch"], decided(trace, learned), strict=True)) if is_learned else {}
    labels, targets = rows[column].tolist(), rows["target"].tolist()
    epochs, names = rows["epoch"].tolist(), [style.class_name(trace.class_names, label) for label in labels]
    is_right = [label == target if target >= 0 else None for label, target in zip(labels, targets, strict=True)]
    deciders, sources = [who.get(epoch, "") for epoch in epochs], source_names(trace)
    return Timeline(epochs, names, rows["confidence"].tolist(), deciders, is_right, sources, part_of_epoch(trace))
