"""`clipviz lab`: finds the notebooks, never overwrites anybody's, and says in one line what is missing."""

from __future__ import annotations

import argparse
import json
import re
import resource

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
    (source / "README.md").write_text("start here")
    (source / "conftest.py").write_text("")
    monkeypatch.setattr(lab, "notebooks_folder", lambda: source)
    return calls


def test_a_port_that_nobody_could_open_is_refused_before_anything_is_copied(started, tmp_path, capsys):
    assert main(["lab", "--out", str(tmp_path / "mine"), "--port", "70000"]) == 2
    assert capsys.readouterr().err == "clipviz: error: --port must be at most 65535, got 70000\n"
    assert started == []
    assert not (tmp_path / "mine").exists()


def test_notebooks_are_copied_once_and_work_is_kept(started, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["lab", "--out", str(out), "--no-browser", "--port", "9999"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["01_first.ipynb", "02_second.ipynb", "README.md"]
    assert started == [[f"--ServerApp.root_dir={out}", "--no-browser", "--port=9999"]]
    (out / "01_first.ipynb").write_text("my own work")
    (out / "02_second.ipynb").unlink()
    assert main(["lab", "--out", str(out)]) == 0
    assert (out / "01_first.ipynb").read_text() == "my own work"
    assert (out / "02_second.ipynb").read_text() == "two"
    assert "1 notebooks copied" in capsys.readouterr().out


def test_half_a_copy_is_never_taken_for_a_notebook(started, tmp_path, capsys):
    out = tmp_path / "mine"
    (tmp_path / "source" / "02_second.ipynb").write_text("two" * 2000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # stands in for a full disk
    try:
        assert main(["lab", "--out", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {out / '02_second.ipynb'}: " in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["01_first.ipynb"]


def test_further_options_are_handed_on(started, tmp_path, capsys):
    out = str(tmp_path / "mine")
    assert main(["lab", "--out", out, "--no-browser", "--", "--allow-root", "--ServerApp.token=x y", "--debug"]) == 0
    assert started == [
        [f"--ServerApp.root_dir={out}", "--no-browser", "--allow-root", "--ServerApp.token=x y", "--debug"]
    ]
    with pytest.raises(SystemExit) as stop:
        main(["lab", "--out", out, "--allow-root"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --allow-root; options of JupyterLab go after --" in capsys.readouterr().err


def test_links_of_the_notebooks_lead_somewhere_in_the_copy(monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "run_jupyter", lambda options: 0)
    assert main(["lab", "--out", str(tmp_path / "mine")]) == 0
    links = []
    for path in (tmp_path / "mine").iterdir():
        text = path.read_text(encoding="utf-8")
        cells = json.loads(text)["cells"] if path.suffix == ".ipynb" else []
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"] or [text]
        links += re.findall(r"\]\(((?!http|#)[^)#]+)", "\n".join(prose))
    assert "README.md" in links
    assert [link for link in set(links) if not (tmp_path / "mine" / link).is_file()] == []


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
