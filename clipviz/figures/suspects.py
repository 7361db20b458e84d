"""The images worth a look: confidently wrong, flipped most often, and those on which the sources disagree."""

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clipviz.figures.saliency import show_image
from clipviz.figures.sources import source_names
from clipviz.figures.style import Page, apart, class_name, empty_picture, figure_of, no_image, shorten
from clipviz.instructive import confidently_wrong, disputed
from clipviz.trace import Trace

_ROW, _SIDE, _LETTERS = 90, 76, 54


class WronglyCalled(NamedTuple):
    """An evaluation image of class `target` for which `prediction` is predicted; `number` is its position."""

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
    sources: dict[str, tuple[str, float]]
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
    """Find at most `n` images for each list."""
    wrong, flipped, in_dispute = _wrong(trace, n), _flipped(trace, n), _disputed(trace, n)
    numbers = {"measured": [item.number for item in wrong]}
    numbers["learned"] = [*(item.number for item in flipped), *(item.number for item in in_dispute)]
    measured, learned = (
        {number: name for number in chosen if (name := trace.file_name(number, part)) is not None}
        for part, chosen in numbers.items()
    )
    return Suspects(wrong, flipped, in_dispute, measured, learned, _images(trace))


def _images(trace: Trace) -> dict[tuple[str, int], np.ndarray]:
    """Pixels of images by what they are for and their number."""
    parts = ("measured", "learned") if trace.meta.get("accuracy_is") == "transductive" else ("measured",)
    kept = trace.suspects
    groups = [(kept["measured"], parts), (kept["learned"], ("learned",)), (trace.highlights, parts)]
    return {
        (part, int(number)): image
        for group, of in groups
        for number, image in zip(group.index, group.images, strict=True)
        for part in of
    }


def _wrong(trace: Trace, n: int) -> list[WronglyCalled]:
    rows = trace.predictions[trace.predictions["epoch"] == trace.predictions["epoch"].max()]
    columns = [rows[name].to_numpy() for name in ("index", "target", "prediction", "confidence")]
    chosen = confidently_wrong(*(columns[i] for i in (2, 3, 1)))[:n]
    names = trace.class_names
    return [
        WronglyCalled(number, class_name(names, target), class_name(names, prediction), confidence)
        for number, target, prediction, confidence in zip(*(column[chosen].tolist() for column in columns), strict=True)
    ]


def _flipped(trace: Trace, n: int) -> list[Flipped]:
    samples = trace.samples.drop_duplicates(["epoch", "index"], keep="last").sort_values(["index", "epoch"])
    number, label = samples["index"], samples["pseudo_label"]
    is_flip = (number == number.shift()) & (label != label.shift())
    flips = is_flip.groupby(number).sum().sort_values(ascending=False, kind="stable")
    found = []
    flips = flips[flips > 0].head(n)
    for index, n_flips in zip(flips.index.tolist(), flips.tolist(), strict=True):
        rows = samples[number == index]
        labels = [class_name(trace.class_names, one) for one, _ in groupby(rows["pseudo_label"].tolist())]
        found.append(Flipped(index, _target(trace, rows["target"].iloc[-1]), labels, n_flips))
    return found


def disputed_rows(trace: Trace, epoch: int) -> pd.DataFrame:
    """Those samples of an epoch on which the sources disagree, first where all of them are sure."""
    sources, samples = source_names(trace), trace.samples
    if len(sources) < 2:
        return samples[:0]
    labels, confidence = ([f"{name}_{what}" for name in sources] for what in ("label", "confidence"))
    rows = samples[samples["epoch"] == epoch].dropna(subset=[*labels, *confidence])
    return rows.iloc[disputed(rows[labels].to_numpy(int), rows[confidence].to_numpy(float))]


def _disputed(trace: Trace, n: int) -> list[Disputed]:
    names, sources = trace.class_names, source_names(trace)
    found = []
    for row in disputed_rows(trace, trace.samples["epoch"].max()).head(n).to_dict("records"):
        said = {one: (class_name(names, int(row[f"{one}_label"])), row[f"{one}_confidence"]) for one in sources}
        label = class_name(names, row["pseudo_label"])
        found.append(Disputed(int(row["index"]), _target(trace, row["target"]), said, label))
    return found


def _target(trace: Trace, label: int) -> str | None:
    return class_name(trace.class_names, int(label)) if label >= 0 else None


def draw_suspects(info: Suspects) -> Figure:
    """For each list that is not empty the images, two beside each other, with what is said of them."""
    title = "Images worth a look"
    lists = {
        "confidently wrong (evaluation images)": ("measured", info.measured, list(_said_of_wrong(info))),
        "flipped most often (training images)": ("learned", info.learned, list(_said_of_flipped(info))),
        "sources disagree, and are sure (training images)": ("learned", info.learned, list(_said_of_disputed(info))),
    }
    heights = {name: 34 + _ROW * -(-len(cards) // 2) for name, (*_, cards) in lists.items() if cards}
    if not heights:
        return empty_picture(title, "No image is wrong, flipped or disputed: nothing to look at, or nothing recorded.")
    page, top = Page(40 + sum(heights.values()), title), 40
    for heading, height in heights.items():
        page.write(8, top, heading, 10, weight="bold")
        part, files, cards = lists[heading]
        for i, (number, said) in enumerate(cards):
            left, image = 8 + 450 * (i % 2), info.images.get((part, number))
            _draw_card(page, files.get(number, f"image {number}"), said, image, left, top + 24 + _ROW * (i // 2))
        top += height
    return page.figure


def _draw_card(page: Page, name: str, said: list[str], image: np.ndarray | None, left: float, top: float) -> None:
    axes = page.axes(left, top, _SIDE, _SIDE)
    if image is None:
        no_image(axes, "not kept", 7.5)
    else:
        show_image(axes, image)
    lines = [line for one in said for line in textwrap.wrap(one, _LETTERS)]
    page.write(left + _SIDE + 8, top, shorten(name, 62), 8, color="#555")
    page.write(left + _SIDE + 8, top + 15, "\n".join(lines[:7]), 8.5 if len(lines) <= 5 else 7, linespacing=1.15)


# What is said of images, by their numbers. Names of one image are shortened together, so that they stay apart.


def _said_of_wrong(info: Suspects) -> Iterator[tuple[int, list[str]]]:
    for number, target, prediction, confidence in info.wrong:
        true, called = apart([target, prediction], 60)
        yield number, [f"true class: {true}", f"predicted: {called}, {confidence:.0%}"]


def _said_of_flipped(info: Suspects) -> Iterator[tuple[int, list[str]]]:
    for number, target, names, n_flips in info.flipped:
        true, *labels = apart([target or "not known", *names], 40)
        labels = labels if len(labels) <= 3 else [labels[0], "…", labels[-1]]
        yield number, [f"true class: {true}", f"flips: {n_flips}", " → ".join(labels)]


def _said_of_disputed(info: Suspects) -> Iterator[tuple[int, list[str]]]:
    for number, target, sources, pseudo_label in info.disputed:
        true, label, *called = apart([target or "not known", pseudo_label, *(name for name, _ in sources.values())], 40)
        of_sources = zip(sources.items(), called, strict=True)
        each = [f"{source}: {name}, {confidence:.0%}" for (source, (_, confidence)), name in of_sources]
        yield number, [f"true class: {true}", *each, f"pseudo-label: {label}"]


suspects = figure_of(suspects_info, draw_suspects)
