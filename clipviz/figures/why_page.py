"""The page of `clipviz.figures.why`: pictures, votes, sentences and history of one image, placed in pixels."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.figure import Figure

from clipviz.figures import style
from clipviz.figures.moments import epoch_name
from clipviz.figures.saliency import show_image, show_parts, show_saliency
from clipviz.figures.why import MAX_STRIP, METHOD, WhyWrong, why_wrong_info

_MAX_EXAMPLES, _MAX_VOTERS, _MAX_NAMES = 3, 5, 6
_COLUMN = 196  # where what is said of the classes on the left begins
_SOURCE_COLORS = (style.SKY, style.ORANGE, style.PURPLE, style.GREEN)


def draw_why_wrong(info: WhyWrong) -> Figure:
    """From the top: the image and the maps; the votes and what the classes look like; the image over the epochs."""
    if info.image is None:
        return style.empty_picture("Why is this one wrong?", "This trace holds no such image.")
    least = 206 if info.examples else 0
    rows = (
        (_draw_pictures, 200),
        (_draw_votes, max(66 + _vote_height(info) * len(info.votes), least) if info.votes else 0),
        (_draw_voters, 166 if info.voters else 0),
        (_draw_sentences, 38 + 17 * sum(len(said.nearest) for said in info.sentences) if info.sentences else 0),
        (_draw_history, 76 + 24 * len(_history_names(info)) if info.history else 0),
        (_draw_strip, 150 if info.strip else 0),
    )
    top, headline = 56 if info.file else 40, _headline(info)
    page = style.Page(
        top + sum(height for _, height in rows), headline, style.fitting(headline, style.WIDTH - 16, "bold", 12)
    )
    if info.file:
        page.write(8, 29, style.shorten(info.file, 120), 8.5)
    for draw, height in rows:
        if height:
            draw(page, info, top)
        top += height
    return page.figure


def _headline(info: WhyWrong) -> str:
    final = info.history[-1] if info.history else None
    called = info.votes[0].name if info.votes else final.name if final else None
    if called is None:
        return f"image {info.number}"
    confidence = info.votes[0].probs.get(METHOD) if info.votes else None
    confidence = final.confidence if confidence is None and final else confidence
    sure = f" ({confidence:.0%})" if confidence is not None else ""
    if info.target is None:
        return f"Image {info.number}: called {style.shorten(called, 34)}{sure}; its true class is not known"
    if called == info.target:
        return f"Image {info.number}: rightly called {style.shorten(called, 34)}{sure}"
    true, called = style.apart([info.target, called], 60)
    return f"Why is this one wrong? {true}, called {called}{sure}"


def _draw_pictures(page: style.Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    titles = ["image", *["true parts"] * (info.parts is not None), *(item.title for item in info.maps)]
    side = min(168.0, (style.WIDTH - 16) / len(titles) - 6)
    panels = [page.axes(8 + i * (side + 6), top + 18, side, side) for i in range(len(titles))]
    for i, title in enumerate(titles):
        page.write(8 + i * (side + 6), top, style.shorten(title, 22))
    show_image(panels[0], info.image)
    if info.parts is not None:
        show_parts(panels[1], info.image, info.parts)
    for axes, item in zip(panels[len(titles) - len(info.maps) :], info.maps, strict=True):
        show_saliency(axes, info.image, item.values, item.is_mask)


def _vote_height(info: WhyWrong) -> int:
    """Of one class in the votes: each source has a bar, with room for its percentage."""
    return max(44, 13 * len(info.votes[0].probs))


def _draw_votes(page: style.Page, info: WhyWrong, top: float) -> None:
    """The votes, and beside them what the classes look like."""
    _draw_examples(page, info, top)
    sources, each = list(info.votes[0].probs), _vote_height(info)
    bars, low, high = [vote.addends or vote.probs for vote in info.votes], 0.0, 1.0
    adds = info.votes[0].addends is not None
    title = "what each part adds to the logit, against the mean" if adds else "votes of the last epoch"
    page.write(8, top + 8, title + " (✓ the true class)" * (info.target is not None))
    axis = style.bare(page.axes(_COLUMN, top + 30, 250, each * len(info.votes)))
    if adds:  # with room for the numbers on both sides
        low, high = (1.25 * side([side(row.values()) for row in bars]) for side in (min, max))
        axis.axvline(0, color="#BBBBBB", linewidth=1)
    axis.set_xlim(low, high)
    axis.set_ylim(len(info.votes) - 0.5, -0.5)
    thick, names = 0.78 / len(sources), style.apart([vote.name for vote in info.votes], 60)
    colors = [
        "#444444" if name == METHOD else _SOURCE_COLORS[i % len(_SOURCE_COLORS)] for i, name in enumerate(sources)
    ]
    for row, vote in enumerate(info.votes):
        _write_class(page, top + 22 + each * (row + 0.5), names[row], vote.is_target)
        for i, source in enumerate(sources):
            y = row - 0.39 + thick * (i + 0.5)
            value, gap = bars[row][source], 0.015 * (high - low)
            axis.barh(y, value, height=0.86 * thick, color=colors[i])
            text, side = (f"{round(value, 1) + 0.0:+.1f}" if adds else f"{value:.0%}"), "right" if value < 0 else "left"
            axis.text(value - gap if value < 0 else value + gap, y, text, fontsize=7, va="center", ha=side)
    for i, source in enumerate(sources):
        left, below = _COLUMN + 90 * i, top + 34 + each * len(info.votes)
        style.bare(page.axes(left, below + 2, 10, 10)).set_facecolor(colors[i])
        page.write(left + 15, below, style.shorten(source, 11), 8.5)


def _write_class(page: style.Page, top: float, name: str, is_target: bool) -> None:
    """A class in the column on the left: the true one is bold, and wider for it."""
    text, weight = style.true_marked(name, is_target)
    lines = textwrap.wrap(text, max(22, len(text) // 2 + 6)) if len(text) > 30 else [text]
    page.write(8, top, "\n".join(lines), style.fitting(max(lines, key=len), 180, weight), weight=weight)


def _draw_examples(page: style.Page, info: WhyWrong, top: float) -> None:
    if not info.examples:
        return
    page.write(510, top + 8, "what the model most surely calls so")
    names = style.apart([example.name for example in info.examples], 60)
    for i, example in enumerate(info.examples[:_MAX_EXAMPLES]):
        left = 510 + 130 * i
        axis = page.axes(left, top + 30, 110, 110)
        if example.image is None:
            style.no_image(axis, "no other\nimage")
        else:
            show_image(axis, example.image)
        name = textwrap.fill(names[i], 20)
        page.write(left, top + 144, name, style.fitting(name.split("\n")[0], 124, most=8.5))


def _draw_voters(page: style.Page, info: WhyWrong, top: float) -> None:
    page.write(8, top + 4, "stored images that weigh most, and what they add to the logit of a class")
    names = style.apart([voter.name for voter in info.voters], 36)
    for i, voter in enumerate(info.voters[:_MAX_VOTERS]):
        left = 8 + 170 * i
        if voter.image is not None:
            show_image(page.axes(left, top + 26, 100, 100), voter.image)
        page.write(left, top + 129, textwrap.fill(f"{names[i]} {voter.vote:+.2f}", 24), 8)


def _draw_sentences(page: style.Page, info: WhyWrong, top: float) -> None:
    page.write(8, top + 6, "sentences nearest to the image, with their cosine")
    top += 28
    for said, name in zip(info.sentences, style.apart([said.name for said in info.sentences], 60), strict=True):
        _write_class(page, top, name, said.is_target)
        for sentence, similarity in said.nearest:
            page.write(_COLUMN, top, f"{similarity:.2f}  {style.shorten(sentence, 104)}", 8.5)
            top += 17


def _history_names(info: WhyWrong) -> list[str]:
    """The classes that the image was called, the last one on top; rarer ones of many are left to "others"."""
    names = list(dict.fromkeys(moment.name for moment in reversed(info.history)))
    return names if len(names) <= _MAX_NAMES else [*names[: _MAX_NAMES - 1], "others"]


def _draw_history(page: style.Page, info: WhyWrong, top: float) -> None:
    names = _history_names(info)
    page.write(8, top + 6, "what it was called, and how surely (%)")
    axis = page.axes(_COLUMN, top + 34, 690, 24 * len(names))
    rows = [names.index(moment.name) if moment.name in names else len(names) - 1 for moment in info.history]
    axis.plot(range(len(rows)), rows, color="#BBBBBB", linewidth=1.5, zorder=1)
    every = max(1, -(-len(rows) // 16))
    for x, (row, moment) in enumerate(zip(rows, info.history, strict=True)):
        color, marker = {True: (style.BLUE, "o"), False: (style.VERMILLION, "X"), None: ("#666666", "s")}[
            moment.is_right
        ]
        axis.plot(x, row, marker=marker, color=color, markersize=7)
        if x % every == 0 and np.isfinite(moment.confidence):
            percent = f"{100 * moment.confidence:.0f}"
            axis.annotate(percent, (x, row), (0, 4), textcoords="offset points", fontsize=8, ha="center", va="bottom")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(-0.4, max(len(rows) - 0.4, 0.6))
    ticks = range(0, len(rows), every)
    axis.set_xticks(ticks, [epoch_name(info.history[tick].epoch) for tick in ticks], fontsize=8.5)
    written = [textwrap.fill(name, 30) for name in style.apart(names, 60)]
    size = style.FONT if max(map(len, names)) <= 23 else 7.5
    axis.set_yticks(range(len(names)), written, fontsize=size, parse_math=False)
    axis.set_xlabel("epoch", fontsize=style.FONT, labelpad=1)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_strip(page: style.Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    side = (style.WIDTH - 16) / MAX_STRIP - 4
    page.write(8, top + 4, "where it looked, epoch by epoch")
    for i, (epoch, saliency) in enumerate(info.strip):
        left = 8 + i * (side + 4)
        show_saliency(page.axes(left, top + 22, side, side), info.image, saliency)
        page.write(left, top + 24 + side, "before" if epoch < 0 else f"epoch {epoch}", 8.5)


why_wrong = style.figure_of(why_wrong_info, draw_why_wrong)
