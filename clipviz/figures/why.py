"""Why is this one wrong: everything that a trace knows about one image, on one page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipviz.figures._style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    bare,
    class_name,
    empty_picture,
    epoch_name,
    shorten,
)
from clipviz.figures.saliency import KIND_NAMES, show_image, show_parts, show_saliency, unit_range
from clipviz.trace import Trace

_INCH, _WIDTH, _FONT = 100, 900, 9.5
_MAX_MAPS, _MAX_EXAMPLES, _MAX_STRIP, _MAX_NAMES = 4, 3, 8, 6
_SOURCE_COLORS = (SKY, ORANGE, PURPLE, GREEN)
_METHOD = "method"


class SaliencyMap(NamedTuple):
    """One map (h,w) in [0, 1]; `is_mask` where it is 0 or 1 throughout."""

    title: str
    values: np.ndarray
    is_mask: bool


class ClassVotes(NamedTuple):
    """One class with the probability in [0, 1] that the method (key "method") and each source gave it."""

    name: str
    probs: dict[str, float]
    is_target: bool


class Example(NamedTuple):
    """The image (h,w,3) uint8 that the model calls `name` most surely; None when it calls no image so."""

    name: str
    image: np.ndarray | None


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
        history: What the image was called from before training on.
        strip: (epoch, map) of the first kind over the epochs, for images that were followed.
    """

    number: int
    image: np.ndarray | None
    target: str | None
    parts: np.ndarray | None
    maps: list[SaliencyMap]
    votes: list[ClassVotes]
    examples: list[Example]
    history: list[Moment]
    strip: list[tuple[int, np.ndarray]]


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
        return WhyWrong(-1, None, None, None, [], [], [], [], [])
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
        _history(trace, number),
        _strip(trace, position) if group == "probe" else [],
    )


def _probs(trace: Trace, group: str, position: int, number: int) -> dict[str, np.ndarray]:
    """Class probabilities (C,) of the method and of each source that voted on this very image."""
    arrays, branch = trace.arrays, f"{group}/branch/"
    found = {_METHOD: arrays[f"{group}/probs"][position]} if f"{group}/probs" in arrays else {}
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
    ranking = probs[_METHOD] if _METHOD in probs else np.mean(list(probs.values()), axis=0)
    top = [int(label) for label in np.argsort(-ranking, kind="stable")[:n_classes]]
    if 0 <= target < len(ranking) and target not in top:
        top.append(target)
    return [
        ClassVotes(
            class_name(trace.class_names, label),
            {source: float(values[label]) for source, values in probs.items()},
            label == target,
        )
        for label in top
    ]


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
    places = np.unique(np.linspace(0, len(maps) - 1, min(_MAX_STRIP, len(maps))).round().astype(int))
    return [(int(place) - 1, unit_range(maps[place, position][None])[0]) for place in places]


def draw_why_wrong(info: WhyWrong) -> Figure:
    """From the top: the image and the maps; the votes and what the classes look like; the image over the epochs."""
    title = "Why is this one wrong?"
    if info.image is None:
        return empty_picture(title, "This trace holds no such image.")
    names = _history_names(info)
    pictures = 200
    middle = max(60 + 44 * len(info.votes), 190 if info.examples else 0) if info.votes or info.examples else 0
    bottom = 76 + 24 * len(names) if names else 0
    strip = 150 if info.strip else 0
    page = _Page(40 + pictures + middle + bottom + strip)
    page.write(8, 10, _headline(info), size=12, weight="bold")
    _draw_pictures(page, info, top=40)
    if middle:
        _draw_votes(page, info, top=40 + pictures)
        _draw_examples(page, info, top=40 + pictures)
    if bottom:
        _draw_history(page, info, names, top=40 + pictures + middle)
    if strip:
        _draw_strip(page, info, top=40 + pictures + middle + bottom)
    return page.figure


class _Page:
    """A figure of 900 pixels' width that is addressed in pixels from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(_WIDTH / _INCH, height / _INCH), dpi=_INCH)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height))

    def write(self, left: float, top: float, text: str, size: float = _FONT, weight: str = "normal") -> None:
        place = left / _WIDTH, 1 - top / self.height
        self.figure.text(*place, text, fontsize=size, va="top", weight=weight, parse_math=False)


def _headline(info: WhyWrong) -> str:
    final = info.history[-1] if info.history else None
    called = info.votes[0].name if info.votes else final.name if final else None
    if called is None:
        return f"image {info.number}"
    confidence = info.votes[0].probs.get(_METHOD) if info.votes else None
    confidence = final.confidence if confidence is None and final else confidence
    sure = f" ({confidence:.0%})" if confidence is not None else ""
    if info.target is None:
        return f"Image {info.number}: called {shorten(called, 34)}{sure}; its true class is not known"
    if called == info.target:
        return f"Image {info.number}: rightly called {shorten(called, 34)}{sure}"
    return f"Why is this one wrong? A {shorten(info.target, 28)}, called {shorten(called, 28)}{sure}"


def _draw_pictures(page: _Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    n = 1 + (info.parts is not None) + len(info.maps)
    side = min(168.0, (_WIDTH - 16) / n - 6)
    titles = ["image", *(["true parts"] if info.parts is not None else []), *(item.title for item in info.maps)]
    for i, title in enumerate(titles):
        axis = page.axes(8 + i * (side + 6), top + 18, side, side)
        page.write(8 + i * (side + 6), top, shorten(title, 22))
        if i == 0:
            show_image(axis, info.image)
        elif i == 1 and info.parts is not None:
            show_parts(axis, info.image, info.parts)
        else:
            item = info.maps[i - n + len(info.maps)]
            show_saliency(axis, info.image, item.values, item.is_mask)


def _draw_votes(page: _Page, info: WhyWrong, top: float) -> None:
    if not info.votes:
        return
    sources = list(info.votes[0].probs)
    page.write(8, top + 8, "votes of the last epoch" + " (✓ the true class)" * (info.target is not None))
    axis = bare(page.axes(196, top + 30, 250, 44 * len(info.votes)))
    axis.set_xlim(0, 1)
    axis.set_ylim(len(info.votes) - 0.5, -0.5)
    thick = 0.78 / len(sources)
    for row, vote in enumerate(info.votes):
        mark = "✓ " if vote.is_target else ""
        page.write(8, top + 30 + 44 * row + 14, mark + shorten(vote.name, 23), weight="bold" if mark else "normal")
        for i, source in enumerate(sources):
            y = row - 0.39 + thick * (i + 0.5)
            axis.barh(y, vote.probs[source], height=0.86 * thick, color=_source_color(source, i))
            axis.text(vote.probs[source] + 0.015, y, f"{vote.probs[source]:.0%}", fontsize=8, va="center")
    for i, source in enumerate(sources):
        left = 196 + 90 * i
        bare(page.axes(left, top + 36 + 44 * len(info.votes), 10, 10)).set_facecolor(_source_color(source, i))
        page.write(left + 15, top + 34 + 44 * len(info.votes), shorten(source, 11), size=8.5)


def _source_color(source: str, place: int) -> str:
    return "#444444" if source == _METHOD else _SOURCE_COLORS[place % len(_SOURCE_COLORS)]


def _draw_examples(page: _Page, info: WhyWrong, top: float) -> None:
    if not info.examples:
        return
    page.write(510, top + 8, "what the model most surely calls so")
    for i, example in enumerate(info.examples[:_MAX_EXAMPLES]):
        axis = page.axes(510 + 130 * i, top + 30, 110, 110)
        if example.image is None:
            bare(axis).set_facecolor("#f0f0f0")
            axis.text(0.5, 0.5, "no other\nimage", ha="center", va="center", fontsize=_FONT, color="#555")
        else:
            show_image(axis, example.image)
        page.write(510 + 130 * i, top + 144, shorten(example.name, 17), size=8.5)


def _history_names(info: WhyWrong) -> list[str]:
    """The classes that the image was called, the last one on top; rarer ones of many are left to "others"."""
    names = list(dict.fromkeys(moment.name for moment in reversed(info.history)))
    return names if len(names) <= _MAX_NAMES else [*names[: _MAX_NAMES - 1], "others"]


def _draw_history(page: _Page, info: WhyWrong, names: list[str], top: float) -> None:
    page.write(8, top + 6, "what it was called, and how surely (%)")
    axis = page.axes(196, top + 34, 690, 24 * len(names))
    rows = [names.index(moment.name) if moment.name in names else len(names) - 1 for moment in info.history]
    axis.plot(range(len(rows)), rows, color="#BBBBBB", linewidth=1.5, zorder=1)
    every = max(1, -(-len(rows) // 16))
    for x, (row, moment) in enumerate(zip(rows, info.history, strict=True)):
        color, marker = {True: (BLUE, "o"), False: (VERMILLION, "X"), None: ("#666666", "s")}[moment.is_right]
        axis.plot(x, row, marker=marker, color=color, markersize=7)
        if x % every == 0 and np.isfinite(moment.confidence):
            axis.annotate(
                f"{100 * moment.confidence:.0f}", (x, row), (6, 0), textcoords="offset points", fontsize=8, va="center"
            )
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(-0.4, max(len(rows) - 0.4, 0.6))
    ticks = range(0, len(rows), every)
    axis.set_xticks(ticks, [epoch_name(info.history[tick].epoch) for tick in ticks], fontsize=8.5)
    axis.set_yticks(range(len(names)), [shorten(name, 23) for name in names], fontsize=_FONT, parse_math=False)
    axis.set_xlabel("epoch", fontsize=_FONT, labelpad=1)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_strip(page: _Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    side = (_WIDTH - 16) / _MAX_STRIP - 4
    page.write(8, top + 4, "where it looked, epoch by epoch")
    for i, (epoch, saliency) in enumerate(info.strip):
        show_saliency(page.axes(8 + i * (side + 4), top + 22, side, side), info.image, saliency)
        page.write(8 + i * (side + 4), top + 24 + side, "before" if epoch < 0 else f"epoch {epoch}", size=8.5)


def why_wrong(trace: Trace, position: int = 0, group: str = "gallery") -> Figure:
    """One image with its maps, the votes, examples of the classes it is taken for, and its story."""
    return draw_why_wrong(why_wrong_info(trace, position, group))
