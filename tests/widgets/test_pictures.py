"""Static pictures: no legend covers a line, and nothing written lies over something else written."""

from __future__ import annotations

import io
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from synthetic import synthetic_trace

from clipviz.figures import style
from clipviz.training.recorder import Recorder
from clipviz.widgets import DKAPlayground, LiveMonitor, PrototypeExplorer, SaliencyExplorer, ViewState
from clipviz.widgets.charts import Chart, Series
from clipviz.widgets.images import figure_jpeg
from clipviz.widgets.view import source


@pytest.fixture
def figures(make_run):
    trace = synthetic_trace(n_classes=24, epochs=4, n_images=200)
    run = make_run()
    run.recorder = Recorder(trace)
    chosen = ViewState(epoch=3, selected=("train/3",))
    views = [LiveMonitor(run), PrototypeExplorer(trace), DKAPlayground(trace, state=chosen)]
    return {type(view).__name__: view.draw() for view in views}


def test_legends_stand_under_their_axes_and_cover_nothing(figures):
    for name, figure in figures.items():
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        with_legend = [axes for axes in figure.axes if axes.get_legend()]
        assert with_legend, name
        written = []
        for axes in figure.axes:
            inside = axes.get_window_extent(renderer)
            written += [axes.xaxis.label.get_window_extent(renderer)] if axes.get_xlabel() else []
            written += [axes.title.get_window_extent(renderer), axes._left_title.get_window_extent(renderer)]
            legend = axes.get_legend()
            if legend:
                box = legend.get_window_extent(renderer)
                assert box.y1 < inside.y0, name
                assert box.x1 <= figure.bbox.width, name
                written.append(box)
        for one, other in combinations([box for box in written if box.width > 1], 2):
            assert not (one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1), name


def test_long_names_of_classes_and_files_stay_within_the_picture():
    names = [f"A LONG NAME OF A SPECIES of birds that goes on and on until it has ENDED {i:02}" for i in range(6)]
    trace = synthetic_trace(class_names=names, epochs=1, n_images=20, n_eval=20)
    trace.meta["files"] = {"measured": [f"Somewhere/Memory Card/MVIMG_{i:09}.png" for i in range(20)]}
    explorer = SaliencyExplorer(trace)
    explorer.state.selected = (explorer.shown[0],)
    for toggle in explorer.inspector.kinds.values():
        toggle.value = True
    figure = explorer.draw()
    texts = [text.get_window_extent(FigureCanvasAgg(figure).get_renderer()) for text in figure.texts]
    assert max(box.x1 for box in texts) <= figure.bbox.width
    _, _, *panels = texts
    assert len(panels) > 2
    assert all(one.x1 < other.x0 for one, other in pairwise(panels))


def test_epochs_written_under_a_chart_do_not_touch(make_run):
    run = make_run()
    run.recorder = Recorder(synthetic_trace(epochs=20))
    figure = LiveMonitor(run).draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    rows = [[label.get_window_extent(renderer) for label in axes.get_xticklabels()] for axes in figure.axes]
    assert max(map(len, rows)) > 6
    assert all(left.x1 < right.x0 for row in rows for left, right in pairwise(row) if left.width and right.width)


def test_the_newest_batch_keeps_its_name_beside_many_epochs():
    ticks = [*((epoch, str(epoch)) for epoch in range(11)), (11, "batch")]
    axes = Figure().subplots()
    Chart("Decided", "epoch", "%", [Series("agree", style.INCORRECT, range(12), [9] * 12)], "bars", ticks=ticks).draw(
        axes
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "4", "6", "8", "batch"]


@pytest.mark.parametrize("y_range", [None, (0, 1)])
def test_the_texts_of_marks_cross_no_line(y_range):
    axes = Figure(figsize=(4, 2)).subplots()
    lines = [Series("right", style.CORRECT, [0, 1], [1, 1]), Series("wrong", style.INCORRECT, [0, 1], [0, 0])]
    Chart("Labels", "gamma", "share", lines, y_range=y_range, marks=[(0.5, "this run"), (0.9, "slider")]).draw(axes)
    axes.figure.draw_without_rendering()
    (_, highest), *_ = axes.transData.transform([(0, 1), (0, 0)])
    assert len(axes.texts) == 2
    assert all(text.get_window_extent().y0 > highest for text in axes.texts)


def test_the_text_of_a_change_stays_within_the_picture(make_run):
    run = make_run()
    trace = synthetic_trace(epochs=2)
    trace.meta["changes"] = [{"step": step, "gamma": 0.25} for step in (0, trace.steps["step"].nunique())]
    run.recorder = Recorder(trace)
    figure = LiveMonitor(run).draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [(axes, text) for axes in figure.axes for text in axes.texts if text.get_text() == "gamma 0.25"]
    assert len(texts) == 6
    for axes, text in texts:
        box, inside = text.get_window_extent(renderer), axes.get_window_extent(renderer)
        assert inside.x0 - 1 <= box.x0 < box.x1 <= inside.x1 + 1, axes.get_title(loc="left")


@pytest.mark.parametrize("newest", [0, 3])
def test_why_a_run_failed_is_in_its_picture_whole_and_above_the_charts(make_run, newest):
    run = make_run()
    run.status, run.error = "failed", FloatingPointError(f"loss is not finite: {'a = nan, ' * 30}try a smaller rate")
    monitor = LiveMonitor(run)
    monitor.watch.lines = lambda: [f"line {i}" for i in range(newest)]
    figure = monitor.draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    lines = [text for text in figure.texts if text.get_text()]
    assert " ".join(text.get_text() for text in lines[1 + newest :]) == f"FloatingPointError: {run.error}"
    boxes = [text.get_window_extent(renderer) for text in lines]
    boxes.append(Bbox.union([axes.get_tightbbox(renderer) for axes in figure.axes]))
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.width


def test_the_note_stands_below_the_figure_and_covers_none_of_it():
    figure = Figure((7.2, 2), dpi=100)
    figure.add_axes((0, 0, 1, 1)).set(facecolor="black", xticks=[], yticks=[])
    gray = np.asarray(Image.open(io.BytesIO(figure_jpeg(figure, "a note"))).convert("L"))
    assert gray.shape[0] > 200
    assert gray[:192].max() < 30
    assert gray[204:].min() < 160, "the note"
    assert np.median(gray[204:]) > 240


def test_the_scripts_know_the_looks_of_the_figures():
    """One table for plotly, matplotlib and our own charts: a prototype is no diamond here and a circle there."""
    script = source("common.js", "scatter.js")
    deciders = [style.decider_look(name, "abc") for name in ("a", "b", "c", "all agree", "several", "neither")]
    prototypes, terms = [style.prototype_look(i) for i in range(9)], [style.term_look(i) for i in range(9)]
    dashes, hatches = re.search("DASHES = {(.*?)};", script)[1], re.search("lines = {(.*?)}", script)[1]
    for look in [*deciders, *prototypes, *terms]:
        assert look.dash in style.DASHES
        assert look.symbol in style.MARKERS
        assert f"{look.dash}:" in dashes
        assert not look.hatch or re.search(re.escape(look.hatch) + '"?: "M', hatches)
    for symbol in re.findall(r'entries.push\(\["([^"]+)"', script):
        assert re.search(rf'"?{symbol}"?: `|"{symbol}"\) return', script), "a key without its mark"
    for look in prototypes:
        assert re.search(rf'"?{look.symbol}"?: `|"{look.symbol}"', script)
        assert look.color not in (style.CORRECT.color, style.INCORRECT.color), "right and wrong images lie beside them"
