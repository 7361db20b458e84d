"""Accuracy of every method on every domain of birds over several seeds: `python -m benchmarks.accuracy`.

Finished runs are appended to `results/accuracy_runs.csv` and never done twice, so the study can be interrupted and gone
on with; `results/accuracy.csv` is the summary of all of them. `--markdown` prints that as the README shows it.

A seed sets the images of both splits, the order of training and all views, so methods are compared in pairs: the same
seed is the same images for all. Methods that see one image after the other get each seed's images in ten orders. The
last epoch is the result. What was tuned was tuned on the domain "dusk" with seeds from 100 on, which no reported run
uses: `--domains dusk --seeds 3 --first-seed 100`.

The column `code` says which code a row is of: the last commit of clipviz/ when it was run, with + where there were
changes since; for rows of the first days, when this was not written down, that at the commit that brought them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from benchmarks import command, positive
from benchmarks.accuracy_tables import markdown, summarize
from clipviz import METHODS, adapt, load_backbone, load_dataset, record
from clipviz.backbone import Backbone
from clipviz.birds.dataset import DOMAINS, VALIDATION_DOMAIN
from clipviz.data.base import ImageDataset
from clipviz.data.batches.features import embed_dataset
from clipviz.errors import choose
from clipviz.methods import AdaptConfig, Method
from clipviz.methods.build import build_method, parse_constants
from clipviz.trace import calibration_bins, label_accuracy
from clipviz.training.evaluate import accuracy, predict

FOLDER = Path(__file__).parent / "results"
RUNS, SUMMARY = FOLDER / "accuracy_runs.csv", FOLDER / "accuracy.csv"
KEY = ("method", "domain", "seed", "images", "test_images", "epochs", "lr", "settings", "model", "order")
MEASURES = (
    *("accuracy", "pseudo_label_accuracy", "first_pseudo_label_accuracy", "predicted_classes", "coverage", "seconds"),
    *("ece", "label_ece"),
)
COLUMNS = (*KEY[:-1], *MEASURES[:-2], "order", *MEASURES[-2:], "labels_are", "code")
ORDERS = 10
EMBEDDED = ("zero_shot", "descriptions", "transclip", "stata", "tda", "oga")
"""Methods that need no more of an image than the embedding of the whole of it."""


Splits = tuple[ImageDataset, ImageDataset]
"""The images to adapt to, and those to measure on."""


class Variant(NamedTuple):
    """A method, or a variant of one: its name in the tables, that in `METHODS`, and what builds it for a seed."""

    label: str
    method: str
    build: Callable[[Backbone, Splits, int], Method]


class Images(NamedTuple):
    """Both splits, and the embeddings of both with the seconds that those took: `unlabeled` is adapted to."""

    unlabeled: ImageDataset
    test: ImageDataset
    embedded: tuple[ImageDataset, ImageDataset]
    seconds: float


# ------------------------------------------------------------------------------------------------- running


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if not args.markdown:
        names = [choose("method", name, METHODS) for name in names_in(args.methods, METHODS)]
        study(args, [Variant(args.label or name, name, built(name, parse_constants(args.set))) for name in names])
    runs = read_runs(args.runs)
    table = summarize(runs)
    if len(table) and not args.markdown:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.out, index=False, float_format="%.4f")
    print(markdown(table, runs))


def read_runs(path: Path = RUNS) -> pd.DataFrame:
    """The single runs of the bundled model; of the study itself without those of the validation domain."""
    texts = dict.fromkeys(("settings", "model", "code"), str)
    runs = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=["nan", ""])
    runs = runs[runs["model"] == load_backbone("birds").fingerprint()]
    return runs[runs["domain"] != VALIDATION_DOMAIN] if path == RUNS else runs


def built(name: str, constants: dict[str, str] | None = None) -> Callable[[Backbone, Splits, int], Method]:
    """What builds a method of `METHODS` by the preset of the backbone, with other constants."""
    return lambda backbone, splits, seed: build_method(name, backbone, splits[0], constants=constants)


def study(args: argparse.Namespace, variants: Sequence[Variant]) -> None:
    """Do every run that is not in the file yet: domain by domain and seed by seed, all variants on the same images."""
    if args.threads:
        torch.set_num_threads(args.threads)
    domains = [choose("domain", name, (*DOMAINS, VALIDATION_DOMAIN)) for name in names_in(args.domains, DOMAINS)]
    backbone, done, code = load_backbone("birds", device=args.device), _done(args.runs), _code()
    for domain, seed in product(domains, range(args.first_seed, args.first_seed + args.seeds)):
        splits, images = rendered_on_demand(args, domain, seed), None
        for key, method, config in cells(args, variants, backbone, splits, domain, seed):
            if _key_of(key) in done:
                continue
            images = images or _images(backbone, splits)
            row = {**key, **run(method, images, config, seed + 1000 * key["order"]), "code": code}
            _append(args.runs, row)
            took = f"{100 * row['accuracy']:.1f} %, {row['seconds']:.0f} s"
            print(f"{key['method']} {domain} {seed} {key['order']}: {took}", flush=True)


def rendered_on_demand(args: argparse.Namespace, domain: str, seed: int) -> Splits:
    """Both splits of a domain, of which nothing is rendered yet."""
    sizes = {"train": args.images, "test": args.test_images}
    unlabeled, test = (load_dataset(f"birds/{domain}", split, seed=seed, n=n) for split, n in sizes.items())
    return unlabeled, test


def cells(
    args: argparse.Namespace, variants: Iterable[Variant], backbone: Backbone, splits: Splits, domain: str, seed: int
) -> Iterator[tuple[dict[str, Any], Method, AdaptConfig]]:
    """What is to be run on the images of a domain and seed: what is known of the row beforehand, method, schedule."""
    for label, name, build in variants:
        for order in range(ORDERS if METHODS[name].labels_are == "online" else 1):
            method = build(backbone, splits, seed)
            config = _schedule(method, args)
            key = {
                **{"method": label, "domain": domain, "seed": seed, "images": args.images},
                **{"test_images": args.test_images, "epochs": config.epochs if method.trains else 0},
                **{"lr": config.lr if method.trains else 0.0, "settings": _short_hash(method.settings)},
                **{"model": backbone.fingerprint(), "order": order},
            }
            yield key, method, config


def _schedule(method: Method, args: argparse.Namespace) -> AdaptConfig:
    changes = {name: value for name, value in (("epochs", args.epochs), ("lr", args.lr)) if value and method.trains}
    return replace(method.schedule, workers=args.workers, **changes)


def _images(backbone: Backbone, splits: Splits) -> Images:
    """Images rendered once, and not while the clock runs; embeddings for the methods that need no more."""
    for data in splits:
        for i in range(len(data)):
            data.image(i)
    begun = time.perf_counter()
    unlabeled = embed_dataset(backbone, splits[0])
    seconds = time.perf_counter() - begun
    return Images(*splits, (unlabeled, embed_dataset(backbone, splits[1])), seconds)


def run(method: Method, images: Images, config: AdaptConfig, seed: int) -> dict[str, Any]:
    """One adaptation, measured after its last epoch; `seconds` are those of adapting, rendering and measuring aside."""
    on_embeddings = method.name in EMBEDDED
    data, test = images.embedded if on_embeddings else (images.unlabeled, images.test)
    begun = time.perf_counter()
    trace = record(adapt(method, data, config, seed=seed))
    seconds = time.perf_counter() - begun + on_embeddings * images.seconds
    predictions = predict(method, test)
    confidence, guesses = predictions.probs.max(-1)
    tested = pd.DataFrame({"confidence": confidence, "guess": guesses, "target": predictions.target})
    rows = trace.samples
    last = rows if method.labels_are == "online" else rows[rows["epoch"] == rows["epoch"].max()]
    return {
        "accuracy": accuracy(guesses, predictions.target),
        "pseudo_label_accuracy": label_accuracy(trace),
        "first_pseudo_label_accuracy": float(trace.metric("pseudo_label_accuracy").dropna().iloc[0]),
        "predicted_classes": len(guesses.unique()),
        "coverage": _last(trace.metric("coverage")),
        "seconds": seconds,
        "ece": calibration_bins(tested, "guess")[3],
        "label_ece": calibration_bins(last, "pseudo_label")[3],
        "labels_are": method.labels_are or "pseudo",
    }


def _last(values: pd.Series) -> float:
    return float(values.iloc[-1]) if len(values) else math.nan


def _short_hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _code() -> str:
    """The last commit of clipviz/, with + where it was changed since; "" outside a repository."""
    commands = (["log", "-1", "--format=%h", "--abbrev=7"], ["status", "--porcelain"])
    root = FOLDER.parent.parent
    said = [
        subprocess.run(["git", *words, "--", "clipviz"], cwd=root, capture_output=True, text=True, check=False).stdout
        for words in commands
    ]
    return said[0].strip() + "+" * bool(said[1].strip())


def _key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in KEY)


def _done(path: Path) -> set[tuple[str, ...]]:
    """Rows that have every measure; earlier ones lack the calibration error, and are done again if asked for."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {_key_of({**row, "lr": float(row["lr"])}) for row in csv.DictReader(file) if row["ece"]}


def _append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def names_in(given: str | None, default: Iterable[str]) -> list[str]:
    return list(default) if given is None else [name.strip() for name in given.split(",")]


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every study has: which images, how long, on what, and the file of its runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", metavar="A,B", help="default: all but the validation domain")
    parser.add_argument("--seeds", type=positive, default=5, help="how many, default: %(default)s")
    parser.add_argument("--first-seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--images", type=positive, default=1000, help="unlabeled images, default: %(default)s")
    parser.add_argument("--test-images", type=positive, default=960, help="default: %(default)s")
    parser.add_argument("--epochs", type=positive, help="of methods that train; default: what they recommend")
    parser.add_argument("--lr", type=float, help="likewise")
    parser.add_argument("--threads", type=positive, help="default: torch's")
    parser.add_argument("--workers", type=int, default=0, help="processes that make views, default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of single runs, default: %(default)s")
    parser.add_argument("--markdown", action="store_true", help="only print the table of what is there")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(__doc__)
    parser.add_argument("--methods", metavar="A,B", help="default: all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a constant, with one method")
    parser.add_argument("--label", help="what to call the method in the tables, for a variant made by --set")
    parser.add_argument("--out", type=Path, default=SUMMARY, help="summary, default: %(default)s")
    return parser


if __name__ == "__main__":
    command(main)
