"""Can saliency help a model at all? [FG] with NCut's mask, and with the true one, which no saliency can better.

Used by `python -m benchmarks.saliency --oracle`, or from Python with a data set of one's own whose images have masks:

    method = METHODS["microclip"](load_backbone("ViT-B-16", "openai"), data.prompts)
    print(by_oracle(summarize_oracle(soap_oracle(method, data).assign(domain="mine"))))

Nothing is trained: zero-shot by the classifier that the method begins with, of descriptions where there are any. The
kinds of the rows are

    cls                  the CLS embedding
    peak, border         [FG], SOAP's query from NCut's mask, with either side of the cut for foreground
    true                 [FG], the query from the true mask
    mean                 the mean patch token of the true mask, without SOAP
    true - cls           the difference, image by image

A patch belongs to the object where more than a quarter of it does; if none does, the one with most of it. If [FG] with
the true mask knows no more than CLS, the patch tokens are the limit and not the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.saliency_tables import table
from clipviz.data.base import ImageDataset
from clipviz.methods.microclip import MicroCLIP, foreground, saliency_query, soap_pool
from clipviz.ncut import Side
from clipviz.ops import class_logits, normalize
from clipviz.saliency import summarize_scores
from clipviz.saliency.metrics import coverage
from clipviz.training.evaluate import probe_images

LEAST_SHARE = 0.25
"""A patch belongs to the object where this share of it does."""

HEAD = ("CLS", "[FG], NCut peak (IoU)", "[FG], NCut border (IoU)", "[FG], true mask", "mean of true mask")


def soap_oracle(method: MicroCLIP, dataset: ImageDataset, batch_size: int = 64) -> pd.DataFrame:
    """Whether each image is told right by each kind of embedding, and how well each mask fits.

    Images that are not labeled, or in which nothing of the object is visible, are left out.

    Returns:
        Columns kind, metric ("accuracy", "iou"), region (""), image, value, as `saliency_scores` has them.

    Raises:
        ValueError: if the data set has no masks or no labels.
    """
    chosen = np.flatnonzero(dataset.targets >= 0)
    if not len(chosen):
        raise ValueError(f"the oracle needs labels, and {dataset.name} has none")
    rows = []
    for index in np.array_split(chosen, range(batch_size, len(chosen), batch_size)):
        probe = probe_images(dataset, index, method.backbone.image_size)
        if probe.parts is None:
            raise ValueError(f"the oracle needs masks, and {dataset.name} has none; for example birds have them")
        visible = (probe.parts > 0).flatten(1).any(1)
        for kind, metric, values in _measured(method, probe.images, probe.parts > 0, probe.target):
            row = {"kind": kind, "metric": metric, "region": "", "image": index[visible], "value": values[visible]}
            rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)


@torch.no_grad()
def _measured(method: MicroCLIP, images: Tensor, region: Tensor, target: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """(kind, metric, (B,) float) of a batch of images, of which `region` (B, S, S) is the object."""
    tokens = method.backbone.tokens(images)
    projection = method.backbone.visual.proj
    matrices = (method.w_query, method.w_key, method.w_value, projection)

    def right(embedding: Tensor) -> Tensor:
        labels = class_logits(embedding, method.learned_classifier, method.backbone.logit_scale).argmax(-1)
        return (labels == target).double()

    truth = object_patches(region, tokens.grid)
    query = saliency_query(tokens.patches, truth)
    cls, fg = right(tokens.cls), right(soap_pool(query, tokens.patches, *matrices)[0])
    yield "cls", "accuracy", cls
    for side in get_args(Side):
        found = foreground(tokens, replace(method.config, side=side), *matrices)
        yield side, "accuracy", right(found.embedding)
        yield side, "iou", (found.mask & truth).sum(1).double() / (found.mask | truth).sum(1)
    yield "true", "accuracy", fg
    yield "mean", "accuracy", right(normalize(query @ projection))
    yield "true - cls", "accuracy", fg - cls


def object_patches(region: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches belong to the object, (B, S, S) bool -> (B, h * w) bool, one at least if any of it is visible."""
    share = coverage(region, grid).flatten(1)
    most = share.amax(1, keepdim=True)
    return (share > LEAST_SHARE) | ((share == most) & (most > 0) & (most <= LEAST_SHARE))


def summarize_oracle(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of every kind over the images of all seeds, by domain."""
    parts = [summarize_scores(rows).assign(domain=domain) for domain, rows in scores.groupby("domain", sort=False)]
    return pd.concat(parts, ignore_index=True)


def by_oracle(summary: pd.DataFrame) -> str:
    """Domain x kind: accuracy in % (IoU of the mask with the object), and the difference that decides, in points."""
    cells = summary.set_index(["domain", "kind", "metric"])["mean"]
    rows = []
    for domain in dict.fromkeys(summary["domain"]):
        accuracies = [
            f"{100 * cells[domain, kind, 'accuracy']:.1f}" for kind in ("cls", *get_args(Side), "true", "mean")
        ]
        fits = ["", *(f" ({cells[domain, side, 'iou']:.2f})" for side in get_args(Side)), "", ""]
        is_difference = (summary["domain"] == domain) & (summary["kind"] == "true - cls")
        mean, low, high = 100 * summary.loc[is_difference, ["mean", "low", "high"]].to_numpy()[0]
        difference = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        rows.append([str(domain), *map("".join, zip(accuracies, fits, strict=True)), difference])
    return table(["domain", *HEAD, "true mask - CLS"], rows)
