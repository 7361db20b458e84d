"""Checkpoints of a run: safetensors with what training changed, metadata with what it belongs to.

Only what differs from the backbone as it was loaded is kept: trainable parameters, the method's buffers, AdamW's
moments.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipviz.loop import Adaptation, versions


def _identity(adaptation: Adaptation) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that goes on from it."""
    method = adaptation.method
    return {
        "method": method.name,
        "model": method.backbone.name,
        "frozen weights": method.backbone.fingerprint(),
        "class_names": list(method.class_names),
        "settings": json.loads(json.dumps(adaptation.settings)),
        "data": adaptation.dataset.name,
        "split": adaptation.dataset.split,
        "n_images": len(adaptation.dataset),
        "n_epochs": adaptation.n_epochs,
        "schedule": {key: value for key, value in asdict(adaptation.config).items() if key != "workers"},
        "seed": adaptation.seed,
    }


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, as opposed to one that belongs to another run."""


def save_checkpoint(path: Path, adaptation: Adaptation) -> None:
    """Write the state of a run between two steps, atomically.

    Trainable parameters, the method's buffers, AdamW's moments and the books of the epoch as tensors; position,
    identity and versions as JSON. There is no random state to keep: order and views follow from seed, epoch and index.
    """
    method, optimizer = adaptation.method, adaptation.optimizer
    tensors = {f"method/{name}": tensor.contiguous() for name, tensor in method.trainable_state().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
    for parameter, state in optimizer.state.items() if optimizer else ():
        for key, value in state.items():
            tensors[f"optimizer/{key}/{names[parameter]}"] = torch.as_tensor(value).contiguous()
    tensors.update((f"books/{name}", torch.cat(values)) for name, values in adaptation.books.items())
    metadata = {
        "format": "clipviz-checkpoint-1",
        "epoch": str(adaptation.epoch),
        "steps_in_epoch": str(adaptation.steps_in_epoch),
        "identity": json.dumps(_identity(adaptation)),
        "adjusted": json.dumps({name: getattr(method.config, name) for name in method.adjustable}),
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


def load_checkpoint(path: Path, adaptation: Adaptation) -> None:
    """Restore what `save_checkpoint` wrote.

    Raises:
        ValueError: if the file is damaged, or belongs to another method, model, class set or schedule.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(
            f"cannot read checkpoint {path}: {error}; delete it to start at the beginning"
        ) from error
    if metadata.get("format") != "clipviz-checkpoint-1":
        raise ValueError(f"{path} is not a clipviz checkpoint; use another folder")
    wanted, got = _identity(adaptation), json.loads(metadata["identity"])
    for key, value in wanted.items():
        if got.get(key) != value:
            raise ValueError(
                f"checkpoint {path} belongs to another run: {key} was {_short(got.get(key))}, "
                f"now it is {_short(value)}; use the same arguments as when it was written, or another folder"
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
    if adjusted := json.loads(metadata["adjusted"]):  # constants that were changed while the run went on
        adaptation.method.config = adaptation.method.adjusted(**adjusted)
    books = {name.removeprefix("books/"): [t] for name, t in tensors.items() if name.startswith("books/")}
    adaptation.books = books
    adaptation.epoch, adaptation.steps_in_epoch = int(metadata["epoch"]), int(metadata["steps_in_epoch"])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
