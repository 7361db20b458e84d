"""The recorder: the trace says what the events carried, no more and no less."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from tiny import ToyDataset, microclip

from clipviz.data.base import Skipped
from clipviz.events import CropLogits, EpochFinished, Exploration, PseudoLabels, RunFinished, RunStarted, StepFinished
from clipviz.figures.sources import SourceLogits
from clipviz.methods.base import AdaptConfig
from clipviz.methods.zero_shot import ZeroShot
from clipviz.report import explored
from clipviz.trace import Trace
from clipviz.training.evaluate import spread_probe
from clipviz.training.loop import adapt
from clipviz.training.recorder import MAX_SOURCE_LOGITS, Recorder, record

CONFIG = AdaptConfig(epochs=2, batch_size=8, lr=1e-3)


@pytest.fixture(scope="module")
def recorded(tiny_backbone):
    """A run of two epochs: its events, and the trace that was made of them."""
    data, test = ToyDataset(20), ToyDataset(9, seed=1, split="test")
    data.skipped = [Skipped("odd\n.png", "cut off")]
    probe = spread_probe(test, 32, 3)
    events = []
    stream = adapt(microclip(tiny_backbone), data, CONFIG, eval_dataset=test, probe=probe, seed=2)
    return events, record(stream, events.append)


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_a_source_with_a_tie_on_top_names_no_class():
    tied = torch.tensor([[0.0, 2.0, 2.0], [0.0, 1.0, 2.0]])
    pseudo = PseudoLabels(torch.tensor([1, 2]), tied.softmax(1), torch.ones(2), {"a": tied})
    recorder = Recorder()
    recorder(RunStarted("any", {}, ("x", "y", "z"), 2, 1, 1, None))
    recorder(StepFinished(0, 0, torch.arange(2), torch.tensor([1, 2]), pseudo, {}))
    assert recorder.trace().samples["a_label"].tolist() == [-1, 2]


@pytest.mark.parametrize("n_images", [2, 1_000_000])
@pytest.mark.parametrize(("largest", "kind"), [(65_000.0, "float16"), (1e6, "float32")])
def test_source_logits_beyond_half_precision_are_kept_as_they_are(n_images, largest, kind):
    logits = torch.tensor([[0.0, largest], [1.0, -largest]])
    crops = CropLogits(torch.ones(2, 1), logits[:, None], torch.ones(2, 1, 1))
    pseudo = PseudoLabels(logits.argmax(1), logits.softmax(1), torch.ones(2), {"a": logits}, crop_logits=crops)
    recorder = Recorder()
    recorder(RunStarted("any", {}, ("x", "y"), n_images, 1, 1, None))
    recorder(StepFinished(0, 0, torch.arange(2), torch.tensor([1, 0]), pseudo, {}))
    arrays = recorder.trace().arrays
    assert arrays["sources/a"].dtype == (kind if n_images > 2 else "float32")
    assert arrays["sources/crop_logits"].dtype == kind
    assert np.allclose(arrays["sources/a"], logits, rtol=1e-3)
    assert np.allclose(arrays["sources/crop_logits"][:, 0], logits, rtol=1e-3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_what_a_method_gives_in_another_precision_is_kept_in_single_precision(kind):
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=kind)
    pseudo = PseudoLabels(probs.argmax(1), probs, torch.ones(2, dtype=kind), {"a": probs})
    recorder = Recorder()
    recorder(RunStarted("any", {}, ("x", "y"), 2, 1, 1, None))
    recorder(StepFinished(0, 0, torch.arange(2), torch.tensor([0, 1]), pseudo, {}))
    recorder(EpochFinished(0, {}, None, {"classifier": probs}, {"map": probs[:, None]}))
    trace = recorder.trace()
    kinds = {name: trace.samples[name].dtype for name in ("confidence", "margin", "weight", "a_confidence")}
    assert set(kinds.values()) == {np.dtype(np.float32)}, kinds
    assert trace.samples["confidence"].tolist() == [0.75, 0.5]
    assert trace.snapshots["classifier"].tolist() == [probs.tolist()]


@pytest.mark.parametrize(("largest", "kind"), [(65_000.0, "f2"), (1e6, "f4")])
def test_logits_beyond_half_precision_are_kept_and_shown_as_numbers(largest, kind):
    places, logits = torch.arange(2), {"cache": torch.tensor([[largest, 0.0], [0.5, -largest]])}
    seen = Exploration(places, places, {}, torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 2) / 2, logits)
    recorder = Recorder()
    recorder(RunStarted("any", {}, ("x", "y"), 2, 1, 1, None))
    recorder(EpochFinished(0, {}, None, {}, {}, seen))
    kept = recorder.trace().exploration
    assert np.allclose(kept.logits["cache"], logits["cache"], rtol=1e-3)
    name, text = explored._part(kept, [], np.arange(2), [], None)["logits"]["cache"].split(":")
    assert name == kind
    assert np.allclose(np.frombuffer(base64.b64decode(text), f"<{kind}"), logits["cache"].flatten(), rtol=1e-3)


@pytest.mark.parametrize("part", ["snapshot/a", "probe/a"])
def test_what_changes_its_shape_between_epochs_is_refused_by_name(part):
    recorder = Recorder()
    recorder(RunStarted("mine", {"method": "mine"}, ("x", "y"), 2, 2, 2, None))
    given = ({"a": torch.ones(2, 3, 3)}, {}) if part == "probe/a" else ({}, {"a": torch.ones(2, 3)})
    recorder(EpochFinished(-1, {}, None, given[1], given[0]))
    with pytest.raises(ValueError, match=rf"{part} of mine was \(2, 3(, 3)?\), now it is \(2, 2(, 3)?\); keep"):
        recorder(
            EpochFinished(0, {}, None, *({name: rows[:, :2] for name, rows in each.items()} for each in given[::-1]))
        )
    assert recorder.trace().arrays[part].shape[0] == 1


def test_a_snapshot_that_lacks_epochs_is_not_shown_at_others():
    recorder = Recorder()
    recorder(RunStarted("mine", {"method": "mine"}, ("x", "y"), 2, 2, 2, None))
    for epoch, names in ((-1, "ab"), (0, "bc"), (1, "bc")):
        recorder(EpochFinished(epoch, {}, None, {name: torch.ones(2, 3) for name in names}, {}))
    assert [*recorder.trace().snapshots] == ["b"]
    again = Recorder(recorder.trace())
    again(EpochFinished(2, {}, None, {name: torch.ones(2, 3) for name in "bd"}, {}))
    assert {name: len(rows) for name, rows in again.trace().snapshots.items()} == {"b": 4}


def test_sources_must_be_the_same_ones_in_an_epoch():
    recorder = Recorder()
    recorder(RunStarted("mine", {"method": "mine"}, ("x", "y"), 4, 2, 2, None))

    def step(epoch, number, *names):
        probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        pseudo = PseudoLabels(probs.argmax(1), probs, torch.ones(2), dict.fromkeys(names, probs))
        recorder(StepFinished(epoch, number, torch.arange(2), torch.tensor([0, 1]), pseudo, {}))

    step(0, 0, "a")
    step(1, 1, "b")
    recorder.trace()
    with pytest.raises(ValueError, match=r"^sources of mine were \['b'\], at step 2 \['a', 'c'\]; keep their names$"):
        step(1, 2, "a", "c")
    assert len(recorder.trace().samples) == 4


def test_steps_hold_every_term_and_their_sum(recorded):
    events, trace = recorded
    for event in of_kind(events, StepFinished):
        rows = trace.steps[trace.steps.step == event.step]
        values = dict(zip(rows.term, rows.value, strict=True))
        assert set(rows.epoch) == {event.epoch}
        expected = {name: value.item() for name, value in event.losses.items()}
        assert values == pytest.approx({**expected, "loss": sum(expected.values())}, abs=1e-5)
    assert len(trace.steps) == 6 * 3


def test_samples_hold_every_guess(recorded):
    events, trace = recorded
    steps = of_kind(events, StepFinished)
    samples = trace.samples
    assert len(samples) == 40
    pseudo = [event.pseudo for event in steps]
    np.testing.assert_array_equal(samples["index"], torch.cat([e.index for e in steps]))
    np.testing.assert_array_equal(samples["target"], torch.cat([e.target for e in steps]))
    np.testing.assert_array_equal(samples["epoch"], np.repeat([0, 1], 20))
    np.testing.assert_array_equal(samples["pseudo_label"], torch.cat([p.labels for p in pseudo]))
    np.testing.assert_array_equal(samples["confidence"], torch.cat([p.probs.max(1).values for p in pseudo]))
    top = torch.cat([p.probs.sort(1, descending=True).values for p in pseudo])
    np.testing.assert_allclose(samples["margin"], top[:, 0] - top[:, 1], atol=1e-7)
    for source in ("static", "dynamic"):
        logits = torch.cat([p.sources[source] for p in pseudo])
        np.testing.assert_array_equal(samples[f"{source}_label"], logits.argmax(1))
        np.testing.assert_allclose(samples[f"{source}_confidence"], logits.softmax(1).amax(1), atol=1e-6)


def test_epochs_and_predictions_hold_every_measurement(recorded):
    events, trace = recorded
    for event in of_kind(events, EpochFinished):
        rows = trace.epochs[trace.epochs.epoch == event.epoch]
        assert dict(zip(rows.metric, rows.value, strict=True)) == dict(event.metrics)
        predictions = trace.predictions[trace.predictions.epoch == event.epoch]
        np.testing.assert_array_equal(predictions["prediction"], event.predictions.probs.argmax(1))
        np.testing.assert_array_equal(predictions["confidence"], event.predictions.probs.amax(1))
        np.testing.assert_array_equal(predictions["target"], event.predictions.target)
    assert sorted(set(trace.predictions.epoch)) == [-1, 0, 1]


def test_arrays_grow_by_one_entry_per_epoch(recorded):
    events, trace = recorded
    finished = of_kind(events, EpochFinished)
    for name in ("static_classifier", "learned_classifier"):
        stacked = torch.stack([event.snapshot[name] for event in finished])
        np.testing.assert_array_equal(trace.arrays[f"snapshot/{name}"], stacked)
    for kind in ("soap", "ncut", "fiedler"):
        stacked = torch.stack([event.explanation[kind] for event in finished])
        np.testing.assert_array_equal(trace.arrays[f"probe/{kind}"], stacked)


def test_the_probe_and_the_gallery_are_kept_as_pixels(recorded):
    events, trace = recorded
    probe = of_kind(events, RunStarted)[0].probe
    np.testing.assert_array_equal(
        trace.arrays["probe/images"], (probe.images.permute(0, 2, 3, 1) * 255).round().numpy()
    )
    np.testing.assert_array_equal(trace.arrays["probe/target"], probe.target)
    np.testing.assert_array_equal(trace.arrays["probe/parts"], probe.parts)
    highlights = of_kind(events, RunFinished)[0].highlights
    np.testing.assert_array_equal(trace.arrays["gallery/index"], highlights.probe.index)
    np.testing.assert_array_equal(trace.arrays["gallery/probs"], highlights.probs)
    np.testing.assert_array_equal(trace.arrays["gallery/soap"], highlights.explanation["soap"])


def test_source_logits_are_those_of_the_last_epoch(recorded):
    events, trace = recorded
    last = [event for event in of_kind(events, StepFinished) if event.epoch == 1]
    np.testing.assert_array_equal(trace.arrays["sources/index"], torch.cat([e.index for e in last]))
    np.testing.assert_array_equal(trace.arrays["sources/target"], torch.cat([e.target for e in last]))
    for source in ("static", "dynamic"):
        logits = torch.cat([e.pseudo.sources[source] for e in last])
        np.testing.assert_array_equal(trace.arrays[f"sources/{source}"], logits)
    stored, samples = SourceLogits.of(trace), trace.samples[trace.samples["epoch"] == 1].set_index("index")
    assert (stored.labels(stored.reference) == samples["pseudo_label"][stored.index]).all()


def test_metadata_and_skipped_files_are_kept(recorded):
    events, trace = recorded
    started = of_kind(events, RunStarted)[0]
    assert trace.meta["status"] == "finished"
    assert trace.meta["seconds"] == round(of_kind(events, RunFinished)[0].seconds, 3)
    assert trace.class_names == started.class_names
    assert trace.meta["sources"] == ["static", "dynamic"]
    assert {k: trace.meta[k] for k in ("method", "seed", "settings")} == {
        k: started.meta[k] for k in ("method", "seed", "settings")
    }
    assert trace.skipped.to_dict("records") == [{"path": "odd\n.png", "reason": "cut off"}]


def test_what_is_saved_is_what_is_loaded(recorded, tmp_path):
    trace = recorded[1]
    loaded = Trace.load(trace.save(tmp_path / "trace"))
    assert loaded.equals(trace)
    loaded.samples.loc[0, "pseudo_label"] += 1
    assert not loaded.equals(trace)


def test_a_trace_half_way_is_a_trace(recorded, tmp_path):
    """Whatever the moment, the trace so far can be saved; a later one replaces it."""
    events, complete = recorded
    recorder = Recorder()
    for event in events:
        recorder(event)
        recorder.trace().save(tmp_path / "trace")
    assert Trace.load(tmp_path).equals(complete)


def test_a_resumed_recorder_neither_repeats_nor_forgets(recorded, tmp_path):
    events, complete = recorded
    cut = next(i for i, e in enumerate(events) if isinstance(e, EpochFinished) and e.epoch == 0) + 1
    first = Recorder()
    for event in events[:cut]:
        first(event)
    first.trace().save(tmp_path / "trace")
    second = Recorder(Trace.load(tmp_path))
    for event in [events[0], *events[cut:]]:  # a run taken up again starts with RunStarted
        second(event)
    assert second.trace().equals(complete)


def test_a_method_without_training_leaves_no_steps(tiny_backbone, toy):
    trace = record(adapt(ZeroShot(tiny_backbone, toy.prompts), toy, CONFIG, eval_dataset=toy))
    assert len(trace.steps) == 0
    assert len(trace.samples) == len(toy)
    assert "zero_shot_label" in trace.samples


def test_too_many_source_logits_are_left_out(tiny_backbone):
    names = tuple(f"class {i}" for i in range(4))
    meta = {"method": "m"}
    recorder = Recorder()
    recorder(RunStarted("m", meta, names, MAX_SOURCE_LOGITS // 4 + 1, 1, 1, None))
    logits = torch.eye(4)
    pseudo = PseudoLabels(torch.arange(4), logits.softmax(1), torch.ones(4), {"one": logits})
    recorder(StepFinished(0, 0, torch.arange(4), torch.arange(4), pseudo, {}))
    assert not [name for name in recorder.trace().arrays if name.startswith("sources/")]
    assert recorder.trace().samples["one_label"].tolist() == [0, 1, 2, 3]


def test_an_interrupt_returns_what_was_recorded(tiny_backbone, toy):
    def interrupt(event):
        if isinstance(event, StepFinished) and event.step == 1:
            raise KeyboardInterrupt

    trace = record(adapt(microclip(tiny_backbone), toy, CONFIG), interrupt)
    assert trace.meta["status"] == "stopped"
    assert len(trace.samples) == 16


def test_a_kind_that_was_registered_midway_is_not_half_a_record():
    """A resumed run has the kinds of maps that every epoch has: a grid of the others would show wrong epochs."""
    maps = {"soap": torch.rand(2, 4, 4), "mine": torch.rand(2, 4, 4)}
    first = Recorder()
    first(EpochFinished(-1, {}, None, {}, {"soap": maps["soap"]}))
    first(EpochFinished(0, {}, None, {}, {"soap": maps["soap"]}))
    later = Recorder(first.trace())
    later(EpochFinished(1, {}, None, {}, maps))
    assert {kind: len(array) for kind, array in later.trace().arrays.items()} == {"probe/soap": 3}
    forgotten = Recorder(later.trace())
    forgotten(EpochFinished(2, {}, None, {}, {"mine": maps["mine"]}))
    assert not forgotten.trace().arrays
    without_maps = Recorder()
    without_maps(EpochFinished(-1, {"accuracy": 0.5}, None, {}, {}))
    later = Recorder(without_maps.trace())
    later(EpochFinished(0, {"accuracy": 0.6}, None, {}, {"mine": maps["mine"]}))
    assert not later.trace().arrays


def test_a_mask_of_all_patches_is_kept_as_one_and_not_as_none():
    """microCLIP takes the whole image for the foreground where the graph of its patches is (nearly) complete."""
    maps = torch.stack([torch.ones(3, 3), torch.zeros(3, 3), torch.eye(3), torch.full((3, 3), 0.25)])
    none = torch.zeros(4, 1, dtype=torch.int64)
    recorder = Recorder()
    recorder(
        EpochFinished(0, {}, None, {}, {}, Exploration(none[:, 0], none[:, 0], {"ncut": maps}, none, none.float()))
    )
    kept = recorder.trace().exploration.maps["after"]["ncut"]
    assert (kept == (255 * maps + 0.5).to(torch.uint8).numpy()).all()
