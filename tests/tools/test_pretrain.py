"""Pretraining in miniature: six steps, interrupted, resumed, exported and loaded."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clipviz.backbone import load_backbone
from clipviz.birds.render import IMAGE_SIDE
from clipviz.birds.world import ATTRIBUTES
from tools import pretrain as module
from tools.losses import attribute_loss, clip_loss, pair_loss, place_loss
from tools.pretrain import PretrainConfig, make_batch, pretrain, render_pool
from tools.pretraining_data import CARDINALITIES

CONFIG = PretrainConfig(steps=6, batch_size=8, warmup=2, pool=24)
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setattr(module, "MODEL_CONFIG", SMALL)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return render_pool(CONFIG, tmp_path_factory.mktemp("pool"), workers=1)


@pytest.fixture
def with_pool(pool, monkeypatch):
    """The rendered birds, without rendering them again."""
    monkeypatch.setattr(module, "render_pool", lambda config, folder: pool)


def interrupt_at(step, monkeypatch):
    """Break off like a machine that loses power, in the given call of the loss."""
    calls, original = [], module.losses

    def losses(*args, **kwargs):
        calls.append(1)
        if len(calls) == step + 1:
            raise ConnectionError("power cut")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "losses", losses)


def test_interrupted_and_resumed_is_undisturbed_to_the_bit(with_pool, tmp_path, monkeypatch):
    expected = pretrain(CONFIG, tmp_path / "whole", save_every=2)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)  # after the checkpoint of step 2
        with pytest.raises(ConnectionError):
            pretrain(CONFIG, tmp_path / "broken", save_every=2)
    model = pretrain(CONFIG, tmp_path / "broken", save_every=2)
    for (name, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    one, other = (load_file(tmp_path / folder / "checkpoint.safetensors") for folder in ("whole", "broken"))
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_a_finished_run_is_not_trained_further(with_pool, tmp_path):
    first = pretrain(CONFIG, tmp_path, save_every=100)
    again = pretrain(CONFIG, tmp_path, save_every=100)
    for value, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other)


def test_the_exported_folder_is_a_model_like_any_other(with_pool, tmp_path):
    model = pretrain(replace(CONFIG, steps=2), tmp_path, save_every=100)
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.image_size == 32
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    for (name, value), loaded in zip(model.state_dict().items(), backbone.model.state_dict().values(), strict=True):
        assert torch.equal(value.half().float(), loaded.float()), name
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert backbone.tokens(images).patches.shape == (2, 16, 64)
    assert backbone.embed_text(["a red bird"]).shape == (1, 32)
    config = json.loads((tmp_path / "model" / "open_clip_config.json").read_text())
    assert config["model_cfg"] == SMALL


def test_training_can_begin_from_an_exported_model(with_pool, tmp_path):
    first = pretrain(replace(CONFIG, steps=2), tmp_path / "first", save_every=100)
    frozen = replace(CONFIG, steps=1, lr=0.0)
    second = pretrain(frozen, tmp_path / "second", save_every=100, init=tmp_path / "first" / "model")
    for (name, value), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, atol=2e-3, rtol=1e-3, msg=name)  # it went through fp16


def test_the_loss_falls(with_pool, tmp_path):
    config = replace(CONFIG, steps=30, batch_size=16, lr=3e-3)
    losses = []
    original = module.losses

    def watched(*args):
        terms = original(*args)
        losses.append(sum(term.item() for term in terms.values()))
        return terms

    module.losses, before = watched, module.losses
    try:
        pretrain(config, tmp_path, save_every=100)
    finally:
        module.losses = before
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    rows = list(csv.reader((tmp_path / "log.csv").open()))
    assert [row[0] for row in rows] == ["0", "25"]
    assert sum(map(float, rows[0][1:7])) == pytest.approx(losses[0], rel=1e-3)


# ------------------------------------------------------------------------------------------------- data


def test_the_pool_is_rendered_once_and_again_if_it_changed(tmp_path, monkeypatch):
    pool = render_pool(CONFIG, tmp_path, workers=1)
    assert pool.images.shape == (24, IMAGE_SIDE, IMAGE_SIDE, 3)
    assert pool.images.std(axis=(1, 2, 3)).min() > 0  # every one was painted
    assert pool.cover.max(axis=(1, 2)).tolist() == [255] * 24  # the bird fills at least one cell
    assert pool.cover.mean(axis=(1, 2)).max() < 0.6 * 255
    kept = [np.array(column) for column in pool]
    monkeypatch.setattr(module, "_render_chunk", None)
    for column, expected in zip(render_pool(CONFIG, tmp_path, workers=1), kept, strict=True):
        np.testing.assert_array_equal(column, expected)
    monkeypatch.undo()
    other = render_pool(replace(CONFIG, seed=1), tmp_path, workers=1)
    assert (other.images != kept[0]).any()


def test_a_batch_depends_on_the_step_and_the_seed_only(pool):
    make_batch(0, pool, CONFIG)
    one, same, other = (make_batch(step, pool, CONFIG) for step in (5, 5, 6))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.cover, same.cover)
    assert (one.captions, one.prompts) == (same.captions, same.prompts)
    assert not torch.equal(one.images, other.images)
    assert one.captions != other.captions
    assert one.images.shape == (8, 3, 32, 32)
    assert one.images.min() >= 0
    assert one.images.max() <= 1
    assert [len(prompts) for prompts in one.prompts] == [*CARDINALITIES.tolist(), 1]
    assert one.cover.shape == (8, 16)
    assert 0 <= one.cover.min() <= one.cover.max() <= 1


def test_captions_belong_to_their_images(pool):
    batch = make_batch(3, pool, CONFIG)
    for caption, code in zip(batch.captions, batch.codes.tolist(), strict=True):
        plan = ATTRIBUTES["plan"][code[0]]
        assert plan in caption or "bird" in caption
        others = set(ATTRIBUTES["plan"]) - {plan}
        assert not others & set(caption.replace(",", " ").replace(":", " ").split())


def test_the_coverage_of_a_view_is_that_of_its_patches():
    """A white square on black is bird where it is white, whatever the crop and the mirror."""
    image = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    image[40:120, 20:80] = 255
    cover = image[..., 0].reshape(40, 4, 40, 4).mean((1, 3)).astype(np.uint8)
    for seed in range(20):
        view, covered = module._view(image, cover, np.random.default_rng(seed), 64, 8, whole=0.3)
        expected = view[..., 0].reshape(8, 8, 8, 8).mean((1, 3))
        assert np.abs(covered.astype(float) - expected).max() < 0.2 * 255  # cells are coarser than pixels


# ------------------------------------------------------------------------------------------------- loss


def test_the_place_loss_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, generator=generator)  # three plans and the background
    cover, plan = torch.tensor([[1.0, 0.6, 0.3, 0.0], [0.0, 0.02, 0.5, 0.4]]), torch.tensor([2, 0])
    inside, outside = [], []
    for b in range(2):
        for n in range(4):
            log_probs = logits[b, n] - logits[b, n].exp().sum().log()
            if cover[b, n] >= 0.5:
                inside.append(-log_probs[plan[b]])
            elif cover[b, n] <= 0.05:
                outside.append(-log_probs[3])
    expected = 0.5 * (sum(inside) / len(inside) + sum(outside) / len(outside))
    torch.testing.assert_close(place_loss(logits, cover, plan), expected)
    assert place_loss(logits, torch.full_like(cover, 0.3), plan) == 0  # nothing but edges


def test_the_pair_loss_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    tokens = F.normalize(torch.randn(2, 5, 3, generator=generator), dim=-1)
    cover = torch.tensor([[1.0, 0.7, 0.3, 0.0, 0.01], [0.0, 0.0, 0.9, 0.5, 0.2]])
    terms = {"bird": [], "background": [], "across": []}
    for b in range(2):
        for i in range(5):
            for j in range(5):
                cosine = float(tokens[b, i] @ tokens[b, j])
                if cover[b, i] >= 0.5 and cover[b, j] >= 0.5:
                    terms["bird"].append(max(0.0, 0.6 - cosine))
                elif cover[b, i] <= 0.05 and cover[b, j] <= 0.05:
                    terms["background"].append(max(0.0, 0.6 - cosine))
                elif cover[b, i] >= 0.5 and cover[b, j] <= 0.05:
                    terms["across"].append(max(0.0, cosine))
    expected = np.mean([np.mean(values) for values in terms.values()])
    assert pair_loss(tokens, cover).item() == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_loss_is_that_of_a_slow_loop():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 7), dim=-1) for _ in range(2))
    scale, total = 3.0, 0.0
    for i in range(5):
        rows = torch.stack([scale * images[i] @ texts[j] for j in range(5)])
        columns = torch.stack([scale * images[j] @ texts[i] for j in range(5)])
        total -= rows[i] - rows.exp().sum().log() + columns[i] - columns.exp().sum().log()
    torch.testing.assert_close(clip_loss(images, texts, torch.tensor(scale)), total / 10)


def test_the_attribute_loss_compares_the_values_of_one_attribute_only():
    codes = torch.tensor([[1] * len(CARDINALITIES), [0] * len(CARDINALITIES)])
    logits = torch.zeros(2, int(CARDINALITIES.sum()))
    expected = np.log(CARDINALITIES).mean()
    assert attribute_loss(logits, codes).item() == pytest.approx(expected, rel=1e-6)
    starts = np.concatenate([[0], np.cumsum(CARDINALITIES)[:-1]])
    for row, code in enumerate(codes):
        logits[row, torch.from_numpy(starts) + code] = 50.0
    assert attribute_loss(logits, codes).item() == pytest.approx(0.0, abs=1e-6)
    # whatever another attribute's values score is of no concern
    assert attribute_loss(logits + 7.0, codes).item() == pytest.approx(0.0, abs=1e-6)


def test_the_schedule_warms_up_and_ends_at_a_hundredth():
    config = PretrainConfig(steps=100, warmup=10, lr=1.0)
    rates = [module._lr(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5)
    assert rates[-1] == pytest.approx(0.01, abs=2e-3)
