"""`clipviz demo`: every method on one shifted domain of birds, a table and a report."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from clipviz.backbone import load_backbone
from clipviz.cli.adapt import run_one
from clipviz.cli.table import summary
from clipviz.data import load_dataset
from clipviz.errors import choose, inert, parse_json
from clipviz.files import prepare_folder, write_text
from clipviz.methods import METHODS
from clipviz.report import write_report
from clipviz.training.run_folder import CONFIG, RunFolder, results_of, zero_shot_accuracy

DEMO_IMAGES = {"train": 600, "test": 480}
DEMO_EPOCHS = {"dpa": 5, "microclip": 6}
"""Fewer than recommended, so that the demo takes three minutes; methods that are not named keep their own number."""


def demo(args: argparse.Namespace) -> None:
    """`clipviz demo`: every method on one shifted domain of birds, a table and a report."""
    begun = time.perf_counter()
    ours = [name for name, method in METHODS.items() if method.__module__.startswith("clipviz.")]
    names = list(dict.fromkeys(map(str.strip, args.methods.split(",")))) if args.methods else ours
    for name in names:
        choose("method", name, METHODS)
    out = RunFolder(prepare_folder(args.out))
    out.lock()
    try:
        for run in [place for name in names if ((place := out.path / name) / CONFIG).is_file()]:
            try:
                data = str(parse_json((run / CONFIG).read_text("utf-8"))["data"])
            except (ValueError, LookupError, TypeError):
                data = f"images that its {CONFIG} does not name"
            if not data.startswith("birds"):
                raise ValueError(f"{run} holds a run on {data}, which the demo would replace; choose another --out")
        _demo(args, names, out.path, begun)
    finally:
        out.unlock()


def _demo(args: argparse.Namespace, names: list[str], out: Path, begun: float) -> None:
    domain = f"birds/{args.domain}"
    data, evaluation = (load_dataset(domain, split, seed=args.seed, n=n) for split, n in DEMO_IMAGES.items())
    backbone = load_backbone("birds")
    zero_shot = zero_shot_accuracy(backbone, evaluation.prompts, evaluation)
    traces, rows = [], []
    for name in names:
        method = METHODS[name](backbone, data.prompts)
        epochs = (args.epochs if method.trains else None) or DEMO_EPOCHS.get(name, method.schedule.epochs)
        config = replace(method.schedule, epochs=epochs)
        folder = RunFolder(prepare_folder(out / name))
        traces.append(run_one(method, data, evaluation, config, args.seed, folder, zero_shot=zero_shot))
        rows.append(results_of(traces[-1]))
    write_text(out / "results.csv", pd.json_normalize(rows).to_csv(index=False))
    write_report(traces, out / "report.html", title=f"clipviz demo: birds/{args.domain}")
    print(summary(rows))
    print(f"{time.perf_counter() - begun:.0f} s in all; open {inert(out / 'report.html')} in a browser")
