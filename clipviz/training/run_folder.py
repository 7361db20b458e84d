"""The folder of a run: what is in it, one writer at a time, and what of it a run can go on from.

`config.json` says what was chosen; `results.json` is there once the run is finished, and says how it went.
`trace/` is written before `checkpoint.safetensors`, so a checkpoint never knows more than the trace beside it. The one
before the newest is kept as `checkpoint.previous.safetensors`, in case a disk damages the newest. `epochs/` holds the
weights after every epoch (-1: before training), from which any map and any prediction can be made afterwards.

Files are written under hidden names and moved to their places. What a killed process left under such names is cleared
away by the next one that has the folder to itself.
"""

import math
import os
import re
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.files import lock_folder, prepare_folder, write_json
from clipviz.methods import METHODS, Method
from clipviz.parallel import ONE, Ranks
from clipviz.prompts import ClassPrompts
from clipviz.trace import TABLES, Trace, calibration_error, is_by_epoch, label_accuracy, last_value
from clipviz.training import checkpoint
from clipviz.training.checkpoint import WEIGHTS, DamagedCheckpoint, load_checkpoint, save_checkpoint, save_weights
from clipviz.training.evaluate import accuracy, predict
from clipviz.training.loop import Adaptation, versions

CONFIG, RESULTS = "config.json", "results.json"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
_TRACE = "trace"
KEPT_BYTES = 16 * 2**20
"""Weights of every epoch are kept by default where those of one are no larger: LayerNorms and heads of any ViT are."""
_UNFINISHED = re.compile(
    r"\.(trace|checkpoint\.safetensors|-?\d+\.safetensors|config\.json|live\.json|results\.json)\.[0-9a-f]{8}"
    r"(\.partial|\.older)?"
)


def kept_weights(folder: Path) -> dict[int, Path]:
    """The files of the weights after each epoch (-1: before training) that are kept in a run folder."""
    found = [path for path in (folder / WEIGHTS).glob("*.safetensors") if re.fullmatch(r"-1|\d{1,9}", path.stem)]
    return {int(path.stem): path for path in sorted(found, key=lambda path: int(path.stem))}


class RunFolder:
    """A folder that one run writes to, made when the first thing is written.

    `keep_epochs` is whether `epochs/` keeps the weights of every epoch; None: if they are of at most `KEPT_BYTES`.
    """

    def __init__(self, path: str | os.PathLike[str], keep_epochs: bool | None = None) -> None:
        self.path = Path(path).expanduser()
        self._at_most = math.inf if keep_epochs else KEPT_BYTES * (keep_epochs is None)
        self._lock: int | None = None
        self._is_begun = self._is_restored = False

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was here before."""
        return any((self.path / part).exists() for part in (CHECKPOINT, RESULTS, _TRACE))

    def lock(self) -> bool:
        """Keep other processes out until `unlock`; says whether it was open. ValueError if a run is writing here."""
        if self._lock is not None:
            return False
        if re.search("[\ud800-\udfff]", str(self.path.resolve())):  # where safetensors writes, but never reads again
            raise ValueError(f"the name of the folder {self.path} is no UTF-8 text; choose another place for the run")
        prepare_folder(self.path)
        try:
            self._lock = lock_folder(self.path)
        except BlockingIOError:
            raise ValueError(f"another run is writing to {self.path}; wait, stop it, or use another folder") from None
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Clear away what a killed process left behind; a trace that it had just moved aside moves back."""
        for left in sorted([*self.path.iterdir(), *(self.path / WEIGHTS).glob(".*")]):
            if not _UNFINISHED.fullmatch(left.name):
                continue
            if left.suffix == ".older" and not (self.path / _TRACE).exists():
                left.rename(self.path / _TRACE)
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save_trace(self, trace: Trace, adaptation: Adaptation) -> None:
        """Write or replace `trace/`, and `results.json` of a finished run; say so if the folder was deleted."""
        if self._lock is not None and not (
            self.path.is_dir() and os.path.samestat(os.fstat(self._lock), self.path.stat())
        ):
            warnings.warn(f"{self.path} was deleted or moved during the run; it is created again", stacklevel=2)
            self.unlock()
            self._is_begun = not self.lock()
        self._begin(trace, adaptation)
        trace.save(self.path / _TRACE)
        if trace.meta["status"] == "finished":
            write_json(self.path / RESULTS, results_of(trace))

    def _begin(self, trace: Trace, adaptation: Adaptation) -> None:
        """Before anything else is written: what an older run has left goes, so that nothing of two runs is mixed."""
        if self._is_begun:
            return
        (self.path / RESULTS).unlink(missing_ok=True)
        if not self._is_restored:
            for name in (PREVIOUS, CHECKPOINT):
                (self.path / name).unlink(missing_ok=True)
        for epoch, path in kept_weights(self.path).items():
            if not self._is_restored or epoch >= adaptation.epoch:  # of what a resumed run does again
                path.unlink(missing_ok=True)
        write_json(self.path / CONFIG, config_of(trace, adaptation))
        self._is_begun = True

    def save(self, trace: Trace, adaptation: Adaptation) -> None:
        """Write trace and checkpoint; the checkpoint of before stays as the previous one."""
        self.save_trace(trace, adaptation)
        if adaptation.evolves and adaptation.steps_in_epoch == 0:
            save_weights(self.path / WEIGHTS / f"{adaptation.epoch - 1}.safetensors", adaptation, self._at_most)
        newest, previous = self.path / CHECKPOINT, self.path / PREVIOUS
        if newest.is_file():
            previous.unlink(missing_ok=True)
            try:
                os.link(newest, previous)  # a link, so that there is a newest one at every moment
            except OSError:  # not every file system has links
                shutil.copyfile(newest, previous)
        save_checkpoint(newest, adaptation)

    def restore(self, adaptation: Adaptation) -> Trace | None:
        """Put a run into the state of the newest readable checkpoint, in all of its processes.

        Returns what the trace knew at that moment, empty before the first step; None where there is no checkpoint. A
        ValueError if none can be read, they belong to another run, another run is writing here, or the processes do not
        find the same.
        """
        ranks = adaptation.ranks
        was_open = ranks.together(lambda: ranks.is_first and self.path.is_dir() and self.lock())
        try:
            known = ranks.together(lambda: self._restore(adaptation))
        finally:
            if was_open:
                self.unlock()
        self._is_restored = known is not None
        found = ranks.texts(f"epoch {adaptation.epoch}, step {adaptation.steps_in_epoch}")
        ranks.together(lambda: self._check_that_all_found_it(found))
        return known

    def _check_that_all_found_it(self, found: list[str]) -> None:
        if len(set(found)) > 1:
            raise ValueError(
                f"the processes find different checkpoints in {self.path} ({'; '.join(found)}); "
                "give a folder that all machines share"
            )

    def _restore(self, adaptation: Adaptation) -> Trace | None:
        found = [path for name in (CHECKPOINT, PREVIOUS) if (path := self.path / name).is_file()]
        if not found:
            return None
        self._load_newest(found, adaptation)
        if adaptation.epoch == adaptation.steps_in_epoch == 0:
            return Trace()  # the run measures itself anew
        if not (self.path / _TRACE).is_dir():
            raise ValueError(
                f"{self.path} holds a checkpoint, but not the {_TRACE}/ that it continues; put that back, or start "
                "again in another folder"
            )
        trace = Trace.load(self.path)
        checkpoint.check_same_run(found[0], checkpoint.identity_of(adaptation), trace.meta)
        return _known_to(adaptation, trace)

    def _load_newest(self, found: list[Path], adaptation: Adaptation) -> None:
        """Load the first checkpoint that can be read, and say so if it is not the newest."""
        damage: list[str] = []
        for path in found:
            try:
                load_checkpoint(path, adaptation)
            except DamagedCheckpoint as error:
                damage.append(str(error))
                continue
            if damage:
                warnings.warn(f"{damage[0]}; continuing from the one before it", stacklevel=2)
            return
        which = "both" if len(damage) > 1 else "it"
        raise DamagedCheckpoint(f"{' and '.join(damage)}; delete {which} to start at the beginning")


def _known_to(adaptation: Adaptation, trace: Trace) -> Trace:
    """The part of a trace that the restored state knows: the steps up to it, and the epochs that were measured."""
    epoch, n_guesses = adaptation.epoch, sum(len(labels) for labels in adaptation.epoch_totals.get("labels", ()))
    tables = {}
    for name in TABLES:
        table = getattr(trace, name)
        tables[name] = table[table["epoch"] < epoch] if "epoch" in table else table
    if n_guesses:
        steps, samples = trace.steps[trace.steps["epoch"] == epoch], trace.samples[trace.samples["epoch"] == epoch]
        done = np.sort(steps["step"].unique())[: adaptation.steps_in_epoch]
        tables["steps"] = pd.concat([tables["steps"], steps[steps["step"].isin(done)]])
        tables["samples"] = pd.concat([tables["samples"], samples[:n_guesses]])
    last_begun = trace.samples["epoch"].max()  # the epoch that the stored source logits are of
    keeps_sources = len(tables["samples"]) > 0 and tables["samples"]["epoch"].max() == last_begun
    arrays = {}
    for name, array in trace.arrays.items():
        if is_by_epoch(name):
            arrays[name] = array[: epoch + 1]
        elif name.startswith("sources/") and keeps_sources:
            arrays[name] = array[:n_guesses] if n_guesses else array
        elif name.startswith(("probe/", "embeddings/", "exploration/")):
            arrays[name] = array
    return Trace(**tables, arrays=arrays, meta=trace.meta)


def zero_shot_accuracy(
    backbone: Backbone, prompts: ClassPrompts, evaluation: ImageDataset | None, ranks: Ranks = ONE
) -> float | None:
    """Accuracy of a model that was not adapted with the template ensemble, or None without labels."""
    if evaluation is None or not evaluation.has_targets:
        return None
    predictions = predict(METHODS["zero_shot"](backbone, prompts), evaluation, ranks=ranks)
    return accuracy(predictions.probs.argmax(-1), predictions.target)


def measure_zero_shot(meta: dict[str, Any], method: Method, evaluation: ImageDataset | None, ranks: Ranks) -> None:
    """Note the zero-shot accuracy of a method's model before its first step, unless it is known, or never will be."""
    if "zero_shot_accuracy" not in meta and method.name != "zero_shot" and not method.has_learned:
        meta["zero_shot_accuracy"] = zero_shot_accuracy(method.backbone, method.prompts, evaluation, ranks)


def config_of(trace: Trace, adaptation: Adaptation) -> dict[str, Any]:
    """The object of config.json: all that was chosen, and, as far as it is known, where model and images came from.

    `origins` are arguments of `load_backbone` and `load_dataset`, null for what was made by hand; `prompts` are the
    texts that the method reads: where the images are gone, it can still be built.
    """
    method, command = adaptation.method, trace.meta.get("command")
    facts = {key: value for key, value in adaptation.facts().items() if key != "files"}  # the trace lists them
    return {
        **({"command": command} if command else {}), **facts, "class_names": list(method.class_names),
        "n_images": len(adaptation.dataset), "prompts": asdict(method.prompts), "method_class": type(method).__name__,
    }  # fmt: skip


def results_of(trace: Trace) -> dict[str, Any]:
    """The object of results.json; accuracies and ECEs are fractions, null where there are no labels.

    "before" is what the method says at first. Where it labels all images together or one after the other, the accuracy
    of the labels is also given as transductive_accuracy or online_accuracy; accuracy is that on the evaluation images.
    """
    labels, before = label_accuracy(trace), trace.metric("accuracy").get(-1)
    last = {
        "accuracy": last_value(trace, "accuracy"), "pseudo_label_accuracy": labels,
        **({f"{what}_accuracy": labels} if (what := trace.meta.get("labels_are")) else {}),
        "accuracy_before": None if before is None else float(before), "ece": calibration_error(trace),
        "ece_before": calibration_error(trace, -1),
    }  # fmt: skip
    zero_shot = last["accuracy"] if trace.method == "zero_shot" else trace.meta.get("zero_shot_accuracy")
    keys = ("method", "model", "data", "split", "eval_data", "eval_split", "accuracy_is", "seed", "epochs")
    return {
        **{key: trace.meta[key] for key in keys}, **last, "zero_shot_accuracy": zero_shot, **_cache_results(trace),
        **{key: trace.meta.get(key) for key in ("preset", "embeddings")}, "n_images": trace.meta["n_images"],
        "n_skipped": len(trace.skipped), "seconds": trace.meta["seconds"], "versions": versions(),
    }  # fmt: skip


def _cache_results(trace: Trace) -> dict[str, Any]:
    """What a method with a cache adds to its results: how much of it is filled, by whom, and how good that one is."""
    coverage = last_value(trace, "coverage")
    if coverage is None:
        return {}
    settings = trace.meta["settings"]["method"]
    teacher = last_value(trace, "accuracy_teacher")
    if teacher is None and settings["teacher"] != "none":  # the model itself is its teacher
        teacher = last_value(trace, "accuracy_zero_shot")
    return {
        "coverage": coverage, "cache_size": int(last_value(trace, "cache_size") or 0),
        "selection": settings["selection"], "uses_labels": settings["selection"] == "oracle_balanced",
        "teacher": settings["teacher"], "teacher_zero_shot_accuracy": teacher,
    }  # fmt: skip
