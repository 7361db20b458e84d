"""Evaluation: predictions, accuracies, and which images to follow. Only this module and the recorder see targets."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clipviz.backbone.ownership import preserved_state
from clipviz.data.base import ImageDataset, ViewConfig, Views
from clipviz.data.batches.features import FeatureDataset, embed_dataset
from clipviz.data.batches.loader import eval_views
from clipviz.data.images.views import eval_parts, eval_view
from clipviz.errors import one_line
from clipviz.events import UNLABELLED, Predictions, Probe
from clipviz.methods.base import Method, ask
from clipviz.ops import expect_axes, normalize
from clipviz.parallel import ONE, Ranks


def evaluation_inputs(method: Method, dataset: ImageDataset, ranks: Ranks = ONE) -> ImageDataset:
    """The data set to measure a method on again and again: of a frozen image tower, the embeddings, computed once."""
    if method.adapts_tower or not method.works_on_embeddings or not dataset.has_pixels:
        return dataset
    return embed_dataset(method.backbone, dataset, ranks=ranks)


def _views(method: Method, dataset: ImageDataset, batch_size: int, ranks: Ranks) -> Iterator[Views]:
    """The test images (or embeddings) in order, with the crops that the method wants of them.

    Processes share images; embeddings, which cost nothing, each of them has for itself.
    """
    device = method.backbone.device
    if isinstance(dataset, FeatureDataset):
        for start in range(0, len(dataset), batch_size):
            yield Views(dataset.rows(slice(start, start + batch_size)).to(device))
        return
    config = replace(getattr(method, "test_needs", ViewConfig()), size=method.backbone.image_size)
    yield from eval_views(dataset, config, batch_size, device, ranks)


def predict(
    method: Method, dataset: ImageDataset, batch_size: int = 256, ranks: Ranks = ONE, *, branches: bool = False
) -> Predictions:
    """Class probabilities of every image of a dataset, on its whole (center-cropped) view, and of `branches`.

    Results are on the CPU. Several processes share the work if all of them call this, and all get the whole result.
    """
    probs = torch.empty(len(dataset), len(method.class_names))  # a million times a thousand is 4 GB: never twice
    done, embeddings = 0, []
    parts: dict[str, list[Tensor]] = {}
    for views in _views(method, dataset, batch_size, ranks):
        backbone = method.backbone
        with preserved_state(method), backbone.collected() as seen, backbone.shared_tokens():  # let go: others wait
            logits, others = _said(method, views, branches)
            rows = probs[: len(views.weak)]  # as many of them, of as many classes
            said = {f"branch {name!r}": values for name, values in others.items()} | {"logits": logits}
            expect_axes(probs=(rows, "BC"), **{f"{what} of {method.name}": (v, "BC") for what, v in said.items()})
            guesses = views.gather(logits.softmax(-1)).cpu()
            for name, rows in others.items():
                parts.setdefault(name, []).append(views.gather(rows.argmax(-1)).cpu())
            probs[done : done + len(guesses)] = guesses
            done += len(guesses)
            outputs = [normalize(views.weak.float())] if isinstance(dataset, FeatureDataset) else seen
            # A tower may also have looked at crops; those of the images come in as many rows as there are images.
            for rows in [rows for rows in outputs if len(rows) == len(views.weak)][:1]:
                embeddings.append(views.gather(rows).half().cpu())
    complete = sum(len(rows) for rows in embeddings) == len(dataset)
    index, target = torch.arange(len(dataset)), torch.from_numpy(dataset.targets.copy())
    named = {name: torch.cat(rows) for name, rows in parts.items()}
    return Predictions(index, probs, target, torch.cat(embeddings) if complete else None, named)


def _said(method: Method, views: Views, branches: bool) -> tuple[Tensor, dict[str, Tensor]]:  # all, by branch
    both, of_views = (getattr(method, hook, None) for hook in ("measured", "view_logits"))
    if branches and both:
        found = ask(method, "measured", views)
        if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], Mapping):
            raise ValueError(
                f"measured of {method.name} must return logits and branches, got {one_line(repr(found), 60)}"
            )
        return found[0], dict(found[1])
    others = ask(method, "branches", views.weak, otherwise={}) if branches else {}
    return ask(method, "view_logits", views) if of_views else method.logits(views.weak), others


def baseline_accuracies(method: Method, dataset: ImageDataset, ranks: Ranks = ONE) -> dict[str, float]:
    """Accuracy of each of a method's `baselines`, e.g. {"accuracy_teacher": 0.5}; nothing without these, or targets."""
    parts: dict[str, list[Tensor]] = {}
    if not dataset.has_targets or not hasattr(method, "baselines"):
        return {}
    for views in _views(method, dataset, 256, ranks):
        with preserved_state(method):
            for name, logits in ask(method, "baselines", views.weak, otherwise={}).items():
                parts.setdefault(name, []).append(views.gather(logits.argmax(-1)).cpu())
        if not parts:
            return {}
    target = torch.from_numpy(dataset.targets.copy())
    return {f"accuracy_{name}": accuracy(torch.cat(rows), target) for name, rows in parts.items()}


def accuracy(labels: Tensor, target: Tensor) -> float:
    """Fraction of labeled images whose label is right, in [0, 1]; NaN if none is labeled."""
    known = target != UNLABELLED
    return float((labels[known] == target[known]).double().mean())


def probe_images(dataset: ImageDataset, index: np.ndarray, size: int) -> Probe:
    """Read images at (P,) positions as a probe of some side: pixels, targets and, where they exist, part masks."""
    views = np.stack([eval_view(dataset.checked_image(int(i)), size) for i in index])
    masks, parts = [dataset.parts(int(i)) for i in index], None
    if dataset.part_names is not None and all(mask is not None for mask in masks):
        parts = torch.from_numpy(np.stack([eval_parts(mask, size) for mask in masks if mask is not None]))
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255.0
    return Probe(pixels, torch.from_numpy(index), torch.from_numpy(dataset.targets[index]), parts)


def spread(targets: np.ndarray, n: int) -> np.ndarray:
    """Positions of at most n images, class by class, of each as many as its share; evenly where none is known."""
    order = np.argsort(targets, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


def spread_probe(dataset: ImageDataset, size: int, n: int = 12) -> Probe | None:
    """A probe of at most n images that are `spread`; None where the dataset holds embeddings."""
    return probe_images(dataset, spread(dataset.targets, n), size) if dataset.has_pixels else None
