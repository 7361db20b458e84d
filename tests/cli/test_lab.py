"""`clipviz lab`: finds the notebooks, never overwrites anybody's, and says in one line what is missing."""

from __future__ import annotations

import argparse

import pytest

from clipviz.cli import lab
from clipviz.cli.main import build_parser, main


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What JupyterLab was started with, without starting it."""
    calls = []
    monkeypatch.setattr(lab, "run_jupyter", lambda options: calls.append(options) or 0)
    source = tmp_path / "source"
    source.mkdir()
    (source / "01_first.ipynb").write_text("one")
    (source / "02_second.ipynb").write_text("two")
    (source / "conftest.py").write_text("")
    monkeypatch.setattr(lab, "notebooks_folder", lambda: source)
    return calls


def test_notebooks_are_copied_once_and_work_is_kept(started, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["lab", "--out", str(out), "--no-browser", "--port", "9999"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["01_first.ipynb", "02_second.ipynb"]
    assert started == [[f"--ServerApp.root_dir={out}", "--no-browser", "--port=9999"]]
    (out / "01_first.ipynb").write_text("my own work")
    (out / "02_second.ipynb").unlink()
    assert main(["lab", "--out", str(out)]) == 0
    assert (out / "01_first.ipynb").read_text() == "my own work"
    assert (out / "02_second.ipynb").read_text() == "two"
    assert "1 notebooks copied" in capsys.readouterr().out


def test_without_jupyterlab_one_line_says_what_to_install(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lab, "find_spec", lambda name: None if name == "jupyterlab" else object())
    assert main(["lab", "--out", str(tmp_path / "mine")]) == 2
    error = capsys.readouterr().err
    assert error == "clipviz: error: clipviz lab needs jupyterlab, not installed here; pip install clipviz[lab]\n"
    assert not (tmp_path / "mine").exists()
    assert started == []


def test_a_folder_that_cannot_be_written_to(started, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["lab", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_jupyterlab_that_fails_is_no_success(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lab, "run_jupyter", lambda options: 3)
    assert main(["lab", "--out", str(tmp_path / "mine")]) == 2
    assert "status 3" in capsys.readouterr().err


def test_the_notebooks_of_this_installation_are_found():
    assert list(lab.notebooks_folder().glob("*.ipynb"))


def test_help_names_the_defaults():
    args = build_parser().parse_args(["lab"])
    assert isinstance(args, argparse.Namespace)
    assert args.out == "clipviz-notebooks"
    assert args.no_browser is False
