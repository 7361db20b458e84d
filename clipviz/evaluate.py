"""Measuring: predictions, accuracies, and which images to look at. The only place besides the recorder that sees targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from clipviz.data.base import ImageDataset
from clipviz.data.loader import eval_batches
from clipviz.data.views import eval_parts, eval_view
from clipviz.events import UNLABELLED, Gallery, Predictions, Probe
from clipviz.methods.base import Method


@contextmanager
def undisturbed(method: Method) -> Iterator[None]:
    """Look at a method without changing its course: eval mode, no gradient, random state and modes restored."""
    modes = [(module, module.training) for module in method.modules()]
    devices = [method.backbone.device] if method.backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        method.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _images(method: Method, dataset: ImageDataset, batch_size: int) -> Iterator[Tensor]:
    backbone = method.backbone
    for images, _ in eval_batches(dataset, backbone.image_size, batch_size, device=backbone.device):
        yield images


def predict(method: Method, dataset: ImageDataset, batch_size: int = 256) -> Predictions:
    """Class probabilities of every image of a dataset, on its whole (centre-cropped) view.

    Returns:
        index (n,), probs (n, C) on the CPU, target (n,).
    """
    probs = []
    with undisturbed(method):
        for images in _images(method, dataset, batch_size):
            probs.append(method.logits(images).softmax(-1).cpu())
    return Predictions(torch.arange(len(dataset)), torch.cat(probs), torch.from_numpy(dataset.targets.copy()))


def branch_accuracies(method: Method, dataset: ImageDataset, batch_size: int = 256) -> dict[str, float]:
    """Accuracy of each branch of the inference path alone, e.g. {"accuracy_cls": 0.5, "accuracy_fg": 0.4}.

    Empty for methods without branches and for datasets without targets.
    """
    parts: dict[str, list[Tensor]] = {}
    if not dataset.has_targets:
        return {}
    with undisturbed(method):
        for images in _images(method, dataset, batch_size):
            for name, logits in method.branches(images).items():
                parts.setdefault(name, []).append(logits.argmax(-1).cpu())
    target = torch.from_numpy(dataset.targets.copy())
    return {f"accuracy_{name}": accuracy(torch.cat(rows), target) for name, rows in parts.items()}


def accuracy(labels: Tensor, target: Tensor) -> float:
    """Fraction of labelled images whose label is right, in [0, 1]; NaN if none is labelled."""
    known = target != UNLABELLED
    return float((labels[known] == target[known]).double().mean())


def probe_images(dataset: ImageDataset, index: np.ndarray, size: int) -> Probe:
    """Read images of a dataset as a probe: pixels, targets and, where they exist, part masks.

    Args:
        dataset: to read from.
        index: (P,) positions.
        size: side in pixels.
    """
    views = np.stack([eval_view(dataset.image(int(i)), size) for i in index])
    masks = [dataset.parts(int(i)) for i in index]
    parts = None
    if dataset.part_names is not None and all(mask is not None for mask in masks):
        parts = torch.from_numpy(np.stack([eval_parts(mask, size) for mask in masks if mask is not None]))
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255.0
    return Probe(pixels, torch.from_numpy(index), torch.from_numpy(dataset.targets[index]), parts)


def spread_probe(dataset: ImageDataset, size: int, n: int = 12) -> Probe:
    """A probe of at most n images spread evenly over the classes (over the dataset where labels are missing)."""
    order = np.argsort(dataset.targets, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]
    return probe_images(dataset, chosen, size)


def instructive(predictions: Predictions, n: int = 12) -> np.ndarray:
    """Positions of the images to learn from: the most confident mistakes, at most two per confused pair of classes.

    Without targets: the images with the least confidence.

    Args:
        predictions: of the whole evaluation set.
        n: at most so many.
    """
    confidence, labels = (t.numpy() for t in predictions.probs.max(-1))
    target = predictions.target.numpy()
    known = target != UNLABELLED
    if not known.any():
        return np.argsort(confidence, kind="stable")[:n]
    wrong = np.flatnonzero(known & (labels != target))
    chosen: list[int] = []
    seen: dict[tuple[int, int], int] = {}
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")]:
        pair = (int(target[i]), int(labels[i]))
        seen[pair] = seen.get(pair, 0) + 1
        if seen[pair] <= 2:
            chosen.append(int(i))
    return np.array(chosen[:n], dtype=np.int64)


def gallery(method: Method, dataset: ImageDataset, predictions: Predictions, n: int = 12) -> Gallery | None:
    """The instructive images with the final model's saliency; None where there is nothing to show."""
    index = instructive(predictions, n)
    if len(index) == 0:
        return None
    probe = probe_images(dataset, index, method.backbone.image_size)
    with undisturbed(method):
        maps = method.explain(probe.images.to(method.backbone.device))
    explanation = {kind: value.cpu() for kind, value in maps.items()}
    return Gallery(probe, predictions.probs[torch.from_numpy(index)], explanation)
