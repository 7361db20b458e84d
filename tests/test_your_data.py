"""docs/your_data.md says what is true: its options and benchmarks exist, and so do the error messages."""

import re
from pathlib import Path

import pytest

from clipviz.cli import main as cli
from clipviz.data.sources.benchmarks import benchmarks, find_benchmark

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")


def options(parser):
    found = set(parser._option_string_actions)
    for action in parser._actions:
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            found |= options(child)
    return found


def test_every_option_exists():
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert len(named) > 12
    assert named - options(cli.build_parser()) == set()


def test_the_benchmarks_are_listed():
    listed = TEXT.split("**Benchmarks by name**: ")[1].split("(and usual short forms: ")
    names = {name for name, facts in benchmarks().items() if facts.reader != "split file"}
    assert set(re.findall(r"`(\w+)`", listed[0])) == names
    for short in re.findall(r"`(\w+)`", listed[1].split(")")[0]):
        assert find_benchmark(short) is not None, short


def messages():
    table = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", cell):
            yield from (
                part.strip(" ;':") for part in re.split(r"\.\.\.|'[^']*'", message) if len(part.strip(" ;':")) > 3
            )


# Put together from parts; test_loading.py and test_backbone.py have them word for word
COMPOSED = {"unknown data set or folder", "were trained with QuickGELU, so"}


@pytest.mark.parametrize("part", sorted(set(messages()) - COMPOSED))
def test_every_message_of_the_table_is_one_of_ours(part):
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "clipviz").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # a message may stand on several lines
    joined = re.sub(r"\{[^{}]*\}", "", joined)
    assert part.removeprefix("DTD ") in joined
