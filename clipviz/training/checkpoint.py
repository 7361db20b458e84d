"""Checkpoints of a run: safetensors with what training changed, metadata with what it belongs to.

Only what differs from the backbone as it was loaded is kept: trainable parameters, the method's buffers, AdamW's
moments.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from clipviz.data.batches.features import FeatureDataset, tensor_bytes
from clipviz.errors import one_line
from clipviz.files import replacing
from clipviz.methods.base import Method
from clipviz.prompts import short_hash
from clipviz.training.loop import Adaptation, versions

FORMAT = "clipviz-checkpoint-3"
WEIGHTS = "epochs"
"""The folder of `save_weights` in a run folder."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def identity_of(adaptation: Adaptation) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that goes on from it.

    The number of processes need not: they share batches whose size is in the schedule, and all have the same state.
    """
    method, data, evaluation = adaptation.method, adaptation.dataset, adaptation.eval_dataset
    probe = adaptation.probe
    return {
        "method": method.name, "model": method.backbone.name, "frozen weights": method.backbone.fingerprint(),
        "precision": method.backbone.precision, "class_names": list(method.class_names),
        "prompts or descriptions": short_hash([method.prompts.digest, data.prompts.digest]),
        "settings": json.loads(json.dumps(adaptation.settings)), "n_images": len(data), "data": data.identity,
        "evaluation data": evaluation.identity if evaluation else None, "n_epochs": adaptation.n_epochs,
        "probe": None if probe is None else short_hash([tensor_bytes(probe.images), tensor_bytes(probe.index)]),
        "schedule": {key: value for key, value in asdict(adaptation.config).items() if key != "workers"},
        "seed": adaptation.seed,
    }  # fmt: skip


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, as opposed to one that belongs to another run."""


def save_checkpoint(path: Path, adaptation: Adaptation) -> None:
    """Write the state of a run between two steps, atomically: method, AdamW's moments, totals of the epoch, its place.

    There is no random state to keep: order and views follow from seed, epoch and index. Left out are rows of data that
    are embeddings, and the moments after the last epoch.
    """
    method, optimizer = adaptation.method, adaptation.optimizer
    left_out = method.rows_of_data if isinstance(adaptation.dataset, FeatureDataset) else ()
    tensors = {f"method/{name}": tensor for name, tensor in method.trainable_state().items() if name not in left_out}
    names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
    for parameter, known in optimizer.state.items() if optimizer and adaptation.epoch < adaptation.n_epochs else ():
        for key, value in known.items():
            tensors[f"optimizer/{key}/{names[parameter]}"] = torch.as_tensor(value)
    tensors.update((f"books/{name}", torch.cat(values)) for name, values in adaptation.epoch_totals.items())
    _write(path, tensors, adaptation)


def save_weights(path: Path, adaptation: Adaptation, at_most: float) -> None:
    """Write what a method predicts with after an epoch, without `kept_once`, unless it is more than so many bytes."""
    state = adaptation.method.trainable_state().items()
    tensors = {f"method/{name}": tensor for name, tensor in state if name not in adaptation.method.kept_once}
    if sum(tensor.nbytes for tensor in tensors.values()) <= at_most:
        _write(path, tensors, adaptation, durable=False)


def _write(path: Path, tensors: dict[str, Tensor], adaptation: Adaptation, *, durable: bool = True) -> None:
    method = adaptation.method
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT, "epoch": str(adaptation.epoch), "steps_in_epoch": str(adaptation.steps_in_epoch),
        "identity": json.dumps(identity_of(adaptation)),
        "adjusted": json.dumps({name: getattr(method.config, name) for name in method.adjustable}),
        "versions": json.dumps(versions()),
    }  # fmt: skip
    metadata["digest"] = _digest(tensors, metadata)
    with replacing(path, durable=durable) as place:
        save_file(tensors, place, metadata=metadata)


def load_checkpoint(path: Path, adaptation: Adaptation) -> None:
    """Restore what `save_checkpoint` wrote; warns if other versions did, whose numbers may differ in their last digits.

    Raises:
        DamagedCheckpoint: if the file is not what was written; what to do depends on whether there is another.
        ValueError: if it belongs to another method, model, class set or schedule, or to other data.
    """
    metadata, tensors = _read(path)
    wanted, got = identity_of(adaptation), {"precision": "32", **json.loads(metadata["identity"])}
    for key, value in wanted.items():
        if got.get(key) != value:
            raise ValueError(
                f"checkpoint {path} belongs to another run: {difference(key, got.get(key), value)}; "
                "use the same arguments as when it was written, or another folder"
            )
    now, before = versions(), json.loads(metadata["versions"])
    if others := [f"{name} {before.get(name)} (now {now[name]})" for name in now if before.get(name) != now[name]]:
        warnings.warn(f"{path} was written by {', '.join(others)}: last digits may differ", stacklevel=2)
    parts = {kind: _below(kind, tensors) for kind in ("method", "optimizer", "books")}
    state, data = parts["method"], adaptation.dataset
    if isinstance(data, FeatureDataset):
        for name, positions in adaptation.method.rows_of_data.items():
            rows = data.rows(state[positions] if positions else slice(None))
            state[name] = rows.reshape(-1, *getattr(adaptation.method, name).shape[1:])
    with torch.no_grad():
        adaptation.method.load_trainable_state(state)
    if adaptation.optimizer is not None:
        _restore_moments(path, adaptation.method, adaptation.optimizer, parts["optimizer"])
    if adjusted := json.loads(metadata["adjusted"]):  # constants that were changed while the run went on
        adaptation.method.config = adaptation.method.adjusted(**adjusted)
    device = adaptation.method.backbone.device
    adaptation.epoch_totals = {name: [tensor.to(device)] for name, tensor in parts["books"].items()}
    adaptation.epoch, adaptation.steps_in_epoch = int(metadata["epoch"]), int(metadata["steps_in_epoch"])


def load_weights(path: Path, method: Method) -> None:
    """Give a method what a run had learned, to predict with; the data of the run do not matter.

    What the weights of an epoch leave out (`kept_once`) stays as it is. Raises ValueError if the file is damaged, or of
    another method, model or class set.
    """
    metadata, tensors = _read(Path(path))
    got, weights = json.loads(metadata["identity"]), method.backbone.fingerprint()
    wanted = {"method": method.name, "frozen weights": weights, "class_names": list(method.class_names)}
    for key, value in wanted.items():
        if got[key] != value:
            raise ValueError(f"{path} has other weights than asked for: {difference(key, got[key], value)}")
    state, own = _below("method", tensors), method.trainable_state()
    with torch.no_grad():
        method.load_trainable_state({name: own[name] for name in method.kept_once if name in own} | state)
    if adjusted := json.loads(metadata["adjusted"]):
        method.config = method.adjusted(**adjusted)


class CheckpointFacts(NamedTuple):
    """The last whole epoch that a checkpoint knows, whether it knows nothing of the next one, what it belongs to."""

    epoch: int
    is_whole: bool
    identity: dict[str, Any]


def facts_of(path: Path) -> CheckpointFacts:
    """What the header of a checkpoint says."""
    metadata, _ = _read(path, with_tensors=False)
    is_whole = metadata["steps_in_epoch"] == "0"
    return CheckpointFacts(int(metadata["epoch"]) - 1, is_whole, json.loads(metadata["identity"]))


def check_same_run(path: Path, identity: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Refuse weights, copied in by hand, of another run than that of the trace beside them, as far as both say."""
    settings, data = meta.get("settings") or {}, identity["data"]
    schedule = {key: value for key, value in settings.get("schedule", {}).items() if key != "workers"}
    told = {**meta, "settings": settings.get("method"), "schedule": schedule or None}
    for key, value in {**identity, "data": data["name"], "split": data["split"]}.items():
        if None not in (value, was := told.get(key)) and value != was:
            what = difference(key, was, value)
            raise ValueError(
                f"{path} is of another run than the trace beside it: {what}; put back the files of one run"
            )


def difference(key: str, was: Any, now: Any) -> str:
    """What differs, in words: of a data set every part that does, of other dictionaries the first entry."""
    if isinstance(was, dict) and isinstance(now, dict):
        others = [name for name in dict.fromkeys((*now, *was)) if was.get(name) != now.get(name)]
        if "contents" not in now:
            return difference(f"{key}.{others[0]}", was.get(others[0]), now.get(others[0]))
        names = ("name", "split", "number of images")
        shown = {name: f" (was {was.get(name)!r}, now {now.get(name)!r})" for name in names}
        return f"{key} differs in {', '.join(name + shown.get(name, '') for name in others)}"
    was, now = ("given" if isinstance(value, dict) else one_line(repr(value), 60) for value in (was, now))
    return f"{key} was {was}, now it is {now}"


def _read(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors, bit by bit those that were written: safetensors alone does not notice a damaged bit."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except Exception as error:  # parsers of foreign bytes raise what they like
        raise DamagedCheckpoint(f"cannot read checkpoint {path}: {one_line(error)}") from error
    if not metadata.get("format", "").startswith("clipviz-checkpoint-"):
        raise ValueError(f"{path} is not a clipviz checkpoint; use another folder")
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path} is of another version of clipviz ({metadata['format']}); use another folder")
    if with_tensors and metadata.pop("digest", None) != _digest(tensors, metadata):
        raise DamagedCheckpoint(f"checkpoint {path} is not what was saved")
    return metadata, tensors


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _below(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}


def _restore_moments(path: Path, method: Method, optimizer: Optimizer, moments: Mapping[str, Tensor]) -> None:
    for name, parameter in method.named_parameters():
        state = {key: moments[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in moments}
        if any(tensor.shape not in (parameter.shape, ()) for tensor in state.values()):
            raise ValueError(f"checkpoint {path} does not fit: moments of {name} have another shape; use a new folder")
        if state:
            optimizer.state[parameter] = {
                key: tensor.to("cpu" if key == "step" else parameter.device) for key, tensor in state.items()
            }
