"""Tags beside a run: kept whole, read back, shared by two readers, refused when they are not ours."""

from __future__ import annotations

import json
import os

import pytest

from clipviz.trace import Tags


def test_tags_are_kept_and_read_back(tmp_path):
    tags = Tags(str(tmp_path))
    tags.change(["eval/3", "eval/5"], " odd ", add=True)
    tags.change(["eval/3"], "two birds", add=True)
    tags.change(["eval/5"], "odd", add=False)
    again = Tags(str(tmp_path))
    assert again.by_image == {"eval/3": ["odd", "two birds"]}
    assert again.names == ["odd", "two birds"]
    assert os.listdir(tmp_path) == ["tags.json"]


def test_two_readers_keep_what_the_other_wrote(tmp_path):
    one, other = Tags(str(tmp_path)), Tags(str(tmp_path))
    one.change(["eval/1"], "a", add=True)
    other.change(["eval/2"], "b", add=True)
    assert Tags(str(tmp_path)).by_image == {"eval/1": ["a"], "eval/2": ["b"]}


def test_a_run_without_a_folder_keeps_them_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tags = Tags("")
    tags.change(["eval/1"], "a", add=True)
    assert tags.by_image == {"eval/1": ["a"]}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tag", ["", "  ", "x" * 61, "a\nb", "\x1b[31m"])
def test_what_is_no_tag_is_refused(tmp_path, tag):
    with pytest.raises(ValueError, match="a tag has 1 to 60 letters on one line"):
        Tags(str(tmp_path)).change(["eval/1"], tag, add=True)
    assert os.listdir(tmp_path) == []


GOOD = {"format": "clipviz-tags", "format_version": 1}


@pytest.mark.parametrize(
    "content",
    [
        "not json", "[]", "{}", json.dumps({**GOOD, "format_version": 2, "tags": {}}), json.dumps({**GOOD, "tags": []}),
        json.dumps({**GOOD, "tags": {"../x": ["a"]}}), json.dumps({**GOOD, "tags": {"eval/1": "a"}}),
        json.dumps({**GOOD, "tags": {"eval/1": ["\x1b[31m"]}}), "[" * 100_000, b"\x80\x04K\x01.",
    ],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_refused_and_left(tmp_path, content):
    path = tmp_path / "tags.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"tags\.json cannot be read as tags .*; move it elsewhere") as refused:
        Tags(str(tmp_path))
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


def test_a_file_that_became_another_is_not_written_over(tmp_path):
    tags = Tags(str(tmp_path))
    (tmp_path / "tags.json").write_text("mine")
    with pytest.raises(ValueError, match="cannot be read as tags"):
        tags.change(["eval/1"], "a", add=True)
    assert (tmp_path / "tags.json").read_text() == "mine"
