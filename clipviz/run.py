"""Run: drives the iterator of events into a run folder, with a checkpoint after every epoch.

A run folder holds `config.json`, `trace/`, `checkpoint.safetensors` and, at the end, `results.json`. Each is written
beside its place and moved there, so that a half-written file is never taken for a whole one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipviz.data.base import ImageDataset
from clipviz.events import EpochFinished, Event, Listener, Probe
from clipviz.loop import Adaptation, versions
from clipviz.methods.base import AdaptConfig, Method
from clipviz.recorder import Recorder
from clipviz.trace import TABLES, Trace

CHECKPOINT = "checkpoint.safetensors"


class Run:
    """One adaptation with a folder.

    Args:
        method: from `METHODS`; changed in place.
        dataset: the images to learn from.
        config: the schedule; default: the method's own.
        eval_dataset: images to measure on.
        probe: images to follow.
        seed: order of the images and all views.
        folder: where trace and checkpoint go; None keeps the trace in memory only.
        listeners: called with every event.

    Attributes:
        recorder: holds the trace so far.
    """

    def __init__(
        self,
        method: Method,
        dataset: ImageDataset,
        config: AdaptConfig | None = None,
        *,
        eval_dataset: ImageDataset | None = None,
        probe: Probe | Tensor | None = None,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.adaptation = Adaptation(method, dataset, config, eval_dataset=eval_dataset, probe=probe, seed=seed)
        self.recorder = Recorder()
        self.folder = None if folder is None else Path(folder)
        self.listeners = list(listeners)
        self._stopping = False

    @property
    def trace(self) -> Trace:
        """The trace so far."""
        return self.recorder.trace()

    def stop(self) -> None:
        """End the run at the next step boundary."""
        self._stopping = True

    def resume(self) -> bool:
        """Go on from the folder's checkpoint.

        Returns:
            False where there is none yet: the run starts at the beginning.

        Raises:
            ValueError: if the checkpoint is damaged or belongs to another run.
        """
        if self.folder is None or not (self.folder / CHECKPOINT).is_file():
            return False
        epoch = load_checkpoint(self.folder / CHECKPOINT, self.adaptation)
        self.recorder = Recorder(_until(Trace.load(self.folder), epoch))
        return True

    def fit(self) -> Trace:
        """Do the run in the caller and return its trace.

        Ctrl-C stops at a step boundary: what is recorded is saved, and KeyboardInterrupt goes on to the caller.
        """
        events = iter(self.adaptation)
        try:
            for event in events:
                self._take(event)
                if self._stopping:
                    self.recorder.meta["status"] = "stopped"
                    break
        except KeyboardInterrupt:
            self.recorder.meta["status"] = "stopped"
            raise
        finally:
            self._save_trace()
        return self.trace

    def _take(self, event: Event) -> None:
        self.recorder(event)
        for listener in self.listeners:
            listener(event)
        if isinstance(event, EpochFinished) and self.folder is not None:
            # the trace first: a checkpoint never knows more than the trace beside it
            self._save_trace()
            save_checkpoint(self.folder / CHECKPOINT, self.adaptation)

    def _save_trace(self) -> None:
        if self.folder is not None:
            self.trace.save(self.folder / "trace")


def _until(trace: Trace, epoch: int) -> Trace:
    """The part of a trace that a checkpoint at the start of `epoch` knows."""
    tables = {}
    for name in TABLES:
        table = getattr(trace, name)
        tables[name] = table[table["epoch"] < epoch] if "epoch" in table else table
    arrays = {}
    for name, array in trace.arrays.items():
        is_fixed = name in ("probe/images", "probe/index", "probe/target", "probe/parts")
        if name.startswith("snapshot/") or (name.startswith("probe/") and not is_fixed):
            arrays[name] = array[: epoch + 1]
        elif is_fixed:
            arrays[name] = array
    return Trace(**tables, arrays=arrays, meta=trace.meta)


# ------------------------------------------------------------------------------------------------- checkpoints


def _identity(adaptation: Adaptation) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that goes on from it."""
    method = adaptation.method
    return {
        "method": method.name,
        "model": method.backbone.name,
        "class_names": list(method.class_names),
        "settings": json.loads(json.dumps(method.settings)),
        "n_images": len(adaptation.dataset),
        "n_epochs": adaptation.n_epochs,
        "batch_size": adaptation.config.batch_size,
        "lr": adaptation.config.lr,
        "seed": adaptation.seed,
    }


def save_checkpoint(path: Path, adaptation: Adaptation) -> None:
    """Write the state of a run at an epoch boundary, atomically.

    Trainable parameters, the method's buffers and AdamW's moments as tensors; epoch, identity and versions as JSON.
    """
    method, optimizer = adaptation.method, adaptation.optimizer
    tensors = {f"method/{name}": tensor.contiguous() for name, tensor in method.trainable_state().items()}
    names = {parameter: name for name, parameter in method.named_parameters()}
    for parameter, state in optimizer.state.items() if optimizer else ():
        for key, value in state.items():
            tensors[f"optimizer/{key}/{names[parameter]}"] = torch.as_tensor(value).contiguous()
    metadata = {
        "format": "clipviz-checkpoint-1",
        "epoch": str(adaptation.epoch),
        "identity": json.dumps(_identity(adaptation)),
        "versions": json.dumps(versions()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        save_file(tensors, temporary, metadata=metadata)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, adaptation: Adaptation) -> int:
    """Restore what `save_checkpoint` wrote.

    Returns:
        The next epoch.

    Raises:
        ValueError: if the file is damaged, or belongs to another method, model, class set or schedule.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read checkpoint {path}: {error}; start again without --resume") from error
    if metadata.get("format") != "clipviz-checkpoint-1":
        raise ValueError(f"{path} is not a clipviz checkpoint; start again without --resume")
    wanted, got = _identity(adaptation), json.loads(metadata["identity"])
    for key, value in wanted.items():
        if got.get(key) != value:
            raise ValueError(
                f"checkpoint {path} belongs to another run: {key} was {_short(got.get(key))}, now it is {_short(value)}; "
                "use the same arguments as when it was written, or start again in another folder"
            )
    prefix = "method/"
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    with torch.no_grad():
        adaptation.method.load_trainable_state(state)
    optimizer = adaptation.optimizer
    for name, parameter in adaptation.method.named_parameters() if optimizer else ():
        moments = {
            key: tensors[f"optimizer/{key}/{name}"].to("cpu" if key == "step" else parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer/{key}/{name}" in tensors
        }
        if moments and optimizer is not None:
            optimizer.state[parameter] = moments
    adaptation.epoch = int(metadata["epoch"])
    return adaptation.epoch


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
