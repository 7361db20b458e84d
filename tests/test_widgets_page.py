"""docs/widgets.md shows what there is: its lines run, its pictures exist and are small, every view is on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from tiny import ToyDataset, make_tiny_backbone

import clipviz
import clipviz.widgets

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "widgets.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.* holds no checkpoint")
def test_its_lines_open_every_view(monkeypatch, tmp_path):
    setup, *lines = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
    data = ToyDataset(16)
    monkeypatch.setattr(clipviz, "load_backbone", lambda name: make_tiny_backbone())
    monkeypatch.setattr(clipviz, "load_dataset", lambda name, **options: data)
    names = {}
    exec(setup, names)
    names["run"].adaptation.n_epochs = 1
    names["trace"] = names["run"].fit()
    monkeypatch.chdir(tmp_path)
    for folder in re.findall(r'"(runs/\w+)"', PAGE):
        names["trace"].save(Path(folder) / "trace")
    opened = {type(eval(line.strip(), names)).__name__ for line in lines}
    assert opened | {"ViewState"} == set(clipviz.widgets.__all__)


def test_its_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]{30,}\]\((\S+)\)", PAGE)
    assert len(pictures) == 6
    for name in pictures:
        path = DOCS / name
        assert path.stat().st_size < 60_000
        assert 700 <= Image.open(path).width <= 1000
    assert sorted(path.name for path in (DOCS / "widgets").iterdir()) == sorted(Path(name).name for name in pictures)


def test_readme_leads_to_it():
    assert "(docs/widgets.md)" in (DOCS.parent / "README.md").read_text(encoding="utf-8")


def test_every_view_is_known_by_its_text_form_where_its_kernel_is_gone():
    script = Path(clipviz.widgets.__file__).parent / "jupyter/labextensions/clipviz/static/fallback.js"
    (names,) = re.findall(r"CLIPVIZ = /\^\(([\w|]+)\)", script.read_text(encoding="utf-8"))
    assert {*names.split("|"), "ViewState"} == {*clipviz.widgets.__all__}
