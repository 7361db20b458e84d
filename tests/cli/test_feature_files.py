"""Files of embeddings on the command line: what goes together, what does not, and what the user is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import clusters

from clipviz.cli import main as cli
from clipviz.report import write_report
from clipviz.trace import Trace

NAMES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def arrays():
    rows = {split: clusters(n=60, n_classes=3, seed=0) for split in ("train", "test")}
    rows["test"].embeddings = rows["test"].embeddings.flip(1).flip(0).flip(1) + 0.01
    return {
        split: {
            **{"embeddings": data.embeddings.numpy(), "labels": data.targets, "logit_scale": 20.0},
            **{"classifier": data.classifier.numpy(), "class_names": np.array(NAMES)},
        }
        for split, data in rows.items()
    }


@pytest.fixture
def files(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, split="train", without=(), **changes):
        content = {key: value for key, value in {**arrays[split], **changes}.items() if key not in without}
        np.savez(tmp_path / name, **content)
        return name

    return write


def adapt(*arguments, method="tip_adapter", out="run"):
    return cli.main(["adapt", method, "--device", "cpu", "--out", out, *arguments])


def results(out="run"):
    return json.loads(Path(out, "results.json").read_text())


def test_a_file_to_measure_on_needs_embeddings_and_labels_only(files):
    data = files("a.npz")
    evaluation = files("b.npz", "test", without=("classifier", "class_names", "logit_scale"))
    assert adapt("--data", data, "--eval-data", evaluation) == 0
    assert adapt("--data", data, "--eval-data", files("c.npz", "test"), out="whole") == 0
    assert results()["accuracy"] == results("whole")["accuracy"]
    assert (results()["accuracy_is"], results()["eval_data"]) == ("test", "b.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.ones((60, 8), np.float32), "classifier": np.eye(8, dtype=np.float32)[:3]},
         "b.npz has embeddings of width 8, but tip_adapter was built for 'features', whose are of width 16"),
        ({"class_names": np.array(["cat", "cow", "dog"])}, "class 1 is 'cow' there and 'dog' here"),
        ({"class_names": np.array([*NAMES, "emu"]), "classifier": np.eye(16, dtype=np.float32)[:4]}, "4 against 3"),
        ({"classifier": np.ones((16, 3), np.float32)}, "is 3 wide, embeddings 16; it is (E, C): store classifier.T"),
    ],
    ids=["width", "names", "number", "transposed"],
)  # fmt: skip
def test_a_file_to_measure_on_that_does_not_fit_is_refused_in_a_line_that_says_why(files, capsys, changes, message):
    assert adapt("--data", files("a.npz"), "--eval-data", files("b.npz", "test", **changes)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_a_file_does_not_tell_by_itself_is_told(files, capsys):
    other = files("b.npz", "test", classifier=np.eye(16, dtype=np.float32)[:3])
    logarithm = files("a.npz", logit_scale=np.log(100.0), model="birds")
    assert adapt("--data", logarithm, "--eval-data", other, "--set", "alpha=1.5") == 0
    said = capsys.readouterr().err
    assert "logit_scale is 4.60517" in said
    assert "store its exponential, 100" in said
    assert "b.npz holds another classifier, which is not used" in said
    assert "the embeddings are of the model 'birds', so its preset is used; else: --preset default" in said
    config = json.loads(Path("run/config.json").read_text())
    assert (config["preset"], config["classes_from"]) == ("birds", "classifier")
    assert (results()["preset"], Trace.load("run").meta["preset"]) == ("birds", "birds")


def test_a_benchmarks_beta_is_warned_of_and_named(files, capsys):
    assert adapt("--data", files("a.npz"), "--preset", "caltech101") == 0
    assert "preset caltech101 of tip_adapter has beta 1" in capsys.readouterr().err
    assert results()["preset"] == "caltech101"
    assert adapt("--data", "a.npz", "--preset", "caltech101", "--set", "beta=5", out="sharp") == 0
    assert adapt("--data", "a.npz", method="dpa", out="dpa") == 0
    assert "beta" not in capsys.readouterr().err
    assert results("dpa")["preset"] == "default"


@pytest.mark.parametrize("same", ["./a.npz", "copy.npz"])
def test_the_same_embeddings_are_not_images_that_no_method_has_seen(files, same):
    files("copy.npz"), files("a.npz")
    assert adapt("--data", "a.npz", "--eval-data", same) == 0
    assert results()["accuracy_is"] == "transductive"


def test_runs_with_different_classifiers_on_the_same_embeddings_share_a_table(files, capsys):
    rng = np.random.default_rng(0)
    other = files("other.npz", classifier=rng.normal(size=(3, 16)).astype(np.float32))
    assert adapt("--data", files("a.npz"), out="one") == 0
    assert adapt("--data", other, out="two") == 0
    assert adapt("--data", files("b.npz", "test"), out="three") == 0
    capsys.readouterr()
    assert cli.main(["compare", "one", "two"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[:3] == ["run", "data", "method"]
    assert [line.split()[1] for line in lines] == ["a.npz", "other.npz"]
    assert all("of cached images" in line for line in lines)
    assert cli.main(["compare", "one", "three"]) == 2


def test_the_report_says_what_the_methods_saw(files, tmp_path):
    assert adapt("--data", files("a.npz"), "--epochs", "1", method="ntua") == 0
    trace = Trace.load("run")
    assert trace.meta["sources"] == ["zero_shot", "cache"]
    assert trace.meta["settings"]["method"]["text"] == "classifier"
    assert (results()["teacher"], results()["teacher_zero_shot_accuracy"]) == ("none", None)
    text = write_report(trace, tmp_path / "r.html").read_text()
    assert "saw embeddings of the images and a classifier from the same file" in text
    assert "% of cached images" in text
    assert "names and descriptions" not in text
    assert "A method gains" not in text
