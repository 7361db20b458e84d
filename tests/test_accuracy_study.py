"""The arithmetic of the accuracy study; its runs are not part of the tests."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks import accuracy, readme
from benchmarks.accuracy_tables import half_width, headline, markdown, of_one_state, summarize, without_training
from clipviz.birds.dataset import DOMAINS


def make_runs(methods, domains=("fog", "night"), seeds=(0, 1, 2), **columns):
    rows = []
    for name, base in methods.items():
        for d, domain in enumerate(domains):
            for seed in seeds:
                # the seed makes images easier or harder for all methods alike
                accuracy = base + 0.1 * d + 0.05 * seed
                rows.append((name, domain, seed, accuracy, accuracy, 2.0, 1000, 960))
    names = ["method", "domain", "seed", "accuracy", "pseudo_label_accuracy", "seconds", "images", "test_images"]
    known = {"ece": math.nan, "label_ece": math.nan, "order": 0, "labels_are": "pseudo", "code": "aaaa", **columns}
    return pd.DataFrame(rows, columns=names).assign(**known)


def test_interval_of_three_values():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(half_width([1.0]))


def test_differences_are_paired_by_seed():
    table = summarize(make_runs({"descriptions": 0.4, "dpa": 0.6})).set_index(["domain", "method"])
    fog = table.loc[("fog", "dpa")]
    assert fog["accuracy"] == pytest.approx(0.65)
    assert fog["accuracy_ci95"] == pytest.approx(4.303 * 0.05 / math.sqrt(3))
    assert fog["accuracy_difference"] == pytest.approx(0.2)
    assert fog["accuracy_difference_ci95"] == pytest.approx(0.0, abs=1e-9)
    assert table.loc[("all", "dpa"), "accuracy"] == pytest.approx(0.7)


def test_a_method_that_has_not_done_every_domain_has_no_overall_mean():
    runs = pd.concat([make_runs({"descriptions": 0.4}), make_runs({"dpa": 0.6}, domains=("fog",))])
    table = summarize(runs)
    assert set(table.loc[table["domain"] == "all", "method"]) == {"descriptions"}
    assert len(table) == 4


def test_rows_are_in_the_order_of_domains_and_methods_and_variants_come_last():
    runs = make_runs({"dpa without": 0.3, "dpa": 0.6, "descriptions": 0.4}, domains=("night", "fog"))
    found = list(summarize(runs)[["domain", "method"]].itertuples(index=False, name=None))
    names = ["descriptions", "dpa", "dpa without"]
    assert found == [(domain, name) for domain in ("night", "fog", "all") for name in names]


def test_the_table_ranks_by_the_mean_of_all_domains():
    runs = make_runs({"descriptions": 0.4, "dpa": 0.6, "wca": 0.5})
    lines = markdown(summarize(runs), runs).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["dpa", "wca", "descriptions"]
    assert "| night | fog | mean |" in lines[2]
    assert "+20.0 ± 0.0" in lines[4]


def test_a_file_without_zero_shot_by_descriptions_has_a_table_too():
    runs = make_runs({"dpa": 0.6}, ece=0.1)
    assert "| 10.0 |" in markdown(summarize(runs), runs).splitlines()[4]


def test_orders_of_a_stream_are_averaged_within_a_seed_and_their_spread_is_told():
    orders = [make_runs({"tda": 0.5 + 0.01 * k}, order=k, labels_are="online", ece=0.1) for k in range(3)]
    runs = pd.concat([make_runs({"descriptions": 0.4}, ece=0.2), *orders])
    row = summarize(runs).set_index(["domain", "method"]).loc[("fog", "tda")]
    assert row["seeds"] == 3
    assert row["accuracy"] == pytest.approx(0.5 + 0.01 + 0.05)
    assert row["accuracy_ci95"] == pytest.approx(4.303 * 0.05 / math.sqrt(3))  # nine runs are three seeds
    assert row["accuracy_order_spread"] == row["pseudo_label_accuracy_order_spread"] == pytest.approx(0.01)
    assert row["pseudo_label_accuracy_difference"] == pytest.approx(0.11)


def test_what_does_not_train_stands_beside_zero_shot_by_the_same_sentences_where_both_are_whole():
    stata = make_runs({"stata": 0.45}, labels_are="transductive", ece=0.3, label_ece=0.25)
    runs = pd.concat([make_runs({"descriptions": 0.4, "dpa": 0.7}, ece=0.2, label_ece=0.2), stata])
    lines = without_training(runs).splitlines()
    assert lines[0] == "Mean of fog, night; not complete yet: source, clutter, small, blur, mix."
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["stata (transductive)", "descriptions"]
    cells = [cell.strip() for cell in lines[4].split("|")[2:-1]]
    assert cells == ["55.0 ± 12.4", "+5.0 ± 0.0", "20.0 → 25.0", "", "55.0 ± 12.4", "+5.0 ± 0.0", "20.0 → 30.0", ""]
    assert without_training(runs.iloc[:-1]).startswith(
        "Mean of fog; not complete yet: source"
    )  # a seed of night is missing
    whole = make_runs({"descriptions": 0.4}, DOMAINS, label_ece=0.1)
    assert without_training(whole).splitlines()[0] == "Mean of source, clutter, night, fog, small, blur, mix."
    assert without_training(runs.assign(label_ece=math.nan)) == "no runs yet"


def test_states_of_the_code_are_not_mixed_and_are_named():
    old, new = make_runs({"dpa": 0.5}, code="aaaa"), make_runs({"dpa": 0.6}, code="bbbb")
    assert set(of_one_state(pd.concat([old, new]))["code"]) == {"bbbb"}
    begun = pd.concat([old, new[new["domain"] == "fog"]])  # the whole of the older state, until the newer one is whole
    assert set(of_one_state(begun)["code"]) == {"aaaa"}
    halves = pd.concat([old[old["domain"] == "fog"], new[new["domain"] == "night"], make_runs({"descriptions": 0.4})])
    table = summarize(halves).set_index(["domain", "method"])
    assert table.loc[("all", "dpa"), "code"] == "aaaa bbbb"
    measured = halves.assign(ece=halves["domain"].map({"fog": 0.1}))  # night lacks it
    assert math.isnan(summarize(measured).set_index(["domain", "method"]).loc[("all", "dpa"), "ece"])
    assert markdown(summarize(halves), halves).splitlines()[4].endswith("| aaaa bbbb |")


def test_rows_without_calibration_are_done_again_and_orders_are_rows_of_their_own(tmp_path):
    row = dict.fromkeys(accuracy.COLUMNS, 0) | {"method": "tda", "domain": "fog", "lr": 0.0, "ece": 0.1, "code": "aaaa"}
    older, other = {**row, "seed": 1, "ece": ""}, {**row, "order": 1}
    for each in (row, older, other):
        accuracy._append(tmp_path / "runs.csv", each)
    assert accuracy._done(tmp_path / "runs.csv") == {accuracy._key_of(row), accuracy._key_of(other)}


def test_runs_of_an_earlier_model_stay_in_the_file_and_out_of_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "load_backbone", lambda name: SimpleNamespace(fingerprint=lambda: "0123"))
    both = [make_runs({"dpa": base}, settings="aa", model=model) for base, model in ((0.4, "0ca1"), (0.6, "0123"))]
    pd.concat(both[::-1]).to_csv(tmp_path / "runs.csv", index=False)  # the older rows last
    table = summarize(accuracy.read_runs(tmp_path / "runs.csv")).set_index(["domain", "method"])
    assert table.loc[("fog", "dpa"), "accuracy"] == pytest.approx(0.65)
    both[0].to_csv(tmp_path / "runs.csv", index=False)
    runs = accuracy.read_runs(tmp_path / "runs.csv")
    assert {markdown(summarize(runs), runs), headline(runs), without_training(runs)} == {"no runs yet"}


def test_the_page_shows_methods_and_no_variants_of_them(monkeypatch):
    runs = make_runs({"descriptions": 0.4, "microclip": 0.6, "microclip with true masks": 0.7})
    monkeypatch.setattr(accuracy, "read_runs", lambda: runs)
    assert set(readme.study_runs()["method"]) == {"descriptions", "microclip"}
    assert "true masks" not in readme.accuracy_section()
