"""The command line: what a run folder holds, and one helpful line for every mistake of a user."""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import open_clip
import pytest
from forked import start
from PIL import Image
from synthetic import synthetic_trace
from tiny import TINY, ToyDataset, clusters, make_tiny_backbone

import clipviz
from clipviz.birds.world import SPECIES
from clipviz.cli import main as cli
from clipviz.cli.options import COMMANDS
from clipviz.methods import METHODS
from clipviz.trace import Trace
from clipviz.training.run import Run
from clipviz.training.run_folder import RunFolder, results_of, zero_shot_accuracy

RESULTS = {
    "method", "model", "data", "split", "seed", "epochs", "accuracy", "pseudo_label_accuracy", "zero_shot_accuracy",
    "n_images", "seconds", "versions",
    # beyond the contract: what the accuracy was measured on, and how many files could not be read
    "eval_data", "eval_split", "accuracy_is", "n_skipped", "preset", "embeddings",
    # what the method said at first, and how far its confidence can be trusted
    "accuracy_before", "ece", "ece_before",
}  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Three classes of five images, and a file that is no image."""
    data = ToyDataset(15)
    for i in range(15):
        folder = tmp_path / "photos" / data.class_names[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f"{i}.png")
    (tmp_path / "photos" / "red square" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def flat(tmp_path):
    """A folder of five images without classes."""
    (tmp_path / "flat").mkdir()
    for i in range(5):
        ToyDataset(5).image(i).save(tmp_path / "flat" / f"{i}.png")
    return tmp_path / "flat"


def adapt(*extra, method="zero_shot", model="birds", data="birds", out="run"):
    return ["adapt", method, "--model", model, "--data", str(data), "--out", str(out), *map(str, extra)]


@pytest.fixture(scope="session")
def architectures(tmp_path_factory):
    """A folder with the configurations of a ViT and a ResNet that take no time to make; open_clip knows them."""
    folder = tmp_path_factory.mktemp("architectures")
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (folder / "cli-vit.json").write_text(json.dumps(TINY))
    (folder / "cli-resnet.json").write_text(json.dumps({**TINY, "vision_cfg": resnet}))
    open_clip.add_model_config(folder)
    return folder


def in_subprocess(architectures, *arguments):
    """The command line as a shell sees it, with the small architectures known to open_clip."""
    script = f"import atexit, gc, open_clip, sys; open_clip.add_model_config({os.fspath(architectures)!r})\n"
    # Of what is frozen to the end, some libraries say there that it has leaked: triton, with Python 3.13.
    script += "atexit.register(lambda: gc.get_freeze_count() and print('frozen', file=sys.stderr))\n"
    script += "from clipviz.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def main_with(architectures, arguments):
    open_clip.add_model_config(architectures)
    return cli.main(arguments)


def in_fork(architectures, tmp_path, *arguments):
    """The exit status and stderr of the same, where what an import may print is not asked about."""
    process = start(main_with, architectures, arguments, said=tmp_path / "stderr")
    process.join(250)
    return process.exitcode, (tmp_path / "stderr").read_text()


# ------------------------------------------------------------------------------------------------- a run folder


def test_a_labelled_folder_gives_a_complete_run_folder(photos, tmp_path, capfd):
    out = tmp_path / "run"
    options = ("--epochs", 2, "--batch-size", 4, "--seed", 3, "--set", "crops=2")
    assert cli.main(adapt(*options, method="microclip", data=photos, out=out)) == 0
    visible = {name for name in os.listdir(out) if not name.startswith(".")}
    assert visible >= {"checkpoint.safetensors", "config.json", "results.json", "trace"}
    assert not [name for name in os.listdir(out) if name.endswith((".partial", ".tmp"))]
    results = json.loads((out / "results.json").read_text())
    assert results.keys() == RESULTS
    assert (results["method"], results["model"], results["data"]) == ("microclip", "birds", str(photos))
    assert (results["split"], results["seed"], results["epochs"]) == ("all", 3, 2)
    assert (results["n_images"], results["n_skipped"], results["accuracy_is"]) == (15, 1, "transductive")
    trace = Trace.load(out)
    assert results["accuracy"] == trace.metric("accuracy").iloc[-1]
    assert results["pseudo_label_accuracy"] == trace.metric("pseudo_label_accuracy").iloc[-1]
    assert 0 <= results["zero_shot_accuracy"] <= 1
    assert trace.class_names == ("blue square", "green square", "red square")
    assert trace.skipped.path.tolist() == ["red square/broken.jpg"]
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["schedule"]["batch_size"] == 4
    assert config["class_names"] == list(trace.class_names)
    assert sorted(photos / trace.file_name(i) for i in range(15)) == sorted(photos.glob("*/*.png"))
    assert trace.file_name(14, "learned") == trace.file_name(14)
    assert "files" not in config
    captured = capfd.readouterr()
    images, header, row = captured.out.splitlines()
    assert images.endswith("photos (all), measured on the same images")
    assert row.split()[:2] == ["microclip", "birds"]
    measured = ["accuracy %", "before %", "ECE %", "ECE before %", "pseudo-labels %"]
    assert re.split("  +", header)[-8:] == [*measured, "zero-shot %", "over zero-shot", "seconds"]
    assert len([line for line in captured.err.splitlines() if "epoch" not in line]) == 1  # no bar: not a terminal
    assert "skipped 1 file: 'red square/broken.jpg'" in captured.err


def test_a_flat_folder_has_no_accuracy_but_all_else(flat, tmp_path, capfd):
    (tmp_path / "names.txt").write_text("red square\ngreen square\n")
    out = tmp_path / "run"
    options = ("--classes", tmp_path / "names.txt", "--epochs", 1, "--set", "crops=2")
    assert cli.main(adapt(*options, method="microclip", data=flat, out=out)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results.keys() == RESULTS
    assert results["accuracy"] is results["pseudo_label_accuracy"] is results["zero_shot_accuracy"] is None
    assert results["n_images"] == 5
    trace = Trace.load(out)
    assert not trace.has_targets
    assert len(trace.samples) == 5
    assert trace.arrays["probe/soap"].shape == (2, 5, 8, 8)
    assert len(trace.arrays["gallery/index"]) == 5  # the images it is least sure of
    captured = capfd.readouterr()
    assert "accuracy is not known: the images have no labels" in captured.out
    assert re.fullmatch(r"microclip: 1 of 1 epochs, loss [\d.]+, confidence 0\.\d+, 00:00 left\n", captured.err)


def test_a_flat_folder_without_names_gets_those_of_the_bundled_model(flat, tmp_path, capfd):
    assert cli.main(adapt(data=flat, out=tmp_path / "run")) == 0
    assert Trace.load(tmp_path / "run").class_names == tuple(species.name for species in SPECIES)
    assert capfd.readouterr().err.splitlines() == [
        "no class names given: using the 24 bird species of the bundled model"
    ]


def test_options_reach_the_schedule(photos, tmp_path):
    options = ("--epochs", 1, "--batch-size", 7, "--lr", "0.002", "--keep-epochs", "never", "--set", "crops=2")
    assert cli.main(adapt(*options, method="microclip", data=photos, out=tmp_path / "run")) == 0
    assert not (tmp_path / "run" / "epochs").exists()
    schedule = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["schedule"]
    assert (schedule["epochs"], schedule["batch_size"], schedule["lr"]) == (1, 7, 0.002)


def test_a_test_split_is_measured_and_a_broken_one_is_an_error(photos, tmp_path, capfd):
    root = tmp_path / "splits"
    root.mkdir()
    photos.rename(root / "train")
    (root / "test" / "red square").mkdir(parents=True)
    ToyDataset(1).image(0).save(root / "test" / "red square" / "a.png")
    assert cli.main(adapt(data=root, out=tmp_path / "run")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["split"], results["eval_split"], results["accuracy_is"]) == ("train", "test", "test")
    trace = Trace.load(tmp_path / "run")
    assert trace.file_name(0, "measured") == "test/red square/a.png"
    assert trace.file_name(0, "learned").startswith("train/blue square/")
    (root / "test" / "red square" / "a.png").write_bytes(b"damaged")
    capfd.readouterr()
    assert cli.main(adapt(data=root, out=tmp_path / "run2")) == 2
    assert "no readable image" in capfd.readouterr().err


def test_resume_goes_on_and_a_finished_run_is_not_overwritten(photos, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = adapt("--set", "crops=2", "--epochs", 1, method="microclip", data=photos, out=out)
    assert cli.main(arguments) == 0
    first = Trace.load(out)
    seconds = json.loads((out / "results.json").read_text())["seconds"]
    capfd.readouterr()
    assert cli.main(arguments) == 2
    assert "already holds a run; add --resume" in capfd.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    again = Trace.load(out)
    assert again.samples.equals(first.samples)
    assert again.arrays.keys() == first.arrays.keys()
    results = json.loads((out / "results.json").read_text())
    assert results["accuracy"] == first.metric("accuracy").iloc[-1]
    assert results["seconds"] > first.meta["seconds"] > 0  # of both sessions; what came before training counts anew
    assert results["seconds"] < 100 * seconds
    capfd.readouterr()
    assert cli.main([*arguments, "--epochs", "2", "--resume"]) == 2
    assert "belongs to another run: n_epochs was 1, now it is 2" in capfd.readouterr().err
    capfd.readouterr()
    assert cli.main([*adapt(data=photos, out=tmp_path / "new"), "--resume"]) == 0
    assert "nothing to resume" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["adapt", "demo"])
def test_a_second_process_on_one_folder_is_refused_before_it_touches_anything(photos, tmp_path, capfd, command):
    out, own = tmp_path / "run", RunFolder(tmp_path / "run")
    own.lock()  # as another process does, before it loads anything
    (out / "config.json").write_text('{"seed": 0}')
    given = adapt("--seed", 7, data=tmp_path / "nowhere", out=out)
    arguments = {"adapt": given, "demo": ["demo", "--seed", "7", "--out", str(out)]}[command]
    assert cli.main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"another run is writing to {out}; wait" in line
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("config.json", '{"seed": 0}')]
    own.unlock()
    assert cli.main(given) == 2
    assert "no such folder" in capfd.readouterr().err
    assert own.lock()  # which the refusal left open


def test_what_is_left_of_a_run_is_not_overwritten(photos, tmp_path, capfd):
    out = tmp_path / "run"
    assert cli.main(adapt(data=photos, out=out)) == 0
    for checkpoint in out.glob("checkpoint*"):  # to save space, say
        checkpoint.unlink()
    capfd.readouterr()
    assert cli.main(adapt(data=photos, out=out)) == 2
    assert "already holds a run" in capfd.readouterr().err


def test_a_folder_is_no_file_of_embeddings_and_said_so_before_any_image_is_looked_at(tmp_path, capfd):
    (tmp_path / "x.npz").mkdir()
    assert cli.main(["embed", "--model", "birds", "--data", "absent", "--out", str(tmp_path / "x.npz")]) == 2
    assert f"--out needs a .npz or .safetensors file, got the folder '{tmp_path / 'x.npz'}'" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["", "run", "red square/run"])
def test_a_run_among_the_images_would_be_a_class_of_theirs(photos, place, capfd):
    assert cli.main(adapt(data=photos, out=photos / place)) == 2
    assert re.search("lies in the folder of images .* taken for a class; choose another", capfd.readouterr().err)
    assert cli.main(["embed", "--model", "birds", "--data", str(photos), "--out", str(photos / "new" / "x.npz")]) == 2
    assert "lies in the folder of images" in capfd.readouterr().err
    assert cli.main(adapt("--cache-dir", photos / "cache", data=photos, out=photos.parent / "run")) == 2
    assert "choose another place for --cache-dir" in capfd.readouterr().err
    assert sorted(path.name for path in photos.iterdir()) == ["blue square", "green square", "red square"]


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def mistakes(photos, flat, tmp_path, architectures):
    """A command line for each mistake, and what the one line must say."""
    empty, corrupt, texts = tmp_path / "empty", tmp_path / "corrupt", tmp_path / "texts"
    for folder in (empty, corrupt, texts):
        folder.mkdir()
    for i in range(3):
        (corrupt / f"{i}.png").write_bytes(b"\x89PNG but no more")
    (texts / "readme.md").write_text("no image")
    (tmp_path / "a-file").write_text("")
    (tmp_path / "bad.json").write_text('{"red square": ["A red square."], "reds": [], "blue square": "one"}')
    np.savez(tmp_path / "f.npz", embeddings=np.eye(3, dtype=np.float32))
    (tmp_path / "truncated.safetensors").write_bytes(b"\x00" * 5)
    out = tmp_path / "out"
    return {
        "unknown method": (adapt(method="micro_clip", out=out), "method 'micro_clip'; did you mean 'microclip'"),
        "unknown model": (adapt(model="VIT-B-23", out=out), "unknown model 'VIT-B-23'; did you mean 'ViT-B-32'"),
        "unknown data set": (adapt(data="bird", out=out), "'bird'; did you mean 'birds'"),
        "unknown domain": (adapt(data="birds/cluter", out=out), "unknown domain 'cluter'; did you mean 'clutter'"),
        "no such folder": (adapt(data="/no/such/folder", out=out), "no such folder: '/no/such/folder'"),
        "a file": (adapt(data=tmp_path / "a-file", out=out), "is a file; give the folder"),
        "empty folder": (adapt(data=empty, out=out), "no image"),
        "no images": (adapt(data=texts, out=out), "no image"),
        "no readable image": (adapt(data=corrupt, out=out), "no readable image in the folder .* all 3 were skipped"),
        "no class names": (
            adapt(data=flat, model="cli-vit", out=out),
            "has no class folders, so its class names are not known; give --classes",
        ),
        "embeddings of what": (adapt(data=tmp_path / "f.npz", out=out), "holds embeddings without class names; add an"),
        "unwritable output": (adapt(out=tmp_path / "a-file" / "run"), "cannot write to folder .* choose another place"),
        "output is a file": (adapt(out=tmp_path / "a-file"), "cannot write to folder .* choose another place"),
        "descriptions": (
            adapt("--descriptions", tmp_path / "bad.json", data=photos, out=out),
            "no entry for 'green square'; .*'reds'.*'reds' has an empty list.*'blue square' needs a list",
        ),
        "missing descriptions": (adapt("--descriptions", "no.json", data=photos, out=out), "cannot be read"),
        "damaged weights": (
            adapt("--pretrained", tmp_path / "truncated.safetensors", model="cli-vit", out=out),
            "could not load model 'cli-vit' with weights",
        ),
        "tower without patches": (
            adapt(method="microclip", model="cli-resnet", data=photos, out=out),
            "microclip needs the patch tokens of a ViT with a CLS token, but 'cli-resnet' is a ModifiedResNet",
        ),
        "device": (adapt("--device", "abacus", out=out), "device 'abacus' cannot be used: .*; try device cpu"),
        "other classes": (adapt("--eval-data", "birds", data=photos, out=out), "has other classes than --data"),
        "zero rate": (adapt("--lr", "0", method="microclip", data=photos, out=out), "positive and finite, got 0"),
        "infinite rate": (adapt("--lr", "inf", method="dpa", data=photos, out=out), "lr must be positive and finite"),
        "no output": (adapt(data=photos, out=""), "wanted a folder to write to, got an empty name"),
        "no epochs": (adapt("--epochs", "0", out=out), "wanted a whole number of at least 1, got '0'"),
        "no number": (adapt("--seed", "x", out=out), "wanted a whole number of at least 0, got 'x'"),
        "unknown option": (adapt("--epoch-count", "3", out=out), "unrecognized arguments"),
        "missing option": (["adapt", "zero_shot"], "required: --data, --out"),
        "no command": ([], "required: COMMAND"),
        "unknown command": (["adopt"], "invalid choice: 'adopt'"),
        "demo domain": (["demo", "--domain", "nigth", "--out", str(out)], "did you mean 'night'"),
        "demo method": (["demo", "--methods", "zero_shot,dpaa", "--out", str(out)], "unknown method 'dpaa'"),
        "report of nothing": (["report", str(empty), "--out", str(out / "r.html")], "no trace in"),
        "compare nothing": (["compare", str(empty)], "holds no results.json"),
    }  # fmt: skip


MISTAKES = [
    "unknown method", "unknown model", "unknown data set", "unknown domain", "no such folder", "a file", "empty folder",
    "no images", "no readable image", "no class names", "embeddings of what", "unwritable output",
    "output is a file", "descriptions",
    "missing descriptions", "damaged weights", "tower without patches",
    "device", "other classes", "zero rate", "infinite rate", "no output", "no epochs",
    "no number", "unknown option", "missing option", "no command", "unknown command", "demo domain", "demo method",
    "report of nothing", "compare nothing",
]  # fmt: skip


def run_main(arguments):
    """The exit status of a command line, whether main returns or the parser exits."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_status_2(mistakes, mistake, tmp_path, capfd):
    arguments, message = mistakes[mistake]
    assert run_main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert len(captured.err.splitlines()) == 1, captured.err
    assert re.match(r"clipviz( \w+)?: error: ", captured.err)
    assert re.search(message, captured.err), captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_every_mistake_is_tried(mistakes):
    assert list(mistakes) == MISTAKES


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    arguments = adapt(method="micro_clip", out=tmp_path / "out")
    for with_debug in (["--debug", *arguments], [*arguments, "--debug"]):
        with pytest.raises(ValueError, match="unknown method"):
            cli.main(with_debug)


def test_in_a_shell_too_a_mistake_is_one_line(photos, tmp_path, architectures):
    """Neither our notes on skipped files and random weights nor the log of a library may join it."""
    arguments = adapt(method="microclip", model="cli-resnet", data=photos, out=tmp_path / "out")
    done = in_subprocess(architectures, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "needs the patch tokens" in done.stderr
    status, stderr = in_fork(architectures, tmp_path, *arguments, "--debug")
    assert status == 1
    assert "Traceback (most recent call last)" in stderr
    assert "needs the patch tokens" in stderr


def test_random_weights_are_told_in_one_line_of_our_own(photos, tmp_path, architectures):
    (photos / "red square" / "broken.jpg").unlink()
    status, stderr = in_fork(architectures, tmp_path, *adapt(model="cli-resnet", data=photos, out=tmp_path / "out"))
    assert status == 0, stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith("'cli-resnet' has random weights")


def test_an_error_that_is_nobodys_mistake_but_ours_keeps_its_traceback(photos, tmp_path, monkeypatch):
    """A ValueError from the depths of another library tells a user nothing."""
    monkeypatch.setattr("clipviz.cli.adapt.spread_probe", lambda *_: json.loads("no json"))
    with pytest.raises(json.JSONDecodeError):
        cli.main(adapt(data=photos, out=tmp_path / "run"))


@pytest.mark.parametrize("broken", [int, np.dtype(float).type, "{".format], ids=["python", "numpy", "text"])
def test_an_error_that_a_line_of_ours_meets_without_raising_it_is_ours(broken, tmp_path, monkeypatch):
    """What is written in C has no frame of its own: the last one is ours, but it says no `raise`."""
    monkeypatch.setattr("clipviz.cli.report.Trace", types.SimpleNamespace(load=broken))
    with pytest.raises(ValueError, match=r"invalid literal|could not convert|expected '}'|Single '{'"):
        cli.main(["report", "no run", "--out", str(tmp_path / "x.html")])


def test_a_full_disk_is_no_mistake_of_ours(photos, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipviz.training.run_folder.save_checkpoint", full)
    assert cli.main(adapt(data=photos, out=tmp_path / "run")) == 2
    assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("option", "least"), [("--epochs", 1), ("--seed", 0)])
def test_a_number_that_is_none_names_its_least(option, least, capsys):
    for value in ("many", "-1", "1.5"):
        with pytest.raises(SystemExit) as stop:
            cli.main(adapt(f"{option}={value}"))
        assert stop.value.code == 2
        assert f"wanted a whole number of at least {least}, got {value!r}" in capsys.readouterr().err


def test_a_loss_that_explodes_is_status_1_in_one_line(photos, tmp_path, capfd, monkeypatch):
    from clipviz.methods.microclip import MicroCLIP

    monkeypatch.setattr(MicroCLIP, "loss", lambda self, *_: {"term": self.learned_classifier.sum() * np.nan})
    (photos / "red square" / "broken.jpg").unlink()
    assert cli.main(adapt(method="microclip", data=photos, out=tmp_path / "run")) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "the loss is not finite at step 0 (epoch 0): term = nan" in line
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "not enough memory: CUDA out of memory. Tried to",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory: DefaultCPUAllocator"),
        (None, "error: 'blue square/11.png' was readable when "),  # clipviz's own: a file that went away
    ],
)
def test_what_happens_to_a_run_is_status_1_in_one_line(error, said, photos, tmp_path, capfd, monkeypatch):
    def fails(self, views, index):
        raise error

    (photos / "red square" / "broken.jpg").unlink()
    if error:
        monkeypatch.setattr("clipviz.methods.zero_shot.ZeroShot.pseudo_label", fails)
    else:
        monkeypatch.setattr("clipviz.data.sources.image_files.CACHE_BYTES", 0)
        monkeypatch.setattr("clipviz.training.run.Run.fit", lambda run: vanish(run, photos))
    assert cli.main(adapt(data=photos, out=tmp_path / "run")) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


def vanish(run, photos):
    """The files of a run that has begun go away."""
    for picture in photos.rglob("*.png"):
        picture.unlink()
    return run.adaptation.dataset.image(0)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (10, 1)])
def test_a_run_that_was_stopped_by_an_order_is_not_told_as_if_it_were_whole(
    photos, tmp_path, capfd, monkeypatch, steps, epochs
):
    def stopped(run):
        run.listeners.append(lambda _: run.stop() if run.steps_done == steps else None)
        return fit(run)

    fit = Run.fit
    monkeypatch.setattr(Run, "fit", stopped)
    (photos / "red square" / "broken.jpg").unlink()
    assert cli.main(adapt("--epochs", 3, "--batch-size", 2, method="dpa", data=photos, out=tmp_path / "run")) == 0
    assert capfd.readouterr().out == f"stopped after {epochs} of 3 epochs and saved; --resume continues\n"


def test_an_order_beside_another_is_refused_instead_of_forgotten(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", "run", "--set", "gamma=0.3", "--pause"])
    assert stop.value.code == 2
    assert "argument --pause: not allowed with argument --set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "held"),
    [
        (b'{"data": "photos"}', "a run on photos"),
        (b'{"data": "bir', "a run on images that its config.json does not name"),
        (b"\xff", "a run on images that its config.json does not name"),
        (b"[]", "a run on images that its config.json does not name"),
    ],
)
def test_a_demo_does_not_replace_a_run_on_images_of_ones_own(config, held, tmp_path, capfd):
    (tmp_path / "dpa").mkdir()
    (tmp_path / "dpa" / "config.json").write_bytes(config)
    assert cli.main(["demo", "--out", str(tmp_path), "--methods", "zero_shot,dpa"]) == 2
    assert capfd.readouterr().err.endswith(f"dpa holds {held}, which the demo would replace; choose another --out\n")
    assert os.listdir(tmp_path) == ["dpa"]


def test_ctrl_c_is_status_130_in_one_line(photos, tmp_path, capfd, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipviz.cli.adapt.run_one", interrupted)
    (photos / "red square" / "broken.jpg").unlink()
    assert cli.main(adapt(data=photos, out=tmp_path / "run")) == 130
    assert capfd.readouterr().err == "clipviz: error: stopped; nothing was saved\n"
    monkeypatch.setattr("clipviz.cli.demo.zero_shot_accuracy", interrupted)
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--methods", "zero_shot"]) == 130
    told = f"stopped; the runs so far are in {tmp_path / 'demo'}, and the same command starts again"
    assert capfd.readouterr().err == f"clipviz: error: {told}\n"


def test_ctrl_c_that_a_library_swallows_stops_it_all_the_same(photos, tmp_path, capfd, monkeypatch):
    def swallowed_while_imported(*args, **options):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("module 'numpy' has no attribute 'subtract'")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("clipviz.cli.adapt.run_one", swallowed_while_imported)
    (photos / "red square" / "broken.jpg").unlink()
    assert cli.main(adapt(data=photos, out=tmp_path / "run")) == 130
    assert capfd.readouterr().err == "clipviz: error: stopped; nothing was saved\n"
    assert signal.getsignal(signal.SIGINT) is before


# ----------------------------------------------------------------------------------------------- help, report, compare


def test_help_is_instant_and_free_of_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "clipviz", "--help"], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "clipviz adapt microclip" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    check = "import sys; from clipviz.cli.main import main\n"
    check += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_help_names_every_method(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["adapt", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert not [name for name in METHODS if name not in text]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_in_a_sentence_with_its_default(name, capsys):
    parser = argparse.ArgumentParser()
    COMMANDS[name].add_options(parser)
    for action in parser._actions:
        assert len(action.help.split()) > 3, action.dest
        takes_a_value = action.option_strings and action.nargs is None
        is_needed = action.required or action.dest in ("check", "out")
        says_when = "default:" in action.help or "only" in action.help or "if there are no class" in action.help
        assert says_when or not takes_a_value or is_needed or action.dest in ("model", "set"), action.dest
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert f"clipviz {name}" in capsys.readouterr().out.partition("example:")[2]


@pytest.mark.parametrize("fails", [None, KeyboardInterrupt])
def test_garbage_is_looked_for_when_a_command_has_been_imported(monkeypatch, tmp_path, fails):
    looked = []

    def imported(where):
        looked.append(gc.isenabled())
        if fails:
            raise fails
        sys.modules[where] = types.SimpleNamespace(compare=lambda args: looked.append(gc.isenabled()))

    monkeypatch.delitem(sys.modules, "clipviz.cli.compare", raising=False)
    monkeypatch.setattr(cli, "import_module", imported)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    try:
        assert cli.main(["compare", str(tmp_path)]) == (130 if fails else 0)
    finally:
        sys.modules.pop("clipviz.cli.compare", None)
    assert looked == ([False] if fails else [False, True])
    assert gc.isenabled()


def test_an_option_that_is_none_names_the_nearest_of_its_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["adapt", "zero_shot", "--data", "x", "--out", "y", "--epoch-count", "3", "--bach-size", "4"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "clipviz adapt: error: unrecognized arguments: --epoch-count 3 --bach-size 4; did you mean --epochs? "
        "(see clipviz adapt --help)\n"
    )


def test_half_an_option_is_none(capsys):
    """`--n 256` was taken for `--num-nodes 256`, and waited for 255 machines."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["adapt", "dpa", "--data", "birds", "--out", "run", "--n", "256"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clipviz adapt: error: unrecognized arguments: --n 256")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"clipviz \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_names_that_the_encoding_of_the_output_lacks_are_escaped(photos, tmp_path, monkeypatch):
    """Of Windows, where the output is not a console's: there it ended a finished run with a traceback."""
    birds = photos.rename(tmp_path / "鳥 été")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert cli.main(adapt(data=birds, out=tmp_path / "鷲")) == 0
    assert cli.main(["report", str(tmp_path / "鷲"), "--out", str(tmp_path / "鷲.html")]) == 0
    sys.stdout.flush()
    said = sys.stdout.buffer.getvalue().decode("cp1252")
    assert r"\u9ce5 été (all), measured on the same images" in said
    assert said.endswith("\\u9df2.html\n")


def test_what_is_for_stderr_does_not_go_to_stdout_where_a_shell_has_closed_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it after 2>&-
    assert cli.main(["compare", "nowhere"]) == 2
    assert capsys.readouterr().out == ""


def test_report_and_compare_read_run_folders(photos, tmp_path, capfd):
    for method in ("zero_shot", "descriptions"):
        assert cli.main(adapt(method=method, data=photos, out=tmp_path / method)) == 0
    runs = [str(tmp_path / method) for method in ("zero_shot", "descriptions")]
    capfd.readouterr()
    assert cli.main(["compare", *runs, "--html", str(tmp_path / "both.html")]) == 0
    assert "<html" in (tmp_path / "both.html").read_text(encoding="utf-8")[:200]
    table = capfd.readouterr().out
    images, header, *rows = table.splitlines()
    assert images == f"{photos} (all), measured on the same images"
    assert header.split()[:4] == ["run", "method", "model", "seed"]
    assert [row.split()[:3] for row in rows] == [[run, Path(run).name, "birds"] for run in runs]
    assert rows[0].split()[-2] == "+0.0"  # what zero_shot gains over itself
    assert cli.main(["report", *runs, "--out", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert "descriptions" in html
    assert "zero-shot" in html
    assert "<script src" not in html
    capfd.readouterr()
    assert cli.main(["report", *runs, "--out", str(tmp_path / "zero_shot")]) == 2
    assert "is a folder" in capfd.readouterr().err
    for out in ("/dev/stdout", "-"):
        assert cli.main(["report", *runs, "--out", out]) == 0
        assert capfd.readouterr() == (html, f"wrote {out}\n")


def test_compare_tells_runs_of_one_method_apart_by_what_was_chosen(photos, tmp_path, capfd):
    runs = [tmp_path / name for name in ("first", "second", "again")]
    for run, beta in zip(runs, (5.0, 2.5, 2.5), strict=True):
        assert cli.main(adapt("--set", f"beta={beta}", method="tip_adapter", data=photos, out=run)) == 0
    capfd.readouterr()
    assert cli.main(["compare", *map(str, runs)]) == 0
    rows = capfd.readouterr().out.splitlines()[2:]
    told = [re.split(r"  +", row)[1] for row in rows]
    assert told == ["tip_adapter, beta 5", "tip_adapter, beta 2.5, second", "tip_adapter, beta 2.5, again"]


def test_runs_that_chose_among_more_classes_are_not_compared(photos, tmp_path, capfd):
    folders = sorted(each.name for each in photos.iterdir() if each.is_dir())
    for i, more in enumerate(([], ["no such bird"])):
        names = tmp_path / f"{i}.txt"
        names.write_text("\n".join([*folders, *more]), encoding="utf-8")
        assert cli.main([*adapt(data=photos, out=tmp_path / f"run{i}"), "--classes", str(names)]) == 0
    capfd.readouterr()
    assert cli.main(["compare", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 2
    out, (line,) = (text.splitlines() for text in capfd.readouterr())
    assert not out
    assert f"measured on the same images, {len(folders)} classes; " in line
    assert f"measured on the same images, {len(folders) + 1} classes)" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": {"measured": ["b.png"]}}, "24 classes; but the files differ)"),
        ({"class_names": [f"kind {i}" for i in range(24)]}, "but the names or the order of the classes differ)"),
        ({"origins": {"eval_data": {"spec": "birds", "seed": 1}}}, ""),
    ],
)
def test_images_of_the_same_name_are_compared_only_if_they_are_the_same(change, said, tmp_path, capfd):
    trace, runs = synthetic_trace(epochs=1, n_images=8, n_eval=8), [str(tmp_path / name) for name in "ab"]
    facts = {"files": {"measured": ["a.png"]}, "origins": {"eval_data": {"spec": "birds", "seed": 0}}}
    for run, more in zip(runs, ({}, change), strict=True):
        trace.meta |= facts | more
        trace.save(Path(run, "trace"))
        Path(run, "results.json").write_text(json.dumps(results_of(trace)))
    assert cli.main(["compare", *runs]) == 2 * bool(said)
    out, err = capfd.readouterr()
    assert said in err
    assert ("different birds: their seed or severity differs" in out) == (not said)


def test_results_of_another_run_are_not_those_of_the_folder(tmp_path, capfd):
    trace = synthetic_trace(epochs=1, n_images=8, n_eval=8)
    trace.save(tmp_path / "trace")
    for key, value in (("method", "dpa"), ("seconds", 99.0)):
        (tmp_path / "results.json").write_text(json.dumps(results_of(trace) | {key: value}))
        assert cli.main(["compare", str(tmp_path)]) == 2
        assert (
            f"results.json is of another run than the trace beside it, with {key} {value!r}" in capfd.readouterr().err
        )


def test_runs_on_different_data_are_not_compared(photos, tmp_path, capfd):
    for i, seed in enumerate((0, 1)):
        assert cli.main(adapt("--seed", seed, data=photos, out=tmp_path / f"run{i}")) == 0
    other = tmp_path / "run1" / "results.json"
    other.write_text(json.dumps({**json.loads(other.read_text()), "data": "birds/fog"}))
    capfd.readouterr()
    assert cli.main(["compare", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot be compared in one table" in line
    assert f"{tmp_path / 'run0'}: {photos} (all), measured on the same images, 3 classes; " in line
    assert f"{tmp_path / 'run1'}: birds/fog (all), measured on {photos} (all)" in line
    other.write_text(json.dumps({**json.loads(other.read_text()), "data": str(photos), "split": "CoOp train"}))
    assert cli.main(["compare", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 2
    assert "(CoOp train), measured on" in capfd.readouterr().err
    for content, message in (("{", "is not JSON"), ("[]", "lacks method"), ('{"method": "dpa"}', "lacks model, seed")):
        other.write_text(content)
        assert cli.main(["compare", str(tmp_path / "run1")]) == 2
        assert message in capfd.readouterr().err


def test_compare_needs_no_torch(tmp_path):
    check = "import sys, clipviz.cli.compare, clipviz.cli.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def unexplained(results):
    """Fields of results.json that the page about run folders does not name."""
    page = Path(clipviz.__file__).parents[1] / "docs" / "reference" / "trace.md"
    return set(results) - set(re.findall(r"`(\w+)`", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize(("name", "of_images"), [("ntua", True), ("ntua", False), ("tip_adapter", False)])
def test_the_results_of_a_cache_name_a_teacher_only_where_there_is_one(name, of_images):
    """Of embeddings there is one view, which refines nothing; tip_adapter refines nothing at all."""
    dataset = ToyDataset(9) if of_images else clusters(n=30)
    backbone = make_tiny_backbone() if of_images else dataset.backbone()
    events = clipviz.adapt(METHODS[name](backbone, dataset.prompts), dataset, eval_dataset=dataset)
    results = results_of(clipviz.record(events))
    zero_shot = pytest.approx(zero_shot_accuracy(backbone, dataset.prompts, dataset)) if of_images else None
    assert (results["teacher"] == "none") == (not of_images)
    assert results["teacher_zero_shot_accuracy"] == zero_shot
    assert unexplained(results) == set()


@pytest.mark.parametrize(("name", "key"), [("stata", "transductive_accuracy"), ("oga", "online_accuracy")])
def test_results_name_the_accuracy_of_the_labels_apart_from_that_on_other_images(name, key):
    dataset, other = clusters(), clusters(n=30, noise=0.4)
    trace = clipviz.record(
        clipviz.adapt(METHODS[name](dataset.backbone(), dataset.prompts), dataset, eval_dataset=other)
    )
    results = results_of(trace)
    assert unexplained(results) == set()
    last = trace.samples.drop_duplicates("index", keep="last")
    assert len(last) == 120
    assert results[key] == results["pseudo_label_accuracy"] == (last["pseudo_label"] == last["target"]).mean()
    measured = trace.predictions[trace.predictions["epoch"] == trace.predictions["epoch"].max()]
    right = (measured["prediction"] == measured["target"]).to_numpy()
    confidence, ece = measured["confidence"].to_numpy(), 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        ece += abs(right[inside].sum() - confidence[inside].sum()) / 30
    assert results["accuracy"] == pytest.approx(right.mean())
    assert results["ece"] == pytest.approx(ece, abs=1e-6)
    assert results["accuracy_before"] == trace.metric("accuracy_zero_shot")[-1]


# ------------------------------------------------------------------------------------------------- demo


def test_a_tiny_demo_writes_its_table_and_its_report(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("clipviz.cli.demo.DEMO_IMAGES", {"train": 12, "test": 12})
    out = tmp_path / "demo"
    methods = ["zero_shot", "descriptions", "microclip"]
    chosen = "zero_shot,descriptions,zero_shot, microclip"
    assert cli.main(["demo", "--out", str(out), "--domain", "fog", "--epochs", "1", "--methods", chosen]) == 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == methods
    assert {row["data"] for row in rows} == {"birds/fog"}
    for row in rows:
        results = json.loads((out / row["method"] / "results.json").read_text())
        assert float(row["accuracy"]) == pytest.approx(results["accuracy"])
        assert results["zero_shot_accuracy"] == pytest.approx(float(rows[0]["accuracy"]))
        assert results["n_images"] == 12
    html = (out / "report.html").read_text()
    assert "birds/fog" in html
    assert (out / "report.html").stat().st_size < 8_000_000
    captured = capfd.readouterr()
    assert re.fullmatch(r"microclip: 1 of 1 epochs, .* left\n", captured.err)
    assert "open" in captured.out
    assert [line.split()[0] for line in captured.out.splitlines()[2:5]] == methods


def test_the_demo_has_all_methods_by_default():
    args = cli.build_parser().parse_args(["demo"])
    assert args.methods is None
    assert args.domain == "fog"


def test_the_progress_line_counts_on_a_terminal_only(monkeypatch, capfd):
    import torch

    from clipviz.cli.progress import Progress
    from clipviz.events import PseudoLabels, RunFinished, RunStarted, StepFinished

    def watch():
        progress = Progress()
        progress(RunStarted("toy", {}, ("a",), 8, 1, 2, None))
        for step in range(2):
            guesses = PseudoLabels(torch.zeros(4), torch.ones(4, 1), torch.ones(4))
            progress(StepFinished(0, step, torch.arange(4), torch.zeros(4), guesses, {}))
        progress(RunFinished("finished", 1.0, None))
        return capfd.readouterr()

    assert watch() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = watch()
    assert shown.out == ""
    assert "8/8" in shown.err
    assert "img/s" in shown.err


def test_without_a_terminal_each_epoch_is_a_plain_line(monkeypatch, capfd):
    """Loss and confidence are means over the steps, the time left is that of the steps until now."""
    import torch

    from clipviz.cli import progress as module
    from clipviz.events import EpochFinished, PseudoLabels, RunStarted, StepFinished

    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    progress = module.Progress()
    progress(RunStarted("toy", {}, ("a",), 8, 4, 8, None))
    now = 1000.0  # measuring before the first step says nothing about steps
    progress(EpochFinished(-1, {"accuracy": 0.25}, None, {}, {}))
    for step, (loss, confidence) in enumerate(((1.0, 0.5), (3.0, 0.7), (0.5, 0.9), (0.25, 0.9))):
        now += 30.0
        probs = torch.tensor([[confidence, 1 - confidence]]).expand(4, 2)
        guesses = PseudoLabels(torch.zeros(4), probs, torch.ones(4))
        losses = {"self": torch.tensor(loss), "fair": torch.tensor(1.0)}
        progress(StepFinished(step // 2, step, torch.arange(4), torch.zeros(4), guesses, losses))
        if step % 2:
            progress(EpochFinished(step // 2, {} if step == 1 else {"accuracy": 0.75}, None, {}, {}))
    assert capfd.readouterr().err.splitlines() == [
        "toy: 1 of 4 epochs, loss 3, confidence 0.600, 03:00 left",
        "toy: 2 of 4 epochs, loss 1.375, accuracy 0.750, 02:00 left",
    ]
    resumed = module.Progress()
    resumed(RunStarted("toy", {}, ("a",), 8, 4, 8, None, steps_done=5))
    resumed(StepFinished(2, 5, torch.arange(4), torch.zeros(4), guesses, losses))
    resumed(EpochFinished(2, {"accuracy": 0.75}, None, {}, {}))
    said = capfd.readouterr().err
    assert said.startswith("toy: 3 of 4 epochs, loss 1.25 since the resume, accuracy 0.750, "), "watch has all of it"


def test_batches_of_a_methods_own_are_counted_as_they_come(monkeypatch, capfd):
    """Before training a cache or a slice of a stream is not there yet: the run begins with the number of images."""
    import torch

    from clipviz.cli import progress as module
    from clipviz.events import EpochFinished, PseudoLabels, RunFinished, RunStarted, StepFinished

    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)

    def watch():
        nonlocal now
        progress = module.Progress()
        progress(RunStarted("ntua", {}, ("a",), 100, 4, 20, None))
        progress(EpochFinished(-1, {}, None, {}, {}))
        for epoch in range(4):
            now += 30.0
            guesses = PseudoLabels(torch.zeros(4), torch.ones(4, 1), torch.ones(4))
            progress(StepFinished(epoch, epoch, torch.arange(4), torch.zeros(4), guesses, {"loss": torch.tensor(1.0)}))
            progress(EpochFinished(epoch, {"accuracy": 0.5}, None, {}, {}))
        progress(RunFinished("finished", 1.0, None))
        return capfd.readouterr().err

    left = ("01:30", "01:00", "00:30", "00:00")
    lines = [f"ntua: {done} of 4 epochs, loss 1, accuracy 0.500, {left} left" for done, left in enumerate(left, 1)]
    assert watch().splitlines() == lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "100%" in (last := watch().splitlines()[-1])
    assert "16/16" in last


def test_adapt_in_a_log_has_a_line_for_each_epoch_also_when_it_goes_on(photos, tmp_path, capfd):
    options = ("--epochs", 2, "--batch-size", 4, "--set", "crops=2")
    assert cli.main(adapt(*options, method="microclip", data=photos, out=tmp_path / "run")) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "epoch" in line]
    pattern = r"microclip: {} of 2 epochs, loss [\d.]+, accuracy 0\.\d\d\d, \d\d:\d\d left"
    assert len(lines) == 2
    assert all(re.fullmatch(pattern.format(i + 1), line) for i, line in enumerate(lines)), lines
    assert lines[-1].endswith("00:00 left")


def test_pictures_of_any_size_run_through(tmp_path):
    for name, size in (("a", (1, 1)), ("b", (300, 20)), ("c", (64, 64))):
        folder = tmp_path / "odd" / name
        folder.mkdir(parents=True)
        Image.new("RGB", size, (200, 30, 40)).save(folder / "x.png")
    assert cli.main(adapt("--epochs", "1", method="microclip", data=tmp_path / "odd", out=Path(tmp_path / "run"))) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["n_images"] == 3
