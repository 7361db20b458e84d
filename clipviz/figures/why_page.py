"""The page of `clipviz.figures.why`: maps, probabilities, sentences and history of one image, placed in pixels."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from clipviz.figures import style
from clipviz.figures.moments import epoch_name
from clipviz.figures.saliency import SaliencyMaps, show_rows, squares
from clipviz.figures.sources import source_title
from clipviz.figures.why import MAX_STRIP, METHOD, CacheEntry, ClassProbs, Example, Sentences, WhyWrong

_MAX_EXAMPLES, _MAX_CACHE, _MAX_NAMES = 3, 5, 6
_COLUMN = 196  # where what is said of the classes on the left begins


def draw_why_wrong(info: WhyWrong) -> Figure:
    """From the top: the image and the maps; the classes with their examples; the image over the epochs."""
    if info.image is None:
        return style.empty_picture("Why is this one wrong?", "This trace holds no such image.")
    probs = max(66 + _bars_height(info) * len(info.classes), 206 if info.examples else 0)
    rows = (
        (_draw_images, True, 200), (_draw_probs, info.classes, probs), (_draw_cache, info.cache, 166),
        (_draw_sentences, info.sentences, 38 + 17 * sum(len(said.nearest) for said in info.sentences)),
        (_draw_history, info.history.epochs, 76 + 24 * len(_history_names(info))), (_draw_strip, info.strip, 150),
    )  # fmt: skip
    top, headline = 56 if info.file else 40, _headline(info)
    height = top + sum(height for _, is_there, height in rows if is_there)
    page = style.Page(height, headline, style.fitting(headline, style.WIDTH - 16, "bold", 12))
    if info.file:
        page.write(8, 29, style.shorten(info.file, 120), 8.5)
    for draw, is_there, height in rows:
        if is_there:
            draw(page, info, top)
            top += height
    return page.figure


def _headline(info: WhyWrong) -> str:
    if not info.classes and not info.history.epochs:
        return f"image {info.number}"
    called = info.classes[0].name if info.classes else info.history.labels[-1]
    confidences = [info.classes[0].probs.get(METHOD)] if info.classes else []
    known = [one for one in (*confidences, *info.history.confidence[-1:]) if one is not None]
    sure = f" ({known[0]:.0%})" if known else ""
    if info.target is None:
        return f"Image {info.number}: predicted as {style.shorten(called, 34)}{sure}; its true class is not known"
    if called == info.target:
        return f"Image {info.number}: correctly predicted as {style.shorten(called, 34)}{sure}"
    true, called = style.apart([info.target, called], 60)
    return f"Why is this one wrong? {true}, predicted as {called}{sure}"


def _draw_images(page: style.Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    titles = ["image", *["true parts"] * (info.parts is not None), *(item.title for item in info.maps)]
    side = min(168.0, (style.WIDTH - 16) / len(titles) - 6)
    for i, title in enumerate(titles):
        page.write(8 + i * (side + 6), top, style.shorten(title, 22))
    show_rows(page, 8, top + 18, side, [squares(info.image, info.parts, info.maps, side=side)], gap=6)


def _bars_height(info: WhyWrong) -> int:
    """Of the bars of one class: each source has one, with room for its percentage."""
    return max(44, 13 * len(info.classes[0].probs)) if info.classes else 0


def _bar_colors(info: WhyWrong) -> list[str]:
    """Of the method, and of the sources as in the other figures; other branches come after these."""
    sources = [*info.sources, *(name for name in info.classes[0].probs if name not in (METHOD, *info.sources))]
    return ["#444444" if name == METHOD else style.source_look(sources.index(name)).color
            for name in info.classes[0].probs]  # fmt: skip


def _draw_probs(page: style.Page, info: WhyWrong, top: float) -> None:
    """What each source says of the classes, and beside it what these look like."""
    _draw_examples(page, info, top)
    sources, each, colors = list(info.classes[0].probs), _bars_height(info), _bar_colors(info)
    adds = info.classes[0].addends is not None
    bars, low, high = [one.addends or one.probs for one in info.classes], 0.0, 1.0
    title = "what each part adds to the logit, minus the mean" if adds else "probabilities in the last epoch"
    page.write(8, top + 8, title + " (✓ the true class)" * (info.target is not None))
    axis = style.bare(page.axes(_COLUMN, top + 30, 250, each * len(bars)))
    if adds:  # with room for the numbers on both sides
        low, high = (1.25 * side([side(row.values()) for row in bars]) for side in (min, max))
        axis.axvline(0, color=style.SILVER, linewidth=1)
    axis.set_xlim(low, high)
    axis.set_ylim(len(bars) - 0.5, -0.5)
    thick, gap = 0.78 / len(sources), 0.015 * (high - low)
    for row, (one, name) in enumerate(zip(info.classes, _names(info.classes), strict=True)):
        _write_class(page, top + 22 + each * (row + 0.5), name, one.is_target)
        for i, source in enumerate(sources):
            y, value = row - 0.39 + thick * (i + 0.5), bars[row][source]
            axis.barh(y, value, height=0.86 * thick, color=colors[i])
            text, side = f"{round(value, 1) + 0.0:+.1f}" if adds else f"{value:.0%}", -1 if value < 0 else 1
            axis.text(value + side * gap, y, text, fontsize=7, va="center", ha="right" if value < 0 else "left")
    below = top + max(34 + each * len(bars), 184 if info.examples and len(sources) > 2 else 0)  # many pass under these
    for i, source in enumerate(sources):
        left = _COLUMN + 118 * i
        style.bare(page.axes(left, below + 2, 10, 10)).set_facecolor(colors[i])
        page.write(left + 15, below, style.shorten(source_title(source), 16), 8.5)


def _names(items: Sequence[ClassProbs | Example | CacheEntry | Sentences], width: int = 60) -> list[str]:
    return style.apart([item.name for item in items], width)


def _write_class(page: style.Page, top: float, name: str, is_target: bool) -> None:
    """A class in the column on the left: the true one is bold, and wider for it."""
    text, weight = (f"✓ {name}", "bold") if is_target else (name, "normal")
    lines = textwrap.wrap(text, max(22, len(text) // 2 + 6)) if len(text) > 30 else [text]
    page.write(8, top, "\n".join(lines), style.fitting(max(lines, key=len), 180, weight), weight=weight)


def _draw_examples(page: style.Page, info: WhyWrong, top: float) -> None:
    if info.examples:
        page.write(510, top + 8, "the most confident image of each class")
    for i, (example, name) in enumerate(list(zip(info.examples, _names(info.examples), strict=True))[:_MAX_EXAMPLES]):
        left = 510 + 130 * i
        if example.image is None:
            axes = style.bare(page.axes(left, top + 30, 110, 110))
            axes.set_facecolor("#f0f0f0")
            axes.text(0.5, 0.5, "no other\nimage", ha="center", va="center", fontsize=style.FONT, color="#555")
        else:
            show_rows(page, left, top + 30, 110, [squares(example.image, side=110)])
        name = style.folded(name, 20)
        page.write(left, top + 144, name, style.fitting(name.split("\n")[0], 124, most=8.5))


def _draw_cache(page: style.Page, info: WhyWrong, top: float) -> None:
    page.write(8, top + 4, "cached images that contribute most, with what each adds to the logit of its class")
    for i, (entry, name) in enumerate(list(zip(info.cache, _names(info.cache, 36), strict=True))[:_MAX_CACHE]):
        left = 8 + 170 * i
        if entry.image is not None:
            show_rows(page, left, top + 26, 100, [squares(entry.image, side=100)])
        page.write(left, top + 129, style.folded(f"{name} {entry.contribution:+.2f}", 24), 8)


def _draw_sentences(page: style.Page, info: WhyWrong, top: float) -> None:
    page.write(8, top + 6, "sentences most similar to the image, with their cosine")
    top += 28
    for said, name in zip(info.sentences, _names(info.sentences), strict=True):
        _write_class(page, top, name, said.is_target)
        for sentence, similarity in said.nearest:
            page.write(_COLUMN, top, f"{similarity:.2f}  {style.shorten(sentence, 104)}", 8.5)
            top += 17


def _history_names(info: WhyWrong) -> list[str]:
    """The predicted classes, the last one on top; rarer ones of many are left to "others"."""
    names = list(dict.fromkeys(reversed(info.history.labels)))
    return names if len(names) <= _MAX_NAMES else [*names[: _MAX_NAMES - 1], "others"]


def _draw_history(page: style.Page, info: WhyWrong, top: float) -> None:
    names, seen = _history_names(info), info.history
    page.write(8, top + 6, "prediction and its confidence (%)")
    axis = page.axes(_COLUMN, top + 34, 690, 24 * len(names))
    rows = [names.index(label) if label in names else len(names) - 1 for label in seen.labels]
    axis.plot(range(len(rows)), rows, color=style.SILVER, linewidth=1.5, zorder=1)
    every = max(1, -(-len(rows) // 16))
    for x, (row, is_right, confidence) in enumerate(zip(rows, seen.is_right, seen.confidence, strict=True)):
        look = {True: style.CORRECT, False: style.INCORRECT, None: style.UNKNOWN}[is_right]
        axis.plot(x, row, marker=style.MARKERS[look.symbol], color=look.color, markersize=7)
        if x % every == 0 and np.isfinite(confidence):
            percent = f"{100 * confidence:.0f}"
            axis.annotate(percent, (x, row), (0, 4), textcoords="offset points", fontsize=8, ha="center", va="bottom")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(-0.4, max(len(rows) - 0.4, 0.6))
    ticks = range(0, len(rows), every)
    axis.set_xticks(ticks, [epoch_name(seen.epochs[tick]) for tick in ticks], fontsize=8.5)
    written = [style.folded(name, 30) for name in style.apart(names, 60)]
    size = style.FONT if max(map(len, names)) <= 23 else 7.5
    axis.set_yticks(range(len(names)), written, fontsize=size, parse_math=False)
    axis.set_xlabel("epoch", fontsize=style.FONT, labelpad=1)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_strip(page: style.Page, info: WhyWrong, top: float) -> None:
    assert info.image is not None
    side = (style.WIDTH - 16) / MAX_STRIP - 4
    page.write(8, top + 4, "where the model looked, epoch by epoch")
    maps = [SaliencyMaps("", saliency, False) for _, saliency in info.strip]
    show_rows(page, 8, top + 22, side, [squares(info.image, None, maps, side=side)[1:]])
    for i, (epoch, _) in enumerate(info.strip):
        page.write(8 + i * (side + 4), top + 24 + side, "before" if epoch < 0 else f"epoch {epoch}", 8.5)
