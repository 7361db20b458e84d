"""SaliencyExplorer without a browser: filters, confusion, maps, methods side by side, hostile data."""

from __future__ import annotations

import base64
import gc
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from synthetic import empty_trace, synthetic_trace
from widget_helpers import HOSTILE

import clipviz
from clipviz.events import Probe
from clipviz.figures.saliency import unit_range
from clipviz.training.model_probe import ModelProbe
from clipviz.widgets import SaliencyExplorer, ViewState


@pytest.fixture
def trace():
    return synthetic_trace(n_classes=8, epochs=3, n_images=120, n_eval=80)


def gallery_ids(trace):
    return [f"eval/{index}" for index in trace.arrays["gallery/index"]]


def test_probe_images_without_labels_are_those_of_the_run_and_shown_once(trace):
    trace.meta["accuracy_is"] = "transductive"
    for name in ("samples", "predictions"):
        getattr(trace, name)["target"] = -1
    trace.arrays["probe/target"] = np.full(6, -1)
    trace.arrays["probe/index"] = np.arange(6) * 13
    followed = [f"eval/{13 * i}" for i in range(6)]
    assert set(SaliencyExplorer(trace).shown) == {*gallery_ids(trace), *followed}
    trace.arrays["probe/index"] = np.arange(6)  # of a tensor, which are from nowhere
    assert [image for image in SaliencyExplorer(trace).shown if image.startswith("probe/")]


def test_views_are_of_traces_and_not_of_names_of_folders():
    views = (SaliencyExplorer, clipviz.PrototypeExplorer, clipviz.DKAPlayground,
             lambda run: clipviz.DescriptionPlayground(run, None))  # fmt: skip
    for view in views:
        with pytest.raises(ValueError, match=r"a view needs traces, got 'runs/photos'; Trace.load reads"):
            view("runs/photos")
        model = torch.nn.MultiheadAttention(2, 1)  # its text has several lines
        with pytest.raises(ValueError, match=r"\Aa view needs traces, got Multihead.*; Trace.load reads .*\Z"):
            view(model)


def test_a_trace_alone_shows_what_it_holds(trace):
    explorer = SaliencyExplorer(trace)
    assert explorer.shown == [*gallery_ids(trace), *(f"probe/{i}" for i in range(6))]
    assert list(explorer.inspector.kinds)[:2] == ["soap", "ncut"]
    explorer.state.selected = ("probe/2",)
    stored = trace.arrays["probe/soap"][-1, 2]
    shown = explorer.inspector.rows[0].panels[1].values
    np.testing.assert_allclose(shown, (stored - stored.min()) / (stored.max() - stored.min()), rtol=1e-5)
    explorer.inspector.epoch.value = -1
    first = trace.arrays["probe/soap"][0, 2]
    shown = explorer.inspector.rows[0].panels[1].values
    np.testing.assert_allclose(shown, (first - first.min()) / (first.max() - first.min()), rtol=1e-5)
    assert explorer.state.epoch == -1


def test_a_gallery_image_has_maps_of_the_end_only(trace):
    explorer = SaliencyExplorer(trace, state=ViewState(epoch=2, selected=(gallery_ids(trace)[1],)))
    assert explorer.inspector.rows[0].panels[1].values is not None
    explorer.state.epoch = 0
    assert explorer.inspector.rows[0].panels[1].values is None
    assert explorer.inspector.rows[0].panels[1].title == "SOAP attention: not in this trace"


def test_filters_give_what_their_names_say(run):
    explorer = SaliencyExplorer(run.trace, run)
    album = explorer.inspector.album
    frame = album.table(2)
    ids = {name: [int(image.split("/")[1]) for image in album.chosen(name, 2, (0, 1))] for name in album.filters()}
    wrong = frame[frame["label"] != frame["target"]]
    assert sorted(ids["all"]) == list(range(24))
    assert sorted(ids["confidently wrong"]) == sorted(wrong.index)
    assert list(frame.loc[ids["confidently wrong"], "confidence"]) == sorted(wrong["confidence"], reverse=True)
    assert list(frame.loc[ids["least confident"], "confidence"]) == sorted(frame["confidence"])
    assert sorted(ids["flipped"]) == sorted(frame.index[frame["label"] != frame["before"]])
    assert sorted(ids["matrix cell"]) == sorted(wrong.index[(wrong.target == 0) & (wrong.label == 1)])
    samples = run.trace.samples.query("epoch == 2 and static_label != dynamic_label")
    assert sorted(ids["sources disagree"]) == sorted(samples["index"])


def test_a_confusion_cell_shows_its_images(run):
    explorer = SaliencyExplorer(run.trace, run)
    counts = np.frombuffer(explorer.matrix.counts, np.uint32).reshape(3, 3)
    assert counts.sum() == 24
    true, said = np.unravel_index((counts * ~np.eye(3, dtype=bool)).argmax(), (3, 3))
    explorer.matrix.selected = [int(true), int(said)]
    assert explorer.filter.value == "matrix cell"
    assert len(explorer.shown) == counts[true, said] > 0
    verdicts = [explorer.inspector.album.verdict(image, 2) for image in explorer.shown]
    assert {(verdict.target, verdict.prediction) for verdict in verdicts} == {(true, said)}


def test_other_kinds_come_from_the_model_and_change_nothing(run):
    before = {name: tensor.clone() for name, tensor in run.method.state_dict().items()}
    explorer = SaliencyExplorer(run.trace, run)
    explorer.inspector.kinds["relevance"].value = True
    explorer.inspector.kinds["cls_attention"].value = True
    panels = {panel.title: panel.values for panel in explorer.inspector.rows[0].panels}
    assert list(panels) == [
        explorer.state.selected[0],
        "SOAP attention",
        "CLS attention, layer 1, now",
        "relevance, now",
    ]
    explorer.inspector.contrast.value = -2
    explorer.inspector.layer.value = 0
    explorer.inspector.head.value = 1
    titles = [panel.title for panel in explorer.inspector.rows[0].panels]
    assert titles[2] == "CLS attention, layer 0, head 1, now"
    assert titles[3].startswith("relevance: ")
    assert ", not " in titles[3]
    assert not np.array_equal(panels["relevance, now"], explorer.inspector.rows[0].panels[3].values)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.method.state_dict().items())


def test_maps_that_add_up_layers_can_show_one(run):
    explorer = SaliencyExplorer(run.trace, run)
    for kind in ("class_map", "legrad", "grad_eclip"):
        explorer.inspector.kinds[kind].value = True

    def drawn():
        return {panel.title: panel.values for panel in explorer.inspector.rows[0].panels[2:]}

    published = drawn()
    assert list(published) == ["class map, now", "LeGrad, now", "Grad-ECLIP, now"]
    explorer.inspector.layers.value = 1  # the last of two
    last = drawn()
    assert list(last) == ["class map, now", "LeGrad, layer 1, now", "Grad-ECLIP, layer 1, now"]
    assert not np.array_equal(published["LeGrad, now"], last["LeGrad, layer 1, now"])  # it adds up both
    np.testing.assert_array_equal(published["Grad-ECLIP, now"], last["Grad-ECLIP, layer 1, now"])


def test_on_demand_maps_are_those_of_the_method(run):
    explorer = SaliencyExplorer(run.trace, ModelProbe(run.method, eval_dataset=run.adaptation.eval_dataset))
    explorer.state.selected = ("eval/5",)
    explorer.state.epoch = run.trace.final_epoch  # SOAP of this image is stored for no epoch
    panel = explorer.inspector.rows[0].panels[1]
    pixels = torch.from_numpy(explorer.inspector.image.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        soap = run.method.eval().explain(pixels)["soap"][0]
    np.testing.assert_allclose(panel.values, soap / soap.max(), atol=1e-5)


def test_no_map_of_the_trained_model_is_shown_as_another_epochs(run):
    """A map is computed where the epoch is that of the model; before that there are the kept ones, or none."""
    explorer = SaliencyExplorer(run.trace, run)
    for kind in ("relevance", "cls_attention", "soap"):
        explorer.inspector.kinds[kind].value = True
    kept, last = run.trace.arrays["probe/soap"], run.trace.final_epoch
    explorer.state.selected = ("eval/0",)
    for epoch in range(-1, last):
        explorer.state.epoch = epoch
        then = "before training" if epoch < 0 else f"epoch {epoch}"
        (row,) = explorer.inspector.rows
        assert row.title.startswith(f"microCLIP, {then}: ")
        np.testing.assert_allclose(row.panels[1].values, unit_range(kept[epoch + 1, :1])[0], rtol=1e-5)
        for panel in row.panels[2:]:
            assert panel.values is None
            assert f"not kept {then}; the loaded model is that of epoch {last}" in panel.title
    explorer.state.epoch = last
    assert all(panel.values is not None for panel in explorer.inspector.rows[0].panels[1:])


def test_an_opened_run_shows_every_image_at_every_kept_epoch(make_run, tiny_backbone, tmp_path):
    run = make_run(n=12, folder=tmp_path)
    run.fit()
    data = run.adaptation.eval_dataset
    opened = clipviz.open(tmp_path, model=tiny_backbone, data=data, eval_data=data)
    explorer = SaliencyExplorer(opened.trace, opened)
    explorer.state.selected, explorer.state.kind = ("eval/7",), "relevance"
    explorer.inspector.kinds["soap"].value = False
    shown = {}
    for epoch in (-1, 0, 2):
        explorer.state.epoch = epoch
        (row,) = explorer.inspector.rows
        assert [panel.title for panel in row.panels] == ["eval/7", "relevance, now" if epoch == 2 else "relevance"]
        shown[epoch] = row.panels[1].values
        probe = opened.at(epoch).model_probe
        np.testing.assert_array_equal(shown[epoch], probe.saliency(probe.pixels("eval", 7), "relevance"))
    assert not np.array_equal(shown[-1], shown[2])
    explorer.inspector.change.value = True
    (row,) = explorer.inspector.rows
    titles = ["relevance, before training", "relevance, epoch 2"]
    assert [panel.title for panel in row.panels[1:3]] == titles
    assert row.panels[3].title == "relevance: more (purple) or less (orange) than before"
    np.testing.assert_allclose(2 * row.panels[3].values - 1, shown[2] - shown[-1], atol=1e-6)
    assert explorer.inspector.canvas.rows[0]["panels"][3]["change"] is True
    explorer.inspector.play.value = 0
    assert (explorer.state.epoch, explorer.inspector.epoch.value) == (0, 0)


def test_what_is_said_is_of_the_epoch_that_is_named(make_run):
    """A shorter run beside a longer one, pseudo-labels before training, and a part of an epoch."""
    long, short = synthetic_trace(n_classes=4, epochs=5), synthetic_trace(n_classes=4, epochs=2, method="dpa")
    explorer = SaliencyExplorer([long, short])
    explorer.inspector.beside.value = "DPA"
    assert [row.title.split(":")[0] for row in explorer.inspector.rows] == ["microCLIP, epoch 4", "DPA, epoch 1"]
    explorer.method.value = "DPA"
    assert explorer.matrix.title == "DPA: confusion matrix, epoch 1"
    baseline = synthetic_trace(n_classes=4, epochs=0, method="zero_shot")
    explorer = SaliencyExplorer([long, baseline])
    explorer.filter.value = "sources disagree"
    explorer.method.value = "zero-shot"
    assert explorer.shown == []
    album = explorer.inspector.albums["microCLIP"]
    assert album.verdict("train/3", -1).prediction == -1, "there are no pseudo-labels before training"
    assert album.verdict("train/3", 0).prediction >= 0
    run = make_run()
    run.step(6)
    run.listeners.append(lambda event: run.stop() if getattr(event, "step", 0) == 5 else None)
    trace = run.fit()
    row = SaliencyExplorer(trace).inspector.rows[0]
    assert row.title.startswith("microCLIP, epoch 1, 8 of 16 images: ")
    assert row.title.endswith(" (measured epoch 0)")
    assert row.panels[1].values is None, "no map was made after a part of an epoch"


def test_two_methods_stand_beside_each_other(make_run):
    runs = [make_run(), make_run(method="zero_shot")]
    traces = [run.fit() for run in runs]
    explorer = SaliencyExplorer(traces, runs)
    explorer.inspector.beside.value = "zero-shot"
    assert [row.title.split(",")[0] for row in explorer.inspector.rows] == ["microCLIP", "zero-shot"]
    assert len(explorer.inspector.canvas.rows) == 2
    explorer.method.value = "zero-shot"
    assert explorer.state.method == "zero-shot"
    assert [row.title.split(",")[0] for row in explorer.inspector.rows] == ["zero-shot"]


@pytest.mark.parametrize("is_same", [True, False])
def test_an_image_is_shown_with_what_was_said_of_it_and_of_no_other_of_its_number(is_same):
    fog, night = (synthetic_trace(n_classes=8, epochs=1, n_images=20, n_eval=20, method=m) for m in ("dpa", "ntua"))
    night.meta["eval_data"] = "birds/clutter" if is_same else "birds/night"
    lacking = fog.arrays["gallery/index"][0]
    kept = {name: array[1:] for name, array in night.arrays.items() if name.startswith(("gallery/", "cache/"))}
    night.arrays |= kept
    explorer = SaliencyExplorer([fog, night])
    explorer.state.selected = (f"eval/{lacking}",)
    explorer.inspector.beside.value = "NtUA"
    ours, *beside = explorer.inspector.rows
    assert ours.title.startswith("DPA, epoch 0: ")
    assert [row.title == "NtUA: was not asked about this image" for row in beside] == [not is_same]
    explorer.state.method = "NtUA"
    assert (explorer.inspector.image.shape[0] > 1) == is_same  # pixels of the other run


def test_views_with_one_state_follow_each_other(trace):
    state = ViewState()
    one, other = SaliencyExplorer(trace, state=state), SaliencyExplorer(trace, state=state)
    one.gallery.selected = ["probe/3"]
    assert other.gallery.selected == ["probe/3"]
    assert other.inspector.rows[0].panels[0].title == "probe/3"
    one.inspector.epoch.value = 0
    assert other.inspector.epoch.value == 0
    one.inspector.kinds["ncut"].value = True
    assert other.inspector.kinds["ncut"].value is True


def test_linked_views_of_other_runs_leave_each_others_choices():
    """A method that a view does not know and an epoch that its run never reached are for the other views to show."""
    long, short = synthetic_trace(n_classes=4, epochs=5), synthetic_trace(n_classes=4, epochs=2, method="dpa")
    state = ViewState(selected=("probe/0",))
    both, first, last = (SaliencyExplorer(traces, state=state) for traces in ([long, short], long, short))
    assert state.method == "microCLIP"

    def shown():
        return [view.inspector.rows[0].title.split(":")[0] for view in (both, first, last)]

    both.method.value = "DPA"
    both.inspector.epoch.value = 4
    assert (state.method, state.epoch) == ("DPA", 4)
    assert shown() == ["DPA, epoch 1", "microCLIP, epoch 4", "DPA, epoch 1"]
    assert (first.method.value, last.inspector.epoch.value) == ("microCLIP", 1)
    last.inspector.epoch.value = 0
    both.method.value = "microCLIP"
    assert shown() == ["microCLIP, epoch 0", "microCLIP, epoch 0", "DPA, epoch 0"]


def test_images_of_which_the_trace_has_no_pixels_are_counted(trace):
    explorer = SaliencyExplorer(trace)
    n = len(explorer.gallery.ids)
    assert 0 < n < 80
    lacking = 80 - sum(image.startswith("eval/") for image in explorer.gallery.ids)
    assert explorer.count.value == f"1-{n} of {n}; not in the trace, open the run to see them: {lacking}"


def test_pages_turn(make_run):
    run = make_run(n=130, epochs=1)
    explorer = SaliencyExplorer(run.fit(), run)
    assert explorer.count.value == "1-60 of 130"
    assert explorer.back.disabled
    assert any(text.get_text().endswith(": 1-20 of 130") for text in explorer.draw().texts), "a picture has two rows"
    explorer.next.click()
    explorer.next.click()
    assert explorer.count.value == "121-130 of 130"
    assert explorer.next.disabled
    assert len(explorer.gallery.ids) == 10


def test_bundle_has_a_picture_and_a_text_that_never_changes(trace):
    explorer = SaliencyExplorer(trace)
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "SaliencyExplorer(microCLIP)"
    assert 8_000 < len(base64.b64decode(data["image/jpeg"])) <= 60_000
    assert data["image/jpeg"] in data["text/html"], "where the page is preferred and its scripts may not run"
    explorer.state.selected = ("probe/1",)
    again, other = explorer._repr_mimebundle_()
    assert again["text/plain"] == data["text/plain"]
    assert again["image/jpeg"] != data["image/jpeg"]
    assert other["image/jpeg"]["alt"] != metadata["image/jpeg"]["alt"]


def test_without_labels_nothing_is_called_wrong():
    explorer = SaliencyExplorer(synthetic_trace(n_classes=4, epochs=2, n_images=40, n_eval=30, labelled=False))
    assert explorer.inspector.album.filters() == ["all", "least confident", "flipped", "sources disagree"]
    assert explorer.matrix.layout.display == "none"
    assert not any("✗" in caption or "✓" in caption for caption in explorer.gallery.captions)


def test_five_hundred_hostile_classes_stay_usable():
    names = [f"{HOSTILE} {i}" for i in range(500)]
    trace = synthetic_trace(epochs=1, n_images=600, n_eval=600, class_names=names)
    explorer = SaliencyExplorer(trace)
    explorer.matrix.selected = [3, 499]
    assert len(explorer.matrix.counts) == 4 * 500 * 500
    for text in [*explorer.matrix.names, *explorer.gallery.captions, explorer.alt]:
        assert "\n" not in text
        assert len(text) < 400
    assert 5_000 < len(explorer.picture()) <= 60_000


def test_one_pixel_and_nothing_at_all(trace):
    for name in ("probe/images", "gallery/images"):
        trace.arrays[name] = trace.arrays[name][:, :1, :1]
    trace.arrays["probe/soap"] = np.full((4, 6, 1, 1), np.nan, np.float32)
    explorer = SaliencyExplorer(trace)
    explorer.state.selected = ("probe/0",)
    assert len(explorer.picture()) > 5_000
    bare = synthetic_trace(n_classes=3, epochs=1, n_images=9, n_eval=9)
    bare.arrays = {}
    empty = SaliencyExplorer(bare)
    assert empty.count.value == "no images; not in the trace, open the run to see them: 9"
    assert len(empty.picture()) > 1_000


def test_a_run_without_evaluation_images_begins_with_those_it_learned_from():
    trace = synthetic_trace(epochs=2, n_images=9)
    assert SaliencyExplorer(trace).split.value == "eval"
    trace.predictions = trace.predictions[:0]
    explorer = SaliencyExplorer(trace)
    assert explorer.split.value == "train"
    assert SaliencyExplorer(empty_trace()).split.value == "eval"


def test_traces_of_different_classes_are_refused(trace):
    with pytest.raises(ValueError, match="different classes"):
        SaliencyExplorer([trace, synthetic_trace(n_classes=4, epochs=1, n_images=9, n_eval=9)])
    with pytest.raises(ValueError, match="no trace"):
        SaliencyExplorer([])


def test_a_probe_that_is_part_of_the_evaluation_set_is_one_image(run):
    album = SaliencyExplorer(run.trace).inspector.album
    assert all(image.startswith("eval/") for image in album.chosen("all", 2))
    assert isinstance(run.adaptation.probe, Probe)


def test_memory_stays_flat_over_a_hundred_selections(trace):
    explorer = SaliencyExplorer(trace)

    def use(times):
        for i in range(times):
            explorer.state.selected = (f"probe/{i % 6}",)
        gc.collect()

    use(10)
    tracemalloc.start()
    use(10)
    before = tracemalloc.get_traced_memory()[0]
    use(100)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000


def test_the_map_of_an_image_chosen_before_is_dropped(run):
    """A subshell chose an image, and while the model looked at it a cell chose another."""
    explorer = SaliencyExplorer(run.trace, run, state=ViewState(epoch=2, kind="relevance"))
    model_probe, begun, go_on = run.model_probe, threading.Event(), threading.Event()
    answer, old = model_probe.saliency, run.model_probe.pixels("eval", 3)

    def slowly(pixels, kind, **options):
        if np.array_equal(pixels, old):
            begun.set()
            assert go_on.wait(20)
        return answer(pixels, kind, **options)

    model_probe.saliency = slowly
    with ThreadPoolExecutor(1) as subshell:
        chosen = subshell.submit(setattr, explorer.gallery, "selected", ["eval/3"])
        assert begun.wait(20)
        explorer.gallery.selected = ["eval/5"]
        go_on.set()
        chosen.result(20)
    (row,) = explorer.inspector.rows
    assert row.panels[0].title == "eval/5"
    np.testing.assert_array_equal(row.image, model_probe.pixels("eval", 5))
    np.testing.assert_array_equal(row.panels[1].values, answer(row.image, "relevance"))
    assert explorer.inspector.canvas.rows[0]["panels"][0]["title"] == "eval/5"
