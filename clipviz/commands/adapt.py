"""`clipviz adapt`: one method on one data set into one run folder."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipviz.build import build_method, parse_constants
from clipviz.commands.inputs import (
    backbone_for,
    cache_note,
    description_notes,
    load_model,
    open_data,
    open_eval_data,
    refuse_among_images,
    skipped_note,
    told,
)
from clipviz.commands.progress import Progress
from clipviz.commands.results import results_of, zero_shot_accuracy
from clipviz.commands.table import summary
from clipviz.data.base import ImageDataset
from clipviz.errors import choose
from clipviz.evaluate import spread_probe
from clipviz.events import RunStarted
from clipviz.files import prepare_folder, write_json
from clipviz.methods import METHODS, AdaptConfig, Method
from clipviz.parallel import ONE, Ranks, launch
from clipviz.run import CHECKPOINT, Run
from clipviz.trace import Trace

PROBE = 12


def adapt(args: argparse.Namespace) -> None:
    """`clipviz adapt`: one method on one dataset into one run folder."""
    choose("method", args.method, METHODS)
    refuse_among_images(args.out, args.data, args.eval_data)
    out = prepare_folder(args.out)
    if any((out / part).exists() for part in (CHECKPOINT, "results.json", "trace")) and not args.resume:
        raise ValueError(f"{args.out} already holds a run; add --resume to go on with it, or choose another --out")
    ranks = launch(args.devices, args.num_nodes, args.device)
    method, data, evaluation, notes = ranks.together(lambda: _chosen(args, out, ranks))
    given = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr}
    changes = {name: value for name, value in given.items() if value is not None}
    config = ranks.together(lambda: replace(method.schedule, workers=args.workers, **changes))
    run_one(method, data, evaluation, config, args.seed, out, resume=args.resume, notes=notes, ranks=ranks)
    if not ranks.is_first:
        return
    results = json.loads((out / "results.json").read_text())
    print(summary([results]))
    if results["accuracy"] is None:
        print("accuracy is not known: the images have no labels")


def _chosen(args: argparse.Namespace, out: Path, ranks: Ranks) -> tuple[Method, ImageDataset, ImageDataset, list[str]]:
    """What the command line names: method, data, evaluation data, and what the user should know about them."""
    loaded, notes = load_model(args.model, args.pretrained, args, ranks)
    data = open_data(args, notes)
    if args.precision != "32" and not data.has_pixels:
        raise ValueError(
            f"{args.data} holds embeddings, so nothing is left to compute in {args.precision}; leave it out"
        )
    backbone = backbone_for(data, loaded)
    evaluation = open_eval_data(args, data, notes)
    teacher, teacher_notes = load_model(args.teacher, args.teacher_pretrained, args, ranks)
    notes += teacher_notes
    notes += skipped_note(data, out / "trace" / "skipped.parquet")
    if evaluation is not data:
        notes += skipped_note(evaluation)
    notes += cache_note(args)
    if args.descriptions is not None:
        notes += description_notes(data, loaded)
    method = build_method(
        args.method,
        backbone,
        data,
        preset=args.preset,
        constants=parse_constants(args.set),
        teacher=teacher,
        allow_labels=args.allow_labels,
    )
    return method, data, evaluation, notes


def run_one(
    method: Method,
    data: ImageDataset,
    evaluation: ImageDataset,
    config: AdaptConfig,
    seed: int,
    out: Path,
    *,
    resume: bool = False,
    zero_shot: float | None = None,
    notes: Sequence[str] = (),
    ranks: Ranks = ONE,
) -> Trace:
    """Run a method into a folder, with config.json before and results.json after; returns the trace.

    `notes` go to stderr once nothing can be refused any more, so that an error is the only line there. Of several
    processes the first one speaks and writes.
    """
    begun = time.perf_counter()
    probe = spread_probe(evaluation, method.backbone.image_size, PROBE)
    options: dict[str, Any] = {"eval_dataset": evaluation, "probe": probe, "seed": seed, "folder": out, "ranks": ranks}
    run, said = ranks.together(lambda: told(Run, method, data, config, **options))
    notes = [*notes, *said]
    if resume:
        restored, said = told(run.restore)
        notes = [*notes, *said] if restored else [*notes, f"nothing to resume in {out}: starting at the beginning"]
    command = shlex.join(["clipviz", *sys.argv[1:]])
    if ranks.is_first:
        run.listeners.append(Progress())
        for note in notes:
            print(note, file=sys.stderr)
        (out / "results.json").unlink(missing_ok=True)
        write_json(out / "config.json", {"command": command, **_settings(run)})
    if "zero_shot_accuracy" in run.recorder.meta:  # of a run that goes on: its tower is an adapted one by now
        zero_shot = run.recorder.meta["zero_shot_accuracy"]
    elif zero_shot is None:
        zero_shot = zero_shot_accuracy(method.backbone, evaluation, ranks) if method.name != "zero_shot" else None
    run.recorder.meta.update(command=command, zero_shot_accuracy=zero_shot)
    try:
        trace = run.fit()
    except (FloatingPointError, KeyboardInterrupt):  # all processes come here, one says so
        if ranks.is_first:
            raise
        raise SystemExit(0) from None
    if ranks.is_first:
        seconds = run.adaptation.seconds_before + time.perf_counter() - begun
        write_json(out / "results.json", results_of(trace, zero_shot, seconds))
    return trace


def _settings(run: Run) -> dict[str, Any]:
    started = next(iter(run.adaptation))
    assert isinstance(started, RunStarted)
    settings = {key: value for key, value in started.meta.items() if key != "files"}  # the trace lists them
    return {**settings, "class_names": list(started.class_names), "n_images": started.n_images}
