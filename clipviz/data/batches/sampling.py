"""Choosing images by their labels. This module alone does that, and only when it is told that it may."""

import numpy as np
import torch
from torch import Tensor

from clipviz.data.base import ImageDataset


def balanced_index(dataset: ImageDataset, shots: int, seed: int = 1, *, allow_labels: bool = False) -> Tensor:
    """Ascending positions (M,) of `shots` random images per true class, as few-shot papers sample, or fewer.

    What is chosen this way is not label-free: every class is there, equally often. For reproduction only, and refused
    without `allow_labels`, which says that the use of labels is meant.
    """
    if not allow_labels:
        raise ValueError("a balanced choice uses the true labels; pass allow_labels=True if that is intended")
    if not dataset.has_targets:
        raise ValueError(f"{dataset.name} has no labels to balance by; use selection='topk_pseudo' or 'random'")
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(dataset.targets == c) for c in range(len(dataset.class_names))]
    return torch.from_numpy(np.sort(np.concatenate([rng.permutation(rows)[:shots] for rows in classes])))
