"""WCA: the weighted sum over all pairs of crops and descriptions, on training and on test images."""

import pytest
import torch
from tiny import ToyDataset

from clipviz.data.base import ViewConfig, Views
from clipviz.data.batches.loader import eval_views
from clipviz.events import EpochFinished, StepFinished
from clipviz.methods.wca import WCA, WCAConfig, weighted_crops, weighted_descriptions
from clipviz.ops import normalize
from clipviz.training.loop import adapt


def rand(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_the_score_is_the_weighted_mean_of_all_similarities():
    whole, crops, names = rand(2, 8), rand(2, 3, 8, seed=1), rand(2, 8, seed=2)
    descriptions = [rand(4, 8, seed=3), rand(2, 8, seed=4)]
    mean, u = weighted_crops(whole, crops, 3.0)
    score = mean @ weighted_descriptions(descriptions, names, 2.0).T
    for i in range(2):
        for c in range(2):
            v = (2.0 * descriptions[c] @ names[c]).softmax(0)
            pairs = sum(u[i, k] * v[m] * (crops[i, k] @ descriptions[c][m]) for k in range(3) for m in range(len(v)))
            torch.testing.assert_close(score[i, c], pairs)
    torch.testing.assert_close(u, (3.0 * torch.einsum("bke,be->bk", crops, whole)).softmax(-1))


def test_a_large_scale_listens_to_the_most_similar_crop():
    whole = rand(1, 8)
    crops = torch.stack([whole, -whole], 1)
    mean, weights = weighted_crops(whole, crops, 100.0)
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0]]))


def test_test_images_have_crops_too_and_always_the_same(tiny_backbone, toy):
    method = WCA(tiny_backbone, toy.prompts, WCAConfig(crops=3, image_scale=2.0, normalized=False))
    config = ViewConfig(32, crops=3, crop_scale=(0.5, 0.9))
    first, again = (list(eval_views(toy, config, 10)) for _ in range(2))
    assert [v.crops.shape for v in first] == [(10, 3, 3, 32, 32), (10, 3, 3, 32, 32), (4, 3, 3, 32, 32)]
    assert all(torch.equal(a.crops, b.crops) for a, b in zip(first, again, strict=True))
    with torch.no_grad():
        views = first[0]
        crops = torch.stack([tiny_backbone.embed(views.crops[:, k]) for k in range(3)], 1)
        mean, _ = weighted_crops(tiny_backbone.embed(views.weak), crops, 2.0)
        expected = tiny_backbone.logit_scale * mean @ method.classifier.T
        torch.testing.assert_close(method.view_logits(views), expected)
        assert not torch.allclose(method.view_logits(views), method.logits(views.weak))


def test_a_run_measures_once_and_records_crops_and_image(tiny_backbone, toy, toy_test, monkeypatch):
    calls = []
    monkeypatch.setattr(WCA, "view_logits", lambda self, views: calls.append(1) or self.logits(views.weak))
    method = WCA(tiny_backbone, toy.prompts, WCAConfig(crops=2))
    events = list(adapt(method, toy, eval_dataset=toy_test))
    steps = [e for e in events if isinstance(e, StepFinished)]
    assert all(set(e.pseudo.sources) == {"crops", "image"} and e.pseudo.crop_weights.shape[1] == 2 for e in steps)
    measured = [e for e in events if isinstance(e, EpochFinished)]
    assert [e.epoch for e in measured] == [-1, 0]
    assert measured[0].metrics["accuracy"] == measured[1].metrics["accuracy"]
    assert "pseudo_label_accuracy" in measured[1].metrics
    assert len(calls) == 1


def test_pseudo_labels_are_the_crops_vote(tiny_backbone):
    toy = ToyDataset(n=4)
    method = WCA(tiny_backbone, toy.prompts, WCAConfig(crops=2))
    generator = torch.Generator().manual_seed(0)
    views = Views(torch.rand(4, 3, 32, 32, generator=generator), None, torch.rand(4, 2, 3, 32, 32, generator=generator))
    with torch.no_grad():
        pseudo = method.pseudo_label(views, torch.arange(4))
        torch.testing.assert_close(pseudo.sources["crops"], method.view_logits(views))
    assert torch.equal(pseudo.labels, pseudo.sources["crops"].argmax(-1))


def test_the_released_code_normalizes_both_sums_and_has_scales_of_its_own(tiny_backbone):
    toy = ToyDataset(n=2)
    method = WCA(tiny_backbone, toy.prompts, WCAConfig(crops=2))
    generator = torch.Generator().manual_seed(0)
    views = Views(torch.rand(2, 3, 32, 32, generator=generator), None, torch.rand(2, 2, 3, 32, 32, generator=generator))
    with torch.no_grad():
        whole = tiny_backbone.embed(views.weak)
        crops = torch.stack([tiny_backbone.embed(views.crops[:, k]) for k in range(2)], 1)
        u = (54.598 * torch.einsum("bke,be->bk", crops, whole)).softmax(-1)
        image = normalize((u[..., None] * crops).sum(1))
        rows = []
        for name in toy.class_names:
            sentences = tiny_backbone.embed_text(toy.prompts.template_sentences(name))
            v = (7.389 * sentences @ normalize(sentences.mean(0))).softmax(0)
            rows.append(normalize((v[:, None] * sentences).sum(0)))
        expected = tiny_backbone.logit_scale * image @ torch.stack(rows).T
        torch.testing.assert_close(method.view_logits(views), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"crops": 0}, {"image_scale": -1.0}, {"text_scale": -1.0}])
def test_constants_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        WCAConfig(**changes)
