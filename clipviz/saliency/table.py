"""One call: every kind of map, scored by every metric, as a tidy table with intervals over images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clipviz.errors import choose, listed, whole_number
from clipviz.methods.base import Method
from clipviz.saliency import perturbation
from clipviz.saliency.maps import KINDS, SaliencyMaps, available_kinds, saliency_maps
from clipviz.saliency.metrics import part_mass, part_rank, pointing_game
from clipviz.saliency.question import Asked, Model, backbone_of, resolve, targets

MASK_METRICS = ("pointing_game", "part_mass", "part_rank")
MODEL_METRICS = ("deletion_auc", "insertion_auc", "infidelity", "sensitivity", "sanity")
METRICS = (*MASK_METRICS, *MODEL_METRICS)
"""Higher is better for the mask metrics and "insertion_auc", lower for the others; "sanity" is the rank correlation
with the map of a scrambled model."""


def saliency_table(
    model: Model, images: Tensor, kinds: Sequence[str] | None = None, *, seed: int = 0, **arguments: Any
) -> pd.DataFrame:
    """Score kinds of maps: `summarize_scores(saliency_scores(...))`, see there for arguments and columns."""
    return summarize_scores(saliency_scores(model, images, kinds, seed=seed, **arguments), seed=seed)


def saliency_scores(
    model: Model, images: Tensor, kinds: Sequence[str] | None = None, *, target: Asked = None, contrast: Asked = None,
    regions: Mapping[str, Tensor] | None = None, parts: Tensor | None = None, metrics: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None, batch_size: int = 64, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Score every image by every metric.

    Args:
        model: a method or a backbone.
        images: (n, 3, S, S) float in [0, 1].
        kinds: keys of `KINDS`; None for all that the tower supports.
        target: as for `saliency_maps`, like `contrast`; class-independent kinds are scored without them.
        contrast: class or sentence to contrast the target with.
        regions: name -> (n, S, S) bool, what a map should point at (`bird_regions`).
        parts: (n, S, S) part ids, for part_rank.
        metrics: of `METRICS`; None for those of the masks with deletion and insertion, without regions `MODEL_METRICS`.
        options: kind -> options of its function.
        batch_size: images at a time.
        seed: of infidelity, sensitivity and the scrambled weights.

    Returns:
        Columns kind, metric, region ("" if none applies), image (position), value. A region that is not visible
        in an image gives NaN.

    Raises:
        ValueError: for unknown kinds or metrics, or a mask metric without masks.
    """
    backbone_of(model).check_images(images)
    kinds = available_kinds(model) if kinds is None else kinds
    chosen = _metrics(metrics, regions, parts)
    _check_scored(kinds, chosen, len(images), {**(regions or {}), **({} if parts is None else {"parts": parts})})
    question: dict[str, Any] = {
        "target": targets(model, images, target) if target is not None or isinstance(model, Method) else None,
        "contrast": None if contrast is None else resolve(model, contrast, len(images)),
    }
    scrambled = perturbation.scrambled_model(model, seed) if "sanity" in chosen else model
    rows: list[pd.DataFrame] = []
    for index in torch.arange(len(images)).split(whole_number("batch_size", batch_size, 1)):
        asked: dict[str, Any] = {name: None if column is None else column[index] for name, column in question.items()}
        masks = {name: mask[index] for name, mask in (regions or {}).items()}
        some, ids = images[index], None if parts is None else parts[index]
        for kind in kinds:
            own = (options or {}).get(kind, {})
            about = {"images": some, "kind": kind, **(asked if KINDS[kind].asks else {})}
            explain: Callable[[Model], SaliencyMaps] = partial(saliency_maps, **about, **own)
            raw = explain(model).raw
            scores = mask_scores(raw.cpu(), masks, ids, chosen)
            model_scores: dict[str, Callable[[], Tensor]] = {
                "deletion_auc": partial(perturbation.deletion_auc, model, some, raw, **asked),
                "insertion_auc": partial(perturbation.insertion_auc, model, some, raw, **asked),
                "infidelity": partial(perturbation.map_infidelity, model, some, raw, seed=seed, **asked),
                "sensitivity": partial(perturbation.map_sensitivity, model, some, kind, seed=seed, **asked, **own),
                "sanity": partial(_correlation_with, raw, explain, scrambled),
            }
            scores |= {(name, ""): model_scores[name]().cpu() for name in chosen if name in model_scores}
            rows += [
                pd.DataFrame({"kind": kind, "metric": name, "region": region, "image": index, "value": values})
                for (name, region), values in scores.items()
            ]
    return pd.concat(rows, ignore_index=True)


def _correlation_with(raw: Tensor, explain: Callable[[Model], SaliencyMaps], scrambled: Model) -> Tensor:
    return perturbation.rank_correlation(raw, explain(scrambled).raw)


def mask_scores(
    raw: Tensor, regions: Mapping[str, Tensor], parts: Tensor | None, metrics: Sequence[str] = MASK_METRICS
) -> dict[tuple[str, str], Tensor]:
    """Scores of given maps against regions, (metric, region) -> (B,); without part ids there is no part_rank.

    The maps (B, h, w) need not come from a model: a uniform map gives chance level.
    """
    scores: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"pointing_game": pointing_game, "part_mass": part_mass}
    if parts is not None:
        scores["part_rank"] = partial(part_rank, parts=parts)
    return {(name, r): scores[name](raw, mask) for r, mask in regions.items() for name in scores if name in metrics}


def summarize_scores(scores: pd.DataFrame, *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval (percentiles) over images, of what `saliency_scores` returns.

    Columns: kind, metric, region, mean, low, high, n (images whose value is not NaN; without any, the others are NaN),
    in the order of first appearance.
    """
    rows = []
    for (kind, metric, region), group in scores.groupby(["kind", "metric", "region"], sort=False):
        values = group["value"].dropna().to_numpy(np.float64)
        mean = low = high = np.nan
        if len(values):
            drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
            mean, (low, high) = values.mean(), np.quantile(values[drawn].mean(1), (0.025, 0.975))
        rows.append((kind, metric, region, mean, low, high, len(values)))
    return pd.DataFrame(rows, columns=["kind", "metric", "region", "mean", "low", "high", "n"])


def _check_scored(kinds: Sequence[str], metrics: Sequence[str], n: int, masks: Mapping[str, Tensor]) -> None:
    for kind in kinds:
        choose("saliency kind", kind, KINDS)
    if not kinds or not metrics:
        raise ValueError("a table of saliency needs at least one kind and one metric, got none; None stands for all")
    if lacking := [f"{name} of {len(mask)}" for name, mask in masks.items() if len(mask) != n]:
        raise ValueError(f"wanted masks of {n} images, got {listed(lacking)}; give one for each image")


def _metrics(
    metrics: Sequence[str] | None, regions: Mapping[str, Tensor] | None, parts: Tensor | None
) -> tuple[str, ...]:
    if metrics is None:
        if not regions:
            return MODEL_METRICS
        return (*(MASK_METRICS if parts is not None else MASK_METRICS[:2]), "deletion_auc", "insertion_auc")
    for name in metrics:
        choose("saliency metric", name, METRICS)
        if name in MASK_METRICS and not regions:
            raise ValueError(f"{name} needs regions (for birds: bird_regions(parts, target)); else use {MODEL_METRICS}")
        if name == "part_rank" and parts is None:
            raise ValueError("part_rank needs parts, the part ids of every pixel, beside the regions")
    return tuple(metrics)
