"""Album: the images that a trace speaks of, what was said of them, and the maps that were kept."""

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clipviz.figures.image_table import SPLITS, disputed_rows, image_table, outcomes
from clipviz.figures.moments import part_of_epoch
from clipviz.figures.sources import source_names
from clipviz.figures.style import apart, class_name, shorten
from clipviz.instructive import confidently_wrong, least_sure
from clipviz.trace import ImageGroup, Trace

PAIR = "matrix cell"
FILTERS = ("all", "confidently wrong", "least confident", "flipped", "fixed", "broken", "sources disagree", PAIR)
_GRAY = np.full((1, 1, 3), 200, np.uint8)


class Verdict(NamedTuple):
    """What a method says of an image at an epoch; None and -1 where it is not known."""

    prediction: int
    confidence: float | None
    target: int


class Album:
    """Images by id, for one trace.

    For ids see `ViewState`; where a run is measured on the images it learned from, all are "eval". A `ModelProbe` shows
    images that the trace does not hold.
    """

    def __init__(self, trace: Trace, model_probe: Any = None) -> None:
        self.trace, self.model_probe = trace, model_probe
        self.train_split = "eval" if trace.meta.get("accuracy_is") == "transductive" else "train"
        self._probe, self._highlights = _places(trace.probe, self._probe_split()), _places(trace.highlights, "eval")
        self._table = lru_cache(6)(partial(image_table, trace))
        self._by_id = lru_cache(6)(lambda at, split: self.table(at, split).rename(index=f"{split}/{{}}".format))
        self._measured = [int(epoch) for epoch in trace.predictions["epoch"].unique()]
        self.last, self.part = trace.final_epoch, part_of_epoch(trace)  # of large tables, so once

    def _probe_split(self) -> str:
        """Where the probe images come from, told by their targets; "probe" if that cannot be told."""
        probe = self.trace.probe
        if (probe.target < 0).all():  # those of a tensor, which are from nowhere, are counted from 0
            return "eval" if self.train_split == "eval" and (np.diff(probe.index) > 1).any() else "probe"
        for split, table in (("eval", self.trace.predictions), (self.train_split, self.trace.samples)):
            known = table.drop_duplicates("index").set_index("index")["target"].reindex(probe.index)
            if known.notna().all() and (known.to_numpy() == probe.target).all():
                return split
        return "probe"

    def _model_has(self, image: str) -> bool:
        return self.model_probe is not None and self.model_probe.has(*parsed(image))

    def has(self, image: str) -> bool:
        """Whether there are pixels."""
        return image in self._probe or image in self._highlights or self._model_has(image)

    def pixels(self, image: str) -> np.ndarray:
        """(H, W, 3) uint8; a gray pixel for an image that cannot be had."""
        if image in self._probe:
            return self.trace.probe.images[self._probe[image]]
        if image in self._highlights:
            return self.trace.highlights.images[self._highlights[image]]
        return self.model_probe.pixels(*parsed(image)) if self._model_has(image) else _GRAY

    def name(self, image: str) -> str:
        """The id, and the file of an image that is one."""
        split, index = parsed(image)
        file = self.trace.file_name(index, SPLITS[split][2]) if split in SPLITS else None
        return shorten(f"{image}: {file}" if file else image, 60)

    def stored_kinds(self) -> list[str]:
        """Kinds of maps in the trace."""
        kinds = {*self.trace.probe.maps, *self.trace.highlights.maps}
        return sorted(kinds, key=lambda kind: (kind != "soap", kind != "ncut", kind))

    def stored_map(self, image: str, kind: str, epoch: int) -> np.ndarray | None:
        """(h, w) raw values at an epoch (of highlights: at the end); None if the trace does not hold them."""
        probe, last = self.trace.probe.maps.get(kind), self.trace.highlights.maps.get(kind)
        if probe is not None and image in self._probe and 0 <= epoch + 1 < len(probe):
            return probe[epoch + 1, self._probe[image]]
        if last is not None and image in self._highlights and epoch >= self.last:
            return last[self._highlights[image]]
        return None

    def epoch(self, epoch: int) -> int:
        """The epoch of this run that a view at `epoch` shows: its last one where another run went on for longer."""
        return min(epoch, self.last)

    def measured(self, epoch: int) -> int:
        """The last epoch up to this one with predictions: not after every one, and not after a part of one."""
        return max((known for known in self._measured if known <= epoch), default=-1)

    def table(self, epoch: int, split: str = "eval") -> pd.DataFrame:
        """The `image_table` of a split at an epoch."""
        return self._table(split, self.measured(epoch) if split == "eval" else self.epoch(epoch))

    def rows(self, images: Sequence[str], epoch: int) -> pd.DataFrame:
        """The rows of images in `table`, by id and in order; of those that it has."""
        splits = [split for split in ("eval", "train") if split[0] in {image[:1] for image in images}] or ["eval"]
        tables = [self._by_id(epoch, split) for split in splits]
        known = tables[0] if len(tables) == 1 else pd.concat(tables)
        places = known.index.get_indexer(pd.Index(images, dtype=object))
        return known.take(places[places >= 0])

    def verdict(self, image: str, epoch: int) -> Verdict:
        """Prediction of an evaluation image, pseudo-label of a training image."""
        split, index = parsed(image)
        if split == "probe":
            return Verdict(-1, None, int(self.trace.probe.target[index]))
        table = self.table(epoch, split)
        if index in table.index:
            row: Any = table.loc[index, ["label", "confidence", "target"]]
            return Verdict(int(row["label"]), float(row["confidence"]), int(row["target"]))
        samples = self.trace.samples
        targets = samples.loc[samples["index"] == index, "target"] if split == "train" else samples["target"][:0]
        return Verdict(-1, None, int(targets.iloc[0]) if len(targets) else -1)

    def caption(self, image: str, epoch: int, width: int = 30) -> str:
        """True class, or the predicted one and how sure, in few letters and on one line."""
        return self.said(image, self.verdict(image, epoch), width)

    def said(self, image: str, verdict: Verdict, width: int = 30) -> str:
        """What `caption` makes of a verdict."""
        names = self.trace.class_names
        true, called = apart([class_name(names, label) for label in (verdict.target, verdict.prediction)], width)
        said = "" if verdict.confidence is None else f"{called} {verdict.confidence:.2f}"
        if verdict.target < 0:
            return said or image
        if not said:
            return true
        return f"✓ {said}" if verdict.prediction == verdict.target else f"✗ {said}, is {true}"

    def filters(self) -> list[str]:
        """The filters that this trace can answer."""
        predictions = self.trace.predictions
        has_targets, is_followed = bool((predictions["target"] >= 0).any()), predictions["epoch"].nunique() > 1
        needs = {
            **dict.fromkeys(("confidently wrong", PAIR), has_targets),
            **dict.fromkeys(("fixed", "broken"), has_targets and is_followed), "least confident": len(predictions) > 0,
            "flipped": is_followed, "sources disagree": len(source_names(self.trace)) > 1,
        }  # fmt: skip
        return [name for name in FILTERS if needs.get(name, True)]

    def chosen(self, name: str, epoch: int, pair: Sequence[int] = (), split: str = "eval") -> list[str]:
        """Ids of the images of a split that a filter lets through and that can be shown, the most telling first.

        `pair` is (true class, predicted class), for "matrix cell"; sources disagree on training images only.
        """
        table = self.table(epoch, split)
        label, confidence, target = (table[column].to_numpy() for column in ("label", "confidence", "target"))
        if name == "sources disagree":
            return self.shown(disputed_rows(self.trace, self.epoch(epoch))["index"], self.train_split)
        if name == "all":
            followed = [*self._highlights, *self._probe] if split == "eval" else []
            return list(dict.fromkeys([*filter(self.has, followed), *self.shown(table.index, split)]))
        if name == "least confident":
            return self.shown(table.index[least_sure(confidence)], split)
        if name == "confidently wrong":
            return self.shown(table.index[confidently_wrong(label, confidence, target)], split)
        if name == PAIR:
            passes = (target == pair[0]) & (label == pair[1]) if len(pair) == 2 else target < -1
        else:
            passes = outcomes(table)["changed" if name == "flipped" else name]
        return self.shown(table[passes].sort_values("confidence", ascending=False, kind="stable").index, split)

    def shown(self, index: Iterable[int], split: str) -> list[str]:
        """Ids of the images at these positions that can be shown."""
        kept, probe = {*self._probe, *self._highlights}, self.model_probe
        images = {f"{split}/{number}": number for number in index}
        return [i for i, number in images.items() if i in kept or (probe is not None and probe.has(split, number))]


def parsed(image: str) -> tuple[str, int]:
    """Split and position of an id: "eval/12" -> ("eval", 12)."""
    split, _, index = image.partition("/")
    return split, int(index)


def _places(images: ImageGroup, split: str) -> dict[str, int]:  # id -> position in the group
    numbers = range(len(images.images)) if split == "probe" else images.index
    return {f"{split}/{int(number)}": place for place, number in enumerate(numbers)}


def same_classes(traces: Sequence[Trace]) -> None:
    """Refuse no traces, and traces of different classes, with a ValueError."""
    if not traces:
        raise ValueError("there is no trace to look at; give a Trace (Trace.load(path)) or several")
    if len({trace.class_names for trace in traces}) > 1:
        raise ValueError("these traces have different classes; compare runs on the same images")
