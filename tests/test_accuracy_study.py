"""The arithmetic of the accuracy study; its runs are not part of the tests."""

import math

import pandas as pd
import pytest

from benchmarks.accuracy import half_width, markdown, summarize


def make_runs(methods, domains=("fog", "night"), seeds=(0, 1, 2)):
    rows = []
    for name, base in methods.items():
        for d, domain in enumerate(domains):
            for seed in seeds:
                # the seed makes images easier or harder for all methods alike
                accuracy = base + 0.1 * d + 0.05 * seed
                rows.append((name, domain, seed, accuracy, accuracy, 2.0, 1000, 960))
    columns = ["method", "domain", "seed", "accuracy", "pseudo_label_accuracy", "seconds", "images", "test_images"]
    return pd.DataFrame(rows, columns=columns)


def test_interval_of_three_values():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(half_width([1.0]))


def test_differences_are_paired_by_seed():
    table = summarize(make_runs({"descriptions": 0.4, "dpa": 0.6})).set_index(["domain", "method"])
    fog = table.loc[("fog", "dpa")]
    assert fog["accuracy"] == pytest.approx(0.65)
    assert fog["accuracy_ci95"] == pytest.approx(4.303 * 0.05 / math.sqrt(3))
    assert fog["difference"] == pytest.approx(0.2)
    assert fog["difference_ci95"] == pytest.approx(0.0, abs=1e-9)
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
