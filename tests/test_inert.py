"""Words of others give no orders to a terminal, and odd arguments and files are one line."""

import json
import re

import numpy as np
import pytest
from synthetic import synthetic_trace

from clipviz.backbone import load_backbone
from clipviz.cli.main import main
from clipviz.data import load_dataset
from clipviz.errors import inert, one_line, parse_json
from clipviz.figures import confusion
from clipviz.prompts import ClassPrompts
from clipviz.report import write_report
from clipviz.trace import Trace

ORDERS = "a\x1b[2J\x9b31m\u202eb\r\n\x07\u2066\udcff"
RESULTS = {
    "method": "dpa", "model": "birds", "seed": 0, "epochs": 1, "accuracy": 0.5, "pseudo_label_accuracy": None,
    "zero_shot_accuracy": 0.4, "seconds": 3.0, "data": "birds", "split": "train", "eval_data": "birds",
    "eval_split": "test",
}  # fmt: skip


def says(capsys, *arguments):
    """Exit status and what was printed, of a command that fails with one harmless line."""
    try:
        status = main(list(arguments))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err[:-1].isprintable(), ascii(err)
    return err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("one\r\ntwo\u2028", r"one\r\ntwo\u2028"),
        ("\u202egpj.exe \u2066x", r"\u202egpj.exe \u2066x"),
        ("\x7f\x9b \udcff", r"\x7f\x9b \udcff"),
        ("日本語\u3000naïve \xa0🐦 می\u200cخواهم", "日本語\u3000naïve \xa0🐦 می\u200cخواهم"),
    ],
)
def test_orders_to_a_terminal_are_shown_and_letters_of_all_scripts_kept(text, shown):
    assert inert(text) == shown
    assert one_line(text).isprintable() == shown.isprintable()


def run_folder(place, **changes):
    place.mkdir()
    (place / "results.json").write_text(json.dumps({**RESULTS, **changes}))
    return str(place)


def test_compare_shows_orders_in_results_and_keeps_its_lines(tmp_path, capsys):
    words = dict.fromkeys(("method", "model", "data", "split", "eval_data", "eval_split"), ORDERS)
    assert main(["compare", run_folder(tmp_path / "one", **words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert r"a\x1b[2J\x9b31m\u202eb" in lines[2]


@pytest.mark.parametrize("key", RESULTS)
@pytest.mark.parametrize("value", [True, [1], {"a": 1}, "x\x1b", 1.5], ids=["bool", "list", "object", "text", "number"])
def test_results_of_other_types_are_refused_by_name(tmp_path, capsys, key, value):
    folder = run_folder(tmp_path / "one", **{key: value})
    fits = isinstance(value, str if isinstance(RESULTS[key], str) else float) and key not in ("seed", "epochs")
    if fits:
        assert main(["compare", folder]) == 0
    else:
        assert f"results.json is not a result of clipviz: {key} is " in says(capsys, "compare", folder)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "[" * 500 + "]" * 500, '{"seconds": NaN}', "[1e999]"])
def test_json_that_is_deep_or_not_finite_is_one_line(tmp_path, capsys, text):
    folder = run_folder(tmp_path / "one")
    (tmp_path / "one" / "results.json").write_text(text)
    assert re.search("nested too deeply|not finite", says(capsys, "compare", folder))
    with pytest.raises(ValueError, match=r"nested too deeply|not finite"):
        parse_json(text)


def test_names_in_figures_page_and_repr_are_shown_escaped(tmp_path):
    trace = synthetic_trace(3, epochs=1, n_images=6, n_eval=4, n_probe=1, class_names=[ORDERS, "b", "c"])
    trace.meta |= {"data": ORDERS, "command": ORDERS, "part_names": [ORDERS] * 9}
    assert repr(trace).isprintable()
    assert r"\x1b" in confusion(trace).to_json().encode().decode("unicode_escape")
    page = write_report(trace, tmp_path / "report.html").read_text(encoding="utf-8")
    ours = page[page.index("<body>") :]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffd]", ours)
    assert r"a\x1b[2J\x9b31m\u202eb" in ours


def test_the_page_sends_nothing_and_has_no_other_base(tmp_path):
    page = write_report(Trace(meta={"data": "x"}), tmp_path / "report.html").read_text(encoding="utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1]
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'"} <= {
        part.strip() for part in policy.split(";")
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("adapt", "zero_shot", "--data", "birds", "--out", "a\0b"),
        ("adapt", "zero_shot", "--data", "birds", "--out", "x", "--classes", "a\0b"),
        ("report", "a\0b", "--out", "r.html"),
        ("report", "a", "--out", "r\0.html"),
        ("compare", "a\0b"),
        ("describe", "--check", "a\0b"),
        ("demo", "--out", "a\0b"),
    ],
    ids=" ".join,
)
def test_a_nul_in_an_argument_is_one_line(capsys, arguments):
    assert "holds a NUL character" in says(capsys, *arguments)


@pytest.mark.parametrize("device", ["meta", "vulkan", "fpga", "cuda:99"])
def test_a_device_that_holds_no_numbers_is_one_line(device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used: .*; try device cpu") as caught:
        load_backbone("birds", device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "constant", ["soap=[[[", "gamma=" + "[" * 50_000, 'crop_scale=[1,"a"]', "crop_scale=[[1]]", "crop_scale=[1]"]
)
def test_a_constant_of_another_kind_is_one_short_line(tmp_path, capsys, constant):
    where = ("adapt", "microclip", "--model", "birds", "--data", "birds/fog", "--out", str(tmp_path / "run"))
    line = says(capsys, *where, "--set", constant)
    assert f"{constant.split('=')[0]} of microclip needs " in line
    assert len(line) < 300


def test_broken_unicode_in_texts_is_refused(tmp_path):
    for make in (lambda: ClassPrompts(("a", "b\ud800")), lambda: ClassPrompts(("a",), templates=("\ud800 {}",))):
        with pytest.raises(ValueError, match=r"'.*\\ud800.*' is broken Unicode \(a lone surrogate\)"):
            make()
    np.savez(tmp_path / "x.npz", embeddings=np.eye(2, dtype=np.float32), class_names=np.array(["a", "b\ud800"]))
    with pytest.raises(ValueError, match="broken Unicode"):
        load_dataset(str(tmp_path / "x.npz"))


def test_names_of_arrays_are_shown_escaped(tmp_path):
    np.savez(tmp_path / "x.npz", **{"embeddings": np.eye(2, dtype=np.float32), "\x1b[2J": np.zeros(1)})
    with pytest.warns(UserWarning, match=r"not used: \\x1b\[2J;"):
        load_dataset(str(tmp_path / "x.npz"), classes=["a", "b"])
