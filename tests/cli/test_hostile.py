"""Hostile input: folders as they are found, files that are not what they say, damage of every kind.

One rule for all of it: a run goes on with what is good and says what it left out, or there is one `ValueError` of one
line; never another exception, never a hang, and nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
from forked import start
from hostile import BAD, CLASS_FOLDERS, GOOD, content, encoded, make_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TINY, ToyDataset, differences, make_tiny_backbone, microclip

from clipviz.backbone import load_backbone
from clipviz.cli import main as cli
from clipviz.cli.progress import opening
from clipviz.data import load_dataset
from clipviz.data.images.decode import UnreadableImage, read_image
from clipviz.data.sources.layout import display_name
from clipviz.methods.base import AdaptConfig
from clipviz.prompts import read_descriptions
from clipviz.trace import Trace
from clipviz.training.checkpoint import _digest, load_checkpoint, save_checkpoint
from clipviz.training.loop import Adaptation

# A second is plenty for a damaged file of a few hundred bytes; ten allow for a busy machine
FUZZ = settings(
    max_examples=80, deadline=10_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def adapt(data, out, *extra, method="zero_shot"):
    return ["adapt", method, "--model", "birds", "--data", str(data), "--out", str(out), *map(str, extra)]


# ------------------------------------------------------------------------------------------------- the hostile folder


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """microCLIP on the folder, through the command line; returns (exit status, stderr, run folder)."""
    root = tmp_path_factory.mktemp("hostile")
    make_folder(root / "photos", GOOD | BAD)
    command = adapt("photos", "run", "--epochs", 1, "--set", "crops=2", method="microclip")
    before, said = os.listdir(root), tmp_path_factory.mktemp("said") / "stderr"
    process = start(cli.main, command, folder=root, said=said)
    process.join(800)
    assert sorted(os.listdir(root)) == sorted([*before, "run"]), "a file name was taken for something else"
    return process.exitcode, said.read_text(), root / "run"


def test_the_hostile_folder_is_large_enough():
    assert len(GOOD) + len(BAD) > 60
    assert not GOOD.keys() & BAD.keys()


def test_a_hostile_folder_runs_to_the_end_with_every_good_image(hostile_run):
    status, stderr, folder = hostile_run
    assert status == 0, stderr
    results = json.loads((folder / "results.json").read_text())
    assert (results["n_images"], results["n_skipped"]) == (len(GOOD), len(BAD))
    trace = Trace.load(folder)
    assert sorted(trace.class_names) == sorted(CLASS_FOLDERS)
    assert np.isfinite(trace.steps["value"]).all()


def test_the_log_names_each_skipped_file_and_why(hostile_run):
    _, stderr, folder = hostile_run
    skipped = Trace.load(folder).skipped
    assert sorted(os.path.basename(path) for path in skipped["path"]) == sorted(BAD)
    assert all(reason and "\n" not in reason for reason in skipped["reason"])
    (line,) = [line for line in stderr.splitlines() if line.startswith("skipped")]
    assert line.startswith(f"skipped {len(BAD)} files: ")
    assert line.endswith(f"and {len(BAD) - 5} more, all listed in run/trace/skipped.parquet")


class _Page(html.parser.HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self):
        super().__init__()
        self.active, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.active += [(tag, name, value) for name, value in attributes if name.startswith("on")]
        self.active += [(tag, name, value) for name, value in attributes if name in ("src", "href") and value == "x"]


def test_no_name_of_a_hostile_folder_becomes_markup(hostile_run, tmp_path):
    _, _, folder = hostile_run
    page = tmp_path / "page.html"
    assert cli.main(["report", str(folder), "--out", str(page)]) == 0
    text = page.read_text()
    parser = _Page()
    parser.feed(text)
    assert parser.active == []
    assert parser.tags.count("script") == text.count("<script") == text.count("</script")
    assert "alert(1)" in text  # it is shown, as text


def test_the_same_folder_with_bad_files_only_is_one_error(tmp_path, capfd):
    make_folder(tmp_path / "photos", BAD)
    assert cli.main(adapt(tmp_path / "photos", tmp_path / "run")) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no readable image in the folder" in line
    assert "for example" in line


@pytest.mark.parametrize("name", GOOD)
def test_each_odd_image_is_read_upright_and_in_color(tmp_path, name):
    path = tmp_path / name
    GOOD[name](path)
    image = read_image(path)
    assert image.mode == "RGB"
    if name.startswith("exif-") and name != "exif-bad.jpg":
        turned = name in ("exif-6.jpg", "exif-8.jpg")
        assert image.size == ((30, 40) if turned else (40, 30))
    if name.startswith("animated"):
        assert image.getpixel((39, 0))[0] > 200  # the first frame, not the blue one


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("pipe.png", "a folder.png")])
def test_each_bad_file_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    BAD[name](path)
    began = time.monotonic()
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert time.monotonic() - began < 5
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- too little of all


@pytest.mark.parametrize("method", ["zero_shot", "tip_adapter", "ntua", "dpa", "microclip"])
def test_three_images_of_one_class_are_enough(tmp_path, method, capfd):
    for i in range(3):
        path = tmp_path / "photos" / "owl" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ToyDataset(3).image(i).save(path)
    (tmp_path / "photos" / "wren").mkdir()
    assert cli.main(adapt(tmp_path / "photos", tmp_path / "run", "--epochs", 1, method=method)) == 0, capfd.readouterr()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["n_images"] == 3
    if method in ("tip_adapter", "ntua"):  # 16 images a class are wanted
        assert 0 < results["coverage"] <= 1
        assert results["cache_size"] <= 3


# ------------------------------------------------------------------------------------------------- damage


def mutated(data, original):
    """Bytes with a few of them changed, cut out or put in; at least one byte is another."""
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if kind == "flip" and changed:
            changed[position] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del changed[position : position + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            changed[position:position] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del changed[position:]
    return bytes(changed)


def attempt(read, *arguments):
    """(what was read, None), or (None, the one line of the `ValueError`)."""
    try:
        return read(*arguments), None
    except ValueError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None, message


IMAGES = [encoded(form) for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")]


@pytest.mark.filterwarnings("ignore::UserWarning")
@FUZZ
@given(data=st.data())
def test_damaged_images_are_read_or_refused(tmp_path, data):
    path = tmp_path / "x.png"
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=300), st.sampled_from(IMAGES).map(bytes))))
    path.write_bytes(mutated(data, path.read_bytes()))
    image, reason = attempt(read_image, path)
    assert image.mode == "RGB" if reason is None else reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
DESCRIPTIONS = json.dumps({"owl": ["An owl.", "It hoots."], "wren": ["A wren."]}).encode()


@FUZZ
@given(data=st.data())
def test_damaged_descriptions_are_read_or_refused(tmp_path, data):
    path = tmp_path / "d.json"
    raw = data.draw(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.just(DESCRIPTIONS)))
    path.write_bytes(mutated(data, raw) if data.draw(st.booleans()) else raw)
    for classes in (None, ["owl", "wren"]):
        found, _ = attempt(read_descriptions, path, classes)
        assert all(isinstance(text, str) and text for sentences in (found or {}).values() for text in sentences)


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "d.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_descriptions(tmp_path / "d.json")
    (tmp_path / "split_zhou_X.json").write_text('{"a":' * 200_000)
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_dataset(tmp_path / "split_zhou_X.json")


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """A folder with images, and the bytes of good lists of them."""
    root = tmp_path_factory.mktemp("lists")
    for name in ("a.png", "b.png"):
        content(encoded())(root / name)
    rows = [["path", "label"], ["a.png", "owl"], ["b.png", "wren"]]
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    parquet = io.BytesIO()
    import pandas as pd

    pd.DataFrame(rows[1:], columns=rows[0]).to_parquet(parquet)
    coop = json.dumps({"train": [["a.png", 0, "owl"], ["b.png", 1, "wren"]]})
    features = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(features, embeddings=rng.normal(size=(6, 4)), classifier=rng.normal(size=(2, 4)), labels=np.arange(6) % 2)
    return root, {
        "m.csv": buffer.getvalue().encode(),
        "m.parquet": parquet.getvalue(),
        "split_zhou_X.json": coop.encode(),
        "f.npz": features.getvalue(),
        "classes.txt": b"owl\nwren\n",
    }


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "split_zhou_X.json", "f.npz", "classes.txt"])
@pytest.mark.filterwarnings("ignore")
@FUZZ
@given(data=st.data())
def test_damaged_lists_of_images_are_read_or_refused(lists, name, data):
    root, good = lists
    path = root / name
    path.write_bytes(mutated(data, good[name]))
    dataset, _ = attempt(load_dataset, root if name == "classes.txt" else path)
    path.unlink()
    if dataset is not None:
        assert len(dataset) >= 1
        assert len(dataset.targets) == len(dataset.names)


# ------------------------------------------------------------------------------------------------- checkpoints


def adaptation():
    method = microclip(make_tiny_backbone(), crops=1)
    return Adaptation(method, ToyDataset(8), AdaptConfig(epochs=1, batch_size=4))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The path and bytes of a checkpoint in the middle of an epoch, and an adaptation that it fits."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    running = adaptation()
    events = iter(running)
    for _ in range(3):
        next(events)
    save_checkpoint(path, running)
    fitting = adaptation()
    load_checkpoint(path, fitting)
    return path, path.read_bytes(), fitting


@FUZZ
@given(data=st.data())
def test_a_damaged_checkpoint_is_always_noticed(checkpoint, data):
    path, good, fitting = checkpoint
    damaged = mutated(data, good)
    if damaged == good:
        return
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="checkpoint") as error:
        load_checkpoint(path, fitting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("position", [0.3, 0.6, 0.99])
def test_a_single_bit_in_the_numbers_is_noticed(checkpoint, position):
    path, good, fitting = checkpoint
    damaged = bytearray(good)
    damaged[int(position * len(good))] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="is not what was saved"):
        load_checkpoint(path, fitting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "clipviz-checkpoint-1"}, "is of another version of clipviz"),
        ({"format": "something"}, "is not a clipviz checkpoint"),
        (
            {"identity": json.dumps({"method": "dpa"})},
            "belongs to another run: method was 'dpa', now it is 'microclip'",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(checkpoint, tmp_path, change, message):
    path, good, fitting = checkpoint
    path.write_bytes(good)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["digest"]
    metadata.update(change)
    metadata["digest"] = _digest(tensors, metadata)
    save_file(tensors, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "other.safetensors", fitting)


# ------------------------------------------------------------------------------------------------- pickles


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


def object_array(trap):
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=np.array([trap], dtype=object))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("weights.pt", lambda path: load_backbone("hostile-tiny", str(path))),
        ("weights.safetensors", lambda path: load_backbone("hostile-tiny", str(path))),
        ("features.safetensors", load_dataset),
        ("features.npz", load_dataset),
        ("manifest.parquet", load_dataset),
        ("manifest.csv", load_dataset),
        ("split_zhou_X.json", load_dataset),
        ("descriptions.json", read_descriptions),
        ("image.png", read_image),
        ("trace", Trace.load),
        ("checkpoint.safetensors", lambda path: load_checkpoint(path, adaptation())),
    ],
)
def test_a_pickle_under_any_name_is_refused_and_not_opened(tmp_path, name, load):
    (tmp_path / "hostile-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "hostile-tiny.json")
    proof, path = tmp_path / "proof", tmp_path / name
    trap = Trap(proof)
    path.write_bytes(object_array(trap) if name.endswith(".npz") else pickle.dumps(trap))
    _, message = attempt(load, path)
    assert message
    assert not proof.exists()


# ------------------------------------------------------------------------------------------------- machines that fail


def test_opening_counts_on_a_terminal_only(capfd, monkeypatch):
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)  # noqa: B023 (used at once)
        show = opening()
        for done, total in ((1, 3), (2, 3), (3, 3)):
            show(done, total)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("opening images" in shown.err) == is_terminal


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("few") / "photos"
    for i in range(12):
        path = root / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (20 * i, 90, 40 * (i % 2))).save(path)
    return root


def three_epochs(photos, out, *extra):
    return adapt(photos, out, "--epochs", 3, "--batch-size", 4, *extra, method="microclip")


def test_a_full_disk_leaves_no_half_written_file(photos, tmp_path):
    """A limit on the size of files stands in for the disk: the operating system refuses the bytes beyond it."""
    out, said = tmp_path / "run", tmp_path / "stderr"
    process = start(cli.main, three_epochs(photos, out, "--set", "crops=2"), said=said, most=30_000)
    process.join(250)
    stderr = said.read_text()
    assert process.exitcode == 2, stderr
    assert len([line for line in stderr.splitlines() if line.startswith("clipviz: error:")]) == 1, stderr
    assert "Traceback" not in stderr
    assert [name for name in os.listdir(out) if name not in ("config.json",)] == []
    assert cli.main(adapt(photos, out, "--epochs", 1, "--resume", "--set", "crops=2", method="microclip")) == 0


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(photos, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = adapt(photos, out, "--epochs", 2, "--set", "crops=2", method="microclip")
    assert cli.main(arguments) == 0
    first = Trace.load(out)
    newest = out / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    capfd.readouterr()
    assert cli.main([*arguments, "--resume"]) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cannot read checkpoint")]
    assert line.endswith("continuing from the one before it")
    assert [found for found in differences(Trace.load(out), first) if found != "meta command"] == []


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The trace of the run that nobody stops."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(three_epochs(photos, out)) == 0
    return Trace.load(out)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_killed_or_stopped_goes_on_to_the_same_bits(photos, whole, tmp_path, sign):
    out, said = tmp_path / "run", tmp_path / "stderr"
    process = start(cli.main, three_epochs(photos, out), said=said)
    deadline = time.monotonic() + 200
    while not (out / "checkpoint.safetensors").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, sign)
    process.join(300)
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "results.json").exists()
    if sign != signal.SIGKILL:
        assert process.exitcode == 128 + sign
        assert Trace.load(out).meta["status"] == "stopped"
        stopped = "clipviz: error: stopped and saved; the same command with --resume continues from here\n"
        assert said.read_text() == stopped
    assert cli.main(three_epochs(photos, out, "--resume")) == 0
    assert [d for d in differences(Trace.load(out), whole) if d != "meta command"] == []
    assert not [name for name in os.listdir(out) if display_name(name).startswith(".")]
