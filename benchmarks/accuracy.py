"""Accuracy of every method on every domain of birds over several seeds: `python -m benchmarks.accuracy`.

Finished runs are appended to `results/accuracy_runs.csv` and never done twice, so the study can be interrupted and gone
on with; `results/accuracy.csv` is the summary of all of them. `--markdown` prints that as the README shows it.

A seed sets the images of both splits, the order of training and all views, so methods are compared in pairs: the same
seed is the same images for all. The last epoch is the result. What was tuned was tuned on the domain "dusk" with seeds
from 100 on, which no reported run uses: `--domains dusk --seeds 3 --first-seed 100`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from clipviz import METHODS, adapt, load_backbone, load_dataset
from clipviz.birds.domains import DOMAINS, VALIDATION_DOMAIN
from clipviz.data.base import ImageDataset
from clipviz.errors import choose
from clipviz.events import EpochFinished
from clipviz.methods import AdaptConfig, Method
from clipviz.methods.build import build_method, parse_constants
from clipviz.training.evaluate import accuracy, predict

FOLDER = Path(__file__).parent / "results"
RUNS, SUMMARY = FOLDER / "accuracy_runs.csv", FOLDER / "accuracy.csv"
REFERENCE = "descriptions"
COLUMNS = (
    *("method", "domain", "seed", "images", "test_images", "epochs", "lr", "settings", "model"),
    *("accuracy", "pseudo_label_accuracy", "first_pseudo_label_accuracy", "predicted_classes", "coverage", "seconds"),
)
KEY = ["method", "domain", "seed", "images", "test_images", "epochs", "lr", "settings", "model"]

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


# ------------------------------------------------------------------------------------------------- running


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.markdown:
        study(args)
    runs = pd.read_csv(args.runs, dtype={"settings": str})
    runs = runs[runs["domain"] != VALIDATION_DOMAIN] if args.runs == RUNS else runs
    table = summarize(runs)
    if args.markdown:
        print(markdown(table, runs))
    elif len(table):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.out, index=False, float_format="%.4f")
        print(markdown(table, runs))


def study(args: argparse.Namespace) -> None:
    """Do every run that is not in the file yet: domain by domain and seed by seed, all methods on the same images."""
    methods = [choose("method", name, METHODS) for name in _names(args.methods, METHODS)]
    domains = [choose("domain", name, (*DOMAINS, VALIDATION_DOMAIN)) for name in _names(args.domains, DOMAINS)]
    backbone = load_backbone("birds", device=args.device)
    done = _done(args.runs)
    for domain, seed in product(domains, range(args.first_seed, args.first_seed + args.seeds)):
        sizes = {"train": args.images, "test": args.test_images}
        data, evaluation = (load_dataset(f"birds/{domain}", split, seed=seed, n=n) for split, n in sizes.items())
        for name in methods:
            method = build_method(name, backbone, data, constants=parse_constants(args.set))
            config = _schedule(method, args)
            key = {
                **{"method": args.label or name, "domain": domain, "seed": seed, "images": args.images},
                **{"test_images": args.test_images, "epochs": config.epochs if method.trains else 0},
                **{"lr": config.lr if method.trains else 0.0, "settings": _short_hash(method.settings)},
                "model": backbone.fingerprint(),
            }
            if _key_of(key) not in done:
                row = {**key, **run(method, data, evaluation, config, seed)}
                _append(args.runs, row)
                took = f"{100 * row['accuracy']:.1f} %, {row['seconds']:.0f} s"
                print(f"{key['method']} {domain} {seed}: {took}", flush=True)


def _schedule(method: Method, args: argparse.Namespace) -> AdaptConfig:
    changes = {name: value for name, value in (("epochs", args.epochs), ("lr", args.lr)) if value and method.trains}
    return replace(method.schedule, workers=args.workers, **changes)


def run(
    method: Method, data: ImageDataset, evaluation: ImageDataset, config: AdaptConfig, seed: int
) -> dict[str, float]:
    """One adaptation, measured after its last epoch; `seconds` are those of adapting, rendering and measuring aside."""
    for i in range(len(data)):
        data.image(i)  # rendered once, and not while the clock runs
    begun = time.perf_counter()
    epochs = [event for event in adapt(method, data, config, seed=seed) if isinstance(event, EpochFinished)]
    seconds = time.perf_counter() - begun
    predictions = predict(method, evaluation)
    guesses = predictions.probs.argmax(-1)
    pseudo = [e.metrics["pseudo_label_accuracy"] for e in epochs if "pseudo_label_accuracy" in e.metrics]
    return {
        "accuracy": accuracy(guesses, predictions.target),
        "pseudo_label_accuracy": pseudo[-1],
        "first_pseudo_label_accuracy": pseudo[0],
        "predicted_classes": len(guesses.unique()),
        "coverage": epochs[-1].metrics.get("coverage", math.nan),
        "seconds": seconds,
    }


def _short_hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in KEY)


def _done(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {_key_of({**row, "lr": float(row["lr"])}) for row in csv.DictReader(file)}


def _append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


# ------------------------------------------------------------------------------------------------- the table


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over seeds for every method and domain, and for the mean of all domains ("all").

    The difference to `REFERENCE` is taken within a seed, so it does not suffer from some images being harder.
    """
    latest = runs.drop_duplicates(["method", "domain", "seed"], keep="last")
    complete = latest.groupby("method")["domain"].transform("nunique") == latest["domain"].nunique()
    measures = ["accuracy", "pseudo_label_accuracy", "seconds"]
    overall = latest[complete].groupby(["method", "seed"], as_index=False)[measures].mean().assign(domain="all")
    rows = []
    both = pd.concat([latest, overall], ignore_index=True)
    for (domain, name), group in both.groupby(["domain", "method"], sort=False):
        reference = both[(both["domain"] == domain) & (both["method"] == REFERENCE)].set_index("seed")["accuracy"]
        difference = (group.set_index("seed")["accuracy"] - reference).dropna()
        rows.append(
            {
                "domain": domain,
                "method": name,
                "seeds": len(group),
                "accuracy": group["accuracy"].mean(),
                "accuracy_ci95": half_width(group["accuracy"]),
                "difference": difference.mean(),
                "difference_ci95": half_width(difference),
                "pseudo_label_accuracy": group["pseudo_label_accuracy"].mean(),
                "seconds": group["seconds"].mean(),
            }
        )
    table = pd.DataFrame(rows)
    order = {name: i for i, name in enumerate((*DOMAINS, VALIDATION_DOMAIN, "all"))}
    ranks = {name: i for i, name in enumerate(METHODS)}
    if not len(table):
        return table
    places = [table["domain"].map(order), table["method"].map(ranks).fillna(len(ranks))]  # variants come last
    return table.iloc[np.lexsort(places[::-1])]


def half_width(values: Iterable[float]) -> float:
    """Half the 95 % confidence interval of a mean, by Student's t; NaN for fewer than two values."""
    series = pd.Series(list(values), dtype=float)
    if len(series) < 2:
        return math.nan
    return T95[min(len(series) - 1, len(T95)) - 1] * float(series.std(ddof=1)) / math.sqrt(len(series))


def markdown(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The README's section: methods as rows, domains as columns, ranked by the mean of all domains."""
    if not len(table):
        return "no runs yet"
    domains = [name for name in (*DOMAINS, VALIDATION_DOMAIN) if (table["domain"] == name).any()]
    overall = table[table["domain"] == "all"].set_index("method")
    ranked = list(overall["accuracy"].sort_values(ascending=False).index)
    cells = table.set_index(["method", "domain"])
    head = ["method", *domains, "mean", f"minus {REFERENCE}", "pseudo-labels", "seconds"]
    lines = [_caption(runs), "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in ranked:
        row = overall.loc[name]
        values = [_percent(cells.loc[(name, d), "accuracy"], cells.loc[(name, d), "accuracy_ci95"]) for d in domains]
        difference = "" if name == REFERENCE else _percent(row["difference"], row["difference_ci95"], sign=True)
        mean = f"**{_percent(row['accuracy'], row['accuracy_ci95'])}**"
        pseudo = f"{100 * row['pseudo_label_accuracy']:.1f}"
        lines.append("| " + " | ".join([name, *values, mean, difference, pseudo, f"{row['seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def _caption(runs: pd.DataFrame) -> str:
    n, test, seeds = runs["images"].max(), runs["test_images"].max(), runs["seed"].nunique()
    return (
        f"Top-1 % on {test} unseen test images after adapting to {n} unlabelled images of the same domain: mean of "
        f"{seeds} seeds ± half the 95 % interval (Student's t). The difference is taken seed by seed on the same "
        f"images. The learning rates of microCLIP and DPA, microCLIP's tau and the beta of NtUA and Tip-Adapter were "
        f"chosen by accuracy on another domain ({VALIDATION_DOMAIN}) with other seeds, all other constants are the "
        "presets as first written; no target label is used in training, and the last epoch is the result. "
        "Pseudo-labels: share of right ones in the last epoch, for tip_adapter and ntua of the cached images only. "
        "Seconds: one adaptation, rendering and measuring aside."
    )


def _percent(mean: float, half: float, sign: bool = False) -> str:
    value = f"{100 * mean:+.1f}" if sign else f"{100 * mean:.1f}"
    return value if math.isnan(half) else f"{value} ± {100 * half:.1f}"


def _names(given: str | None, default: Iterable[str]) -> list[str]:
    return list(default) if given is None else [name.strip() for name in given.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", metavar="A,B", help="default: all")
    parser.add_argument("--domains", metavar="A,B", help="default: all but the validation domain")
    parser.add_argument("--seeds", type=int, default=5, help="how many, default: %(default)s")
    parser.add_argument("--first-seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="unlabelled images, default: %(default)s")
    parser.add_argument("--test-images", type=int, default=960, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, help="of methods that train; default: what they recommend")
    parser.add_argument("--lr", type=float, help="likewise")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a constant, with one method")
    parser.add_argument("--label", help="what to call the method in the tables, for a variant made by --set")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--workers", type=int, default=0, help="processes that make views, default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of single runs, default: %(default)s")
    parser.add_argument("--out", type=Path, default=SUMMARY, help="summary, default: %(default)s")
    parser.add_argument("--markdown", action="store_true", help="only print the table of what is there")
    return parser


if __name__ == "__main__":
    main()
