"""The trace survives a round trip, and everything that is not a whole trace is refused by a ValueError."""

import hashlib
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import empty_trace, synthetic_trace
from tiny import GOLDEN

import clipviz.trace.folder
from clipviz.report import write_report
from clipviz.trace import FORMAT_VERSION, TABLES, Trace, empty_table

FILES = ["manifest.json", "meta.json", "arrays.safetensors", *(f"{table}.parquet" for table in TABLES)]


@pytest.fixture(scope="module")
def trace():
    return synthetic_trace(n_classes=4, epochs=2, n_images=12, n_eval=8, n_probe=2)


@pytest.fixture(scope="module")
def saved(trace, tmp_path_factory):
    """The bytes of a saved trace, by file name."""
    directory = trace.save(tmp_path_factory.mktemp("saved") / "trace")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(directory: Path, contents: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return directory


def with_valid_manifest(contents: dict[str, bytes]) -> dict[str, bytes]:
    manifest = json.loads(contents["manifest.json"])
    manifest["files"] = {n: hashlib.sha256(contents[n]).hexdigest() for n in contents if n != "manifest.json"}
    return {**contents, "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("labelled", [True, False])
def test_what_was_saved_is_loaded(tmp_path, labelled):
    trace = synthetic_trace(labelled=labelled)
    assert Trace.load(trace.save(tmp_path / "run" / "trace")).equals(trace)
    assert Trace.load(tmp_path / "run").equals(trace), "a run folder stands for its trace"
    assert trace.has_targets is labelled
    assert trace.final_epoch == 4


def test_a_trace_that_version_1_of_the_format_wrote_still_opens():
    trace = Trace.load(GOLDEN / "trace_v1")
    assert repr(trace) == "Trace(microclip on birds/clutter, finished, last epoch 0, accuracy 0.750)"
    assert trace.highlights.probs.shape == (1, 3)
    assert trace.probe.maps["soap"].shape == (2, 1, 8, 8)
    assert trace.sources.logits["static"].shape == (6, 3)
    assert trace.meta["format_version"] == 1


def test_a_trace_with_the_thumbnails_that_runs_used_to_keep_opens_and_is_drawn(tmp_path):
    older = synthetic_trace(n_classes=3, epochs=1, n_images=8, n_eval=6, n_probe=1)
    images, index = np.zeros((2, 4, 4, 3), np.uint8), np.array([1, 3])
    older.arrays |= {"suspects/learned/images": images, "suspects/learned/index": index}
    loaded = Trace.load(older.save(tmp_path / "trace"))
    assert loaded.equals(older)
    assert "Explore" in write_report(loaded, tmp_path / "report.html").read_text("utf-8")


def test_an_empty_trace_is_a_trace(tmp_path):
    loaded = Trace.load(empty_trace().save(tmp_path / "trace"))
    assert loaded.equals(empty_trace())
    assert (loaded.method, loaded.class_names, loaded.final_epoch) == ("unknown", (), -1)
    assert loaded.metric("accuracy").empty
    assert not loaded.has_targets


def test_types_shapes_and_odd_values_survive(tmp_path, trace):
    odd = Trace(
        steps=pd.DataFrame({"epoch": [0], "step": [0], "term": ["loss"], "value": [float("nan")]}),
        skipped=pd.DataFrame({"path": ["ü \udcff <b>.png"], "reason": ["not an image"]}, dtype=object),
        arrays={
            "none": np.zeros((0, 3), np.float16),
            "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
        },
        meta={"class_names": ["<script>", "数", 'quote"'], "seed": np.int64(3), "out": Path("a/b")},
    )
    loaded = Trace.load(odd.save(tmp_path / "trace"))
    assert np.isnan(loaded.steps["value"]).all()
    assert loaded.skipped["path"].tolist() == ["ü \\udcff <b>.png"]
    assert loaded.arrays["none"].shape == (0, 3)
    assert (loaded.arrays["turned"] == odd.arrays["turned"]).all()
    assert loaded.class_names == ("<script>", "数", 'quote"')
    assert (loaded.meta["seed"], loaded.meta["out"]) == (3, "a/b")


def test_metric_is_a_series_by_epoch(trace):
    accuracy = trace.metric("accuracy")
    assert accuracy.index.tolist() == [-1, 0, 1]
    assert accuracy.between(0, 1).all()


def test_equals_sees_every_difference(trace):
    other = synthetic_trace(n_classes=4, epochs=2, n_images=12, n_eval=8, n_probe=2)
    assert trace.equals(other)
    other.arrays["probe/soap"] = other.arrays["probe/soap"] + 1e-7
    assert not trace.equals(other)


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path, trace):
    empty_trace().save(tmp_path / "trace")
    trace.save(tmp_path / "trace")
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]
    assert Trace.load(tmp_path).equals(trace)


def test_a_trace_that_is_replaced_while_it_is_read_is_the_older_or_the_newer_one(tmp_path, trace, monkeypatch):
    place = empty_trace().save(tmp_path / "trace")
    read, reads = clipviz.trace.folder._read, []

    def read_slowly(path):
        reads.append(path.name)
        if len(reads) == 3:  # the manifest and one file are of the older
            trace.save(place)
        return read(path)

    monkeypatch.setattr(clipviz.trace.folder, "_read", read_slowly)
    assert Trace.load(tmp_path).equals(trace)
    assert reads.count("manifest.json") == 2


def test_a_trace_that_is_just_being_put_in_place_is_waited_for(tmp_path, trace):
    place = trace.save(tmp_path / "trace")
    older = place.rename(tmp_path / ".trace.0123.older")
    timer = threading.Timer(0.2, lambda: older.rename(place))
    timer.start()
    assert Trace.load(tmp_path).equals(trace)
    timer.join()
    place.rename(older)  # of a process that was killed at that moment
    with pytest.raises(ValueError, match="no trace in"):
        Trace.load(tmp_path)


def test_a_failed_save_keeps_the_older_trace(tmp_path, trace, monkeypatch):
    trace.save(tmp_path / "trace")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        empty_trace().save(tmp_path / "trace")
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]
    assert Trace.load(tmp_path).equals(trace)


def guesses(labels):
    """`samples` as a method of one's own may have them."""
    rows = {"epoch": 0, "index": [0, 1], "pseudo_label": labels, "target": -1}
    return pd.DataFrame({**rows, **dict.fromkeys(("confidence", "margin", "weight"), 0.5)})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"arrays": {"x": np.array(["text"])}}, "'x' must hold numbers"),
        ({"arrays": {"x": np.array([None], dtype=object)}}, "'x' must hold numbers"),
        ({"meta": {"x": float("nan")}}, "valid JSON"),
        ({"meta": {"x": object()}}, "object cannot be stored as JSON"),
        ({"epochs": pd.DataFrame({"epoch": [0]})}, r"table 'epochs' lacks the columns \['metric', 'value'\]"),
        (
            {"skipped": pd.DataFrame({"path": ["a", 3], "reason": ["", ""]})},
            "table 'skipped' cannot be stored",
        ),
        (
            {"meta": {"class_names": ["a", "b"]}, "samples": guesses([0, 7])},
            "'pseudo_label' needs classes of the 2 in class_names, got 7",
        ),
        ({"samples": guesses([0.5, 1.0])}, "'pseudo_label' needs classes, got float64"),
        (
            {"meta": {"class_names": ["a", "b"]}, "arrays": {"snapshot/c": np.ones((1, 3, 4))}},
            r"'snapshot/c' needs the shape \(e, 2, d\), got \(1, 3, 4\)",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Trace(**change).save(tmp_path / "trace")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(tmp_path, trace):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"'thesis.tex'.*use another folder"):
        trace.save(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_places_without_a_trace_say_what_is_there(tmp_path):
    pickled = tmp_path / "checkpoint.pt"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    for path, complaint in [
        (tmp_path / "absent", "no such folder"),
        (tmp_path, "neither it nor its trace/ holds manifest.json"),
        (pickled, "looks pickled"),
        ("a\0b", "no such folder"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            Trace.load(path)


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ({"format": "other"}, "something else"),
        ([], "something else"),
        (
            {"format": "clipviz-trace", "format_version": FORMAT_VERSION + 1, "files": {}},
            "newer.*upgrade clipviz",
        ),
        ({"format": "clipviz-trace", "format_version": "1", "files": {}}, "whole number"),
        ({"format": "clipviz-trace", "format_version": 1, "files": {"meta.json": "0"}}, "must list the hash"),
    ],
)
def test_foreign_and_newer_manifests_are_refused(tmp_path, saved, manifest, complaint):
    directory = write(tmp_path / "trace", {**saved, "manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(ValueError, match=complaint):
        Trace.load(directory)


def test_a_trace_says_in_one_line_what_it_is():
    text = repr(Trace(meta={"method": "dpa", "data": "photos", "status": "finished"}))
    assert text == "Trace(dpa on photos, finished, last epoch -1)"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, saved, name):
    directory = write(tmp_path, {other: content for other, content in saved.items() if other != name})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Trace.load(directory)


def test_contents_of_another_kind_are_refused_even_with_their_hash(tmp_path, saved):
    pickled = pickle.dumps(print)
    for name, content, complaint in [
        ("meta.json", b'{"class_names": [1]}', "class_names must be a list of strings"),
        ("meta.json", b"[]", "wanted a JSON object"),
        ("steps.parquet", saved["epochs.parquet"], r"lacks the columns \['step', 'term'\]"),
        ("samples.parquet", pickled, "cannot be read"),
        ("arrays.safetensors", pickled, "cannot be read"),
    ]:
        directory = write(tmp_path / "trace", with_valid_manifest({**saved, name: content}))
        with pytest.raises(ValueError, match=complaint):
            Trace.load(directory)


@pytest.mark.parametrize("rehash", [False, True], ids=["damaged", "damaged and rehashed"])
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_bytes_give_a_value_error_or_the_same_trace(tmp_path, saved, trace, rehash, data):
    name = data.draw(st.sampled_from(FILES))
    content = bytearray(saved[name])
    if data.draw(st.booleans(), label="truncate"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = {**saved, name: bytes(content)}
    if rehash and name != "manifest.json":  # then only the parsers stand between the bytes and the user
        damaged = with_valid_manifest(damaged)
    directory = write(tmp_path / "trace", damaged)
    try:
        loaded = Trace.load(directory)
    except ValueError:
        return
    assert (rehash and name != "manifest.json") or loaded.equals(trace)


def test_saving_and_loading_do_not_import_torch(tmp_path):
    script = (
        "import sys; from clipviz.trace import Trace; "
        f"Trace.load(Trace().save({str(tmp_path / 'trace')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_empty_tables_have_the_promised_columns():
    for name, columns in TABLES.items():
        assert list(empty_table(name).columns) == list(columns)
