"""docs/scaling.md: its tables are made from what was measured, its options exist, its program runs."""

import re
from pathlib import Path

import pytest
import torch
from test_your_data import options
from tiny import ToyDataset

from benchmarks.scaling import Constant, arithmetic, devices, exchanged, hours, measure_trace, read, size, written
from clipviz.cli import main as cli

TEXT = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_tables_are_made_from_the_measured_constants():
    assert written(TEXT, read()) == TEXT
    for name in ("constants", "arithmetic", "devices", "exchange"):
        assert len(re.search(rf"<!-- {name} -->\n(.*)\n<!-- /{name} -->", TEXT, re.DOTALL)[1].splitlines()) > 3, name


def test_known_answers_of_the_arithmetic():
    constants = {constant.name: 1.0 for constant in read()}
    rows = {what: value for what, _, value in arithmetic(constants, 3_600_000, 1000)}
    assert rows["open the data set"] == "1 h"  # 1 ms each
    assert rows["embed everything once"] == hours(1000 * 1.002)
    assert rows["dpa's bank"] == size(3_600_000 * 2056) == "7.4 GB"
    assert rows["ntua's cache"] == size(16_000 * 4 * (11 * 512 + 3000 + 2))
    assert {name: gathered for name, gathered, _ in exchanged(64, 1000)}["dpa"] == "262 kB"
    assert devices(constants, 3_600_000)[0][1] == "4 h"  # 4 passes at 1000 a second
    assert (size(999), size(1e12), hours(1234.4)) == ("999 bytes", "1 TB", "1,234 h")


def test_a_row_of_the_trace_takes_what_the_page_says():
    stated = {constant.name: constant for constant in read()}
    for constant in measure_trace(n=2000, n_classes=10):
        if constant.name.startswith("row"):
            assert isinstance(constant, Constant)
            assert constant.value == pytest.approx(stated[constant.name].value, abs=0.5)


def test_every_option_exists():
    own = set(re.findall(r"clipviz (?:adapt|embed)[^`|]*", TEXT))
    named = {option for command in own for option in re.findall(r"--[a-z][a-z-]+", command)}
    named |= {
        option for option in re.findall(r"--[a-z][a-z-]+", TEXT) if option.startswith(("--dev", "--prec", "--num"))
    }
    assert len(named) >= 6
    assert named - options(cli.build_parser()) == set()


def test_the_program_predicts_shard_by_shard(tmp_path, monkeypatch, capsys):
    data = ToyDataset(12)
    for i in range(12):
        data.image(i).save(tmp_path / f"{i}.png")
    for name, rows in {"sample": range(6), "shard-000": range(7), "shard-001": range(7, 12)}.items():
        lines = [f"{i}.png,{data.class_names[i % 3]}" for i in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *lines]))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["adapt", "dpa", "--model", "birds", "--data", "sample.csv", "--out", "run"]) == 0
    capsys.readouterr()
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.M | re.S)
    code = code.replace('"ViT-B-32", "FILE.safetensors", device="cuda"', '"birds"')
    namespace = {}
    exec(compile(code, "docs/scaling.md", "exec"), namespace)
    assert isinstance(namespace["predictions"].probs, torch.Tensor)
    first, second = capsys.readouterr().out.splitlines()
    assert sum(map(int, re.findall(r"\d+", first.split("tensor")[1]))) == 7
    assert sum(map(int, re.findall(r"\d+", second.split("tensor")[1]))) == 5
