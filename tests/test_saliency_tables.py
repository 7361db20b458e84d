"""The tables of docs/saliency.md; the runs behind them are not part of the tests."""

import pandas as pd
import pytest

from benchmarks import readme
from benchmarks.saliency_tables import COMPARED, SETTINGS, against_attention, by_kind, by_side, mean_over_seeds


def cells(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without the line of dashes."""
    lines = text.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_kinds_are_means_over_domains_and_seeds():
    rows = [
        ("soap", "part_mass", "object", stage, domain, seed, 0.1 * seed + 0.2 * (domain == "fog") + (stage == "after"))
        for stage in ("before", "after")
        for domain in ("fog", "night")
        for seed in (0, 2)
    ]
    scores = pd.DataFrame(rows, columns=["kind", "metric", "region", "stage", "domain", "seed", "mean"])
    head, row = cells(by_kind(scores))
    assert dict(zip(head, row, strict=True))["bird: mass"] == "0.20 → 1.20"
    assert dict(zip(head, row, strict=True))["deletion"] == ""  # not measured


@pytest.mark.parametrize(
    ("metric", "mean", "low", "high", "shown"),
    [
        ("part_mass", 0.2, 0.1, 0.3, "**+0.20 [+0.10, +0.30]**"),
        ("part_mass", -0.2, -0.3, -0.1, "*-0.20 [-0.30, -0.10]*"),
        ("part_mass", 0.2, -0.1, 0.5, "+0.20 [-0.10, +0.50]"),
        ("deletion_auc", -0.2, -0.3, -0.1, "**-0.20 [-0.30, -0.10]**"),  # lower is better
        ("deletion_auc", 0.2, 0.1, 0.3, "*+0.20 [+0.10, +0.30]*"),
    ],
)
def test_the_better_map_is_marked_where_the_interval_says_so(metric, mean, low, high, shown):
    rows = [
        ("fog", stage, m, region, *((mean, low, high) if (m, stage) == (metric, "after") else (0.0, -1.0, 1.0)))
        for stage in ("before", "after")
        for m, region in COMPARED
    ]
    paired = pd.DataFrame(rows, columns=["domain", "stage", "metric", "region", "mean", "low", "high"])
    head, before, after = cells(against_attention(paired))
    at = head.index("bird: mass" if metric == "part_mass" else "deletion")
    assert (before[at], after[at]) == ("+0.00 [-1.00, +1.00]", shown)


def test_sides_are_compared_on_raw_tokens():
    rows = []
    for tokens, sign, stage, seed in [
        (tokens, sign, stage, seed)
        for tokens in ("raw", "centered")
        for sign in ("peak", "border")
        for stage in ("before", "after")
        for seed in (0, 1)
    ]:
        mass = 0.1 + 0.4 * (sign == "border") + 0.2 * (stage == "after") + 0.2 * seed + 0.5 * (tokens != "raw")
        for affinity, tau in (("cosine", 0.4), ("dot", 0.2)):
            values = ("clutter", stage, seed, tokens, affinity, tau, sign, "std", False, mass, 0.5, mass / 2, 0.3, 0.1)
            rows.append(values)
    columns = ["domain", "stage", "seed", *SETTINGS, "own", "soap_mass", "soap_pointing", "mask_iou", "edge_density"]
    study = mean_over_seeds(pd.DataFrame(rows, columns=[*columns, "place_share"]))
    head, *found = cells(by_side(study))
    assert head == ["graph", "side", "clutter"]
    assert found[0] == ["cosine > 0.4", "peak", "0.20 (0.10) → 0.40 (0.20)"]
    assert found[3] == ["dot > 0.2", "border", "0.60 (0.30) → 0.80 (0.40)"]


def test_a_page_without_a_place_for_a_section_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- kinds -->\nold\n<!-- /kinds -->\nb\n")
    readme.replace_sections(page, {"kinds": "new"})
    assert page.read_text() == "a\n<!-- kinds -->\nnew\n<!-- /kinds -->\nb\n"
    with pytest.raises(ValueError, match="needs one place between <!-- sides -->"):
        readme.replace_sections(page, {"sides": "new"})
