"""When something was: a part of an epoch is drawn as a part, and what was changed on the way is marked."""

from __future__ import annotations

import pytest
from synthetic import synthetic_trace

from clipviz import figures
from clipviz.figures.moments import Mark, Part, marks, part_of_epoch
from clipviz.figures.redraw import redraw
from clipviz.report import write_report


@pytest.fixture(scope="module")
def stopped():
    """Stopped in epoch 3 after 64 of 320 images; gamma was changed as epoch 1 began and within 2."""
    trace = synthetic_trace(n_classes=6, epochs=4, n_images=320)
    last = trace.samples["epoch"] == 3
    trace.samples = trace.samples[~last | (trace.samples["index"] < 64)].reset_index(drop=True)
    for table in ("epochs", "predictions"):
        setattr(trace, table, getattr(trace, table).query("epoch < 3").reset_index(drop=True))
    trace.steps = trace.steps.query("step < 48").reset_index(drop=True)
    for name in list(trace.arrays):
        if name.startswith("gallery/"):
            del trace.arrays[name]
        elif name.startswith("snapshot/") or name in ("probe/soap", "probe/ncut", "probe/fiedler"):
            trace.arrays[name] = trace.arrays[name][:-1]
    trace.meta |= {"status": "stopped", "changes": [{"step": 15, "gamma": 0.3}, {"step": 37, "gamma": 0.6}]}
    return trace


def test_a_part_is_told_from_a_whole_epoch(stopped):
    assert part_of_epoch(stopped) == Part(3, 64, 320)
    whole = synthetic_trace(n_classes=6, epochs=4, n_images=320)
    assert part_of_epoch(whole).epoch == -1
    unmeasured = synthetic_trace(n_classes=6, epochs=2, n_images=320, labelled=False)
    unmeasured.epochs = unmeasured.epochs[:0]
    assert part_of_epoch(unmeasured).epoch == -1, "nothing was measured, but all images were seen"
    unmeasured.samples = unmeasured.samples.query("epoch == 0 and index < 10")
    assert part_of_epoch(unmeasured) == Part(0, 10, 320)


def test_changes_stand_between_the_epochs_that_they_part(stopped):
    assert marks(stopped) == [Mark(15, 0.5, "gamma 0.3"), Mark(37, pytest.approx(37 / 15 - 0.5), "gamma 0.6")]


def test_marks_of_several_runs_say_whose_they_are(stopped):
    other = synthetic_trace(n_classes=6, epochs=4)
    texts = [mark.text for mark in figures.accuracy_over_epochs_info([stopped, other]).moments.marks]
    label = figures.trace_labels([stopped, other])[0]
    assert texts == [f"{label}: gamma 0.3", f"{label}: gamma 0.6"]
    dpa = synthetic_trace(n_classes=6, epochs=4, method="dpa")
    texts = [mark.text for mark in figures.accuracy_over_epochs_info([stopped, dpa]).moments.marks]
    assert texts == ["microCLIP: gamma 0.3", "microCLIP: gamma 0.6"]


OVER_EPOCHS = ("accuracy_over_epochs", "confidence_evolution", "reliability", "source_decisions", "crop_weights",
               "label_flips", "prototype_drift")  # fmt: skip


@pytest.mark.parametrize("name", [*OVER_EPOCHS, "loss_terms"])
def test_every_chart_over_epochs_marks_what_was_changed(stopped, name):
    figure = getattr(figures, name)(stopped)
    texts = [note.text for note in figure.layout.annotations]
    assert "gamma 0.3" in texts
    assert "gamma 0.6" in texts
    places = {shape.x0 for shape in figure.layout.shapes}
    wanted = {15, 37} if name == "loss_terms" else {0.5, 37 / 15 - 0.5}
    assert {x - 0.5 for x in wanted} <= places if name == "label_flips" else wanted <= places
    redraw(figure)


@pytest.mark.parametrize("name", ["confidence_evolution", "source_decisions", "crop_weights", "label_flips"])
def test_a_part_says_how_much_it_is(stopped, name):
    figure = getattr(figures, name)(stopped)
    assert any("64 of 320<br>images" in str(text) for text in figure.layout.xaxis.ticktext)


def test_titles_say_how_much_of_the_epoch(stopped):
    assert "epoch 3, 64 of 320 images" in figures.reliability(stopped).layout.annotations[0].text
    assert "epoch 0 → 3, 64 of 320 images" in figures.label_flow(stopped).layout.title.text
    assert figures.gamma_what_if(stopped).layout.title.text.endswith("(epoch 3, 64 of 320 images)")
    assert [c.title.split("\n")[1] for c in figures.saliency_grid_info(stopped).columns] == [
        "before",
        "after epoch 2",
    ] * 2


def test_the_report_says_where_a_run_was_stopped(stopped, tmp_path):
    page = write_report(stopped, tmp_path / "report.html").read_text()
    assert "microCLIP was stopped in epoch 3, 64 of 320 images: its accuracy is that after epoch 2." in page
