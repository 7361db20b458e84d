"""Charts as pictures: the redrawn figure holds the same numbers, names and lines as the plotly one."""

from __future__ import annotations

import base64
import io
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image
from plotly.subplots import make_subplots
from synthetic import synthetic_comparison, synthetic_trace

import clipviz
from clipviz import figures
from clipviz.figures.redraw import plain, redraw
from clipviz.figures.saliency import image_grid, overlay
from clipviz.figures.static import _title, jpeg, new_axes, pixels, png, show
from clipviz.figures.style import DASHES, MARKERS, empty_picture, method_style
from clipviz.trace import Trace

TRACE = synthetic_trace()
METHODS = (
    "zero_shot",
    "descriptions",
    "wca",
    "tip_adapter",
    "transclip",
    "stata",
    "tda",
    "oga",
    "ntua",
    "dpa",
    "microclip",
)
EPOCHS = pd.DataFrame({"epoch": [0, 1], "metric": "accuracy", "value": [0.5, 0.6]})
CHARTS = (
    "confidence_evolution", "confusion", "gamma_what_if", "label_flips", "loss_terms", "per_class_accuracy",
    "prototype_drift", "prototype_paths", "reliability", "source_decisions",
)  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_can_be_redrawn_in_its_size_within_the_page(name):
    chart = getattr(figures, name)(TRACE)
    drawn = redraw(chart)
    width, height = Image.open(io.BytesIO(png(drawn))).size
    assert (width, height) == (900, chart.layout.height)
    boxes = [box for axes in drawn.axes if (box := axes.get_tightbbox()) is not None]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width for box in boxes)


def test_long_names_beside_trajectories_stay_within_the_page():
    names = [f"a very long name of a species of bird that goes on until {i:02}" for i in range(6)]
    drawn = redraw(figures.prototype_paths(synthetic_trace(class_names=names, epochs=2, n_images=60, n_eval=40)))
    boxes = [text.get_window_extent() for text in drawn.texts]
    assert len(boxes) > 3
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.width for box in boxes)


@pytest.mark.parametrize(("missing", "drawn"), [("accuracy", "y2"), ("pseudo_label_accuracy", "y")])
def test_accuracy_that_is_known_of_one_part_only_can_be_redrawn(missing, drawn):
    """The other panel is empty, and has no axes: neither does the drawn one share them, nor do marks stand there."""
    epochs = TRACE.epochs[TRACE.epochs["metric"] != missing]
    meta = TRACE.meta | {"changes": [{"step": 15, "gamma": 0.3}]}
    chart = figures.accuracy_over_epochs(Trace(epochs=epochs, steps=TRACE.steps, samples=TRACE.samples, meta=meta))
    (axes,) = redraw(chart).axes
    assert axes.get_ylabel() == "accuracy (%)"
    assert {note.yref for note in chart.layout.annotations if note.text == "gamma 0.3"} == {f"{drawn} domain"}


@pytest.mark.parametrize(("accuracy", "lowest", "highest"), [(1.0, 95, 100.5), (0.0, -0.5, 5), (0.5, 45, 55)])
def test_an_axis_of_one_accuracy_shows_none_that_cannot_be(accuracy, lowest, highest):
    epochs = TRACE.epochs.assign(value=accuracy)
    chart = figures.accuracy_over_epochs(
        Trace(epochs=epochs, steps=TRACE.steps, samples=TRACE.samples, meta=TRACE.meta)
    )
    assert chart.layout.yaxis.range == (lowest, highest)
    ticks = [tick for tick in redraw(chart).axes[0].get_yticks() if lowest <= tick <= highest]
    assert min(ticks) >= 0
    assert max(ticks) <= 100


def test_lines_keep_their_numbers_and_the_legend_their_names():
    drawn = redraw(figures.accuracy_over_epochs(synthetic_comparison()))
    expected = 100 * synthetic_comparison()[3].metric("accuracy").to_numpy()
    lines = [line.get_ydata() for axes in drawn.axes for line in axes.lines]
    assert any(len(line) == len(expected) and np.allclose(line, expected) for line in lines)
    names = [text.get_text() for legend in drawn.legends for text in legend.get_texts()]
    assert sorted(names) == ["DPA", "NtUA", "descriptions", "microCLIP", "zero-shot"]


def test_bands_of_labels_that_moved_are_filled_and_named():
    chart = figures.label_flow(TRACE)
    drawn = redraw(chart)
    (axes,) = drawn.axes
    assert len(axes.patches) == len(chart.data) > 1
    x0, x1, y0, y1 = *axes.get_xlim(), *axes.get_ylim()
    corners = np.concatenate([band.get_xy() for band in axes.patches])
    assert (x0, x1) == chart.layout.xaxis.range
    assert ((y1 < corners[:, 1]) & (corners[:, 1] < y0)).all()
    assert all(isinstance(key, Patch) for key in drawn.legends[0].get_patches())
    assert len(drawn.legends[0].get_patches()) == len(drawn.legends[0].get_texts())


def test_stacked_bars_stand_on_each_other():
    figure = go.Figure(layout={"barmode": "stack"})
    figure.add_bar(x=[0, 1], y=[1, 2])
    figure.add_bar(x=[0, 1], y=[3, 4])
    bars = redraw(figure).axes[0].patches
    assert [bar.get_y() for bar in bars] == [0, 0, 1, 2]
    assert [bar.get_height() for bar in bars] == [1, 2, 3, 4]


def test_axes_follow_range_reversal_sharing_and_ticks():
    figure = make_subplots(cols=2, shared_yaxes=True)
    figure.add_scatter(x=[0, 1], y=[0, 10], row=1, col=1)
    figure.add_scatter(x=[0, 1], y=[0, 40], row=1, col=2)
    figure.update_yaxes(range=[0, 50], col=1)
    figure.update_xaxes(tickvals=[0, 1], ticktext=["<none>", "all"], autorange="reversed", col=1)
    left, right = redraw(figure).axes
    assert left.get_ylim() == right.get_ylim() == (0, 50)
    assert left.get_xlim()[0] > left.get_xlim()[1]
    assert [label.get_text() for label in left.get_xticklabels()] == ["", "all"]


def test_reference_lines_and_notes_are_drawn():
    drawn = redraw(figures.gamma_what_if(TRACE))
    assert any(np.allclose(line.get_xdata(), 0.7) for line in drawn.axes[0].lines)
    assert "this run: 0.7" in [text.get_text() for text in drawn.texts]


def test_a_trace_it_cannot_draw_is_refused_by_name():
    with pytest.raises(ValueError, match="got pie; show this figure"):
        redraw(go.Figure(go.Pie(values=[1, 2])))


def test_markup_becomes_letters():
    assert plain("<b>a</b> &lt;b&gt; &amp;<br>c") == "a <b> &\nc"


def test_show_puts_a_picture_and_a_line_of_text_into_the_cell(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: shown.append((data, kwargs)))
    show(figures.loss_terms(TRACE))
    show(figures.saliency_grid(TRACE))
    (chart, _), (pictures, kwargs) = shown
    assert sorted(chart) == ["image/png", "text/plain"]
    assert chart["text/plain"] == "[picture: Loss terms (weighted, as they are summed)]"
    assert sorted(pictures) == ["image/jpeg", "text/plain"]
    assert kwargs["metadata"]["image/jpeg"]["alt"]
    assert len(jpeg(figures.saliency_grid(TRACE))) < 300_000


def test_a_pandas_table_is_shown_once_with_its_title(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: shown.append(data))
    axes = pd.DataFrame({"a": [1.0, 2.0]}).plot(ax=new_axes(2), title="two points")
    show(axes)
    (data,) = shown
    assert data["text/plain"] == "[picture: two points]"
    assert Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).size == (900, 200)
    assert plt.get_fignums() == []  # a figure of pyplot would be shown again where the cell ends


def test_images_and_matrices_stand_in_rows_with_their_titles_and_none_leaves_a_gap():
    image, matrix = np.full((4, 4, 3), (250, 0, 0), np.uint8), np.array([[True, False], [False, True]])
    figure = image_grid([image, matrix, None, image], ["red", "a $b$", "gap"], rows=2)
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    assert [axes.get_title() for axes in figure.axes] == ["red", "a $b$", "gap", ""]
    assert (drawn[0] == image).all()
    assert (drawn[1] == matrix).all()
    (gap,) = figure.axes[2].images
    assert gap.to_rgba(gap.get_array())[0, 0].tolist() == [1, 1, 1, 1]
    places = [axes.get_position() for axes in figure.axes if pixels(figure)]
    assert places[0].y0 == pytest.approx(places[1].y0)
    assert places[0].y0 > places[2].y1
    assert _title(figure) == "red, a $b$, gap"


def test_overlay_is_bright_where_saliency_is_and_keeps_the_image_elsewhere():
    image = np.full((64, 64, 3), 128, np.uint8)
    laid = overlay(image, np.array([[0.0, 1.0], [0.0, 0.0]]), is_mask=True)
    half = len(laid) // 2
    assert laid[: half - 2, half + 2 :].min() > laid[half + 2 :, : half - 2].max()


def test_save_writes_the_kind_that_the_ending_says(tmp_path):
    small = synthetic_trace(n_classes=4, epochs=1, n_images=20, n_eval=12, n_probe=1)
    chart, grid = figures.confidence_evolution(small), figures.saliency_grid(small)
    begins = {".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for figure in (chart, grid):
        for ending, start in begins.items():
            assert clipviz.save(figure, tmp_path / f"deep/a{ending}").read_bytes().startswith(start)
        assert Image.open(tmp_path / "deep/a.png").width >= 1200
    assert "Plotly.newPlot" in clipviz.save(chart, str(tmp_path / "a.HTML")).read_text()
    for figure, ending in ((grid, ".html"), (chart, ".gif"), (chart, "")):
        with pytest.raises(ValueError, match="unknown ending of a picture"):
            clipviz.save(figure, tmp_path / f"b{ending}")
    assert [path.name for path in tmp_path.glob("b*")] == []


def test_a_picture_is_what_matplotlib_writes_into_a_file_at_any_size():
    figure, file = empty_picture("A title", "Why it is empty."), io.BytesIO()
    figure.set_size_inches(3.333, 1.777)
    figure.savefig(file, format="png", facecolor="white", dpi=97.3)
    np.testing.assert_array_equal(pixels(figure, 97.3), Image.open(file).convert("RGB"))


def test_mathematics_in_a_name_stays_letters_everywhere():
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name="$\\frac{1}{2}$"))
    figure.update_layout(title_text="$a$", xaxis_title_text="only $x^2$", showlegend=True)
    figure.update_xaxes(tickvals=[0], ticktext=["$y$"])
    figure.add_annotation(x=0, y=0, text="$z$")
    written = [text for text in redraw(figure).findobj(Text) if "$" in text.get_text()]
    assert len(written) >= 5
    assert not any(text.get_parse_math() for text in written)


def test_long_names_leave_room_for_the_matrix():
    names = [f"Acanthorhynchus {letter * 9} septentrionalis" for letter in "abcdef"]
    drawn = redraw(figures.confusion(synthetic_trace(class_names=names, epochs=1, skill=0.3)))
    assert drawn.axes[0].get_position().width > 0.4


def test_letters_that_the_font_lacks_are_boxes_and_no_warnings(tmp_path):
    trace = synthetic_trace(epochs=2)
    trace.meta["class_names"] = ["麻雀", "喜鹊", *trace.class_names[2:]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (figures.confusion(trace), figures.saliency_grid(trace)):
            clipviz.save(figure, tmp_path / "names.png")


def test_every_marker_and_dash_of_a_method_is_one_of_matplotlib():
    """Else three methods would be one in a picture, and only there."""
    looks = [method_style(name) for name in METHODS]
    assert len({str(MARKERS[look.symbol]) for look in looks}) == len(looks)
    assert all(DASHES[look.dash] for look in looks)
    runs = [Trace(meta={"method": name, "labels_are": "transductive"}, epochs=EPOCHS) for name in METHODS]
    drawn = redraw(figures.accuracy_over_epochs(runs))
    assert len(drawn.axes[0].collections) == len(looks)
    assert png(drawn)
