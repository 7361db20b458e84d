from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from towers import Known

from clipviz.backbone import Backbone
from clipviz.methods.base import Method
from clipviz.saliency import (
    KINDS,
    deletion_auc,
    part_mass,
    saliency_maps,
    saliency_scores,
    saliency_table,
    summarize_scores,
)
from clipviz.saliency.table import MODEL_METRICS

COLUMNS = ["kind", "metric", "region", "mean", "low", "high", "n"]


@pytest.fixture
def regions() -> dict[str, Tensor]:
    mask = torch.zeros(3, 32, 32, dtype=torch.bool)
    mask[:2, 4:20, 10:20] = True  # not visible in the third image
    return {"object": mask}


def test_one_call_scores_every_kind(microclip: Method, images: Tensor, regions: dict[str, Tensor]) -> None:
    table = saliency_table(microclip, images, regions=regions, parts=regions["object"].long(), batch_size=2)
    assert list(table.columns) == COLUMNS
    assert list(table["kind"].unique()) == list(KINDS)
    masks = {("pointing_game", "object"), ("part_mass", "object"), ("part_rank", "object")}
    assert set(zip(table["metric"], table["region"], strict=True)) == masks | {
        ("deletion_auc", ""),
        ("insertion_auc", ""),
    }
    assert (table.loc[table["region"] == "object", "n"] == 2).all()
    assert (table.loc[table["region"] == "", "n"] == 3).all()
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()


def test_without_masks_it_asks_the_model(microclip: Method, images: Tensor) -> None:
    table = saliency_table(microclip, images, ["soap", "layer_gradcam"])
    assert list(table["metric"][: len(MODEL_METRICS)]) == list(MODEL_METRICS)
    assert table["mean"].notna().all()


def test_values_are_those_of_the_functions(microclip: Method, images: Tensor, regions: dict[str, Tensor]) -> None:
    scores = saliency_scores(
        microclip,
        images,
        ["rollout", "relevance"],
        target=[0, 1, 2],
        contrast=[1, 2, 0],
        regions=regions,
        metrics=["part_mass", "deletion_auc"],
        options={"rollout": {"start_layer": 1}},
        batch_size=2,
    )
    raw = saliency_maps(microclip, images, "relevance", target=[0, 1, 2], contrast=[1, 2, 0]).raw
    pick = scores[(scores["kind"] == "relevance") & (scores["metric"] == "part_mass")]
    np.testing.assert_allclose(pick["value"], part_mass(raw, regions["object"]), rtol=1e-4)
    raw = saliency_maps(microclip, images, "rollout", start_layer=1).raw
    pick = scores[(scores["kind"] == "rollout") & (scores["metric"] == "deletion_auc")]
    np.testing.assert_allclose(
        pick["value"], deletion_auc(microclip, images, raw, target=[0, 1, 2], contrast=[1, 2, 0]), rtol=1e-4
    )
    assert list(pick["image"]) == [0, 1, 2]


def test_a_perfect_and_a_useless_model_get_the_marks_they_deserve(
    known: Callable[..., Known], images: Tensor, regions: dict[str, Tensor]
) -> None:
    inside = torch.nn.functional.interpolate(regions["object"][:1, None].float(), 32)[0, 0]
    looks_inside = known(lambda x: ((x - 0.5).abs() * inside).sum((1, 2, 3))[:, None] * torch.tensor([1.0, 0.0, 0.0]))
    table = saliency_table(
        looks_inside, images[:2], ["occlusion"], target=0, regions={"object": regions["object"][:2]},
        metrics=["pointing_game"],
    )  # fmt: skip
    assert table["mean"].item() == 1
    blind = known(lambda x: x.mean((1, 2, 3))[:, None] * 0 + torch.tensor([1.0, 0.0, 0.0]))
    table = saliency_table(
        blind, images[:2], ["occlusion"], target=0, regions={"object": regions["object"][:2]},
        metrics=["pointing_game", "part_mass"],
    )  # fmt: skip
    # a constant map: chance, and no mass at all; rows 4..19 touch three rows of cells, columns 10..19 two columns
    assert table["mean"].tolist() == pytest.approx([3 * 2 / 16, 0.0])


def test_intervals() -> None:
    values = pd.DataFrame({"kind": "soap", "metric": "m", "region": "", "image": range(400), "value": [0.0, 1.0] * 200})
    row = summarize_scores(values).iloc[0]
    assert row["mean"] == 0.5
    assert row["n"] == 400
    assert row["low"] == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01)
    assert row["high"] == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.01)
    pd.testing.assert_frame_equal(summarize_scores(values), summarize_scores(values))
    constant = summarize_scores(values.assign(value=0.25)).iloc[0]
    assert constant["low"] == constant["high"] == 0.25
    nothing = summarize_scores(values.assign(value=np.nan)).iloc[0]
    assert nothing["n"] == 0
    assert np.isnan(nothing["mean"])


def test_bad_input(microclip: Method, tiny_backbone: Backbone, images: Tensor, regions: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="unknown saliency kind 'soup'"):
        saliency_table(microclip, images, ["soup"])
    with pytest.raises(ValueError, match="unknown saliency metric 'auc'"):
        saliency_table(microclip, images, ["soap"], metrics=["auc"])
    with pytest.raises(ValueError, match="part_mass needs regions"):
        saliency_table(microclip, images, ["soap"], metrics=["part_mass"])
    with pytest.raises(ValueError, match="part_rank needs parts"):
        saliency_table(microclip, images, ["soap"], metrics=["part_rank"], regions=regions)
    few = {name: mask[:2] for name, mask in regions.items()}
    for given, message in (
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"regions": few}, "wanted masks of 3 images, got object of 2"),
        ({"regions": regions, "parts": few["object"].long()}, "wanted masks of 3 images, got parts of 2"),
        ({"metrics": []}, "at least one kind and one metric"),
        ({"kinds": []}, "at least one kind and one metric"),
    ):
        with pytest.raises(ValueError, match=message):
            saliency_table(microclip, images, **{"kinds": ["soap"], **given})
    with pytest.raises(ValueError, match=r"needs images \(B, 3, 32, 32\) in \[0, 1\], B >= 1, got NoneType"):
        saliency_table(microclip, None)
    with pytest.raises(ValueError, match=r"saliency needs a Backbone \(load_backbone\) or a method"):
        saliency_table(None, images)
    with pytest.raises(ValueError, match="a backbone has no classes"):
        saliency_table(tiny_backbone, images, ["relevance"])
