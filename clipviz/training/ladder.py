"""The ladder from Tip-Adapter to NtUA: one rung at a time, in one table."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.events import EpochFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.training.evaluate import accuracy
from clipviz.training.loop import adapt

RUNGS = ("tip", "+weights", "+teacher", "+training")


def ntua_ladder(
    backbone: Backbone,
    dataset: ImageDataset,
    eval_dataset: ImageDataset,
    config: NtUAConfig | None = None,
    *,
    teacher: Backbone | None = None,
    schedule: AdaptConfig | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """What each part of NtUA adds: {Tip, + weights, + teacher, + training}, with both zero-shot classifiers beside it.

    Args:
        backbone: the student.
        dataset: unlabelled images (their labels, if there are any, are used for the table only).
        eval_dataset: labelled images to measure on.
        config: constants of all rungs; None: the backbone's preset.
        teacher: a larger model; None: the student itself on averaged views.
        schedule: of the last rung; None: the one of the configuration.
        seed: order of the images and all views.

    Returns:
        One row per rung with `accuracy`, `pseudo_label_accuracy` (of the cache's entries), `coverage`, `cache_size`;
        before them "zero_shot", and "teacher_zero_shot" if there is a teacher. Fractions; NaN where there is nothing.
    """
    config = config or NtUA.default_config(backbone)
    if schedule is not None:
        config = replace(config, schedule=schedule)
    tip = replace(config, weighted=False, rectify=False)
    first, _ = _climb(NtUA(backbone, dataset.prompts, tip), dataset, eval_dataset, seed, train=False)
    weighted = replace(config, weighted=True, rectify=False)
    second, _ = _climb(NtUA(backbone, dataset.prompts, weighted), dataset, eval_dataset, seed, train=False)
    refined = NtUA(backbone, dataset.prompts, replace(config, weighted=True, rectify=True), teacher=teacher)
    third, fourth = _climb(refined, dataset, eval_dataset, seed, train=True)
    references = {"zero_shot": "accuracy_zero_shot", "teacher_zero_shot": "accuracy_teacher"}
    rows = {name: {"accuracy": third[key]} for name, key in references.items() if key in third}
    rungs = dict(zip(RUNGS, (first, second, third, fourth), strict=True))
    columns = ["accuracy", "pseudo_label_accuracy", "coverage", "cache_size"]
    return pd.DataFrame.from_dict({**rows, **rungs}, orient="index").reindex(columns=columns)


def _climb(
    method: NtUA, dataset: ImageDataset, eval_dataset: ImageDataset, seed: int, train: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the cache as it is formed, and after training (the same without)."""
    measured: list[dict[str, float]] = []
    for event in adapt(method, dataset, eval_dataset=eval_dataset, seed=seed):
        if isinstance(event, EpochFinished):
            measured.append({**event.metrics, "pseudo_label_accuracy": _label_accuracy(method, dataset)})
            if not train:
                break
    return measured[0], measured[-1]


def _label_accuracy(method: NtUA, dataset: ImageDataset) -> float:
    target = torch.from_numpy(dataset.targets[method.cache_index.cpu().numpy()])
    return accuracy(method.labels.cpu(), target)
