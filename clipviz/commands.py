"""What the commands of the command line do: from names and paths to runs, tables and the report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from tqdm import tqdm

from clipviz.backbone import Backbone, load_backbone
from clipviz.build import build_method, parse_constants
from clipviz.data import load_dataset
from clipviz.data.base import ImageDataset
from clipviz.data.embed import embed_dataset
from clipviz.data.feature_files import FEATURE_SUFFIXES, write_features
from clipviz.data.features import FeatureDataset
from clipviz.data.layout import NoSuchSplit
from clipviz.describe_command import describe as describe  # the command of that name
from clipviz.descriptions import check_descriptions
from clipviz.errors import choose
from clipviz.evaluate import accuracy, predict, spread_probe
from clipviz.events import Event, RunFinished, RunStarted, StepFinished
from clipviz.files import prepare_folder, write_json, write_text
from clipviz.loop import versions
from clipviz.methods import METHODS, AdaptConfig, Method
from clipviz.methods.base import prompt_sentences, text_classifier
from clipviz.report import write_report
from clipviz.run import CHECKPOINT, Run
from clipviz.trace import Trace

DEMO_IMAGES = {"train": 600, "test": 480}
DEMO_EPOCHS = {"dpa": 5, "microclip": 6}
"""Fewer than recommended, so that the demo takes three minutes; methods that are not named keep their own number."""

PROBE = 12
_SKIPPED_SHOWN = 5

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------- adapt


def adapt(args: argparse.Namespace) -> None:
    """`clipviz adapt`: one method on one dataset into one run folder."""
    choose("method", args.method, METHODS)
    out = prepare_folder(args.out)
    if (out / CHECKPOINT).exists() and not args.resume:
        raise ValueError(f"{args.out} already holds a run; add --resume to go on with it, or choose another --out")
    loaded, notes = _load_backbone(args.model, args.pretrained, args.device)
    data = _dataset(args, notes)
    backbone = _backbone_for(data, loaded)
    evaluation = _eval_dataset(args, data)
    teacher, teacher_notes = _load_backbone(args.teacher, args.teacher_pretrained, args.device)
    notes += teacher_notes
    notes += _skipped_note(data, out / "trace" / "skipped.parquet")
    if evaluation is not data:
        notes += _skipped_note(evaluation)
    if args.descriptions is not None:
        notes += _description_notes(data, loaded)
    method = build_method(
        args.method,
        backbone,
        data,
        preset=args.preset,
        constants=parse_constants(args.set),
        teacher=teacher,
        allow_labels=args.allow_labels,
    )
    given = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr}
    changes = {name: value for name, value in given.items() if value is not None}
    config = replace(method.schedule, workers=args.workers, **changes)
    run_one(method, data, evaluation, config, args.seed, out, resume=args.resume, notes=notes)
    results = json.loads((out / "results.json").read_text())
    print(summary([results]))
    if results["accuracy"] is None:
        print("accuracy is not known: the images have no labels")


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
) -> Trace:
    """Run a method into a folder, with config.json before and results.json after; returns the trace.

    `notes` go to stderr once nothing can be refused any more, so that an error is the only line there.
    """
    begun = time.perf_counter()
    probe = spread_probe(evaluation, method.backbone.image_size, PROBE)
    run = Run(method, data, config, eval_dataset=evaluation, probe=probe, seed=seed, folder=out, listeners=[Progress()])
    if resume:
        restored, said = _told(run.restore)
        notes = [*notes, *said] if restored else [*notes, f"nothing to resume in {out}: starting at the beginning"]
    for note in notes:
        print(note, file=sys.stderr)
    (out / "results.json").unlink(missing_ok=True)
    command = shlex.join(["clipviz", *sys.argv[1:]])
    write_json(out / "config.json", {"command": command, **_settings(run)})
    if "zero_shot_accuracy" in run.recorder.meta:  # of a run that goes on: its tower is an adapted one by now
        zero_shot = run.recorder.meta["zero_shot_accuracy"]
    elif zero_shot is None:
        zero_shot = zero_shot_accuracy(method.backbone, evaluation) if method.name != "zero_shot" else None
    run.recorder.meta.update(command=command, zero_shot_accuracy=zero_shot)
    trace = run.fit()
    write_json(out / "results.json", results_of(trace, zero_shot, time.perf_counter() - begun))
    return trace


def _settings(run: Run) -> dict[str, Any]:
    started = next(iter(run.adaptation))
    assert isinstance(started, RunStarted)
    return {**started.meta, "class_names": list(started.class_names), "n_images": started.n_images}


def zero_shot_accuracy(backbone: Backbone, evaluation: ImageDataset) -> float | None:
    """Accuracy of the unadapted model with the template ensemble, or None without labels."""
    if not evaluation.has_targets:
        return None
    method = METHODS["zero_shot"](backbone, evaluation.prompts)
    predictions = predict(method, evaluation)
    return accuracy(predictions.probs.argmax(-1), predictions.target)


def results_of(trace: Trace, zero_shot: float | None, seconds: float) -> dict[str, Any]:
    """The object of results.json; accuracies are fractions, null where there are no labels."""
    last = {name: _last(trace, name) for name in ("accuracy", "pseudo_label_accuracy")}
    if trace.method == "zero_shot":
        zero_shot = last["accuracy"]
    keys = ("method", "model", "data", "split", "eval_data", "eval_split", "accuracy_is", "seed", "epochs")
    return {
        **{key: trace.meta[key] for key in keys},
        **last,
        "zero_shot_accuracy": zero_shot,
        **_cache_results(trace),
        "n_images": trace.meta["n_images"],
        "n_skipped": len(trace.skipped),
        "seconds": round(seconds, 2),
        "versions": versions(),
    }


def _cache_results(trace: Trace) -> dict[str, Any]:
    """What a method with a cache adds to its results: how much of it is filled, by whom, and how good that one is."""
    coverage = _last(trace, "coverage")
    if coverage is None:
        return {}
    own = _last(trace, "accuracy_zero_shot")
    teacher = _last(trace, "accuracy_teacher")
    settings = trace.meta["settings"]["method"]
    return {
        "coverage": coverage,
        "cache_size": int(_last(trace, "cache_size") or 0),
        "selection": settings["selection"],
        "uses_labels": settings["selection"] == "oracle_balanced",
        "teacher": settings["teacher"],
        "teacher_zero_shot_accuracy": own if teacher is None else teacher,
    }


def _last(trace: Trace, metric: str) -> float | None:
    series = trace.metric(metric)
    return float(series.iloc[-1]) if len(series) else None


def _load_backbone(name: str | None, pretrained: str | None, device: str | None) -> tuple[Backbone | None, list[str]]:
    """A model if one is named, and what the user should know about it."""
    if name is None:
        if pretrained is not None:
            raise ValueError(f"the weights {pretrained!r} need an architecture; name the model, too")
        return None, []
    return _told(load_backbone, name, pretrained, _device(device))


def _told(function: Callable[..., T], *arguments: Any) -> tuple[T, list[str]]:
    """What a function returns, and its warnings to the user, which are lines of ours here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = function(*arguments)
    return result, [str(w.message) for w in caught if w.category is UserWarning]


def _backbone_for(data: ImageDataset, loaded: Backbone | None) -> Backbone:
    """What looks at the data: the model, or, where the data are embeddings, their classifier or its text tower."""
    if isinstance(data, FeatureDataset):
        return data.backbone(loaded)
    if loaded is None:
        raise ValueError(f"{data.name} needs a model to look at it; give --model birds, or an open_clip architecture")
    return loaded


def _dataset(args: argparse.Namespace, notes: list[str]) -> ImageDataset:
    data = load_dataset(args.data, "train", seed=args.seed, **_data_options(args))
    if data.class_names:
        return data
    if args.model != "birds":
        raise ValueError(
            f"{args.data} has no class folders, so its class names are not known; give --classes FILE (one a line), "
            "--descriptions FILE, or a classes.txt in the folder"
        )
    from clipviz.birds.world import SPECIES

    notes.append("no class names given: using the 24 bird species of the bundled model")
    args.classes = [species.name for species in SPECIES]
    return load_dataset(args.data, "train", seed=args.seed, **_data_options(args))


def _data_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("classes", "descriptions", "root", "download", "allow_outside")
    return {**{name: getattr(args, name) for name in names}, "progress": _opening()}


def _opening() -> Callable[[int, int], None]:
    """A progress line for opening many files; silent when stderr is no terminal."""
    bar: tqdm[Any] | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc="opening images", unit="img", disable=None, leave=False, dynamic_ncols=True)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def _eval_dataset(args: argparse.Namespace, data: ImageDataset) -> ImageDataset:
    """What --eval-data says; else the test split of the data; else, transductively, the data itself."""
    if args.eval_data is not None:
        evaluation = load_dataset(args.eval_data, "test", seed=args.seed, **_data_options(args))
        if evaluation.has_pixels != data.has_pixels:
            raise ValueError("--data and --eval-data must both be images or both be embeddings")
        if evaluation.class_names != data.class_names:
            raise ValueError(
                f"--eval-data {args.eval_data} has other classes than --data {args.data} "
                f"({len(evaluation.class_names)} against {len(data.class_names)}); both need the same class names"
            )
        return evaluation
    try:
        return load_dataset(args.data, "test", seed=args.seed, **_data_options(args)) if data.split != "all" else data
    except NoSuchSplit:
        return data  # measured on the images it learns from, and named so


def _skipped_note(dataset: ImageDataset, listed_in: Path | None = None) -> list[str]:
    """One line about the files that could not be read; none where all could.

    Names them all, or a few of them if the others are listed in a file.
    """
    if not dataset.skipped:
        return []
    n = len(dataset.skipped)
    shown = n if listed_in is None else _SKIPPED_SHOWN
    names = "; ".join(f"{s.path!r}: {s.reason}" for s in dataset.skipped[:shown])
    more = f"; and {n - shown} more, all listed in {listed_in}" if n > shown else ""
    return [f"skipped {n} files: {names}{more}"]


def _description_notes(data: ImageDataset, backbone: Backbone | None) -> list[str]:
    """One line about descriptions that are cut or do not name their class; none if all is well."""
    tokenizer = backbone.tokenizer if backbone is not None else None
    check = check_descriptions(data.prompts.descriptions, data.class_names, tokenizer)
    return [f"descriptions: {check.counts()}; {'; '.join(notices)}"] if (notices := check.notices()) else []


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu") from error
    return device


class Progress:
    """A listener that draws one progress line: images per second and time left; silent when stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, event: Event) -> None:
        """Advance with every step."""
        match event:
            case RunStarted():
                total = event.n_images * event.n_epochs
                self._bar = tqdm(total=total, desc=event.method, unit="img", disable=None, dynamic_ncols=True)
            case StepFinished() if self._bar is not None:
                self._bar.update(len(event.index))
            case RunFinished() if self._bar is not None:
                self._bar.close()


# ------------------------------------------------------------------------------------------------- demo


def demo(args: argparse.Namespace) -> None:
    """`clipviz demo`: every method on one shifted domain of birds, a table and a report."""
    begun = time.perf_counter()
    names = [name.strip() for name in args.methods.split(",")] if args.methods else list(METHODS)
    for name in names:
        choose("method", name, METHODS)
    out = prepare_folder(args.out)
    data, evaluation = (
        load_dataset(f"birds/{args.domain}", split, seed=args.seed, n=n) for split, n in DEMO_IMAGES.items()
    )
    backbone = load_backbone("birds")
    zero_shot = zero_shot_accuracy(backbone, evaluation)
    traces, rows = [], []
    for name in names:
        method = METHODS[name](backbone, data.prompts)
        epochs = args.epochs or DEMO_EPOCHS.get(name, method.schedule.epochs)
        config = replace(method.schedule, epochs=epochs)
        folder = prepare_folder(out / name)
        traces.append(run_one(method, data, evaluation, config, args.seed, folder, zero_shot=zero_shot))
        rows.append(json.loads((folder / "results.json").read_text()))
    write_text(out / "results.csv", pd.json_normalize(rows).to_csv(index=False))
    write_report(traces, out / "report.html", title=f"clipviz demo: birds/{args.domain}")
    print(summary(rows))
    print(f"{time.perf_counter() - begun:.0f} s in all; open {out / 'report.html'} in a browser")


# ------------------------------------------------------------------------------------------------- embed


def embed(args: argparse.Namespace) -> None:
    """`clipviz embed`: images to embeddings, with labels, class names and a text classifier where they are known."""
    out = Path(args.out)
    if out.suffix.lower() not in FEATURE_SUFFIXES:
        raise ValueError(f"--out wants a .npz or .safetensors file, got {args.out!r}")
    prepare_folder(out.parent)
    loaded, notes = _load_backbone(args.model, args.pretrained, args.device)
    data = load_dataset(args.data, args.split, seed=args.seed, **_data_options(args))
    if isinstance(data, FeatureDataset):
        raise ValueError(f"{args.data} holds embeddings already; give images")
    backbone = _backbone_for(data, loaded)
    for note in [*notes, *_skipped_note(data)]:
        print(note, file=sys.stderr)
    classifier = None
    if data.class_names:
        classifier = text_classifier(backbone, prompt_sentences(data.prompts, "descriptions"))
    features = embed_dataset(backbone, data, classifier)
    write_features(out, features)
    n, width = features.embeddings.shape
    classes = f", classifier of {len(data.class_names)} classes" if data.class_names else ""
    print(f"wrote {out}: {n} embeddings of width {width}{classes}")


# ------------------------------------------------------------------------------------------------- report, compare


def report(args: argparse.Namespace) -> None:
    """`clipviz report`: one HTML page from run folders."""
    out = Path(args.out)
    write_report([Trace.load(run) for run in args.runs], out)
    print(f"wrote {out}")


def compare(args: argparse.Namespace) -> None:
    """`clipviz compare`: one table from run folders; runs on different data or splits are not put together."""
    rows = [_read_results(Path(run)) for run in args.runs]
    keys = ("data", "split", "eval_data", "eval_split")
    kinds = {tuple(row.get(key) for key in keys) for row in rows}
    if len(kinds) > 1:
        listed = "; ".join(sorted(str(dict(zip(keys, kind, strict=True))) for kind in kinds))
        raise ValueError(f"these runs were measured on different data or splits and cannot be compared: {listed}")
    print(summary(rows))


def _read_results(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"{run} holds no results.json; give the folder of a finished run")
    try:
        row = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(row, dict) or "method" not in row:
        raise ValueError(f"{path} is not a clipviz result")
    return row


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Results as an aligned table; accuracies in percent, "-" where there is none."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    table = pd.DataFrame(
        {
            "method": [row["method"] for row in rows],
            "data": [f"{row['data']} ({row['split']})" for row in rows],
            "accuracy %": [percent(row["accuracy"]) for row in rows],
            "pseudo-labels %": [percent(row["pseudo_label_accuracy"]) for row in rows],
            "zero-shot %": [percent(row["zero_shot_accuracy"]) for row in rows],
            "seconds": [f"{row['seconds']:.0f}" for row in rows],
        }
    )
    return table.to_string(index=False)
