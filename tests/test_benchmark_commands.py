"""The commands of benchmarks/: a wrong name is one line, and a trial does not replace what was measured."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

import benchmarks
from benchmarks import feature_study

FOLDER = Path(benchmarks.__file__).parent


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("accuracy", "--methods nope", "method"),
        ("accuracy", "--domains nope", "domain"),
        ("ablation", "--variants nope", "variant"),
        ("architectures", "nope", "architecture"),
        ("kill", "--methods dpa,nope", "method"),
        ("scale", "--method nope", "method"),
    ],
)
def test_a_wrong_name_is_one_line(name, options, kind, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split()])
    with pytest.raises(SystemExit) as ended:
        benchmarks.command(import_module(f"benchmarks.{name}").main)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{name}.py: error: unknown {kind} 'nope'")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ablation", "--seeds 0"),
        ("accuracy", "--test-images 0"),
        ("feature_study", "--seeds 0"),
        ("few_classes", "--draws 0"),
        ("growth", "--repeats 0"),
        ("image_cache", "--size 0 9"),
        ("kill", "--kills 0"),
        ("large_run", "--classes 0"),
        ("model_card", "--images 0"),
        ("profile", "--steps 0"),
        ("saliency", "--seeds 3 --test 0"),
        ("scale", "--epochs 0"),
        ("transduction", "0"),
    ],
)
def test_none_of_what_is_counted_is_refused_at_once(name, options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split()])
    with pytest.raises(SystemExit) as ended:
        benchmarks.command(import_module(f"benchmarks.{name}").main)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.endswith("wanted a whole number of at least 1, got '0'\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ValueError, match="invalid literal"):
        benchmarks.command(lambda: int("nope"))


def test_every_command_says_so():
    scripts = [text for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in (text := path.read_text())]
    assert len(scripts) > 15
    assert all(text.endswith('\nif __name__ == "__main__":\n    command(main)\n') for text in scripts)


def test_some_kinds_only_are_not_for_sanity_and_oracle(capsys):
    from benchmarks.saliency import parse

    for other in ("--sanity", "--oracle"):
        with pytest.raises(SystemExit):
            parse(["--kinds", "soap", other])
        assert "--kinds goes with neither --sanity nor --oracle" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--seeds", "1"], ["--methods", "tda"]])
def test_a_part_of_a_study_is_no_result(options, monkeypatch, tmp_path):
    columns = ["text", "seed", "method", "when", "learned", "learned_ece", "unseen", "unseen_ece"]
    runs = pd.DataFrame([(text, 0, "zero_shot", "after", *[0.5] * 4) for text in feature_study.TEXTS], columns=columns)
    monkeypatch.setattr(feature_study, "study", lambda methods, seeds: runs)
    monkeypatch.setattr(feature_study, "RESULTS", tmp_path / "study.csv")
    monkeypatch.setattr(sys, "argv", ["feature_study.py", *options])
    feature_study.main()
    assert feature_study.RESULTS.exists() == (not options)
