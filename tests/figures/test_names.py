"""Names are never cut where they decide: what look-alike names share may go, what differs may not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from synthetic import synthetic_trace

from clipviz import figures
from clipviz.figures.style import apart
from clipviz.figures.why import ClassProbs, Example, WhyWrong
from clipviz.widgets import DKAPlayground, SaliencyExplorer, ViewState

COASTS = [f"North American long-tailed grassland sparrow of the {way}ern shore"
          for way in ("east", "west", "south", "north")]  # fmt: skip
NAMES = [*COASTS, "Black-footed Albatross", "Laysan Albatross", "Boeing 737-300", "Boeing 737-400"]


@pytest.mark.parametrize("width", [14, 18, 26])
def test_look_alike_names_stay_apart(width):
    short = apart(NAMES, width)
    assert len(set(short)) == len(NAMES)
    assert max(map(len, short)) <= width
    middles = [f"{'a very long beginning ' * 2}{d}{' and a very long end' * 2}" for d in ("red", "blue")]
    assert all(d in name for d, name in zip(("red", "blue"), apart(middles, width), strict=True))
    assert apart(["Boeing 737-300", "Boeing 737-400"], 26) == ["Boeing 737-300", "Boeing 737-400"]


@given(st.lists(st.text("ab ", max_size=50).map(str.strip).filter(lambda name: "  " not in name), max_size=8))
def test_names_of_up_to_sixty_letters_are_as_different_as_before(names):
    short = apart(names, 12)
    assert len(set(short)) == len(set(names))
    assert all(one == other for one, other in zip(short, names, strict=True) if len(other) <= 12)


@pytest.fixture(scope="module")
def trace():
    return synthetic_trace(class_names=NAMES, n_images=200, n_eval=120, skill=0.5)


def texts(figure):
    """Everything written in a figure, on one line each."""
    if isinstance(figure, Figure):
        inside = [text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels(), axes.yaxis.label)]
        return [" ".join(text.get_text().split()) for text in [*figure.texts, *inside]]
    return [str(text) for axis in figure.select_yaxes() for text in axis.ticktext or ()]


@pytest.mark.parametrize("name", ["why_wrong", "saliency_grid", "confusion", "per_class_accuracy"])
def test_figures_tell_look_alikes_apart(trace, name):
    """Of every name that is cut the part that differs is still there."""
    figure = getattr(figures, name)(trace)
    cut = [text for text in texts(figure) if "North" in text]
    assert cut
    for text in cut:
        assert len(re.findall("astern|estern|outhern|uthern|orthern|rthern", text)) >= text.count("North")


def test_nothing_in_a_picture_runs_out_of_it(trace):
    for name in ("why_wrong", "saliency_grid"):
        figure = getattr(figures, name)(trace)
        FigureCanvasAgg(figure).draw()
        width = figure.get_size_inches()[0] * figure.dpi
        for text in figure.findobj(lambda item: hasattr(item, "get_text") and item.get_text().strip()):
            if text.get_visible() and text.axes is None:
                box = text.get_window_extent()
                assert box.x1 <= width + 1, (name, text.get_text())
                assert box.y0 >= -1, (name, text.get_text())


@pytest.mark.parametrize("n_sources", [1, 3, 5])
def test_the_key_of_few_classes_stands_beside_no_example(n_sources):
    sources = ["method", *(f"source number {i}" for i in range(1, n_sources))]
    examples = [Example(name, np.zeros((2, 2, 3), np.uint8)) for name in NAMES[:2]]
    classes = [ClassProbs(name, dict.fromkeys(sources, 0.5), False) for name in NAMES[:2]]
    figure = figures.draw_why_wrong(WhyWrong(0, np.zeros((2, 2, 3), np.uint8), classes=classes, examples=examples))
    FigureCanvasAgg(figure).draw()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.texts}
    pictures = [axes.get_window_extent() for axes in figure.axes if axes.images]
    key = [boxes[name] for name in boxes if name in sources or name.startswith("source")]
    names = [box for box in boxes.values() if box.x0 > 500 and box not in key]
    assert len(key) == n_sources
    assert not [one for one in key for other in [*pictures, *names] if one.overlaps(other)]


def test_the_true_class_of_a_wrong_image_is_whole_in_the_widgets(trace):
    explorer = SaliencyExplorer(trace, state=ViewState(epoch=4))
    explorer.filter.value = "confidently wrong"
    for image, caption in zip(explorer.gallery.ids, explorer.gallery.captions, strict=True):
        true = trace.class_names[explorer.inspector.album.verdict(image, 4).target]
        assert caption.endswith(true[-12:])
    assert len(set(explorer.matrix.labels)) == len(NAMES)
    playground = DKAPlayground(trace, state=ViewState(epoch=4, selected=("train/3",)))
    names = [text.removeprefix("✓ ") for _, text in playground.ballot.spec["ticks"]]
    assert len(set(names)) == len(names)
