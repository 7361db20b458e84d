"""From images to embeddings, and from embeddings to a file that `load_dataset` reads."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.data.features import FeatureDataset
from clipviz.data.loader import eval_batches

FEATURE_SUFFIXES = (".npz", ".safetensors")


def embed_dataset(
    backbone: Backbone, dataset: ImageDataset, classifier: Tensor | None = None, batch_size: int = 256
) -> FeatureDataset:
    """Embed the whole (centre-cropped) view of every image.

    Args:
        backbone: the model.
        dataset: n images.
        classifier: (C, E) float to go with them.
        batch_size: images at a time.

    Returns:
        Embeddings (n, E) float32 on the CPU, with the name, split, classes and targets of `dataset`.
    """
    rows = []
    with torch.no_grad():
        for images, _ in eval_batches(dataset, backbone.image_size, batch_size, device=backbone.device):
            rows.append(backbone.embed(images).cpu())
    return FeatureDataset(
        torch.cat(rows),
        name=dataset.name,
        split=dataset.split,
        targets=torch.from_numpy(dataset.targets.copy()),
        class_names=dataset.class_names,
        classifier=None if classifier is None else classifier.cpu(),
        logit_scale=backbone.logit_scale,
        model=backbone.name,
    )


def write_features(path: str | os.PathLike[str], dataset: FeatureDataset) -> None:
    """Write embeddings as .npz or .safetensors, by the suffix; never half a file.

    Raises:
        ValueError: for another suffix.
    """
    target = Path(path)
    if target.suffix.lower() not in FEATURE_SUFFIXES:
        raise ValueError(f"features go into a .npz or .safetensors file, got {os.fspath(path)!r}; give one of these")
    tensors = {
        "embeddings": dataset.embeddings.contiguous(),
        "labels": torch.from_numpy(dataset.targets),
        "logit_scale": torch.tensor(dataset.logit_scale),
    }
    if dataset.classifier is not None:
        tensors["classifier"] = dataset.classifier.contiguous()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if target.suffix.lower() == ".npz":
            arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
            arrays["class_names"] = np.array(dataset.class_names, dtype=str)
            arrays["model"] = np.array(dataset.model)
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
        else:
            metadata = {"class_names": json.dumps(dataset.class_names), "model": dataset.model}
            save_file(tensors, temporary, metadata=metadata)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
