"""Measuring, against slow loops; and which images are chosen to be looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import ToyDataset, microclip

from clipviz.backbone import model
from clipviz.backbone.ownership import preserved_state
from clipviz.data.images.views import eval_view
from clipviz.events import Predictions
from clipviz.methods.zero_shot import ZeroShot
from clipviz.training.evaluate import (
    accuracy,
    baseline_accuracies,
    predict,
    probe_images,
    spread_probe,
)
from clipviz.training.highlights import explore, highlights, instructive


def one_by_one(method, data, function):
    """function(one image) for every image, without batches."""
    rows = []
    for i in range(len(data)):
        pixels = torch.from_numpy(eval_view(data.image(i), 32).copy()).permute(2, 0, 1)[None] / 255.0
        with torch.no_grad():
            rows.append(function(pixels))
    return rows


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_predictions_are_those_of_a_slow_loop(tiny_backbone, toy_test, batch_size):
    method = microclip(tiny_backbone)
    predictions = predict(method, toy_test, batch_size)
    expected = torch.cat(one_by_one(method, toy_test, lambda x: method.logits(x).softmax(-1)))
    torch.testing.assert_close(predictions.probs, expected, atol=1e-5, rtol=1e-4)
    assert predictions.index.tolist() == list(range(9))
    assert predictions.target.tolist() == toy_test.targets.tolist()


def test_branch_accuracies_are_those_of_a_slow_loop(tiny_backbone, toy_test):
    method = microclip(tiny_backbone)
    method.baselines = method.branches
    measured = baseline_accuracies(method, toy_test)
    for name in ("cls", "fg"):
        guesses = one_by_one(method, toy_test, lambda x, name=name: int(method.branches(x)[name].argmax()))
        right = sum(guess == target for guess, target in zip(guesses, toy_test.targets, strict=True))
        assert measured[f"accuracy_{name}"] == pytest.approx(right / 9)
    assert measured.keys() == {"accuracy_cls", "accuracy_fg"}


def test_the_image_tower_looks_once_at_images_that_two_questions_are_about(tiny_backbone, toy_test, monkeypatch):
    method, passes = microclip(tiny_backbone), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda visual, pixels: (passes.append(len(pixels)), encode(visual, pixels))[1])
    predictions = predict(method, toy_test, batch_size=5, branches=True)
    assert passes == [5, 4]
    passes.clear()
    explore(method, toy_test, predictions)
    assert passes == [9], "tokens; what the attention of CLS is made of is known by then"


def test_no_branches_without_targets_or_without_branches(tiny_backbone, toy_test):
    method, baseline = microclip(tiny_backbone), ZeroShot(tiny_backbone, toy_test.prompts)
    assert baseline_accuracies(baseline, toy_test) == {}, "it has none"
    method.baselines, baseline.baselines = method.branches, baseline.branches
    assert baseline_accuracies(method, ToyDataset(4, labelled=False)) == {}
    assert baseline_accuracies(baseline, toy_test) == {}


def test_accuracy_counts_labelled_images_only():
    labels, target = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 2, -1, 0])
    assert accuracy(labels, target) == pytest.approx(2 / 3)
    assert math.isnan(accuracy(labels, torch.full((4,), -1)))


def test_preserved_state_restores_modes_gradients_and_random_numbers(tiny_backbone):
    method = microclip(tiny_backbone)
    method.train()
    method.backbone.visual.ln_post.eval()  # a mixture of modes comes back as it was
    modes = {name: module.training for name, module in method.named_modules()}
    torch.manual_seed(0)
    state = torch.random.get_rng_state()

    def look():
        with preserved_state(method):
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in method.modules())
            torch.rand(10)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        look()
    assert {name: module.training for name, module in method.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------- probes


def test_a_probe_is_the_evaluation_view_with_its_parts(toy):
    probe = probe_images(toy, np.array([5, 2]), 32)
    assert probe.index.tolist() == [5, 2]
    assert probe.target.tolist() == [2, 2]
    pixels = (probe.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels[0], eval_view(toy.image(5), 32))
    # the square has its own color, which says where its mask must be
    colored = np.abs(pixels[0].astype(int) - toy.colors[2]).sum(-1) < 12
    mask = probe.parts[0].numpy() == 1
    assert not (colored & ~mask).any()
    assert colored.sum() > 0.7 * mask.sum()  # all but the blended edge


@pytest.mark.parametrize("n", [3, 6, 12])
def test_a_spread_probe_has_every_class_equally_often(n):
    probe = spread_probe(ToyDataset(30), 32, n)
    assert torch.bincount(probe.target).tolist() == [n // 3] * 3
    assert len(set(probe.index.tolist())) == n


def test_a_spread_probe_of_few_or_unlabelled_images():
    assert spread_probe(ToyDataset(2), 32, 12).index.tolist() == [0, 1]
    spread = spread_probe(ToyDataset(30, labelled=False), 32, 4).index.tolist()
    assert spread == [0, 10, 19, 29]


# ------------------------------------------------------------------------------------------------- instructive images


def predictions_of(rows):
    """(confidence, label, target) rows as predictions over three classes."""
    probs = torch.zeros(len(rows), 3)
    for i, (confidence, label, _) in enumerate(rows):
        probs[i] = (1 - confidence) / 2
        probs[i, label] = confidence
    return Predictions(torch.arange(len(rows)), probs, torch.tensor([target for *_, target in rows]))


def test_the_most_confident_mistakes_come_first_at_most_two_of_a_kind():
    rows = [(0.99, 0, 0), (0.6, 0, 1), (0.9, 0, 1), (0.8, 0, 1), (0.7, 2, 1), (0.95, 1, -1)]
    assert instructive(predictions_of(rows)).tolist() == [2, 3, 4]
    assert instructive(predictions_of(rows), n=1).tolist() == [2]


def test_without_targets_the_least_sure_come_first():
    rows = [(0.9, 0, -1), (0.4, 1, -1), (0.6, 2, -1)]
    assert instructive(predictions_of(rows), n=2).tolist() == [1, 2]


def test_highlights_show_the_final_model(tiny_backbone, toy_test):
    method = microclip(tiny_backbone)
    predictions = predict(method, toy_test)
    shown = highlights(method, toy_test, predictions, n=4)
    index = instructive(predictions, 4)
    assert shown.probe.index.tolist() == index.tolist()
    torch.testing.assert_close(shown.probs, predictions.probs[index])
    with torch.no_grad():
        torch.testing.assert_close(shown.explanation["soap"], method.explain(shown.probe.images)["soap"])


def test_a_model_without_mistakes_has_no_highlights(tiny_backbone, toy_test):
    target = torch.from_numpy(toy_test.targets)
    perfect = Predictions(torch.arange(9), torch.nn.functional.one_hot(target, 3).float(), target)
    assert highlights(microclip(tiny_backbone), toy_test, perfect) is None
