"""The images worth a look: confidently wrong, flipped most often, and those on which the sources disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures.sources import source_names
from clipviz.figures.style import apply_layout, class_name, empty_chart, escape, short_name
from clipviz.trace import Trace

_ROW, _HEAD = 26, 54
_FIRST_WIDTHS = {"image": 0.8, "file": 3.6}  # apart from the others: DPA has a source that is called "image"
_WIDTHS = {"flips": 0.6, "confidence": 1.0, "pseudo-labels, one after another": 5.0}


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
    are files.
    """

    wrong: list[WronglyCalled]
    flipped: list[Flipped]
    disputed: list[Disputed]
    measured: dict[int, str]
    learned: dict[int, str]


def suspects_info(trace: Trace, n: int = 8) -> Suspects:
    """Find at most `n` images for each list.

    Disputed images come in the order of the least sure of their sources: the surer all are, the worse the dispute.
    """
    wrong, flipped, disputed = _wrong(trace, n), _flipped(trace, n), _disputed(trace, n)
    return Suspects(
        wrong,
        flipped,
        disputed,
        _files(trace, "measured", [item.number for item in wrong]),
        _files(trace, "learned", [item.number for item in flipped] + [item.number for item in disputed]),
    )


def _files(trace: Trace, part: str, numbers: Sequence[int]) -> dict[int, str]:
    found = {number: trace.file_name(number, part) for number in numbers}
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


def draw_suspects(info: Suspects) -> go.Figure:
    """A table for each list that is not empty."""
    title = "Images worth a look"
    tables = [table for table in (_wrong_table(info), _flipped_table(info), _disputed_table(info)) if table[2]]
    if not tables:
        return empty_chart(title, "No image is wrong, flipped or disputed: nothing to look at, or nothing recorded.")
    heights = [_ROW * (len(rows) + 1) for _, _, rows in tables]
    figure = make_subplots(
        rows=len(tables),
        row_heights=heights,
        vertical_spacing=_HEAD / (sum(heights) + _HEAD * (len(tables) - 1)) if len(tables) > 1 else 0,
        specs=[[{"type": "table"}]] * len(tables),
        subplot_titles=[name for name, _, _ in tables],
    )
    apply_layout(figure, title, sum(heights) + _HEAD * (len(tables) - 1) + 96, 0, has_panel_titles=True)
    figure.update_layout(margin={"l": 12, "r": 12, "b": 12})
    for row, (_, head, cells) in enumerate(tables, start=1):
        _add_table(figure, head, cells, row)
    return figure


def _add_table(figure: go.Figure, head: Sequence[str], rows: Sequence[Sequence[str]], row: int) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = [_FIRST_WIDTHS[head[0]], *(_WIDTHS.get(name, 2.6) for name in head[1:])]
    shared = {"align": "left", "height": _ROW, "line_color": "#dddddd"}
    figure.add_table(
        header={"values": [escape(name) for name in head], "fill_color": "#eeeeee", "font_size": 12.5, **shared},
        cells={"values": columns, "fill_color": "white", "font_size": 12.5, **shared},
        columnwidth=widths,
        row=row,
        col=1,
    )


Table = tuple[str, list[str], list[list[str]]]


def _head(files: dict[int, str]) -> str:
    return "file" if files else "image"


def _image(number: int, files: dict[int, str]) -> str:
    """How an image is called in a table: by its file, else by its position."""
    return short_name(files[number], 36) if number in files else str(number)


def _wrong_table(info: Suspects) -> Table:
    rows = [
        [
            _image(item.number, info.measured),
            short_name(item.target),
            short_name(item.prediction),
            f"{item.confidence:.0%}",
        ]
        for item in info.wrong
    ]
    head = [_head(info.measured), "true class", "called", "confidence"]
    return "confidently wrong (evaluation images)", head, rows


def _flipped_table(info: Suspects) -> Table:
    rows = []
    for item in info.flipped:
        labels = item.labels if len(item.labels) <= 3 else [item.labels[0], "…", item.labels[-1]]
        way = " → ".join(short_name(label, 20) for label in labels)
        rows.append(
            [_image(item.number, info.learned), str(item.n_flips), short_name(item.target or "not known", 22), way]
        )
    head = [_head(info.learned), "flips", "true class", "pseudo-labels, one after another"]
    return "flipped most often (training images)", head, rows


def _disputed_table(info: Suspects) -> Table:
    sources = list(info.disputed[0].votes) if info.disputed else []
    rows = [
        [
            _image(item.number, info.learned),
            short_name(item.target or "not known", 20),
            *(f"{short_name(name, 19)} {confidence:.0%}" for name, confidence in item.votes.values()),
            short_name(item.pseudo_label, 20),
        ]
        for item in info.disputed
    ]
    head = [_head(info.learned), "true class", *sources, "pseudo-label"]
    return "sources disagree, and are sure (training images)", head, rows


def suspects(trace: Trace) -> go.Figure:
    """The images to look at first: confidently wrong, flipped most often, sources in dispute."""
    return draw_suspects(suspects_info(trace))
