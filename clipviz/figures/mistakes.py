"""The instructive mistakes: the image, where the model looked, and what it predicted."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipviz.figures import style
from clipviz.figures.saliency import KIND_NAMES, SaliencyMaps, show_rows, squares, unit_range
from clipviz.trace import Trace


class Guess(NamedTuple):
    """One class with its probability in [0, 1]."""

    name: str
    prob: float
    is_target: bool


class Mistake(NamedTuple):
    """One of the highlights: `number` is its position in the dataset, image (H,W,3) uint8.

    Saliency (h,w) is in [0, 1], or None; the guesses are the top classes and the true one.
    """

    number: int
    image: np.ndarray
    saliency: np.ndarray | None
    guesses: list[Guess]


class PredictionMistakes(NamedTuple):
    """The highlights; without labels they are the least sure images (`is_labelled` False).

    `map_name` says what the saliency is of.
    """

    mistakes: list[Mistake]
    is_labelled: bool
    map_name: str


def prediction_mistakes_info(trace: Trace, kind: str = "soap", max_images: int = 12) -> PredictionMistakes:
    """Collect the highlights with the top-3 classes of every image; without such maps, the CLS attention."""
    shown = trace.highlights
    n = min(len(shown.images), max_images)
    kind = kind if kind in shown.maps else "cls_attention"
    maps = shown.maps.get(kind)
    saliency = [None] * n if maps is None else list(unit_range(maps[:n]))
    guesses = [
        [] if shown.probs is None else _guesses(shown.probs[i], int(shown.target[i]), trace.class_names)
        for i in range(n)
    ]
    mistakes = [Mistake(*row) for row in zip(shown.index.tolist(), shown.images, saliency, guesses, strict=False)]
    name = "where the model looked" if maps is None else KIND_NAMES.get(kind, kind)
    return PredictionMistakes(mistakes, bool((shown.target[:n] >= 0).any()), name)


def _guesses(probs: np.ndarray, target: int, names: tuple[str, ...]) -> list[Guess]:
    top = style.top_classes(probs, target, 3)
    return [Guess(style.class_name(names, label), float(probs[label]), label == target) for label in top]


def draw_prediction_mistakes(info: PredictionMistakes) -> Figure:
    """Two mistakes beside each other: image, overlay, and bars of the top classes, the true one marked."""
    title = "Confidently wrong" if info.is_labelled else "Least confident (no true labels are known)"
    if not info.mistakes:
        return style.empty_picture(title, "This trace holds no instructive images.")
    head, row, side = 40, 124, 106
    page = style.Page(head + row * -(-len(info.mistakes) // 2), title)
    legend = f"image, {info.map_name}, top classes" + " (✓ the true one)" * info.is_labelled
    page.write(892, 12, legend, color="#555", ha="right")
    for i, mistake in enumerate(info.mistakes):
        left, top = 8 + 450 * (i % 2), head + 8 + i // 2 * row
        maps = [] if mistake.saliency is None else [SaliencyMaps(info.map_name, mistake.saliency, False)]
        show_rows(page, left, top, side, [squares(mistake.image, None, maps, side=side)])
        if not maps:
            style.no_image(page.axes(left + 110, top, side, side), "no map")
        _draw_guesses(page.axes(left + 226, top, 208, side), mistake.guesses)
    return page.figure


def _draw_guesses(axis: Axes, guesses: list[Guess]) -> None:
    style.bare(axis).set_xlim(0, 1)
    axis.set_ylim(3.9, -0.1)
    names = style.apart([guess.name for guess in guesses], 27)
    for row, (guess, name) in enumerate(zip(guesses, names, strict=True)):
        look: dict[str, Any] = {"color": "#9a9a9a" if row else style.INCORRECT.color}
        if guess.is_target:
            look = {"color": style.CORRECT.color, "hatch": "///"}
        axis.barh(row + 0.68, guess.prob, height=0.3, edgecolor="white", linewidth=0, **look)
        text, weight = style.true_marked(name, guess.is_target)
        size = style.fitting(text, 170, weight)
        axis.text(0, row + 0.28, text, fontsize=size, weight=weight, va="center", parse_math=False)
        axis.text(1, row + 0.28, f"{guess.prob:.0%}", fontsize=style.FONT, va="center", ha="right")


prediction_mistakes = style.figure_of(prediction_mistakes_info, draw_prediction_mistakes)
