"""Every figure is drawn from every kind of trace: nothing raises, nothing from data is markup, axes are thinned."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure
from synthetic import empty_trace, synthetic_comparison, synthetic_trace

from clipviz import figures
from clipviz.figures.static import pixels
from clipviz.figures.style import MAX_LABELS, escape, is_empty, shorten

NAMES = [name for name in figures.__all__ if f"{name}_info" in figures.__all__]
HOSTILE = [
    "<img src=x onerror=alert(1)>", "x" * 1000, "$\\frac{1}{2}$", "{}", "%{y}", "a\nb", "q\"uote'", "数", "<b>b</b>",
    "&lt;", "12", "2020-01-01", "",
]  # fmt: skip
KINDS = {
    "24 classes": lambda: synthetic_trace(),
    "200 classes": lambda: synthetic_trace(n_classes=200, epochs=15, n_images=600, n_eval=600),
    "one epoch": lambda: synthetic_trace(n_classes=4, epochs=1, n_images=20, n_eval=12, n_probe=1),
    "a baseline": lambda: synthetic_trace(epochs=0, method="zero_shot"),
    "no labels": lambda: synthetic_trace(labelled=False),
    "three sources": lambda: synthetic_trace(method="ntua"),
    "one class": lambda: synthetic_trace(class_names=["only"], n_images=10, n_eval=6, n_probe=1),
    "hostile names": lambda: synthetic_trace(class_names=HOSTILE, n_images=130, n_eval=60, n_probe=3),
    "empty": empty_trace,
}


@pytest.fixture(scope="module", params=KINDS)
def trace(request):
    made = KINDS[request.param]()
    made.kind = request.param
    return made


def draw(name, trace):
    figure = getattr(figures, name)
    return figure([trace]) if name == "accuracy_over_epochs" else figure(trace)


def test_all_figures_have_the_three_functions():
    assert len(NAMES) >= 16
    modules = [vars(module) for path, module in sys.modules.items() if path.startswith("clipviz.figures.")]
    for name in NAMES:
        assert f"{name}_info" in figures.__all__
        assert any(f"draw_{name}" in module for module in modules)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_run_folder_is_no_trace(name):
    for given in ("runs/photos", ["runs/photos"]):
        with pytest.raises(ValueError, match=r"a figure needs traces, got 'runs/photos'; Trace.load reads"):
            getattr(figures, name)(given)


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_drawn(name, trace):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn = draw(name, trace)
        if isinstance(drawn, Figure):
            shown = np.asarray(pixels(drawn).convert("L"))
            assert shown.shape[1] == 900
            assert shown.min() < 128, "a blank picture"
            return
    assert isinstance(drawn, go.Figure)
    layout = json.loads(drawn.to_json())["layout"]
    assert layout["title"]["text"]
    assert 200 <= layout["height"] <= 1600
    if trace.kind == "empty":
        assert any(note["text"] for note in layout["annotations"]), "an empty figure says why"
    for key, axis in layout.items():
        if key.startswith(("xaxis", "yaxis")):
            assert len(axis.get("ticktext", ())) <= 40, "labels are thinned"


def texts(value):
    """Every string in a figure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


@pytest.mark.parametrize("trace", ["hostile names"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_markup_or_endless(name, trace):
    drawn = draw(name, trace)
    if isinstance(drawn, Figure):
        assert all(not text.get_parse_math() for text in drawn.findobj(lambda item: hasattr(item, "get_parse_math"))
                   if "$" in text.get_text())  # fmt: skip
        return
    for text in texts(json.loads(drawn.to_json())):
        assert "<img" not in text
        assert "<b>b" not in text
        assert "x" * 60 not in text
        assert "$\\frac" not in text


def test_pointing_at_a_change_does_not_call_it_a_cosine():
    after, change = figures.prototype_similarity(synthetic_trace()).data
    assert after.hovertemplate.startswith("cosine ")
    assert change.hovertemplate.startswith("change of the cosine ")


def test_ticks_of_a_small_change_differ():
    trace = synthetic_trace()
    trace.arrays = {name: array for name, array in trace.arrays.items() if not name.startswith("snapshot/")}
    trace.arrays["snapshot/still"] = np.ones((2, 3, 4)) + np.eye(4)[:3]
    for bar in (drawn.colorbar for drawn in figures.prototype_similarity(trace).data):
        assert [float(text) for text in bar.ticktext] == pytest.approx([tick / 1000 for tick in bar.tickvals], abs=5e-4)


def test_a_change_that_the_color_bar_has_a_tick_for_is_drawn():
    trace, angles = synthetic_trace(), np.array([[0.0, 1.0], [0.0, 1.004]])
    trace.arrays = {"snapshot/turned": np.stack([np.cos(angles), np.sin(angles)], -1)}
    _, change = figures.prototype_similarity(trace).data
    drawn = np.diff([np.cos(turn) for _, turn in angles])[0]
    assert change.z[0, 1] == round(1000 * drawn) == -3
    assert change.hovertemplate.startswith("change of the cosine %{z}/1000")


def test_there_are_no_half_steps():
    trace = synthetic_trace(epochs=3)
    assert figures.loss_terms(trace).layout.xaxis.tickvals is None
    trace.steps = trace.steps[trace.steps["step"] < 3]
    assert list(figures.loss_terms(trace).layout.xaxis.tickvals) == [0, 1, 2]


def test_prototypes_that_stay_have_no_drift_and_two_of_them_are_on_a_line():
    trace = synthetic_trace()
    trace.arrays = {"snapshot/classifier": np.tile(np.array([[0.6, 0.8, 0.0], [0.48, 0.64, 0.6]]), (3, 1, 1))}
    assert is_empty(figures.prototype_drift(trace))
    assert figures.prototype_paths(trace).data[-1].y.tolist() == [0, 0], "no rounding as large as the picture"


def test_a_source_is_called_the_same_on_every_axis():
    info = figures.gamma_what_if_info(synthetic_trace())._replace(sources=("zero_shot", "gaussian"))
    drawn = figures.draw_gamma_what_if(info)
    assert drawn.layout.xaxis.title.text == "gamma (0: only gaussian; 1: only zero-shot)"


def test_one_measurement_has_no_before_and_after():
    trace = synthetic_trace()
    trace.predictions = trace.predictions[trace.predictions["epoch"] == -1]
    assert is_empty(figures.per_class_accuracy(trace))


def test_axes_are_in_the_order_of_their_panels():
    """A narrow report stacks them and puts the titles above them in that order; plotly gives the order of a set."""
    names = [name for name in figures.source_decisions(synthetic_trace()).to_dict()["layout"] if name[:5] == "xaxis"]
    assert names == ["xaxis", "xaxis2", "xaxis3", "xaxis4"]


def test_mathematics_and_markup_in_names_are_letters():
    assert escape("<a href='x'>$1$ & &lt;</a>") == "&lt;a href='x'&gt;&#36;1&#36; &amp; &amp;lt;&lt;/a&gt;"
    assert escape("a\n b\udcff") == "a b\\udcff"
    assert shorten("x" * 1000, 26) == "x" * 13 + "…" + "x" * 12
    assert shorten("short") == "short"
    assert shorten("喜" * 30, 26) == "喜" * 8 + "…" + "喜" * 7, "they are wider"


@pytest.mark.parametrize("trace", ["200 classes"], indirect=True)
def test_names_are_thinned_evenly_on_a_large_matrix(trace):
    axis = figures.confusion(trace).layout.xaxis
    assert len(axis.tickvals) <= MAX_LABELS
    assert len(set(np.diff(axis.tickvals))) == 1


def test_comparison_gives_every_method_its_own_colour_and_marker():
    trained = ("zero_shot", "descriptions", "wca", "tip_adapter", "ntua", "dpa", "microclip")
    styles = [figures.method_style(name) for name in (*trained, "transclip", "stata", "tda", "oga")]
    assert len({style.color for style in styles[:7]}) == 7  # there are no more colors that all eyes tell apart
    for look in ("name", "symbol"):
        assert len({getattr(style, look) for style in styles}) == 11
    assert len({(style.color, style.dash) for style in styles}) == 11
    drawn = figures.accuracy_over_epochs(synthetic_comparison())
    assert {line.name for line in drawn.data} == {"zero-shot", "descriptions", "NtUA", "DPA", "microCLIP"}


def test_a_diverged_run_is_drawn():
    trace = synthetic_trace(n_classes=4, epochs=2, n_images=20, n_eval=12, n_probe=2)
    trace.samples.loc[::2, ["confidence", "margin"]] = np.nan
    trace.steps.loc[::2, "value"] = np.nan
    for name, array in trace.arrays.items():
        if array.dtype.kind == "f":
            trace.arrays[name] = np.full_like(array, np.nan)
    for name in NAMES:
        draw(name, trace)


def test_reading_a_trace_and_drawing_everything_needs_neither_torch_nor_jupyter(tmp_path):
    synthetic_trace(n_classes=6, epochs=2, n_images=30, n_eval=20, n_probe=2).save(tmp_path / "trace")
    script = f"""
import sys
sys.modules |= dict.fromkeys(("IPython", "anywidget", "ipywidgets", "traitlets"))  # as without the extra "lab"
from clipviz import figures
from clipviz.report import write_report
from clipviz.trace import Trace
trace = Trace.load({str(tmp_path)!r})
for name in {NAMES!r}:
    getattr(figures, name)([trace] if name == "accuracy_over_epochs" else trace)
write_report([trace], {str(tmp_path / "report.html")!r})
heavy = sorted(set(sys.modules) & {{"torch", "torchvision", "open_clip", "timm", "captum"}})
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)
