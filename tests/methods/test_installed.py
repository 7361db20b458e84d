"""Methods that other packages bring by entry points."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from tiny import ToyDataset

from clipviz.cli.main import main
from clipviz.methods import METHODS, installed
from clipviz.methods.build import build_method

SOURCE = """
from clipviz.methods import Method
from clipviz.methods.zero_shot import ZeroShot

class Echo(ZeroShot):
    name = "echo"
    def __init__(self, backbone, prompts):
        super().__init__(backbone, prompts)

class Nameless(ZeroShot):
    pass

class Half(Method):
    name = "half"
    def logits(self, images): ...

not_a_method = dict
"""


def bring(monkeypatch, folder, *lines):
    """Install a package that brings the methods of `lines`, as far as Python can tell."""
    (folder / "other_methods.py").write_text(SOURCE)
    info = folder / "other_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[clipviz.methods]", *lines]))
    monkeypatch.syspath_prepend(folder)


def test_a_method_of_another_package_is_one_like_ours(monkeypatch, tmp_path, tiny_backbone):
    bring(monkeypatch, tmp_path, "echo = other_methods:Echo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = installed(METHODS)
    assert [*found] == ["echo"]
    monkeypatch.setitem(METHODS, "echo", found["echo"])
    assert build_method("echo", tiny_backbone, ToyDataset(n=3)).name == "echo"
    embeddings = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "three.npz", embeddings=embeddings, classifier=embeddings)
    main(["adapt", "echo", "--data", f"{tmp_path / 'three.npz'}", "--out", f"{tmp_path / 'run'}"])
    assert json.loads((tmp_path / "run" / "results.json").read_text())["method"] == "echo"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("dpa = other_methods:Echo", "method 'dpa' of other-methods is left out: there already is one of this name"),
        ("echo = other_methods:not_a_method", "is left out: it is not a subclass of clipviz.methods.Method"),
        (
            "mine = other_methods:Nameless",
            "'mine' .* is left out: its class has the name 'zero_shot'; give it name = 'mine'",
        ),
        ("half = other_methods:Half", "'half' of other-methods is left out: it lacks pseudo_label"),
        ("echo = other_methods:Missing", "is left out: .*Missing"),
        ("echo = no_such_module:Echo", "is left out: No module named 'no_such_module'"),
    ],
)
def test_what_is_no_method_is_left_out_and_told(monkeypatch, tmp_path, line, reason):
    bring(monkeypatch, tmp_path, line)
    with pytest.warns(UserWarning, match=reason):
        assert installed(METHODS) == {}


def test_a_demo_runs_our_own_methods(monkeypatch, tmp_path):
    import clipviz.cli.demo as demo

    class Elsewhere(METHODS["zero_shot"]):
        pass

    monkeypatch.setitem(METHODS, "elsewhere", Elsewhere)
    asked = []
    monkeypatch.setattr(demo, "_demo", lambda args, names, *rest: asked.extend(names))
    main(["demo", "--out", f"{tmp_path / 'demo'}"])
    assert asked == [name for name in METHODS if name != "elsewhere"]
