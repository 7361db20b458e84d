"""The images worth a look: confidently wrong, flipped most often, and those on which the sources disagree."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from clipviz.figures.saliency import show_image
from clipviz.figures.sources import source_names
from clipviz.figures.style import apart, bare, class_name, empty_picture, shorten
from clipviz.trace import Trace

_INCH, _ROW, _SIDE, _LETTERS = 100, 90, 76, 54
_UNKNOWN = "not known"


class WronglyCalled(NamedTuple):
    """An evaluation image of class `target` that is called `prediction`; `number` is its position in the data."""

    number: int
    target: str
    prediction: str
    confidence: float


class Flipped(NamedTuple):
    """A training image whose pseudo-label changed `n_flips` times; `labels` as they came, without repetitions."""

    number: int
    target: str | None
    labels: list[str]
    n_flips: int


class Disputed(NamedTuple):
    """A training image with each source's class and confidence in the last epoch, and who won."""

    number: int
    target: str | None
    votes: dict[str, tuple[str, float]]
    pseudo_label: str


class Suspects(NamedTuple):
    """Three lists, the worst first. `wrong` is empty without targets, `disputed` with fewer than two sources.

    `measured` and `learned` are the files of the evaluation and of the training images in them, by number, where they
    are files; `images` their pixels (H,W,3) uint8 by ("measured" or "learned", number), as far as the trace holds them.
    """

    wrong: list[WronglyCalled]
    flipped: list[Flipped]
    disputed: list[Disputed]
    measured: dict[int, str]
    learned: dict[int, str]
    images: dict[tuple[str, int], np.ndarray]


def suspects_info(trace: Trace, n: int = 8) -> Suspects:
    """Find at most `n` images for each list.

    Disputed images come in the order of the least sure of their sources: the surer all are, the worse the dispute.
    """
    wrong, flipped, disputed = _wrong(trace, n), _flipped(trace, n), _disputed(trace, n)
    return Suspects(
        wrong,
        flipped,
        disputed,
        _files(trace, "measured", wrong),
        _files(trace, "learned", [*flipped, *disputed]),
        _images(trace),
    )


def _images(trace: Trace) -> dict[tuple[str, int], np.ndarray]:
    """Pixels of images by what they are for and their number."""
    found = dict[tuple[str, int], np.ndarray]()
    parts = ("measured", "learned") if trace.meta.get("accuracy_is") == "transductive" else ("measured",)
    suspects = trace.suspects
    for group, of in ((suspects["measured"], parts), (suspects["learned"], ("learned",)), (trace.highlights, parts)):
        if len(group.images):
            pairs = list(zip(group.index.tolist(), group.images, strict=True))
            found |= {(part, number): image for number, image in pairs for part in of}
    return found


def _files(trace: Trace, part: str, items: Sequence[WronglyCalled | Flipped | Disputed]) -> dict[int, str]:
    found = {item.number: trace.file_name(item.number, part) for item in items}
    return {number: name for number, name in found.items() if name is not None}


def _wrong(trace: Trace, n: int) -> list[WronglyCalled]:
    rows = trace.predictions
    rows = rows[(rows["epoch"] == rows["epoch"].max()) & (rows["target"] >= 0) & (rows["prediction"] != rows["target"])]
    rows = rows.sort_values("confidence", ascending=False, kind="stable").head(n)
    names = trace.class_names
    return [
        WronglyCalled(int(index), class_name(names, int(target)), class_name(names, int(prediction)), float(confidence))
        for index, target, prediction, confidence in zip(
            rows["index"], rows["target"], rows["prediction"], rows["confidence"], strict=True
        )
    ]


def _flipped(trace: Trace, n: int) -> list[Flipped]:
    samples = trace.samples.drop_duplicates(["epoch", "index"], keep="last").sort_values(["index", "epoch"])
    number, label, target = (samples[name].to_numpy(int) for name in ("index", "pseudo_label", "target"))
    starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]][: len(number)])  # of each image's epochs
    is_flip = np.r_[False, (label[1:] != label[:-1]) & (number[1:] == number[:-1])][: len(number)]
    flips = np.add.reduceat(is_flip.astype(int), starts) if len(starts) else np.zeros(0, int)
    ends = np.r_[starts[1:], len(number)]
    order = [i for i in np.argsort(-flips, kind="stable")[:n] if flips[i]]
    return [
        Flipped(
            int(number[starts[i]]),
            _target(trace, int(target[ends[i] - 1])),
            [
                class_name(trace.class_names, int(label[row]))
                for row in range(starts[i], ends[i])
                if row == starts[i] or is_flip[row]
            ],
            int(flips[i]),
        )
        for i in order
    ]


def _disputed(trace: Trace, n: int) -> list[Disputed]:
    sources, samples = source_names(trace), trace.samples
    if len(sources) < 2 or not len(samples):
        return []
    last = samples[samples["epoch"] == samples["epoch"].max()]
    last = last.dropna(subset=[f"{name}_{what}" for name in sources for what in ("label", "confidence")])
    labels = last[[f"{name}_label" for name in sources]].to_numpy(int)
    confidence = last[[f"{name}_confidence" for name in sources]].to_numpy(float)
    disputed = np.flatnonzero((labels != labels[:, :1]).any(1))
    order = disputed[np.argsort(-confidence[disputed].min(1), kind="stable")][:n]
    columns = {name: last[name].to_numpy(int) for name in ("index", "target", "pseudo_label")}
    return [
        Disputed(
            int(columns["index"][i]),
            _target(trace, int(columns["target"][i])),
            {
                name: (class_name(trace.class_names, int(labels[i, k])), float(confidence[i, k]))
                for k, name in enumerate(sources)
            },
            class_name(trace.class_names, int(columns["pseudo_label"][i])),
        )
        for i in order
    ]


def _target(trace: Trace, label: int) -> str | None:
    return class_name(trace.class_names, label) if label >= 0 else None


class Card(NamedTuple):
    """One image of a list: what it is called, what is said of it, and its pixels (H,W,3) uint8 where they are known."""

    name: str
    said: list[str]
    image: np.ndarray | None


def draw_suspects(info: Suspects) -> Figure:
    """For each list that is not empty the images, two beside each other, with what is said of them."""
    title = "Images worth a look"
    lists = [(name, cards) for name, cards in _lists(info) if cards]
    if not lists:
        return empty_picture(title, "No image is wrong, flipped or disputed: nothing to look at, or nothing recorded.")
    height = 40 + sum(34 + _ROW * -(-len(cards) // 2) for _, cards in lists)
    figure = Figure(figsize=(9, height / _INCH), dpi=_INCH)
    figure.text(0.008, 1 - 10 / height, title, fontsize=12, weight="bold", va="top")
    top = 40.0
    for name, cards in lists:
        figure.text(0.008, 1 - top / height, name, fontsize=10, weight="bold", va="top")
        for i, card in enumerate(cards):
            _draw_card(figure, card, 8 + 450 * (i % 2), top + 24 + _ROW * (i // 2), height)
        top += 34 + _ROW * -(-len(cards) // 2)
    return figure


def _draw_card(figure: Figure, card: Card, left: float, top: float, height: float) -> None:
    axis = bare(figure.add_axes((left / 900, 1 - (top + _SIDE) / height, _SIDE / 900, _SIDE / height)))
    if card.image is None:
        axis.set_facecolor("#eeeeee")
        axis.text(0.5, 0.5, "not kept", fontsize=7.5, ha="center", va="center", color="#555", transform=axis.transAxes)
    else:
        show_image(axis, card.image)
    lines = [line for said in card.said for line in textwrap.wrap(said, _LETTERS)]
    plain: dict[str, Any] = {"va": "top", "parse_math": False}
    place = (left + _SIDE + 8) / 900
    figure.text(place, 1 - top / height, shorten(card.name, 62), fontsize=8, color="#555", **plain)
    size = 8.5 if len(lines) <= 5 else 7
    figure.text(place, 1 - (top + 15) / height, "\n".join(lines[:7]), fontsize=size, linespacing=1.15, **plain)


def _lists(info: Suspects) -> list[tuple[str, list[Card]]]:
    """Each list with what is said of its images; names of one image are shortened so that they stay apart."""
    wrong, flipped, disputed = [], [], []
    for item in info.wrong:
        true, called = apart([item.target, item.prediction], 60)
        said = [f"true class: {true}", f"called: {called}, {item.confidence:.0%}"]
        wrong.append(_card(info, "measured", item.number, said))
    for one in info.flipped:
        true, *labels = apart([one.target or _UNKNOWN, *one.labels], 40)
        labels = labels if len(labels) <= 3 else [labels[0], "…", labels[-1]]
        said = [f"true class: {true}", f"flips: {one.n_flips}", " → ".join(labels)]
        flipped.append(_card(info, "learned", one.number, said))
    for each in info.disputed:
        names = [each.target or _UNKNOWN, *(name for name, _ in each.votes.values()), each.pseudo_label]
        true, *votes, label = apart(names, 40)
        sure = [f"{vote}, {confidence:.0%}" for vote, (_, confidence) in zip(votes, each.votes.values(), strict=True)]
        said = [f"true class: {true}", *map(": ".join, zip(each.votes, sure, strict=True)), f"pseudo-label: {label}"]
        disputed.append(_card(info, "learned", each.number, said))
    return [
        ("confidently wrong (evaluation images)", wrong),
        ("flipped most often (training images)", flipped),
        ("sources disagree, and are sure (training images)", disputed),
    ]


def _card(info: Suspects, part: str, number: int, said: list[str]) -> Card:
    """The file of an image and its pixels, or what there is instead of them."""
    files = info.measured if part == "measured" else info.learned
    return Card(files.get(number, f"image {number}"), said, info.images.get((part, number)))


def suspects(trace: Trace) -> Figure:
    """The images to look at first: confidently wrong, flipped most often, sources in dispute."""
    return draw_suspects(suspects_info(trace))
