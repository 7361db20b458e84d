"""A run and its folder: stopped, taken up again, and protected from the wrong checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ToyDataset, assert_same_bits, differences, make_tiny_backbone, method_state, microclip

from clipviz import loop
from clipviz.checkpoint import load_checkpoint, save_checkpoint
from clipviz.evaluate import predict, spread_probe
from clipviz.events import EpochFinished, StepFinished
from clipviz.loop import Adaptation
from clipviz.methods.base import AdaptConfig
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.methods.zero_shot import Descriptions, ZeroShot
from clipviz.prompts import ClassPrompts
from clipviz.run import CHECKPOINT, Run
from clipviz.run_folder import PREVIOUS, RunFolder
from clipviz.trace import Trace

CONFIG = AdaptConfig(epochs=3, batch_size=8, lr=1e-3)


def make_run(folder, backbone, config=CONFIG, method=None, n=20, seed=5, labelled=True, listeners=()):
    data, test = ToyDataset(n, labelled=labelled), ToyDataset(9, seed=1, split="test")
    method = method or microclip(backbone)
    probe = spread_probe(test, 32, 3)
    return Run(method, data, config, eval_dataset=test, probe=probe, seed=seed, folder=folder, listeners=listeners)


@pytest.fixture(scope="module")
def undisturbed(tiny_backbone, tmp_path_factory):
    """Trace and final state of a run that nobody interrupted."""
    run = make_run(tmp_path_factory.mktemp("undisturbed"), tiny_backbone)
    return run.fit(), method_state(run.method), run.folder


def interrupt_after(kind, epoch, step=None):
    def listener(event):
        if isinstance(event, kind) and event.epoch == epoch and (step is None or event.step == step):
            raise ConnectionError("the machine went away")  # like kill -9: no goodbye of the run's own

    return listener


# ------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "when",
    [(EpochFinished, -1, None), (StepFinished, 0, 1), (EpochFinished, 0, None), (StepFinished, 1, 4),
     (EpochFinished, 1, None), (EpochFinished, 2, None)],
    ids=["before training", "in epoch 0", "at the end of 0", "in epoch 1", "at the end of 1", "at the end of 2"],
)  # fmt: skip
def test_interrupted_and_resumed_is_undisturbed_to_the_bit(tiny_backbone, undisturbed, tmp_path, when):
    kind, epoch, step = when
    run = make_run(tmp_path, tiny_backbone, listeners=[interrupt_after(kind, epoch, step)])
    with pytest.raises(ConnectionError):
        run.fit()
    trace_of_break = Trace.load(tmp_path)
    assert trace_of_break.meta["status"] == "failed"
    resumed = make_run(tmp_path, tiny_backbone)
    if not resumed.restore():
        assert (kind, epoch) == (EpochFinished, -1)  # the listener came before the first checkpoint
    trace = resumed.fit()
    expected_trace, expected_state, _ = undisturbed
    assert_same_bits(method_state(resumed.method), expected_state)
    assert differences(trace, expected_trace) == []
    assert Trace.load(tmp_path).equals(trace)


@pytest.mark.parametrize("step", [0, 1, 2, 4, 8])
def test_stopped_at_any_step_and_resumed_is_undisturbed_to_the_bit(tiny_backbone, undisturbed, tmp_path, step):
    run = make_run(tmp_path, tiny_backbone)
    run.listeners.append(lambda event: run.stop() if isinstance(event, StepFinished) and event.step == step else None)
    assert run.fit().meta["status"] == "stopped"
    resumed, seen = make_run(tmp_path, tiny_backbone), []
    resumed.listeners = [lambda event: seen.append(event.step) if isinstance(event, StepFinished) else None]
    assert resumed.restore()
    trace = resumed.fit()
    assert seen == list(range(step + 1, 9))  # it goes on at the very step
    assert_same_bits(method_state(resumed.method), undisturbed[1])
    assert differences(trace, undisturbed[0]) == []


def test_what_cannot_be_gone_on_with_says_what_to_do(tiny_backbone, tmp_path):
    make_run(tmp_path, tiny_backbone).fit()
    (tmp_path / "trace").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"holds a checkpoint, but not the trace/ .* begin anew in another folder"):
        make_run(tmp_path, tiny_backbone).restore()
    newest, previous = sorted(tmp_path.glob("checkpoint*"), reverse=True)
    newest.write_bytes(b"")
    previous.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{CHECKPOINT}: .* and .*previous.safetensors: .*; delete both to start"):
        make_run(tmp_path, tiny_backbone).restore()
    previous.unlink()
    with pytest.raises(ValueError, match="; delete it to start at the beginning"):
        make_run(tmp_path, tiny_backbone).restore()


def test_saved_between_epochs_and_cut_off_is_undisturbed_to_the_bit(tiny_backbone, undisturbed, tmp_path):
    run = make_run(tmp_path, tiny_backbone, listeners=[interrupt_after(StepFinished, 1, 5)])
    run.save_seconds = 0.0
    with pytest.raises(ConnectionError):
        run.fit()
    resumed = make_run(tmp_path, tiny_backbone)
    assert resumed.restore()
    assert (resumed.adaptation.epoch, resumed.adaptation.steps_in_epoch) == (1, 2)  # the step before is safe
    trace = resumed.fit()
    assert_same_bits(method_state(resumed.method), undisturbed[1])
    assert differences(trace, undisturbed[0]) == []


def test_taken_up_after_its_last_epoch_it_measures_the_same_inputs(tiny_backbone, toy, tmp_path, monkeypatch):
    """ntua is measured on embeddings, made once; from the images themselves its last bits would be others."""

    def run():
        method = NtUA(tiny_backbone, toy.prompts, NtUAConfig(shots=2, views=2))
        return make_run(tmp_path, tiny_backbone, method=method)

    run().fit()
    resumed, measured = run(), []
    assert resumed.restore()
    assert resumed.adaptation.epoch == 3
    monkeypatch.setattr(
        loop, "predict", lambda method, data, **more: (measured.append(data), predict(method, data, **more))[1]
    )
    resumed.fit()
    assert [data.has_pixels for data in measured] == [False]


def test_what_a_killed_run_left_half_done_is_cleared_away(tiny_backbone, undisturbed, tmp_path):
    """Killed while it wrote the next trace and checkpoint, between moving the old trace aside and the new one in."""
    with pytest.raises(ConnectionError):
        make_run(tmp_path, tiny_backbone, listeners=[interrupt_after(StepFinished, 1, 4)]).fit()
    (tmp_path / "trace").rename(tmp_path / ".trace.0123abcd.older")
    (tmp_path / ".trace.0123abcd.partial").mkdir()
    (tmp_path / ".trace.0123abcd.partial" / "steps.parquet").write_bytes(b"PAR1")
    for name in (".checkpoint.safetensors.89abcdef", ".results.json.89abcdef", ".mine", ".trace.mine"):
        (tmp_path / name).write_bytes(b"{")
    resumed = make_run(tmp_path, tiny_backbone)
    assert resumed.restore()
    assert differences(resumed.fit(), undisturbed[0]) == []
    assert_same_bits(method_state(resumed.method), undisturbed[1])
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".mine", ".trace.mine"]  # not ours to delete


def test_a_kill_while_safetensors_writes_leaves_nothing_that_is_not_known_for_ours(
    tiny_backbone, tmp_path, monkeypatch
):
    """safetensors writes to `.tmp...` beside its target; such a file must not lie in the run's folder."""

    def killed(tensors, filename, metadata):
        Path(filename).with_name(".tmpAbCdEf").write_bytes(b"half")
        shutil.copytree(tmp_path / "run", tmp_path / "as_it_was")
        raise ConnectionError

    monkeypatch.setattr("clipviz.checkpoint.save_file", killed)
    with pytest.raises(ConnectionError):
        make_run(tmp_path / "run", tiny_backbone).fit()
    hidden = [path.name for path in (tmp_path / "as_it_was").glob(".*")]
    assert hidden
    assert not make_run(tmp_path / "as_it_was", tiny_backbone).restore()
    assert not list((tmp_path / "as_it_was").glob(".*"))


def test_a_folder_that_is_being_written_to_is_left_alone(tiny_backbone, tmp_path):
    writing = RunFolder(tmp_path)
    writing.lock()
    (tmp_path / ".trace.0123abcd.partial").mkdir()
    with pytest.raises(ValueError, match="another run is writing"):
        make_run(tmp_path, tiny_backbone).restore()
    assert (tmp_path / ".trace.0123abcd.partial").exists()
    writing.unlock()
    assert not make_run(tmp_path, tiny_backbone).restore()


def test_a_baseline_resumes_too(tiny_backbone, toy, tmp_path):
    method = ZeroShot(tiny_backbone, toy.prompts)
    complete = make_run(tmp_path / "a", tiny_backbone, method=method).fit()
    with pytest.raises(ConnectionError):
        make_run(tmp_path / "b", tiny_backbone, method=method, listeners=[interrupt_after(StepFinished, 0, 1)]).fit()
    resumed = make_run(tmp_path / "b", tiny_backbone, method=method)
    assert resumed.restore()
    assert differences(resumed.fit(), complete) == []


def test_skipped_files_are_listed_once_however_often_a_run_is_resumed(tiny_backbone, toy, tmp_path):
    from clipviz.data.base import Skipped

    for _ in range(3):
        run = make_run(tmp_path, tiny_backbone, method=ZeroShot(tiny_backbone, toy.prompts), labelled=False)
        run.adaptation.eval_dataset = None  # no metric is ever measured
        run.adaptation.dataset.skipped = [Skipped("a.png", "cut off")]
        run.restore()
        trace = run.fit()
    assert trace.skipped.path.tolist() == ["a.png"]


def test_without_a_checkpoint_there_is_nothing_to_resume(tiny_backbone, tmp_path):
    assert not make_run(tmp_path / "new", tiny_backbone).restore()
    assert not make_run(None, tiny_backbone).restore()


def test_without_a_folder_nothing_is_written(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(None, tiny_backbone, AdaptConfig(epochs=1, batch_size=8)).fit()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- the folder


def test_the_folder_holds_trace_and_checkpoint_and_nothing_else(undisturbed):
    trace, _, folder = undisturbed
    assert sorted(os.listdir(folder)) == [PREVIOUS, CHECKPOINT, "trace"]
    assert Trace.load(folder).equals(trace)


def test_a_checkpoint_keeps_what_training_changed_and_no_frozen_weight(undisturbed):
    names = load_file(undisturbed[2] / CHECKPOINT).keys()
    kept = {name.removeprefix("method/") for name in names if name.startswith("method/")}
    assert kept == undisturbed[1].keys()
    frozen = ("attn.", "mlp.", "conv1", "token_embedding")
    assert not [name for name in names if any(part in name for part in frozen)]
    assert sum(name.startswith("optimizer/exp_avg/") for name in names) > 0


def test_a_failed_write_leaves_the_older_checkpoint_and_no_stray_file(tiny_backbone, tmp_path, monkeypatch):
    adaptation = Adaptation(microclip(tiny_backbone), ToyDataset(8), CONFIG)
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, adaptation)
    before = path.read_bytes()

    def full_disk(tensors, filename, metadata):
        filename.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipviz.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, adaptation)
    assert os.listdir(tmp_path) == [CHECKPOINT]
    assert path.read_bytes() == before


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny_backbone, undisturbed, tmp_path):
    with pytest.raises(ConnectionError):
        make_run(tmp_path, tiny_backbone, listeners=[interrupt_after(StepFinished, 2, 7)]).fit()
    newest = tmp_path / CHECKPOINT
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = make_run(tmp_path, tiny_backbone)
    with pytest.warns(UserWarning, match="cannot read checkpoint .*going on from the one before") as told:
        assert resumed.restore()
    assert "delete" not in str(told[0].message)  # nothing is to be done
    assert resumed.adaptation.epoch == 1  # the newest was written after epoch 1, the one before after epoch 0
    trace = resumed.fit()
    assert_same_bits(method_state(resumed.method), undisturbed[1])
    assert differences(trace, undisturbed[0]) == []


def test_a_folder_has_one_writer(tiny_backbone, tmp_path):
    run = make_run(tmp_path, tiny_backbone)
    run.pause()
    run.start()
    with pytest.raises(ValueError, match="another run is writing"):
        make_run(tmp_path, tiny_backbone).fit()
    run.stop()
    run.wait(60)
    second = make_run(tmp_path, tiny_backbone)
    assert second.fit().meta["status"] == "finished"


def test_what_was_set_while_it_ran_is_still_set_after_resuming(tiny_backbone, tmp_path):
    run = make_run(tmp_path, tiny_backbone)

    def change_and_stop(event):
        if isinstance(event, StepFinished) and event.step == 1:
            run.set(gamma=0.125)
        if isinstance(event, StepFinished) and event.step == 3:
            run.stop()

    run.listeners.append(change_and_stop)
    run.fit()
    resumed = make_run(tmp_path, tiny_backbone)  # with the arguments it began with
    assert resumed.restore()
    assert resumed.method.config.gamma == 0.125
    assert resumed.fit().meta["changes"] == [{"step": 2, "gamma": 0.125}]


# ------------------------------------------------------------------------------------------------- the wrong checkpoint


@pytest.fixture
def checkpoint(undisturbed, tmp_path):
    """A copy of the finished run's checkpoint."""
    path = tmp_path / CHECKPOINT
    path.write_bytes((undisturbed[2] / CHECKPOINT).read_bytes())
    return path


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_checkpoint_is_refused(tiny_backbone, checkpoint, keep):
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    adaptation = make_run(None, tiny_backbone).adaptation
    before = method_state(adaptation.method)
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        load_checkpoint(checkpoint, adaptation)
    assert_same_bits(before, method_state(adaptation.method))


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(tiny_backbone, checkpoint):
    torch.save({"method/x": torch.zeros(1)}, checkpoint)
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        load_checkpoint(checkpoint, make_run(None, tiny_backbone).adaptation)


def test_another_safetensors_file_is_refused(tiny_backbone, checkpoint):
    save_file({"x": torch.zeros(1)}, checkpoint)
    with pytest.raises(ValueError, match="not a clipviz checkpoint"):
        load_checkpoint(checkpoint, make_run(None, tiny_backbone).adaptation)


def others(tiny_backbone):
    """Runs that the checkpoint does not belong to, by what is different."""
    prompts = ToyDataset(3).prompts
    named = make_tiny_backbone()
    named.name = "another"
    longer = AdaptConfig(epochs=4, batch_size=8, lr=1e-3)
    decay = AdaptConfig(epochs=3, batch_size=8, lr=1e-3, weight_decay=0.0)
    return {
        "method": make_run(None, tiny_backbone, method=Descriptions(tiny_backbone, prompts)),
        "model": make_run(None, named),
        "frozen weights": make_run(None, make_tiny_backbone(seed=1)),
        "settings": make_run(None, tiny_backbone, method=microclip(tiny_backbone, gamma=0.9)),
        "n_images": make_run(None, tiny_backbone, n=16),
        "n_epochs": make_run(None, tiny_backbone, longer),
        "schedule": make_run(None, tiny_backbone, decay),
        "seed": make_run(None, tiny_backbone, seed=6),
    }


@pytest.mark.parametrize(
    "difference", ["method", "model", "frozen weights", "settings", "n_images", "n_epochs", "schedule", "seed"]
)
def test_a_checkpoint_of_another_run_is_refused(tiny_backbone, checkpoint, difference):
    adaptation = others(tiny_backbone)[difference].adaptation
    before = method_state(adaptation.method)
    with pytest.raises(ValueError, match=rf"belongs to another run: {difference}[.\w]* was .*, now it is") as error:
        load_checkpoint(checkpoint, adaptation)
    what = {"settings": "settings.gamma was 0.5, now", "schedule": "schedule.weight_decay was 0.1, now it is 0.0;"}
    assert what.get(difference, "") in str(error.value)  # what differs, not all that might
    assert_same_bits(before, method_state(adaptation.method))
    assert adaptation.epoch == 0


def test_a_checkpoint_of_other_descriptions_is_refused(tiny_backbone, checkpoint):
    run = make_run(None, tiny_backbone)
    names = run.adaptation.dataset.class_names
    said = dict.fromkeys(names, ("It is square.",))
    run.adaptation.dataset.prompts = ClassPrompts(names, ("a photo of a {}.", "a {}."), said)
    with pytest.raises(ValueError, match="belongs to another run: prompts or descriptions was"):
        load_checkpoint(checkpoint, run.adaptation)


@pytest.mark.parametrize("difference", ["name", "split", "class_names"])
def test_a_checkpoint_of_other_data_is_refused(tiny_backbone, checkpoint, difference):
    run = make_run(None, tiny_backbone)
    if difference == "class_names":
        run.method.class_names = ("a", "b", "c")
    else:
        setattr(run.adaptation.dataset, difference, "another")
    with pytest.raises(ValueError, match="belongs to another run"):
        load_checkpoint(checkpoint, run.adaptation)


def test_the_number_of_workers_may_differ(tiny_backbone, checkpoint):
    config = AdaptConfig(epochs=3, batch_size=8, lr=1e-3, workers=1)
    run = make_run(None, tiny_backbone, config)
    load_checkpoint(checkpoint, run.adaptation)
    assert run.adaptation.epoch == 3


def test_a_checkpoint_with_other_tensors_is_refused(tiny_backbone, toy):
    method = microclip(tiny_backbone)
    state = method_state(method)
    state["learned_classifier"] = torch.zeros(4, 32)
    del state["w_key"]
    with pytest.raises(
        ValueError, match=r"2 tensors differ, first 'learned_classifier': wanted \(3, 32\), got \(4, 32\)"
    ):
        method.load_trainable_state(state)
