"""The page of `clipviz.figures.why`: pictures, votes, sentences and history of one image, placed in pixels."""

from __future__ import annotations

import textwrap
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipviz.figures.moments import epoch_name
from clipviz.figures.saliency import show_image, show_parts, show_saliency
from clipviz.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    apart,
    bare,
    empty_picture,
    fitting,
    shorten,
)
from clipviz.figures.why import MAX_STRIP, METHOD, WhyWrong, why_wrong_info
from clipviz.trace import Trace

_INCH, _WIDTH, _FONT = 100, 900, 9.5
_MAX_EXAMPLES, _MAX_VOTERS, _MAX_NAMES = 3, 5, 6
_SOURCE_COLORS = (SKY, ORANGE, PURPLE, GREEN)


def draw_why_wrong(info: WhyWrong) -> Figure:
    """From the top: the image and the maps; the votes and what the classes look like; the image over the epochs."""
    title = "Why is this one wrong?"
    if info.image is None:
        return empty_picture(title, "This trace holds no such image.")
    names = _history_names(info)
    rows = (
        (_draw_pictures, 200),
        (_draw_votes, _middle_height(info)),
        (_draw_voters, 166 if info.voters else 0),
        (_draw_sentences, 38 + 17 * sum(len(said.nearest) for said in info.sentences) if info.sentences else 0),
        (partial(_draw_history, names=names), 76 + 24 * len(names) if names else 0),
        (_draw_strip, 150 if info.strip else 0),
    )
    heading = 56 if info.file else 40
    page = _Page(heading + sum(height for _, height in rows))
    headline = _headline(info)
    page.write(8, 10, headline, size=fitting(headline, _WIDTH - 16, "bold", 12), weight="bold")
    if info.file:
        page.write(8, 29, shorten(info.file, 120), size=8.5)
    top = float(heading)
    for draw, height in rows:
        if height:
            draw(page, info, top=top)
        top += height
    return page.figure


def _middle_height(info: WhyWrong) -> float:
    """Of the votes and the examples beside them."""
    least = 206 if info.examples else 0
    return max(66 + _vote_height(info) * len(info.votes), least) if info.votes else least


def _vote_height(info: WhyWrong) -> int:
    """Of one class in the votes: each source has a bar, with room for its percentage."""
    return max(44, 13 * len(info.votes[0].probs))


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
    confidence = info.votes[0].probs.get(METHOD) if info.votes else None
    confidence = final.confidence if confidence is None and final else confidence
    sure = f" ({confidence:.0%})" if confidence is not None else ""
    if info.target is None:
        return f"Image {info.number}: called {shorten(called, 34)}{sure}; its true class is not known"
    if called == info.target:
        return f"Image {info.number}: rightly called {shorten(called, 34)}{sure}"
    true, called = apart([info.target, called], 60)
    return f"Why is this one wrong? {true}, called {called}{sure}"


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
    """The votes, and beside them what the classes look like."""
    _draw_examples(page, info, top)
    if not info.votes:
        return
    sources, each = list(info.votes[0].probs), _vote_height(info)
    bars, low, high = [vote.addends or vote.probs for vote in info.votes], 0.0, 1.0
    adds = info.votes[0].addends is not None
    title = "what each part adds to the logit, against the mean" if adds else "votes of the last epoch"
    page.write(8, top + 8, title + " (✓ the true class)" * (info.target is not None))
    axis = bare(page.axes(196, top + 30, 250, each * len(info.votes)))
    if adds:  # with room for the numbers on both sides
        low, high = (1.25 * side([side(row.values()) for row in bars]) for side in (min, max))
        axis.axvline(0, color="#BBBBBB", linewidth=1)
    axis.set_xlim(low, high)
    axis.set_ylim(len(info.votes) - 0.5, -0.5)
    thick, names = 0.78 / len(sources), apart([vote.name for vote in info.votes], 60)
    for row, vote in enumerate(info.votes):
        page.write(8, top + 22 + each * (row + 0.5), *_class(names[row], vote.is_target))
        for i, source in enumerate(sources):
            y = row - 0.39 + thick * (i + 0.5)
            value, gap = bars[row][source], 0.015 * (high - low)
            axis.barh(y, value, height=0.86 * thick, color=_source_color(source, i))
            text, side = (f"{round(value, 1) + 0.0:+.1f}" if adds else f"{value:.0%}"), "right" if value < 0 else "left"
            axis.text(value - gap if value < 0 else value + gap, y, text, fontsize=7, va="center", ha=side)
    for i, source in enumerate(sources):
        left = 196 + 90 * i
        bare(page.axes(left, top + 36 + each * len(info.votes), 10, 10)).set_facecolor(_source_color(source, i))
        page.write(left + 15, top + 34 + each * len(info.votes), shorten(source, 11), size=8.5)


def _class(name: str, is_target: bool) -> tuple[str, float, str]:
    """Text, size and weight of a class in the column on the left: the true one is bold, and wider for it."""
    text, weight = (f"✓ {name}", "bold") if is_target else (name, "normal")
    lines = textwrap.wrap(text, max(22, len(text) // 2 + 6)) if len(text) > 30 else [text]
    return "\n".join(lines), fitting(max(lines, key=len), 180, weight), weight


def _source_color(source: str, place: int) -> str:
    return "#444444" if source == METHOD else _SOURCE_COLORS[place % len(_SOURCE_COLORS)]


def _draw_examples(page: _Page, info: WhyWrong, top: float) -> None:
    if not info.examples:
        return
    page.write(510, top + 8, "what the model most surely calls so")
    names = apart([example.name for example in info.examples], 60)
    for i, example in enumerate(info.examples[:_MAX_EXAMPLES]):
        axis = page.axes(510 + 130 * i, top + 30, 110, 110)
        if example.image is None:
            bare(axis).set_facecolor("#f0f0f0")
            axis.text(0.5, 0.5, "no other\nimage", ha="center", va="center", fontsize=_FONT, color="#555")
        else:
            show_image(axis, example.image)
        name = textwrap.fill(names[i], 20)
        page.write(510 + 130 * i, top + 144, name, size=fitting(name.split("\n")[0], 124, most=8.5))


def _history_names(info: WhyWrong) -> list[str]:
    """The classes that the image was called, the last one on top; rarer ones of many are left to "others"."""
    names = list(dict.fromkeys(moment.name for moment in reversed(info.history)))
    return names if len(names) <= _MAX_NAMES else [*names[: _MAX_NAMES - 1], "others"]


def _draw_voters(page: _Page, info: WhyWrong, top: float) -> None:
    page.write(8, top + 4, "stored images that weigh most, and what they add to the logit of a class")
    names = apart([voter.name for voter in info.voters], 36)
    for i, voter in enumerate(info.voters[:_MAX_VOTERS]):
        left = 8 + 170 * i
        if voter.image is not None:
            show_image(page.axes(left, top + 26, 100, 100), voter.image)
        page.write(left, top + 129, textwrap.fill(f"{names[i]} {voter.vote:+.2f}", 24), size=8)


def _draw_sentences(page: _Page, info: WhyWrong, top: float) -> None:
    page.write(8, top + 6, "sentences nearest to the image, with their cosine")
    row = 0
    names = apart([said.name for said in info.sentences], 60)
    for said, name in zip(info.sentences, names, strict=True):
        page.write(8, top + 28 + 17 * row, *_class(name, said.is_target))
        for sentence, similarity in said.nearest:
            page.write(196, top + 28 + 17 * row, f"{similarity:.2f}  {shorten(sentence, 104)}", size=8.5)
            row += 1


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
            percent = f"{100 * moment.confidence:.0f}"
            axis.annotate(percent, (x, row), (0, 4), textcoords="offset points", fontsize=8, ha="center", va="bottom")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(-0.4, max(len(rows) - 0.4, 0.6))
    ticks = range(0, len(rows), every)
    axis.set_xticks(ticks, [epoch_name(info.history[tick].epoch) for tick in ticks], fontsize=8.5)
    written = [textwrap.fill(name, 30) for name in apart(names, 60)]
    size = _FONT if max(map(len, names)) <= 23 else 7.5
    axis.set_yticks(range(len(names)), written, fontsize=size, parse_math=False)
    axis.set_xlabel("epoch", fontsize=_FONT, labelpad=1)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_strip(page: _Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    side = (_WIDTH - 16) / MAX_STRIP - 4
    page.write(8, top + 4, "where it looked, epoch by epoch")
    for i, (epoch, saliency) in enumerate(info.strip):
        show_saliency(page.axes(8 + i * (side + 4), top + 22, side, side), info.image, saliency)
        page.write(8 + i * (side + 4), top + 24 + side, "before" if epoch < 0 else f"epoch {epoch}", size=8.5)


def why_wrong(trace: Trace, position: int = 0, group: str = "highlights") -> Figure:
    """One image with its maps, the votes, examples of the classes it is taken for, and its story."""
    return draw_why_wrong(why_wrong_info(trace, position, group))
