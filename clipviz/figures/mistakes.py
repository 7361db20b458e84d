"""The instructive mistakes: the image, where the model looked, and what it took it for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipviz.figures.saliency import KIND_NAMES, show_image, show_saliency, unit_range
from clipviz.figures.style import BLUE, VERMILLION, apart, bare, class_name, empty_picture, fitting
from clipviz.trace import Trace

_INCH = 100
_FONT = 9.5


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
    saliency = None if maps is None else unit_range(maps[:n])
    mistakes = [
        Mistake(
            int(shown.index[i]),
            shown.images[i],
            None if saliency is None else saliency[i],
            [] if shown.probs is None else _guesses(shown.probs[i], int(shown.target[i]), trace.class_names),
        )
        for i in range(n)
    ]
    name = "where the model looked" if maps is None else KIND_NAMES.get(kind, kind)
    return PredictionMistakes(mistakes, bool((shown.target[:n] >= 0).any()), name)


def _guesses(probs: np.ndarray, target: int, names: tuple[str, ...]) -> list[Guess]:
    top = [int(label) for label in np.argsort(-probs, kind="stable")[:3]]
    if 0 <= target < len(probs) and target not in top:
        top.append(target)
    return [Guess(class_name(names, label), float(probs[label]), label == target) for label in top]


def draw_prediction_mistakes(info: PredictionMistakes) -> Figure:
    """Two mistakes beside each other: image, overlay, and bars of the top classes, the true one marked."""
    title = "Confidently wrong" if info.is_labelled else "Least sure (no true labels are known)"
    if not info.mistakes:
        return empty_picture(title, "This trace holds no instructive images.")
    n_rows = -(-len(info.mistakes) // 2)
    head, row = 40, 124
    height = head + n_rows * row
    figure = Figure(figsize=(9, height / _INCH), dpi=_INCH)
    figure.text(0.008, 1 - 10 / height, title, fontsize=12, weight="bold", va="top")
    legend = f"image, {info.map_name}, top classes" + " (✓ the true one)" * info.is_labelled
    figure.text(0.992, 1 - 12 / height, legend, fontsize=_FONT, color="#555", va="top", ha="right")
    for i, mistake in enumerate(info.mistakes):
        left, bottom = 8 + 450 * (i % 2), height - head - (i // 2 + 1) * row + 10
        boxes = [(left, 106, 106), (left + 110, 106, 106), (left + 226, 208, 106)]
        axes = [figure.add_axes((x / 900, bottom / height, w / 900, h / height)) for x, w, h in boxes]
        _draw_mistake(axes, mistake)
    return figure


def _draw_mistake(axes: list[Axes], mistake: Mistake) -> None:
    show_image(axes[0], mistake.image)
    if mistake.saliency is None:
        bare(axes[1]).text(0.5, 0.5, "no map", ha="center", va="center", fontsize=_FONT, color="#555")
    else:
        show_saliency(axes[1], mistake.image, mistake.saliency)
    _draw_guesses(axes[2], mistake.guesses)


def _draw_guesses(axis: Axes, guesses: list[Guess]) -> None:
    bare(axis).set_xlim(0, 1)
    axis.set_ylim(3.9, -0.1)
    names = apart([guess.name for guess in guesses], 27)
    for row, (guess, name) in enumerate(zip(guesses, names, strict=True)):
        color = BLUE if guess.is_target else VERMILLION if row == 0 else "#9a9a9a"
        axis.barh(row + 0.68, guess.prob, height=0.3, color=color, hatch="///" if guess.is_target else None,
                  edgecolor="white", linewidth=0)  # fmt: skip
        text, weight = (f"✓ {name}", "bold") if guess.is_target else (name, "normal")
        axis.text(
            0, row + 0.28, text, fontsize=fitting(text, 170, weight), va="center", weight=weight, parse_math=False
        )
        axis.text(1, row + 0.28, f"{guess.prob:.0%}", fontsize=_FONT, va="center", ha="right")


def prediction_mistakes(trace: Trace) -> Figure:
    """The most confident mistakes (without labels: the least sure images) with the top classes of each."""
    return draw_prediction_mistakes(prediction_mistakes_info(trace))
