"""A run and its folder: stopped, taken up again, and protected from the wrong checkpoint."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ToyDataset, assert_same_bits, differences, make_tiny_backbone, method_state, microclip

from clipviz import adapt, load_backbone, load_dataset
from clipviz.cli import main as cli
from clipviz.data import ImageFolderDataset
from clipviz.events import EpochFinished, RunFinished, StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.microclip import MicroCLIP
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.methods.zero_shot import Descriptions, ZeroShot
from clipviz.prompts import ClassPrompts
from clipviz.trace import Trace
from clipviz.training import loop
from clipviz.training.checkpoint import load_checkpoint, save_checkpoint
from clipviz.training.evaluate import predict, spread_probe
from clipviz.training.follow import FollowedRun
from clipviz.training.loop import Adaptation
from clipviz.training.run import CHECKPOINT, Run
from clipviz.training.run_folder import PREVIOUS, RunFolder

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
    with pytest.raises(ValueError, match=r"holds a checkpoint, but not the trace/ .* start again in another folder"):
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

    monkeypatch.setattr("clipviz.training.checkpoint.save_file", killed)
    with pytest.raises(ConnectionError):
        make_run(tmp_path / "run", tiny_backbone).fit()
    hidden = [path.name for path in (tmp_path / "as_it_was").rglob(".*")]
    assert hidden
    assert not make_run(tmp_path / "as_it_was", tiny_backbone).restore()
    assert not list((tmp_path / "as_it_was").rglob(".*"))


def test_a_folder_that_is_deleted_while_a_run_goes_on_is_told_and_made_anew(tiny_backbone, tmp_path):
    def delete(event):
        if isinstance(event, StepFinished) and event.step == 4:
            shutil.rmtree(tmp_path / "run")

    run = make_run(tmp_path / "run", tiny_backbone, listeners=[delete])
    with pytest.warns(UserWarning, match=r"run was deleted or moved during the run; it is created again") as told:
        trace = run.fit()
    assert len(told) == 1
    assert Trace.load(tmp_path / "run").equals(trace)
    assert make_run(tmp_path / "run", tiny_backbone).restore()


def test_a_process_that_goes_to_another_folder_keeps_its_run_and_its_images(tiny_backbone, tmp_path, monkeypatch):
    """As %cd in a notebook, while a run goes on in a thread."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "images", elsewhere):
        folder.mkdir(parents=True)
    for i in range(3):
        ToyDataset(3).image(i).save(home / "images" / f"{i}.png")
    monkeypatch.chdir(home)
    data = ImageFolderDataset("images", classes=["square"], cache_bytes=0, disk_cache="cache")
    plain = ImageFolderDataset("images", classes=["square"], cache_bytes=0)
    run = Run(ZeroShot(tiny_backbone, data.prompts), data, folder="run", listeners=[lambda _: os.chdir(elsewhere)])
    run.fit()
    assert plain.image(0).size == (40, 40)
    os.chdir(home)
    followed = FollowedRun("run")
    os.chdir(elsewhere)
    assert followed.status == "finished"
    assert (followed.folder / "results.json").is_file()
    assert {path.name for path in home.iterdir()} == {"images", "cache", "run"}
    assert not any(elsewhere.iterdir())


def test_a_folder_that_is_being_written_to_is_left_alone(tiny_backbone, tmp_path):
    writing = RunFolder(tmp_path)
    writing.lock()
    (tmp_path / ".trace.0123abcd.partial").mkdir()
    with pytest.raises(ValueError, match="another run is writing"):
        make_run(tmp_path, tiny_backbone).restore()
    assert (tmp_path / ".trace.0123abcd.partial").exists()
    writing.unlock()
    assert not make_run(tmp_path, tiny_backbone).restore()


def test_a_method_without_training_resumes_within_its_epoch_to_the_same_rows(tiny_backbone, toy, tmp_path):
    """It is measured once, before its epoch: taken up in that, it is measured after it."""
    method = ZeroShot(tiny_backbone, toy.prompts)
    complete = make_run(tmp_path / "a", tiny_backbone, method=method).fit()
    killed = make_run(tmp_path / "b", tiny_backbone, method=method, listeners=[interrupt_after(StepFinished, 0, 1)])
    killed.save_seconds = 0.0
    with pytest.raises(ConnectionError):
        killed.fit()
    resumed = make_run(tmp_path / "b", tiny_backbone, method=method)
    assert resumed.restore()
    assert resumed.fit().epochs.equals(complete.epochs)


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


def test_the_folder_holds_what_every_run_folder_holds_and_nothing_else(undisturbed, tiny_backbone):
    trace, _, folder = undisturbed
    assert sorted(os.listdir(folder)) == [PREVIOUS, CHECKPOINT, "config.json", "epochs", "results.json", "trace"]
    assert Trace.load(folder).equals(trace)
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() >= {
        "method", "model", "data", "split", "seed", "epochs", "accuracy", "pseudo_label_accuracy",
        "zero_shot_accuracy", "n_images", "seconds", "versions",
    }  # fmt: skip
    test = ToyDataset(9, seed=1, split="test")
    guesses = predict(ZeroShot(tiny_backbone, test.prompts), test).probs.argmax(-1).numpy()
    assert results["zero_shot_accuracy"] == pytest.approx((guesses == test.targets).mean())
    assert results["accuracy"] == trace.metric("accuracy").iloc[-1]
    assert (results["n_images"], results["seed"], results["seconds"]) == (20, 5, trace.meta["seconds"])
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["schedule"]["lr"] == 1e-3
    assert config["origins"] == {"model": None, "data": None, "eval_data": None}  # made by hand
    assert config["prompts"]["templates"] == ["a photo of a {}.", "a {}."]
    assert "command" not in config


def test_a_run_of_a_notebook_says_where_everything_came_from_and_is_compared_and_reported(tmp_path, capsys):
    (tmp_path / "words.json").write_text(json.dumps({"a red cap": ["A cap that is red."]}))
    data = load_dataset("birds/fog", "train", n=np.int64(24), templates=("a photo of a {}.",))
    test = load_dataset("birds/fog", "test", n=24)
    backbone = load_backbone("birds")
    for name, prompts in (("a", data.prompts), ("b", replace(data.prompts, templates=("a bird, {}.",)))):
        method = ZeroShot(backbone, prompts)
        Run(method, data, eval_dataset=test, folder=tmp_path / name).start().wait(100)
    config, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert config["origins"]["model"] == {"name": "birds", "pretrained": None, "precision": "32"}
    again = load_dataset(**config["origins"]["data"])
    assert (again.name, again.split, len(again), again.prompts) == ("birds/fog", "train", 24, data.prompts)
    assert config["origins"]["eval_data"]["split"] == "test"
    assert ClassPrompts(**config["prompts"]).digest == data.prompts.digest
    assert other["prompts"]["templates"] == ["a bird, {}."]
    runs = [str(tmp_path / name) for name in "ab"]
    assert cli.main(["compare", *runs]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert cli.main(["report", *runs, "--out", str(tmp_path / "page.html")]) == 0


def test_a_folder_of_images_is_named_by_a_path_that_holds_from_everywhere(tmp_path, monkeypatch):
    for i in range(2):
        (tmp_path / "train" / f"class {i}").mkdir(parents=True)
        ToyDataset(1).image(0).save(tmp_path / "train" / f"class {i}" / "x.png")
    monkeypatch.chdir(tmp_path)
    data = load_dataset("train", split="train", templates="train {}")
    assert (data.origin["spec"], data.origin["split"]) == (str(tmp_path / "train"), "train")
    assert data.origin["templates"] == "train {}"


def test_what_was_not_measured_is_null(tiny_backbone, tmp_path, capsys):
    data = ToyDataset(8, labelled=False)
    Run(microclip(tiny_backbone), data, AdaptConfig(epochs=1, batch_size=8), folder=tmp_path).fit()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"] is results["pseudo_label_accuracy"] is results["zero_shot_accuracy"] is None
    assert cli.main(["compare", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("toy (train), not measured\n")


def test_the_zero_shot_accuracy_of_a_tower_that_was_adapted_before_is_not_known(tiny_backbone, tmp_path):
    method = microclip(tiny_backbone)
    for name in ("first", "second"):
        make_run(tmp_path / name, tiny_backbone, method=method).fit()
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second"))
    assert first["zero_shot_accuracy"] is not None
    assert second["zero_shot_accuracy"] is None


def test_an_older_run_stays_whole_until_the_first_save_and_then_goes_as_a_whole(tiny_backbone, tmp_path, monkeypatch):
    make_run(tmp_path, tiny_backbone).fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    prepare = MicroCLIP.prepare
    monkeypatch.setattr(MicroCLIP, "prepare", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path, tiny_backbone, seed=7).fit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(MicroCLIP, "prepare", prepare)
    run = make_run(tmp_path, tiny_backbone, seed=7, listeners=[interrupt_after(StepFinished, 0, 0)])
    with pytest.raises(ConnectionError):
        run.fit()
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, "config.json", "epochs", "trace"]
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == Trace.load(tmp_path).meta["seed"] == 7


def test_a_run_that_nobody_is_at_work_on_any_more_is_interrupted(tiny_backbone, tmp_path, capsys):
    seen = []

    def killed(event):
        if isinstance(event, StepFinished) and event.step == 4:
            seen.append(Trace.load(tmp_path).meta["status"])
            shutil.copytree(tmp_path, tmp_path.with_name("killed"))

    make_run(tmp_path, tiny_backbone, listeners=[killed]).fit()
    folder = tmp_path.with_name("killed")
    assert seen == ["running"]
    assert Trace.load(folder).meta["status"] == "interrupted"
    assert ", interrupted, " in repr(Trace.load(folder / "trace"))
    assert cli.main(["compare", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder} holds no results.json, because its run was interrupted" in line
    resumed = make_run(folder, tiny_backbone)
    assert resumed.restore()
    assert resumed.fit().meta["status"] == Trace.load(folder).meta["status"] == "finished"
    assert cli.main(["compare", str(folder)]) == 0


@pytest.mark.parametrize("when", ["in an epoch", "at the end"])
def test_a_disk_that_is_full_ends_a_run_in_a_thread_and_frees_its_folder(tiny_backbone, tmp_path, monkeypatch, when):
    run = make_run(tmp_path, tiny_backbone)

    def full(*_):
        raise OSError(28, "No space left on device")

    def fill(event):
        if isinstance(event, StepFinished if when == "in an epoch" else RunFinished):
            monkeypatch.setattr(Trace, "save", full)

    run.listeners.append(fill)
    run.start()
    with pytest.raises(OSError, match="No space left"):
        run.wait(60)
    assert run.status == run.trace.meta["status"] == "failed"
    monkeypatch.undo()
    resumed = make_run(tmp_path, tiny_backbone)  # neither folder nor disk is in the way
    assert resumed.restore()
    assert resumed.fit().meta["status"] == "finished"


# ------------------------------------------------------------------------------------------------- one method, one run


def test_a_method_is_in_one_run_at_a_time(tiny_backbone, tmp_path):
    method = microclip(tiny_backbone)
    first, second = (make_run(tmp_path / name, tiny_backbone, method=method) for name in "ab")
    events = adapt(method, ToyDataset(8), CONFIG)
    first.pause()
    first.start()
    for begin in (second.start, second.fit, second.restore, lambda: next(events)):
        with pytest.raises(ValueError, match="another run or iterator is adapting this microclip; wait for its end"):
            begin()
    assert (second.status, list(tmp_path.glob("b"))) == ("ready", [])
    first.stop()
    first.wait(60)
    second.fit()  # goes on from what the first has learned
    events = adapt(method, ToyDataset(8), CONFIG)
    next(events)
    third = make_run(None, tiny_backbone, method=method)
    with pytest.raises(ValueError, match="close"):
        third.fit()
    events.close()
    assert third.fit().meta["status"] == "finished"


def test_a_copy_of_a_method_is_another_one(tiny_backbone):
    method = microclip(tiny_backbone)
    events = adapt(method, ToyDataset(8), CONFIG)
    next(events)
    assert next(adapt(copy.deepcopy(method), ToyDataset(8), CONFIG)).method == "microclip"


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"method": lambda backbone: microclip(backbone, gamma=np.float32(0.3))},
         "gamma of the method must be a plain number"),
        ({"method": lambda backbone: microclip(backbone, gamma=torch.tensor(0.3))}, "gamma must be a number such as"),
        ({"config": AdaptConfig(epochs=3, lr=np.float32(1e-3))}, "lr of the schedule must be a plain number"),
        ({"seed": 0.5}, "seed must be a"),
    ],
)  # fmt: skip
def test_what_no_file_can_hold_is_refused_before_the_run(tiny_backbone, tmp_path, refused, message):
    with pytest.raises(ValueError, match=message):
        make_run(tmp_path, tiny_backbone, **{k: v(tiny_backbone) if callable(v) else v for k, v in refused.items()})


def test_a_seed_of_numpy_is_a_seed(tiny_backbone, tmp_path):
    assert make_run(tmp_path, tiny_backbone, seed=np.int64(3)).fit().meta["seed"] == 3


def test_a_checkpoint_keeps_what_training_changed_and_no_frozen_weight(undisturbed):
    names = load_file(undisturbed[2] / CHECKPOINT).keys()
    kept = {name.removeprefix("method/") for name in names if name.startswith("method/")}
    assert kept == undisturbed[1].keys()
    frozen = ("attn.", "mlp.", "conv1", "token_embedding")
    assert not [name for name in names if any(part in name for part in frozen)]
    moments = [name for name in load_file(undisturbed[2] / PREVIOUS) if name.startswith("optimizer/exp_avg/")]
    assert sum(name.startswith("optimizer/exp_avg/") for name in moments) > 0
    assert not [name for name in names if name.startswith("optimizer/")]  # no step will come that needs them


def test_a_failed_write_leaves_the_older_checkpoint_and_no_stray_file(tiny_backbone, tmp_path, monkeypatch):
    adaptation = Adaptation(microclip(tiny_backbone), ToyDataset(8), CONFIG)
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, adaptation)
    before = path.read_bytes()

    def full_disk(tensors, filename, metadata):
        filename.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipviz.training.checkpoint.save_file", full_disk)
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
    with pytest.warns(UserWarning, match="cannot read checkpoint .*continuing from the one before") as told:
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


def test_a_place_that_cannot_be_a_folder_is_told_in_one_line(tiny_backbone, toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to folder '.*file': File exists; choose another place"):
        Run(microclip(tiny_backbone), toy, folder=tmp_path / "file").fit()


def test_a_folder_whose_checkpoints_could_not_be_read_again_is_refused(tiny_backbone, toy, tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(ValueError, match="is no UTF-8 text; choose another place for the run"):
        Run(microclip(tiny_backbone), toy, folder=place).fit()
    assert not place.exists()
