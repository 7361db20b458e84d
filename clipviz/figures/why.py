"""Why is this one wrong: everything that a trace knows about one image, on one page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clipviz.figures.saliency import KIND_NAMES, unit_range
from clipviz.figures.style import class_name
from clipviz.trace import Trace

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
    """One image: what it is, where the model looked, who voted for what, and how that came about.

    Attributes:
        number: Position in the evaluation data.
        image: (H,W,3) uint8, or None when the trace holds no such image.
        target: True class, None unknown.
        parts: (H,W) part ids, or None.
        maps: Saliency of the last epoch.
        votes: The top classes, first the surest, and the true one.
        examples: What the model takes for these classes.
        voters: The cache entries that weigh most, of methods with a cache.
        sentences: The descriptions that pull hardest, of the class it is called and of its true one.
        history: What the image was called from before training on.
        strip: (epoch, map) of the first kind over the epochs, for images that were followed.
        file: The image's file, None if it is none.
    """

    number: int
    image: np.ndarray | None
    target: str | None
    parts: np.ndarray | None
    maps: list[SaliencyMap]
    votes: list[ClassVotes]
    examples: list[Example]
    voters: list[Voter]
    sentences: list[Sentences]
    history: list[Moment]
    strip: list[tuple[int, np.ndarray]]
    file: str | None = None


def why_wrong_info(trace: Trace, position: int = 0, group: str = "gallery", n_classes: int = 4) -> WhyWrong:
    """Collect what the trace knows about one image.

    Args:
        trace: The run.
        position: Which image of the group, from 0 on.
        group: "gallery" (the instructive images) or "probe" (the images that were followed through the run).
        n_classes: So many top classes, and the true one.
    """
    arrays = trace.arrays
    images = arrays.get(f"{group}/images", ())
    if not 0 <= position < len(images):
        return WhyWrong(-1, None, None, None, [], [], [], [], [], [], [])
    number = int(arrays.get(f"{group}/index", np.arange(len(images)))[position])
    target = int(arrays.get(f"{group}/target", np.full(len(images), -1))[position])
    parts = arrays.get(f"{group}/parts")
    votes = _votes(trace, _probs(trace, group, position, number), target, n_classes)
    return WhyWrong(
        number,
        images[position],
        class_name(trace.class_names, target) if target >= 0 else None,
        None if parts is None else parts[position],
        _maps(trace, group, position),
        votes,
        _examples(trace, votes),
        _voters(trace, position) if group == "gallery" else [],
        _sentences(trace, position, target) if group == "gallery" else [],
        _history(trace, number),
        _strip(trace, position) if group == "probe" else [],
        trace.file_name(number),
    )


def _probs(trace: Trace, group: str, position: int, number: int) -> dict[str, np.ndarray]:
    """Class probabilities (C,) of the method and of each source that voted on this very image."""
    arrays, branch = trace.arrays, f"{group}/branch/"
    found = {METHOD: arrays[f"{group}/probs"][position]} if f"{group}/probs" in arrays else {}
    found |= {name.removeprefix(branch): a[position] for name, a in sorted(arrays.items()) if name.startswith(branch)}
    if trace.meta.get("accuracy_is") == "transductive":  # then positions in training are those of the evaluation
        rows = np.flatnonzero(arrays.get("sources/index", np.zeros(0)) == number)
        for name in trace.meta.get("sources", ()):
            if len(rows) and f"sources/{name}" in arrays:
                logits = arrays[f"sources/{name}"][rows[-1]].astype(np.float64)
                exp = np.exp(logits - logits.max())
                found[name] = exp / exp.sum()
    return found


def _votes(trace: Trace, probs: dict[str, np.ndarray], target: int, n_classes: int) -> list[ClassVotes]:
    if not probs:
        return []
    ranking = probs[METHOD] if METHOD in probs else np.mean(list(probs.values()), axis=0)
    top = [int(label) for label in np.argsort(-ranking, kind="stable")[:n_classes]]
    if 0 <= target < len(ranking) and target not in top:
        top.append(target)
    addends = _addends(probs, top) if trace.meta.get("labels_are") and len(probs) > 1 else None
    return [
        ClassVotes(
            class_name(trace.class_names, label),
            {source: float(values[label]) for source, values in probs.items()},
            label == target,
            None if addends is None else {source: float(values[place]) for source, values in addends.items()},
        )
        for place, label in enumerate(top)
    ]


def _addends(probs: dict[str, np.ndarray], top: list[int]) -> dict[str, np.ndarray]:
    """Logits of each source for some classes, up to a constant, from its probabilities; "method" is their sum."""
    tiny = np.finfo(np.float32).tiny
    logits = {name: np.log(np.maximum(values[top], tiny)) for name, values in probs.items() if name != METHOD}
    centered = {name: values - values.mean() for name, values in logits.items()}
    return {METHOD: np.sum(list(centered.values()), axis=0), **centered}


def _maps(trace: Trace, group: str, position: int) -> list[SaliencyMap]:
    """Maps of the last epoch, the named kinds first."""
    fixed = {"images", "index", "target", "parts", "probs", "prediction", "confidence"}
    kinds = [name.removeprefix(f"{group}/") for name in sorted(trace.arrays) if name.startswith(f"{group}/")]
    kinds = [kind for kind in kinds if kind not in fixed and not kind.startswith("branch/")]
    found = []
    for kind in sorted(kinds, key=lambda kind: ([*KIND_NAMES, kind].index(kind), kind))[:_MAX_MAPS]:
        maps = trace.arrays[f"{group}/{kind}"]
        values = maps[-1, position] if group == "probe" else maps[position]
        is_mask = bool(np.isin(values, (0, 1)).all())
        found.append(SaliencyMap(KIND_NAMES.get(kind, kind), unit_range(values[None])[0], is_mask))
    return found


def _examples(trace: Trace, votes: list[ClassVotes]) -> list[Example]:
    images, labels = trace.arrays.get("examples/images", ()), trace.arrays.get("examples/label", ())
    by_name = {class_name(trace.class_names, int(label)): i for i, label in enumerate(labels)}
    wanted = [vote.name for vote in votes[:2]] + [vote.name for vote in votes if vote.is_target]
    if not len(images):
        return []
    return [Example(name, images[by_name[name]] if name in by_name else None) for name in dict.fromkeys(wanted)]


def _voters(trace: Trace, position: int) -> list[Voter]:
    arrays = trace.arrays
    if "cache/labels" not in arrays:
        return []
    names = [class_name(trace.class_names, int(label)) for label in arrays["cache/labels"][position]]
    images = arrays["cache/images"][position] if "cache/images" in arrays else [None] * len(names)
    return [Voter(*row) for row in zip(names, arrays["cache/votes"][position].tolist(), images, strict=True)]


def _sentences(trace: Trace, position: int, target: int) -> list[Sentences]:
    rows = [row[1:] for row in trace.meta.get("gallery_sentences", ()) if row[0] == position]
    labels = list(dict.fromkeys(label for label, _, _ in rows))
    return [
        Sentences(
            class_name(trace.class_names, label),
            label == target,
            [(sentence, similarity) for other, sentence, similarity in rows if other == label],
        )
        for label in labels
    ]


def _history(trace: Trace, number: int) -> list[Moment]:
    rows = trace.predictions[trace.predictions["index"] == number].sort_values("epoch")
    columns = (rows[name].tolist() for name in ("epoch", "prediction", "confidence", "target"))
    return [
        Moment(epoch, class_name(trace.class_names, label), confidence, label == target if target >= 0 else None)
        for epoch, label, confidence, target in zip(*columns, strict=True)
    ]


def _strip(trace: Trace, position: int) -> list[tuple[int, np.ndarray]]:
    kind = next((kind for kind in KIND_NAMES if f"probe/{kind}" in trace.arrays), None)
    if kind is None:
        return []
    maps = trace.arrays[f"probe/{kind}"]
    places = np.unique(np.linspace(0, len(maps) - 1, min(MAX_STRIP, len(maps))).round().astype(int))
    return [(int(place) - 1, unit_range(maps[place, position][None])[0]) for place in places]
