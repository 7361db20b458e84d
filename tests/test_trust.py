"""The page of promises: the tests that it names are there, and what stands on no other test's list holds."""

import re
import socket
from pathlib import Path

import pytest

from clipviz import adapt, load_backbone, load_dataset, record
from clipviz.methods import METHODS
from clipviz.report import write_report

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("table", "least"), [("promise", 15), ("attack", 30)])
def test_every_promise_and_every_attack_names_tests_that_are_there(table, least):
    rows = re.search(rf"\| {table} .*?\n\n", PAGE, re.S)[0].split("\n")[2:-2]
    assert len(rows) >= least
    for promise in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", promise)
        assert tests, promise
        assert [test for test in tests if not (ROOT / test).is_file()] == []


def test_a_run_on_what_is_bundled_asks_nobody(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    images = load_dataset("birds/fog", "test", n=6)
    method = METHODS["zero_shot"](load_backbone("birds"), images.prompts)
    trace = record(adapt(method, images, eval_dataset=images))
    assert write_report(trace, tmp_path / "report.html").stat().st_size > 0
