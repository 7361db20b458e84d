"""An ablation of NtUA, from Tip-Adapter on: one part more at a time, in one table."""

from collections.abc import Iterator
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

STEPS = ("tip", "+weights", "+teacher", "+training")


def ntua_ablation(
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
        dataset: unlabelled images; their labels, if there are any, are for the table only.
        eval_dataset: labelled images to measure on.
        config: constants of all steps; None: the backbone's preset.
        teacher: a larger model; None: the student itself on averaged views.
        schedule: of the last step; None: the one of the configuration.
        seed: order of the images and all views.

    Returns:
        One row per step with `accuracy`, `pseudo_label_accuracy` (of the cache's entries), `coverage`, `cache_size`;
        before them "zero_shot", and "teacher_zero_shot" if there is a teacher. Fractions; NaN where there is nothing.
    """
    config = config or NtUA.default_config(backbone)
    config = replace(config, schedule=schedule or config.schedule)

    def epochs(weighted: bool, rectify: bool) -> Iterator[dict[str, float]]:
        """Metrics of the cache as it is formed, then after each epoch of training."""
        constants = replace(config, weighted=weighted, rectify=rectify)
        method = NtUA(backbone, dataset.prompts, constants, teacher=teacher if rectify else None)
        for event in adapt(method, dataset, eval_dataset=eval_dataset, seed=seed):
            if isinstance(event, EpochFinished):
                target = torch.from_numpy(dataset.targets[method.cache_index.cpu().numpy()])
                yield {**event.metrics, "pseudo_label_accuracy": accuracy(method.labels.cpu(), target)}

    refined = list(epochs(True, True))
    references = {"zero_shot": "accuracy_zero_shot", "teacher_zero_shot": "accuracy_teacher"}
    rows = {name: {"accuracy": refined[0][key]} for name, key in references.items() if key in refined[0]}
    steps = (next(epochs(False, False)), next(epochs(True, False)), refined[0], refined[-1])
    columns = ["accuracy", "pseudo_label_accuracy", "coverage", "cache_size"]
    return pd.DataFrame.from_dict(rows | dict(zip(STEPS, steps, strict=True)), orient="index").reindex(columns=columns)
