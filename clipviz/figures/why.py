"""Why is this one wrong: everything that a trace knows about one image, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipviz.figures.saliency import KIND_NAMES, unit_range
from clipviz.figures.style import class_name, top_classes
from clipviz.trace import ImageGroup, Trace

_MAX_MAPS, MAX_STRIP = 4, 8
METHOD = "method"
"""Key of the method's own vote among those of its sources."""


class SaliencyMap(NamedTuple):
    """One map (h,w) in [0, 1]; `is_mask` where it is 0 or 1 throughout."""

    title: str
    values: np.ndarray
    is_mask: bool


class ClassVotes(NamedTuple):
    """One class with the probability in [0, 1] that the method (key "method") and each source gave it.

    Where the sources are addends, `addends` is what each adds to the logit of the class, and their sum, against the
    mean of the shown classes.
    """

    name: str
    probs: dict[str, float]
    is_target: bool
    addends: dict[str, float] | None = None


class Example(NamedTuple):
    """The image (h,w,3) uint8 that the model calls `name` most surely; None when it calls no image so."""

    name: str
    image: np.ndarray | None


class Voter(NamedTuple):
    """A cache entry: the class it votes for, what it adds to that logit, and its image (h,w,3) uint8, None unknown."""

    name: str
    vote: float
    image: np.ndarray | None


class Sentences(NamedTuple):
    """What is said about a class that is most like the image: (sentence, cosine in [-1, 1]), the nearest first."""

    name: str
    is_target: bool
    nearest: list[tuple[str, float]]


class Moment(NamedTuple):
    """What the image was called at one epoch; `is_right` is None where the truth is unknown."""

    epoch: int
    name: str
    confidence: float
    is_right: bool | None


class WhyWrong(NamedTuple):
    """One image: what it is, where the model looked, who voted for what, and how that came about."""

    number: int  # position in the evaluation data
    image: np.ndarray | None = None  # (H,W,3) uint8; None when the trace holds no such image
    target: str | None = None  # None unknown
    parts: np.ndarray | None = None  # (H,W) part ids
    maps: Sequence[SaliencyMap] = ()  # of the last epoch
    votes: Sequence[ClassVotes] = ()  # the top classes, first the surest, and the true one
    examples: Sequence[Example] = ()  # what the model takes for these classes
    voters: Sequence[Voter] = ()  # the cache entries that weigh most, of methods with a cache
    sentences: Sequence[Sentences] = ()  # that pull hardest, of the class it is called and of its true one
    history: Sequence[Moment] = ()  # from before training on
    strip: Sequence[tuple[int, np.ndarray]] = ()  # (epoch, map) of the first kind, for images that were followed
    file: str | None = None


def why_wrong_info(trace: Trace, position: int = 0, group: str = "highlights", n_classes: int = 4) -> WhyWrong:
    """Collect what the trace knows about one image.

    Args:
        trace: The run.
        position: Which image of the group, from 0 on.
        group: "highlights" (the instructive images) or "probe" (the images that were followed through the run).
        n_classes: So many top classes, and the true one.
    """
    is_followed = group == "probe"
    images = trace.probe if is_followed else trace.highlights
    if not 0 <= position < len(images.images):
        return WhyWrong(-1)
    number, target = int(images.index[position]), int(images.target[position])
    maps = {kind: array[:, position] if is_followed else array[position][None] for kind, array in images.maps.items()}
    votes = _votes(trace, _probs(trace, images, position), target, n_classes)
    return WhyWrong(
        number,
        images.images[position],
        class_name(trace.class_names, target) if target >= 0 else None,
        None if images.parts is None else images.parts[position],
        _maps(maps),
        votes,
        _examples(trace, votes),
        [] if is_followed else _voters(trace, position),
        [] if is_followed else _sentences(trace, position, target),
        _history(trace, number),
        _strip(maps) if is_followed else [],
        trace.file_name(number),
    )


def _probs(trace: Trace, images: ImageGroup, position: int) -> dict[str, np.ndarray]:
    """Class probabilities (C,) of the method and of each source that voted on this very image."""
    found = {} if images.probs is None else {METHOD: images.probs[position]}
    found |= {name: probs[position] for name, probs in images.branches.items()}
    if trace.meta.get("accuracy_is") == "transductive":  # then positions in training are those of the evaluation
        sources = trace.sources
        for row in np.flatnonzero(sources.index == images.index[position])[-1:]:
            for name, logits in sources.logits.items():
                exp = np.exp(logits[row].astype(np.float64) - logits[row].max())
                found[name] = exp / exp.sum()
    return found


def _votes(trace: Trace, probs: dict[str, np.ndarray], target: int, n_classes: int) -> list[ClassVotes]:
    if not probs:
        return []
    ranking = probs[METHOD] if METHOD in probs else np.mean(list(probs.values()), axis=0)
    top = top_classes(ranking, target, n_classes)
    given = {source: values[top].tolist() for source, values in probs.items()}
    adds = _addends(probs, top) if trace.meta.get("labels_are") and len(probs) > 1 else None
    return [
        ClassVotes(
            class_name(trace.class_names, label),
            {source: values[place] for source, values in given.items()},
            label == target,
            None if adds is None else {source: float(values[place]) for source, values in adds.items()},
        )
        for place, label in enumerate(top)
    ]


def _addends(probs: dict[str, np.ndarray], top: list[int]) -> dict[str, np.ndarray]:
    """Logits of each source for some classes, up to a constant, from its probabilities; "method" is their sum."""
    tiny = np.finfo(np.float32).tiny
    logits = {name: np.log(np.maximum(values[top], tiny)) for name, values in probs.items() if name != METHOD}
    centered = {name: values - values.mean() for name, values in logits.items()}
    return {METHOD: np.sum(list(centered.values()), axis=0), **centered}


def _maps(maps: dict[str, np.ndarray]) -> list[SaliencyMap]:
    """The last of the maps (E1,h,w) of one image, the named kinds first."""
    kinds = sorted(maps, key=lambda kind: ([*KIND_NAMES, kind].index(kind), kind))[:_MAX_MAPS]
    last = {KIND_NAMES.get(kind, kind): maps[kind][-1] for kind in kinds}
    return [SaliencyMap(name, unit_range(one[None])[0], bool(np.isin(one, (0, 1)).all())) for name, one in last.items()]


def _examples(trace: Trace, votes: list[ClassVotes]) -> list[Example]:
    if (examples := trace.examples) is None:
        return []
    names = [class_name(trace.class_names, int(label)) for label in examples.label]
    images = dict(zip(names, examples.images, strict=True))
    wanted = [vote.name for vote in votes[:2]] + [vote.name for vote in votes if vote.is_target]
    return [Example(name, images.get(name)) for name in dict.fromkeys(wanted)]


def _voters(trace: Trace, position: int) -> list[Voter]:
    if (cache := trace.cache) is None:
        return []
    names = [class_name(trace.class_names, int(label)) for label in cache.labels[position]]
    images = [None] * len(names) if cache.images is None else cache.images[position]
    return [Voter(*row) for row in zip(names, cache.votes[position].tolist(), images, strict=True)]


def _sentences(trace: Trace, position: int, target: int) -> list[Sentences]:
    rows = [row[1:] for row in trace.meta.get("gallery_sentences") or () if row[0] == position]
    labels = dict.fromkeys(label for label, _, _ in rows)
    said = {
        label: [(sentence, similarity) for other, sentence, similarity in rows if other == label] for label in labels
    }
    return [Sentences(class_name(trace.class_names, label), label == target, found) for label, found in said.items()]


def _history(trace: Trace, number: int) -> list[Moment]:
    rows = trace.predictions[trace.predictions["index"] == number].sort_values("epoch")
    columns = (rows[name].tolist() for name in ("epoch", "prediction", "confidence", "target"))
    return [
        Moment(epoch, class_name(trace.class_names, label), confidence, label == target if target >= 0 else None)
        for epoch, label, confidence, target in zip(*columns, strict=True)
    ]


def _strip(maps: dict[str, np.ndarray]) -> list[tuple[int, np.ndarray]]:
    kind = next((kind for kind in KIND_NAMES if kind in maps), None)
    if kind is None:
        return []
    own = maps[kind]
    places = np.unique(np.linspace(0, len(own) - 1, min(MAX_STRIP, len(own))).round().astype(int))
    return [(int(place) - 1, unit_range(own[place][None])[0]) for place in places]
