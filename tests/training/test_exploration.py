"""What can be explored of the evaluation images: which they are, what is said of them, where the model looks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ToyDataset, make_tiny_backbone

from clipviz import adapt, record
from clipviz.methods.base import AdaptConfig, prompt_sentences
from clipviz.methods.dpa import DPA, DPAConfig
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.methods.tda import TDA
from clipviz.methods.zero_shot import ZeroShot
from clipviz.saliency import saliency_maps
from clipviz.trace import Trace
from clipviz.trace.schema import SHEET_COLUMNS
from clipviz.training.evaluate import predict, probe_images, spread

PROMPTS = ToyDataset(3).prompts
TEST = ToyDataset(9, seed=1, split="test")
BUILD = {
    "zero_shot": lambda backbone: ZeroShot(backbone, PROMPTS),
    "tda": lambda backbone: TDA(backbone, PROMPTS),
    "dpa": lambda backbone: DPA(backbone, PROMPTS, DPAConfig(window=3)),
    "microclip": lambda backbone: MicroCLIP(backbone, PROMPTS, MicroCLIPConfig(crops=2)),
}


@pytest.fixture(scope="module")
def runs():
    """Method and trace of a run of each kind."""
    methods = {name: build(make_tiny_backbone(0)) for name, build in BUILD.items()}
    config = AdaptConfig(2, 8, 1e-2)
    return {
        name: (method, record(adapt(method, ToyDataset(17), config, eval_dataset=TEST)))
        for name, method in methods.items()
    }


@pytest.mark.parametrize("name", BUILD)
def test_it_says_what_the_method_says_in_the_end(runs, name):
    method, trace = runs[name]
    seen, probs = trace.exploration, predict(method, TEST).probs
    assert (seen.index == np.arange(9)).all()
    assert (seen.target == TEST.targets).all()
    rows = torch.arange(9)[:, None]
    torch.testing.assert_close(torch.tensor(seen.probs).float(), probs[rows, seen.top], atol=2e-3, rtol=0)
    assert (seen.top[:, 0] == probs.argmax(1).numpy()).all()
    assert (seen.top == seen.target[:, None]).any(1).all(), "the true class is always among them"
    images = probe_images(TEST, seen.index, method.backbone.image_size).images
    with torch.no_grad():
        for part, logits in method.branches(images).items():
            wanted = logits[rows, seen.top]
            torch.testing.assert_close(torch.tensor(seen.logits[part]).float(), wanted, atol=0.05, rtol=5e-3)


@pytest.mark.parametrize("name", BUILD)
def test_maps_are_those_of_both_moments_and_thumbnails_the_images(runs, name):
    method, trace = runs[name]
    seen = trace.exploration
    images = probe_images(TEST, seen.index, method.backbone.image_size).images
    raw = saliency_maps(method, images, "cls_attention").raw.numpy()
    low, high = raw.min((1, 2), keepdims=True), raw.max((1, 2), keepdims=True)
    after = seen.maps["after"]["cls_attention"]
    np.testing.assert_allclose(after / 255, (raw - low) / (high - low), atol=0.003)
    assert ("soap" in seen.maps["after"]) == (name == "microclip")
    changed = (after != seen.maps["before"]["cls_attention"]).any()
    assert changed == (name in ("dpa", "microclip")), "maps change where the image tower is adapted"
    sheet = np.asarray(Image.open(io.BytesIO(seen.sheet.tobytes())))
    side = method.backbone.image_size
    assert sheet.shape == (side, min(9, SHEET_COLUMNS) * side, 3)
    shown = sheet.reshape(side, 9, side, 3).transpose(1, 0, 2, 3) / 255
    assert np.abs(shown - images.numpy().transpose(0, 2, 3, 1)).mean() < 0.06


def test_sentences_are_of_the_class_it_is_called_and_of_its_true_one(runs):
    _, trace = runs["dpa"]
    rows = trace.meta["exploration_sentences"]
    sentences, seen = prompt_sentences(PROMPTS, "descriptions"), trace.exploration
    for place, label, sentence, cosine in rows:
        assert sentence in sentences[label]
        assert -1 <= cosine <= 1
        assert label in seen.top[place]
    assert {row[0] for row in rows} == set(range(9))


def test_it_is_kept_on_disk_and_of_many_images_a_share_of_each_class(runs, tmp_path):
    _, trace = runs["microclip"]
    assert Trace.load(trace.save(tmp_path / "trace")).equals(trace)
    targets = np.repeat(np.arange(10), [1000, *[100] * 9])
    np.random.default_rng(0).shuffle(targets)
    chosen = np.sort(spread(targets, 190))
    assert len(chosen) == 190
    assert (np.diff(chosen) > 0).all()
    assert np.abs(np.bincount(targets[chosen]) - [100, *[10] * 9]).max() <= 1
    assert (spread(np.full(5, -1), 480) == np.arange(5)).all()
