"""What [FG] could know with the true mask: `python -m benchmarks.saliency --oracle`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import saliency
from benchmarks.soap_oracle import by_oracle, object_patches, soap_oracle, summarize_oracle
from clipviz.data.images.views import eval_parts, eval_view
from clipviz.ncut import fiedler_vector, foreground_mask, patch_affinity, turn_to_side
from clipviz.ops import normalize
from tests.tiny import ToyDataset, make_tiny_backbone, microclip


@pytest.fixture(scope="module")
def method():
    return microclip(make_tiny_backbone(), affinity="cosine", tau=0.2, full_density=1.0)


def values_of(scores: pd.DataFrame, kind: str, metric: str = "accuracy") -> list[float]:
    rows = scores[(scores["kind"] == kind) & (scores["metric"] == metric)].sort_values("image")
    return rows["value"].tolist()


def test_every_kind_is_that_of_a_slow_loop(method):
    data = ToyDataset(18, seed=3)
    scores = soap_oracle(method, data, batch_size=5)
    classes = normalize(method.learned_classifier.detach())
    expected: dict[str, list[float]] = {}
    for i, target in enumerate(data.targets):
        pixels = torch.from_numpy(eval_view(data.image(i), 32).copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            tokens = method.backbone.tokens(pixels)
        object_ = eval_parts(data.parts(i), 32) > 0
        shares = object_.reshape(4, 8, 4, 8).mean((1, 3)).ravel()
        truth = shares > 0.25 if (shares > 0.25).any() else shares == shares.max()
        patches = tokens.patches[0]
        vector = fiedler_vector(patch_affinity(tokens.patches, 0.2, "cosine"))
        masks = {
            side: foreground_mask(turn_to_side(vector, (4, 4), side))[0].numpy() for side in ("peak", "border")
        } | {"true": truth}
        embeddings = {"cls": tokens.cls[0], "mean": patches[truth].mean(0) @ method.backbone.visual.proj}
        for name, mask in masks.items():
            query = patches[mask].mean(0)
            attention = torch.softmax(torch.stack([token @ query for token in patches]) / 64**0.5, 0)
            embeddings[name] = (attention @ patches) @ method.backbone.visual.proj
            if name != "true":
                expected.setdefault(f"{name} iou", []).append((mask & truth).sum() / (mask | truth).sum())
        for name, embedding in embeddings.items():
            expected.setdefault(name, []).append(float((classes @ embedding).argmax() == target))
    assert len(set(map(tuple, expected.values()))) > 3  # the kinds differ, so that one cannot stand for another
    for name in ("cls", "mean", "true", "peak", "border"):
        assert values_of(scores, name) == expected[name], name
    for side in ("peak", "border"):
        assert values_of(scores, side, "iou") == pytest.approx(expected[f"{side} iou"])
    differences = np.subtract(expected["true"], expected["cls"]).tolist()
    assert values_of(scores, "true - cls") == differences


def test_a_patch_is_the_objects_from_more_than_a_quarter_on():
    region = torch.zeros(3, 4, 4, dtype=torch.bool)
    region[0, :2, :2] = True  # all of one patch
    region[0, 0, 2] = True  # exactly a quarter of the next
    region[1, 3, 3] = True  # nowhere more than a quarter: the patch with most of it
    assert object_patches(region, (2, 2)).tolist() == [
        [True, False, False, False],
        [False, False, False, True],
        [False, False, False, False],
    ]


def test_images_without_a_label_or_a_visible_object_are_left_out(method):
    data = ToyDataset(6)
    data.targets[2] = -1
    data._parts[4] = 0
    scores = soap_oracle(method, data)
    assert sorted(scores["image"].unique()) == [0, 1, 3, 5]
    assert summarize_oracle(scores.assign(domain="toy"))["n"].unique().tolist() == [4]


def test_data_without_labels_or_masks_are_refused(method):
    with pytest.raises(ValueError, match="needs labels, and toy has none"):
        soap_oracle(method, ToyDataset(3, labelled=False))
    data = ToyDataset(3)
    data.part_names = None
    with pytest.raises(ValueError, match="needs masks, and toy has none"):
        soap_oracle(method, data)


def test_the_table_has_shares_in_percent_and_the_difference_with_its_interval():
    shares = {"cls": 0.5, "peak": 0.4, "border": 0.45, "true": 0.625, "mean": 0.6, "true - cls": 0.125}
    rows = [("fog", kind, "accuracy", mean, mean - 0.05, mean + 0.05) for kind, mean in shares.items()]
    rows += [("fog", "peak", "iou", 0.271, 0.2, 0.3), ("fog", "border", "iou", 0.5, 0.4, 0.6)]
    summary = pd.DataFrame(rows, columns=["domain", "kind", "metric", "mean", "low", "high"])
    _, _, row = by_oracle(summary).splitlines()
    assert row == "| fog | 50.0 | 40.0 (0.27) | 45.0 (0.50) | 62.5 | 60.0 | +12.5 [+7.5, +17.5] |"


def test_the_command_measures_any_model_and_keeps_the_numbers_of_the_bundled_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(saliency, "RESULTS", tmp_path)
    monkeypatch.setattr(saliency, "load_backbone", lambda name, pretrained: make_tiny_backbone(name=name))
    short = ["--oracle", "--test", "24", "--seeds", "0", "1", "--domains", "fog"]
    saliency.main([*short, "--model", "other", "--set", "affinity=cosine"])
    assert "| fog |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # the page's table is of the bundled model
    saliency.main(short)
    saved = pd.read_csv(tmp_path / "saliency_oracle.csv", keep_default_na=False)
    assert by_oracle(saved) == capsys.readouterr().out.strip()
    assert saved["n"].unique().tolist() == [48]
