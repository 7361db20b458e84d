"""Files of embeddings: what `load_dataset` reads and `clipviz embed` writes.

A file is `.npz` or `.safetensors` and holds

    embeddings    (n, E) float16, bfloat16 or float; rows need not have unit norm
    labels        (n,) integers, -1 = unlabeled; diagnostic only                      optional
    classifier    (C, E) float, one row per class                                      optional
    class_names   C strings; in .safetensors the metadata "class_names", a JSON list   optional
    logit_scale   one number; 100 if it is missing                                     optional
    model         the name of what made the embeddings                                 optional

Arrays of other names are left alone, with a warning that names them: "targets" for "labels" would pass unnoticed.
"""

import json
import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipviz.data.batches.features import DEFAULT_LOGIT_SCALE, FeatureDataset
from clipviz.data.sources.image_files import Classes, FileOptions, drawn, given_classes
from clipviz.data.sources.layout import data_name
from clipviz.errors import listed, one_line
from clipviz.files import replacing, writing

FEATURE_SUFFIXES = (".npz", ".safetensors")
_KNOWN = ("embeddings", "labels", "classifier", "class_names", "logit_scale", "model")
_LEAST_USUAL_SCALE = 10.0


def read_features(
    path: str | os.PathLike[str], *, classes: Classes | None = None, **options: Unpack[FileOptions]
) -> FeatureDataset:
    """Read a .npz or .safetensors file of embeddings; `classes` and `options` are as for `load_dataset`."""
    file, name = os.fspath(path), data_name(os.fspath(path))
    arrays = _read(file)
    if "embeddings" not in arrays:
        held = listed(sorted(arrays)) or "nothing"
        raise ValueError(f"{name}: wanted an array 'embeddings' (n, E), but the file holds {held}")
    _check_kinds(arrays, name)
    if others := sorted(set(arrays) - set(_KNOWN)):
        warnings.warn(f"{name}: not used: {listed(others)}; used are {', '.join(_KNOWN)}", stacklevel=3)
    try:
        logit_scale = float(arrays.get("logit_scale", DEFAULT_LOGIT_SCALE))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: logit_scale must be one number ({one_line(error)})") from error
    if 0 < logit_scale < _LEAST_USUAL_SCALE:
        warnings.warn(
            f"{name}: logit_scale is {logit_scale:g}, so no prediction can be confident; CLIP's is near 100, and its "
            f"logarithm, which the parameter holds, near 4.6: if this is a logarithm, store its exponential, "
            f"{math.exp(logit_scale):.4g}", stacklevel=3,
        )  # fmt: skip
    dataset = FeatureDataset(
        arrays["embeddings"], name=name, targets=arrays.get("labels"),
        class_names=given_classes(classes) or arrays.get("class_names") or None, classifier=arrays.get("classifier"),
        logit_scale=logit_scale, model=str(arrays.get("model", "features")), descriptions=options.get("descriptions"),
        templates=options.get("templates"),
    )  # fmt: skip
    rows = drawn(len(dataset), options.get("n"), options.get("seed", 0))
    if len(rows) < len(dataset):
        dataset.embeddings, dataset.targets = dataset.embeddings[torch.from_numpy(rows)], dataset.targets[rows]
        dataset.names = dataset.names[: len(rows)]
    return dataset


def _check_kinds(arrays: dict[str, Any], source: str) -> None:
    """Refuse text where numbers are wanted, and the other way round; shapes are looked at by the data set."""
    if not isinstance(arrays.get("class_names", []), list):
        raise ValueError(f"{source}: class_names must be a list of strings")
    for key in ("embeddings", "labels", "classifier"):
        if key in arrays and not isinstance(arrays[key], Tensor):
            hint = "; names go into class_names, labels are positions in it" if key == "labels" else ""
            raise ValueError(f"{source}: {key} must be an array of numbers, but it holds something else{hint}")


def _read(name: str) -> dict[str, Any]:
    try:
        return _read_safetensors(name) if name.lower().endswith(".safetensors") else _read_npz(name)
    except Exception as error:  # zip, zlib, numpy and the parsers of safetensors raise many kinds for a damaged file
        pickled = "it holds Python objects, which are never unpickled; save arrays of numbers"
        reason = pickled if "allow_pickle" in str(error) else one_line(error)
        raise ValueError(f"cannot read features from {name!r}: {reason}") from error


def _read_npz(name: str) -> dict[str, Any]:
    with open(name, "rb") as raw:  # opened here, because numpy leaves a damaged file open
        if not zipfile.is_zipfile(raw):
            raise ValueError("it is damaged or not an .npz archive, as numpy.savez writes it")
        raw.seek(0)
        with np.load(raw, allow_pickle=False) as file:
            return {key: _plain(file[key]) for key in file.files}


def _plain(array: np.ndarray) -> Any:
    """Text as strings, numbers as a tensor, also of kinds that torch has not: other byte orders, more than 64 bits."""
    if array.dtype.kind in "US":
        text = [item.decode() if isinstance(item, bytes) else str(item) for item in np.atleast_1d(array)]
        return text if array.ndim else text[0]
    if array.dtype.kind not in "fiub":
        return array
    kind = np.dtype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array.dtype
    return torch.from_numpy(array.astype(kind.newbyteorder("="), copy=False))


def _read_safetensors(name: str) -> dict[str, Any]:
    with safe_open(name, "pt") as file:
        metadata = file.metadata() or {}
        out: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    if "class_names" in metadata:
        out["class_names"] = [str(item) for item in json.loads(metadata["class_names"])]
    return out | {key: metadata[key] for key in ("model", "logit_scale") if key in metadata}


def write_features(path: str | os.PathLike[str], dataset: FeatureDataset) -> None:
    """Write embeddings as .npz or .safetensors, by the suffix; never half a file."""
    target = Path(path)
    if target.suffix.lower() not in FEATURE_SUFFIXES:
        raise ValueError(f"features go into a .npz or .safetensors file, got {os.fspath(path)!r}; give one of these")
    tensors = {
        "embeddings": dataset.embeddings.contiguous(), "labels": torch.tensor(dataset.targets),
        "logit_scale": torch.tensor(dataset.logit_scale),
    }  # fmt: skip
    if dataset.classifier is not None:
        tensors["classifier"] = dataset.classifier.contiguous().clone()  # it may be rows of the embeddings
    if target.suffix.lower() == ".npz":
        wider = {torch.bfloat16: torch.float32}  # which numpy lacks
        arrays: dict[str, Any] = {key: tensor.to(wider.get(tensor.dtype)).numpy() for key, tensor in tensors.items()}
        texts: dict[str, Any] = {"class_names": np.array(dataset.class_names, str), "model": np.array(dataset.model)}
        with writing(target) as file:
            np.savez(file, **arrays, **texts)
        return
    with replacing(target) as place:
        save_file(tensors, place, {"class_names": json.dumps(dataset.class_names), "model": dataset.model})
