"""What grows with the data grows in step with it: operations are counted, for a clock on a busy machine says little."""

import os
from collections import Counter

import pytest
from PIL import Image

from clipviz.data import load_dataset
from clipviz.errors import listed
from clipviz.methods.base import prompt_sentences
from clipviz.prompts import ClassPrompts, check_class_names, read_descriptions


@pytest.fixture
def looks(monkeypatch):
    """How often the file system was asked, by what was asked."""
    counts = Counter()

    def counted(name):
        real = getattr(os, name)

        def ask(*arguments, **options):
            counts[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, ask)

    for name in ("stat", "lstat", "scandir"):
        counted(name)
    return counts


def image(folder):
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "x.png")


def test_each_of_many_class_folders_is_looked_at_a_few_times(tmp_path, looks):
    for i in range(60):
        image(tmp_path / f"class {i:02}")
    looks.clear()
    assert len(load_dataset(tmp_path)) == 60
    assert sum(looks.values()) < 12 * 60


def test_each_of_many_nested_folders_is_looked_at_a_few_times(tmp_path, looks):
    deepest = tmp_path.joinpath("class", *"abcdefghij" * 12)
    image(deepest)
    image(tmp_path / "other")
    looks.clear()
    assert len(load_dataset(tmp_path)) == 2
    assert sum(looks.values()) < 12 * 122


def test_a_link_back_into_the_data_adds_nothing_however_it_is_called(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / name)
    (tmp_path / "a" / "to b").symlink_to("../b")
    (tmp_path / "a" / "to all").symlink_to("..")
    (tmp_path / "a" / "to itself").symlink_to(".")
    data = load_dataset(tmp_path)
    assert data.names == ["a/x.png", "b/x.png"]
    assert [skipped.path for skipped in data.skipped] == ["a/to all", "a/to b", "a/to itself"]


class Name(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_each_of_many_class_names_is_looked_up_and_not_searched_for():
    names = tuple(Name(f"class {i}") for i in range(1500))
    Name.compared = 0
    prompts = ClassPrompts(names, ("a {}.",), dict.fromkeys(names, ("It is one.",)))
    for source in ("templates", "descriptions"):
        assert len(prompt_sentences(prompts, source)) == 1500
    again = [Name(name) for name in names]
    with pytest.raises(ValueError, match=r"'class 0' occurs twice"):
        check_class_names([*names, *again])
    assert Name.compared < 20 * 1500


def test_of_many_things_a_line_names_the_first_and_how_many_more():
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(20)), "; ").endswith("; 19")
    assert listed(map(str, range(50_000))).endswith(", 19 and 49,980 more")
    assert len(listed(["x" * 10_000] * 3)) < 2000


MANY = [f"class {i}" for i in range(5000)]


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: check_class_names(MANY * 2),
        lambda folder: check_class_names([" "] * 5000),
        lambda folder: read_descriptions({name: ["x"] for name in MANY}, ["owl"]),
        lambda folder: read_descriptions({name: [] for name in MANY}),
        lambda folder: ClassPrompts(("owl",), tuple(MANY)),
        lambda folder: load_dataset(folder, classes=["owl"]),
        lambda folder: load_dataset(folder / "table.csv", classes=["owl"]),
        lambda folder: read_descriptions(folder / "many.json", ["owl"]),
    ],
)
def test_no_line_names_thousands(tmp_path, use):
    for i in range(40):
        image(tmp_path / f"a class with a long name, number {i}")
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *(f"x.png,{name}" for name in MANY)]))
    (tmp_path / "many.json").write_text("{{{}}}".format(",".join(f'"{name}": ["x"], "{name}": ["x"]' for name in MANY)))
    with pytest.raises(ValueError, match=r" more") as error:
        use(tmp_path)
    assert len(str(error.value)) < 3000
