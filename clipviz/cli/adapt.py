"""`clipviz adapt`: one method on one data set into one run folder."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipviz.cli import inputs
from clipviz.cli.progress import Progress
from clipviz.cli.table import summary
from clipviz.data.base import ImageDataset
from clipviz.errors import choose, inert
from clipviz.files import prepare_folder
from clipviz.methods import METHODS, AdaptConfig, Method
from clipviz.methods.build import build_method, parse_constants
from clipviz.parallel import ONE, Ranks, launch
from clipviz.trace import Trace
from clipviz.training.evaluate import spread_probe
from clipviz.training.interrupts import StoppedBySignal
from clipviz.training.run import Run
from clipviz.training.run_folder import RunFolder, results_of

PROBE = 12


def adapt(args: argparse.Namespace) -> None:
    """`clipviz adapt`: one method on one dataset into one run folder."""
    choose("method", args.method, METHODS)
    inputs.refuse_among_images(args.out, args.data, args.eval_data)
    folder = RunFolder(prepare_folder(args.out), {"always": True, "never": False}.get(args.keep_epochs))
    ranks = launch(args.devices, args.num_nodes, args.device)
    try:
        ranks.together(lambda: _keep(folder, args.resume) if ranks.is_first else None)
        (method, data, evaluation), notes = ranks.together(lambda: inputs.told(_chosen, args, folder.path, ranks))
        given = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr}
        changes = {name: value for name, value in given.items() if value is not None}
        config = ranks.together(lambda: replace(method.schedule, workers=args.workers, **changes))
        trace = run_one(method, data, evaluation, config, args.seed, folder, args.resume, notes=notes, ranks=ranks)
    finally:
        folder.unlock()
    if not ranks.is_first:
        return
    if trace.meta["status"] == "stopped":  # by clipviz watch, which says so
        done = max(trace.epochs["epoch"], default=-1) + 1  # whole ones: of the last only a part may have been done
        print(f"stopped after {done} of {trace.meta['epochs']} epochs and saved; --resume continues")
        return
    results = results_of(trace)
    print(summary([results]))
    if results["accuracy"] is None:
        print("accuracy is not known: the images have no labels")


def _keep(folder: RunFolder, resume: bool) -> None:
    """Have a folder to oneself before anything is looked at: another process may be about to write to it."""
    folder.lock()
    if folder.holds_a_run and not resume:
        raise ValueError(f"{os.fspath(folder)} already holds a run; add --resume to continue, or choose another --out")


def _chosen(args: argparse.Namespace, out: Path, ranks: Ranks) -> tuple[Method, ImageDataset, ImageDataset]:
    """What the command line names: method, data and evaluation data."""
    loaded = inputs.load_model(args.model, args.pretrained, args, ranks)
    data = inputs.open_data(args)
    if args.precision != "32" and not data.has_pixels:
        raise ValueError(f"{args.data} holds embeddings, so --precision {args.precision} has no effect; leave it out")
    backbone = inputs.backbone_for(data, loaded)
    evaluation = inputs.open_eval_data(args, data)
    teacher = inputs.load_model(args.teacher, args.teacher_pretrained, args, ranks)
    inputs.warn_of_skipped(data, out / "trace" / "skipped.parquet")
    if evaluation is not data:
        inputs.warn_of_skipped(evaluation)
    inputs.warn_of_cache(args)
    if args.descriptions is not None:
        inputs.warn_of_descriptions(data, loaded)
    constants = {"preset": args.preset, "constants": parse_constants(args.set), "allow_labels": args.allow_labels}
    method = build_method(args.method, backbone, data, teacher=teacher, **constants)
    if not data.has_pixels and args.preset is None and method.preset not in (None, "default"):
        preset = f"the embeddings are of the model {backbone.name!r}, so its preset is used; else: --preset default"
        warnings.warn(preset, stacklevel=2)
    return method, data, evaluation


def run_one(
    method: Method, data: ImageDataset, evaluation: ImageDataset, config: AdaptConfig, seed: int, folder: RunFolder,
    resume: bool = False, *, zero_shot: float | None = None, notes: Sequence[str] = (), ranks: Ranks = ONE,
) -> Trace:  # fmt: skip
    """Run a method into a folder and return its trace.

    `notes` go to stderr once nothing can be refused any more, so that an error is the only line there. Of several
    processes the first one speaks and writes.
    """
    probe = spread_probe(evaluation, method.backbone.image_size, PROBE)
    options = {"eval_dataset": evaluation, "probe": probe, "seed": seed, "folder": folder, "ranks": ranks}
    run, said = ranks.together(lambda: inputs.told(Run, method, data, config, **options))
    notes = [*notes, *said]
    if resume:
        restored, said = inputs.told(run.restore)
        missing = f"nothing to resume in {os.fspath(folder)}: starting at the beginning"
        notes = [*notes, *said] if restored else [*notes, missing]
    if ranks.is_first:
        run.listeners.append(Progress())
        for note in notes:
            print(inert(note), file=sys.stderr)
    run.recorder.meta["command"] = shlex.join(["clipviz", *sys.argv[1:]])
    if zero_shot is not None:
        run.recorder.meta["zero_shot_accuracy"] = zero_shot
    try:
        return run.fit()
    except (FloatingPointError, KeyboardInterrupt, StoppedBySignal):  # all processes come here, one says so
        if ranks.is_first:
            raise
        raise SystemExit(0) from None
