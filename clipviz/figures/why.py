"""Why is this one wrong: everything that a trace knows about one image, on one page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipviz.figures.compare import Timeline, timeline_info
from clipviz.figures.saliency import KIND_NAMES, SaliencyMaps, unit_range
from clipviz.figures.sources import softmax
from clipviz.figures.style import class_name
from clipviz.trace import ImageGroup, Trace

_MAX_MAPS, MAX_STRIP = 4, 8
METHOD = "method"
"""Key of the method's own probabilities among those of its sources."""


class ClassProbs(NamedTuple):
    """One class with the probability in [0, 1] that the method (key "method") and each source gave it.

    Where the sources are addends, `addends` is what each adds to the logit of the class, and their sum, against the
    mean of the shown classes.
    """

    name: str
    probs: dict[str, float]
    is_target: bool
    addends: dict[str, float] | None = None


class Example(NamedTuple):
    """The image (h,w,3) uint8 that is most confidently predicted as `name`; None when none is predicted so."""

    name: str
    image: np.ndarray | None


class CacheEntry(NamedTuple):
    """A cache entry: its class, what it adds to that logit, and its image (h,w,3) uint8, None unknown."""

    name: str
    contribution: float
    image: np.ndarray | None


class Sentences(NamedTuple):
    """What is said about a class that is most like the image: (sentence, cosine in [-1, 1]), the nearest first."""

    name: str
    is_target: bool
    nearest: list[tuple[str, float]]


class WhyWrong(NamedTuple):
    """One image: what it is, where the model looked, what each source said, and how that came about."""

    number: int  # position in the evaluation data
    image: np.ndarray | None = None  # (H,W,3) uint8; None when the trace holds no such image
    target: str | None = None  # None unknown
    parts: np.ndarray | None = None  # (H,W) part ids
    maps: Sequence[SaliencyMaps] = ()  # (h,w) each, of the last epoch
    classes: Sequence[ClassProbs] = ()  # the most probable ones, and the true one
    examples: Sequence[Example] = ()  # of these classes, as the model sees them
    cache: Sequence[CacheEntry] = ()  # those that weigh most, of methods with a cache
    sentences: Sequence[Sentences] = ()  # that pull hardest, of the predicted and of the true class
    history: Timeline = Timeline()  # of its predictions, from before training on
    strip: Sequence[tuple[int, np.ndarray]] = ()  # (epoch, map) of the first kind, for images that were followed
    file: str | None = None
    sources: Sequence[str] = ()  # of the pseudo-labels; they may be among those that gave probabilities


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
    classes = _classes(trace, _probs(trace, images, position), target, n_classes)
    return WhyWrong(
        number, images.images[position], class_name(trace.class_names, target) if target >= 0 else None,
        None if images.parts is None else images.parts[position], _maps(maps), classes, _examples(trace, classes),
        [] if is_followed else _cache(trace, position), [] if is_followed else _sentences(trace, position, target),
        timeline_info(trace, f"eval/{number}"), _strip(maps) if is_followed else [], trace.file_name(number),
        trace.meta.get("sources") or (),
    )  # fmt: skip


def _probs(trace: Trace, images: ImageGroup, position: int) -> dict[str, np.ndarray]:
    """Class probabilities (C,) of the method and of each source that spoke of this very image."""
    found = {} if images.probs is None else {METHOD: images.probs[position]}
    found |= {name: probs[position] for name, probs in images.branches.items()}
    if trace.meta.get("accuracy_is") == "transductive":  # then positions in training are those of the evaluation
        for row in np.flatnonzero(trace.sources.index == images.index[position])[-1:]:
            found |= {name: softmax(logits[row].astype(np.float64)) for name, logits in trace.sources.logits.items()}
    first = [name for name in (METHOD, *(trace.meta.get("sources") or ())) if name in found]  # then other branches
    return {name: found[name] for name in dict.fromkeys([*first, *found])}


def _classes(trace: Trace, probs: dict[str, np.ndarray], target: int, n_classes: int) -> list[ClassProbs]:
    if not probs:
        return []
    mean = probs[METHOD] if METHOD in probs else np.mean(list(probs.values()), axis=0)
    top = np.argsort(-mean, kind="stable")[:n_classes].tolist()
    top += [target] if 0 <= target < len(mean) and target not in top else []
    of_sum = trace.meta.get("labels_are") and len(probs) > 1
    adds = _addends({name: values[top] for name, values in probs.items() if name != METHOD}) if of_sum else {}
    return [
        ClassProbs(
            class_name(trace.class_names, label), {name: float(values[label]) for name, values in probs.items()},
            label == target, {name: float(values[place]) for name, values in adds.items()} or None,
        )
        for place, label in enumerate(top)
    ]  # fmt: skip


def _addends(probs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits of each source for some classes, up to a constant, from its probabilities; "method" is their sum."""
    logits = {name: np.log(np.maximum(values, np.finfo(np.float32).tiny)) for name, values in probs.items()}
    centered = {name: values - values.mean() for name, values in logits.items()}
    return {METHOD: np.sum(list(centered.values()), axis=0), **centered}


def _maps(maps: dict[str, np.ndarray]) -> list[SaliencyMaps]:
    """The last of the maps (E1,h,w) of one image, the named kinds first."""
    kinds = sorted(maps, key=lambda kind: ([*KIND_NAMES, kind].index(kind), kind))[:_MAX_MAPS]
    return [one._replace(values=one.values[0]) for one in (SaliencyMaps.of(kind, maps[kind][-1:]) for kind in kinds)]


def _examples(trace: Trace, classes: list[ClassProbs]) -> list[Example]:
    if (examples := trace.examples) is None:
        return []
    images = dict(zip(_named(trace, examples.label), examples.images, strict=True))
    wanted = [one.name for one in classes[:2]] + [one.name for one in classes if one.is_target]
    return [Example(name, images.get(name)) for name in dict.fromkeys(wanted)]


def _cache(trace: Trace, position: int) -> list[CacheEntry]:
    if (cache := trace.cache) is None:
        return []
    names = _named(trace, cache.labels[position])
    images = [None] * len(names) if cache.images is None else cache.images[position]
    return [CacheEntry(*row) for row in zip(names, cache.contributions[position].tolist(), images, strict=True)]


def _named(trace: Trace, labels: np.ndarray) -> list[str]:
    return [class_name(trace.class_names, int(label)) for label in labels]


def _sentences(trace: Trace, position: int, target: int) -> list[Sentences]:
    said: dict[int, list[tuple[str, float]]] = {}
    for place, label, sentence, similarity in trace.meta.get("gallery_sentences") or ():
        if place == position:
            said.setdefault(label, []).append((sentence, similarity))
    return [Sentences(class_name(trace.class_names, label), label == target, found) for label, found in said.items()]


def _strip(maps: dict[str, np.ndarray]) -> list[tuple[int, np.ndarray]]:
    own = next((maps[kind] for kind in KIND_NAMES if kind in maps), np.zeros((0, 1, 1)))
    places = np.unique(np.linspace(0, len(own) - 1, min(MAX_STRIP, len(own))).round().astype(int))
    return [(int(place) - 1, unit_range(own[place][None])[0]) for place in places]
