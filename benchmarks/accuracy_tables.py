"""The tables of the accuracy study, from its single runs: `benchmarks.accuracy` makes those."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from clipviz import METHODS
from clipviz.birds.dataset import DOMAINS, VALIDATION_DOMAIN

REFERENCE = "descriptions"
MEASURED = ["accuracy", "pseudo_label_accuracy", "ece", "label_ece", "seconds"]
SPREAD = ["accuracy", "pseudo_label_accuracy"]

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over seeds for every method and domain, and for the mean of all domains ("all").

    Orders of a stream are averaged within a seed; `order_spread` is their standard deviation. The difference to
    `REFERENCE` is taken within a seed, so it does not suffer from some images being harder.
    """
    if not len(runs):
        return pd.DataFrame()
    latest = of_one_state(runs)
    cells = latest.groupby(["method", "domain", "seed"], sort=False)
    each = cells[MEASURED].mean().join(cells[SPREAD].std().add_suffix("_order_spread")).reset_index()
    complete = each.groupby("method")["domain"].transform("nunique") == each["domain"].nunique()
    by_seed = each[complete].drop(columns="domain").groupby(["method", "seed"], as_index=False)
    overall = by_seed.agg(lambda values: values.mean(skipna=False))  # what some domains lack has no overall mean
    both = pd.concat([each, overall.assign(domain="all")], ignore_index=True)
    reference = both[both["method"] == REFERENCE].set_index(["domain", "seed"])
    of_method = latest.groupby("method")
    rows = []
    for (domain, name), group in both.groupby(["domain", "method"], sort=False):
        known = group.set_index(["domain", "seed"])
        row = {
            "domain": domain,
            "method": name,
            "seeds": len(group),
            **group.drop(columns="seed").mean(numeric_only=True, skipna=False),
        }
        for measure in SPREAD:
            difference = (known[measure] - reference[measure]).dropna()
            row[f"{measure}_ci95"] = half_width(group[measure])
            row[f"{measure}_difference"] = difference.mean()
            row[f"{measure}_difference_ci95"] = half_width(difference)
        row["labels_are"] = of_method["labels_are"].last()[name]
        row["code"] = " ".join(of_method["code"].unique()[name])
        rows.append(row)
    table = pd.DataFrame(rows)
    order = {name: i for i, name in enumerate((*DOMAINS, VALIDATION_DOMAIN, "all"))}
    ranks = {name: i for i, name in enumerate(METHODS)}
    places = [table["domain"].map(order), table["method"].map(ranks).fillna(len(ranks))]  # variants come last
    return table.iloc[np.lexsort(places[::-1])]


def of_one_state(runs: pd.DataFrame) -> pd.DataFrame:
    """The latest row of each method, domain, seed and order, of one state of the code where there is a whole study.

    Of each method the rows count that the newest code made of all its domains and seeds. A study that goes on does not
    mix with the one before; where no code made all, the latest rows count, and the table names every code.
    """
    latest = runs.drop_duplicates(["method", "domain", "seed", "order", "code"], keep="last")
    chosen = []
    for _, rows in latest.groupby("method", sort=False):
        wanted = set(zip(rows["domain"], rows["seed"], strict=True))
        whole = [
            code
            for code, group in rows.groupby("code", sort=False)
            if set(zip(group["domain"], group["seed"], strict=True)) == wanted
        ]
        chosen.append(rows[rows["code"] == whole[-1]] if whole else rows)
    return pd.concat(chosen).drop_duplicates(["method", "domain", "seed", "order"], keep="last")


def half_width(values: Iterable[float]) -> float:
    """Half the 95 % confidence interval of a mean, by Student's t; NaN for fewer than two values."""
    series = pd.Series(list(values), dtype=float)
    if len(series) < 2:
        return math.nan
    return T95[min(len(series) - 1, len(T95)) - 1] * float(series.std(ddof=1)) / math.sqrt(len(series))


def markdown(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Methods as rows, domains as columns, ranked by the mean of all domains."""
    if not len(table):
        return "no runs yet"
    domains = [name for name in (*DOMAINS, VALIDATION_DOMAIN) if (table["domain"] == name).any()]
    overall = _ranked(table)
    cells = table.set_index(["method", "domain"])
    lines = [_caption(runs), ""]
    lines += _head("method", *domains, "mean", f"minus {REFERENCE}", "ECE before → after", "labels", "seconds", "code")
    for name, row in overall.iterrows():
        values = [percent(cells.loc[(name, d), "accuracy"], cells.loc[(name, d), "accuracy_ci95"]) for d in domains]
        mean = f"**{percent(row['accuracy'], row['accuracy_ci95'])}**"
        labels = f"{percent(row['pseudo_label_accuracy'])} {row['labels_are']}"
        last = [_minus(name, row, "accuracy"), _ece(name, overall, "ece"), labels, f"{row['seconds']:.0f}", row["code"]]
        lines.append(_row(name, *values, mean, *last))
    return "\n".join(lines)


def headline(runs: pd.DataFrame) -> str:
    """What a newcomer is told: the mean of all domains, beside zero-shot by the same sentences."""
    if not len(runs):
        return "no runs yet"
    overall = _ranked(summarize(runs))
    n, seeds = runs["images"].max(), runs["seed"].nunique()
    lines = [
        f"Top-1 accuracy in % on unseen birds after adapting to {n} unlabeled images: mean of {len(DOMAINS)} domains "
        f"and {seeds} seeds ± half the 95 % interval. `{REFERENCE}` is zero-shot with the descriptions that the "
        "methods use, `zero_shot` with class names alone. ECE is the calibration error in %; lower is better.",
        "",
        *_head("", "accuracy", f"minus {REFERENCE}", "ECE"),
    ]
    for name, row in overall.iterrows():
        accuracy = percent(row["accuracy"], row["accuracy_ci95"])
        lines.append(_row(name, accuracy, _minus(name, row, "accuracy"), percent(row["ece"])))
    return "\n".join(lines)


def without_training(runs: pd.DataFrame) -> str:
    """Methods that label all images together, or one after the other, beside zero-shot by the same sentences.

    Only runs with every measure count, and only domains in which all these methods have all seeds; they are named.
    """
    found = runs[runs["label_ece"].notna()]
    found = found[found["labels_are"].isin(["transductive", "online"]) | (found["method"] == REFERENCE)]
    wanted = len(found[["method", "seed", "order"]].drop_duplicates())
    domains = [d for d, rows in found.groupby("domain", sort=False) if len(of_one_state(rows)) == wanted]
    if not domains:
        return "no runs yet"
    ece, last = "their ECE before → after", "spread over orders"
    head = ["labels of the unlabeled images", f"minus {REFERENCE}", ece, last]
    missing = [d for d in DOMAINS if d not in domains]
    lines = [f"Mean of {', '.join(domains)}" + f"; not complete yet: {', '.join(missing)}" * bool(missing) + ".", ""]
    lines += _head("method", *head, "unseen images", f"minus {REFERENCE}", ece, last)
    overall = _ranked(summarize(found[found["domain"].isin(domains)]))
    for name, row in overall.iterrows():
        values = [name if name == REFERENCE else f"{name} ({row['labels_are']})"]
        for measure, ece in (("pseudo_label_accuracy", "label_ece"), ("accuracy", "ece")):
            mean, spread = percent(row[measure], row[f"{measure}_ci95"]), percent(row[f"{measure}_order_spread"])
            values += [mean, _minus(name, row, measure), _ece(name, overall, ece), spread]
        lines.append(_row(*values))
    return "\n".join(lines)


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["domain"] == "all"].set_index("method").sort_values("accuracy", ascending=False)


def _minus(name: str, row: pd.Series, measure: str) -> str:
    if name == REFERENCE:
        return ""
    return percent(row[f"{measure}_difference"], row[f"{measure}_difference_ci95"], sign=True)


def _ece(name: str, overall: pd.DataFrame, measure: str) -> str:
    """That of zero-shot by the sentences that the method reads, on the same images, and the method's own."""
    own = percent(overall.loc[name, measure])
    has_another = name not in (REFERENCE, "zero_shot") and REFERENCE in overall.index and own
    return f"{percent(overall.loc[REFERENCE, measure])} → {own}" if has_another else own


def _head(*names: str) -> list[str]:
    return [_row(*names), "|---" * len(names) + "|"]


def _row(*values: str) -> str:
    return "| " + " | ".join(values) + " |"


def _caption(runs: pd.DataFrame) -> str:
    n, test, seeds = runs["images"].max(), runs["test_images"].max(), runs["seed"].nunique()
    return (
        f"Top-1 accuracy in % on {test} unseen test images after adapting to {n} unlabeled images of the same domain: "
        f"mean of {seeds} seeds ± half the 95 % interval (Student's t). For tda and oga each seed is the mean of ten "
        f"orders of its images. The difference is taken seed by seed on the same images; `{REFERENCE}` is zero-shot "
        "with the descriptions that all methods but `zero_shot` use. The learning rates of microCLIP and DPA, "
        "microCLIP's tau, side and soap_lr_scale, and the beta of NtUA and Tip-Adapter were chosen on another domain "
        f"({VALIDATION_DOMAIN}) with other seeds; all other constants are the presets as first written. No target "
        "label is used in training, and the last epoch is the result. ECE: calibration error in % on the test "
        f"images, lower is better; before: that of `{REFERENCE}`. Labels: accuracy of the labels of the unlabeled "
        "images in the last epoch (tip_adapter and ntua: of the cached images only; transductive and online: of all "
        "images). Seconds: one adaptation without rendering and evaluation. Code: the last commit of `clipviz/` that "
        "the runs were made with."
    )


def percent(mean: float, half: float = math.nan, sign: bool = False) -> str:
    if math.isnan(mean):
        return ""
    value = f"{100 * mean:+.1f}" if sign else f"{100 * mean:.1f}"
    return value if math.isnan(half) else f"{value} ± {100 * half:.1f}"
