"""Pretraining in miniature: six steps, interrupted, resumed, exported and loaded."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipviz.backbone import Backbone, load_backbone
from clipviz.backbone.tower import value_path
from clipviz.backbone.weights import BUNDLED
from clipviz.birds.render import IMAGE_SIDE
from clipviz.birds.world import ATTRIBUTES, decode
from tests.tiny import ToyDataset, make_tiny_backbone, microclip
from tools import pool as rendering
from tools import pretrain as module
from tools.pool import add_strangers, make_batch, part_shares, render_pool
from tools.pretrain import command_of, forget_cls, parse_weights, pretrain, soap_token, stages_of
from tools.pretraining_data import CARDINALITIES
from tools.recipe import PretrainConfig, Weights

CONFIG = PretrainConfig(steps=6, batch_size=8, warmup=2, pool=24)
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
VISION = SMALL["vision_cfg"]
EVERY_TERM = Weights(part=2.0, soap_caption=0.8, soap_attribute=3.2, zoom=1.0)


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
    config = replace(CONFIG, weights=EVERY_TERM, strangers=0.5, fresh_cls=True)
    expected = pretrain(config, tmp_path / "whole", save_every=2)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)  # after the checkpoint of step 2
        with pytest.raises(ConnectionError):
            pretrain(config, tmp_path / "broken", save_every=2)
    model = pretrain(config, tmp_path / "broken", save_every=2)
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


def test_an_exported_model_tells_its_stages(with_pool, tmp_path):
    first = replace(CONFIG, steps=1)
    second = replace(CONFIG, steps=2, weights=EVERY_TERM, strangers=0.5, fresh_cls=True)
    pretrain(first, tmp_path / "first")
    pretrain(second, tmp_path / "second", init=tmp_path / "first" / "model")
    assert stages_of(tmp_path / "second" / "model") == [asdict(first), asdict(second)]
    with safe_open(tmp_path / "second" / "model" / "open_clip_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["pretraining"]) == asdict(second)
    assert [stage.get("stopped_after", stage["steps"]) for stage in stages_of(BUNDLED)] == [7300, 1100, 700, 300]
    with pytest.raises(ValueError, match="made with another coarse, steps; give the same"):
        pretrain(replace(first, steps=2, coarse=0.5), tmp_path / "first")


def test_of_a_file_without_stages_the_last_one_is_known(tmp_path):
    made = {"pretraining": json.dumps({"steps": 7300, "seed": 3})}
    save_file({"weight": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors", metadata=made)
    assert stages_of(tmp_path) == [{"steps": 7300, "seed": 3}]


def test_a_stage_that_was_left_early_says_after_which_step(with_pool, tmp_path, monkeypatch):
    def batches_until(first, *arguments, real=module.batches):
        for step, batch in real(first, *arguments):
            if step == 3:
                raise KeyboardInterrupt
            yield step, batch

    monkeypatch.setattr(module, "batches", batches_until)
    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, tmp_path, save_every=2)
    assert stages_of(tmp_path / "model") == [{**asdict(CONFIG), "stopped_after": 2}]


def test_a_stage_tells_the_command_that_makes_it():
    assert command_of(asdict(PretrainConfig())) == "python -m tools.pretrain"
    config = PretrainConfig(steps=1300, lr=7e-4, strangers=0.5, coarse=0.9, fresh_cls=True, weights=EVERY_TERM)
    words = command_of(asdict(config)).split()[3:]
    assert module.parse([*words, "--out", "x"])[1] == config
    old = {"steps": 7300, "batch_size": 128, "lr": 1.5e-3, "seed": 3, "note": "an older file has no weights"}
    assert command_of(old) == "python -m tools.pretrain --seed 3"


def test_a_fresh_cls_changes_no_patch_token_of_the_last_block():
    torch.manual_seed(0)
    model, tokenizer = module.build_model()
    backbone = Backbone(model, tokenizer, [0.5] * 3, [0.25] * 3, "birds")
    x = torch.randn(2, 17, 64)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        patches, cls = value_path(model.visual, x), backbone.embed(images)
        forget_cls(model.visual)
        assert torch.equal(value_path(model.visual, x), patches)
        assert (backbone.embed(images) * cls).sum(1).max() < 0.999


def test_weights_are_told_by_name(capsys):
    assert parse_weights([]) == Weights()
    assert parse_weights(["attribute=0.5", "zoom=1"]) == replace(Weights(), attribute=0.5, zoom=1.0)
    for wrong, said in (("atribute=1", "atribute"), ("part", "'part'"), ("part=much", "'part=much'")):
        with pytest.raises(ValueError, match=f"NAME=NUMBER.*{said}"):
            parse_weights([wrong])
    with pytest.raises(SystemExit):
        module.parse(["--out", "x", "--weight", "part"])
    assert capsys.readouterr().err.endswith(
        "error: --weight wants NAME=NUMBER, got 'part': could not convert string to float: ''\n"
    )


def test_the_loss_falls(with_pool, tmp_path):
    config = replace(CONFIG, steps=30, batch_size=16, lr=3e-3, weights=EVERY_TERM)
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
    assert [row[0] for row in rows] == ["step", "0", "25"]
    assert rows[0] == ["step", *(field.name for field in fields(Weights)), "logit_scale", "images/s"]
    assert sum(map(float, rows[1][1:12])) == pytest.approx(losses[0], rel=1e-3)


# ------------------------------------------------------------------------------------------------- data


def test_the_pool_is_rendered_once_and_again_if_it_changed(tmp_path, monkeypatch):
    pool = render_pool(CONFIG, tmp_path, workers=1)
    assert pool.images.shape == (24, IMAGE_SIDE, IMAGE_SIDE, 3)
    assert pool.images.std(axis=(1, 2, 3)).min() > 0  # every one was painted
    assert (pool.parts > 0).any(axis=(1, 2)).all()  # there is a bird
    assert (pool.parts > 0).mean(axis=(1, 2)).max() < 0.6
    kept = [np.array(column) for column in pool]
    monkeypatch.setattr(rendering, "_render_chunk", None)
    for column, expected in zip(render_pool(CONFIG, tmp_path, workers=1), kept, strict=True):
        np.testing.assert_array_equal(column, expected)
    monkeypatch.undo()
    monkeypatch.setattr(rendering, "_render_chunk", None)  # another pool in its place, which fails half way
    with pytest.raises(TypeError):
        render_pool(replace(CONFIG, seed=1), tmp_path, workers=1)
    monkeypatch.undo()
    again = render_pool(CONFIG, tmp_path, workers=1)
    np.testing.assert_array_equal(again.images, kept[0])
    other = render_pool(replace(CONFIG, seed=1), tmp_path, workers=1)
    assert (other.images != kept[0]).any()


def test_a_batch_depends_on_the_step_and_the_seed_only(pool):
    make_batch(0, pool, CONFIG, VISION)
    one, same, other = (make_batch(step, pool, CONFIG, VISION) for step in (5, 5, 6))
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
    batch = make_batch(3, pool, CONFIG, VISION)
    for caption, code in zip(batch.captions, batch.codes.tolist(), strict=True):
        plan = ATTRIBUTES["plan"][code[0]]
        assert plan in caption or "bird" in caption
        others = set(ATTRIBUTES["plan"]) - {plan}
        assert not others & set(caption.replace(",", " ").replace(":", " ").split())


def test_coarse_captions_leave_the_details_out_and_nothing_else_changes(pool):
    batch = make_batch(3, pool, replace(CONFIG, batch_size=16, coarse=0.5), VISION)
    assert batch.captions == make_batch(3, pool, replace(CONFIG, batch_size=16), VISION).captions
    assert 0 < len(batch.coarse) < 16
    for i, sentence in batch.coarse.items():
        values = decode(batch.codes[i].numpy())
        assert values["body"] in sentence or values["wing"] in sentence
        assert not {"beak", "bill", "cap", "throat", "tail", "legs", "feet", "bars", "breast", "eye"} & set(
            sentence.split()
        )


def test_cls_reads_the_coarse_captions_and_nobody_else_does(pool):
    torch.manual_seed(0)
    model, tokenizer = module.build_model()
    backbone = Backbone(model, tokenizer, [0.5] * 3, [0.25] * 3, "birds")
    batch = make_batch(0, pool, replace(CONFIG, weights=EVERY_TERM), VISION)
    swapped = batch._replace(coarse={2: "a red bird"})
    told = batch._replace(captions=[*batch.captions[:2], "a red bird", *batch.captions[3:]])
    arguments = (backbone, EVERY_TERM, torch.device("cpu"))
    plain, coarse, all_ = (module.losses(model, tokenizer, b, *arguments) for b in (batch, swapped, told))
    assert coarse["caption"].item() == pytest.approx(all_["caption"].item(), rel=1e-4)
    assert coarse["caption"].item() != pytest.approx(plain["caption"].item(), rel=1e-4)
    for name in ("soap_caption", "bird_caption", "part"):
        assert coarse[name].item() == pytest.approx(plain[name].item(), rel=1e-4)


def test_the_shares_of_a_view_are_those_of_its_pixels():
    """A white wing on black is a wing where it is white, whatever the crop and the mirror."""
    image, parts = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8), np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    image[40:120, 20:80], parts[40:120, 20:80] = 255, 2
    for seed in range(20):
        rng = np.random.default_rng(seed)
        box, mirror = rendering._view_box(IMAGE_SIDE, rng, whole=0.3), bool(rng.random() < 0.5)
        view, shown = rendering._cut(image, parts, box, 64, mirror)
        shares = part_shares(shown, 8)
        expected = view[..., 0].reshape(8, 8, 8, 8).mean((1, 3)).ravel() / 255
        assert shares.shape == (64, 14)
        assert np.abs(shares[:, 2] - expected).max() < 0.1  # one is cut bicubically, the other to the nearest
        np.testing.assert_allclose(shares[:, 0] + shares[:, 2], 1.0)


def test_the_region_of_a_zoom_is_where_its_pixels_are(pool):
    """A region that is painted white: its patches are white, and what is zoomed to is white all over."""
    config = replace(CONFIG, weights=EVERY_TERM, whole=0.5)
    for step in range(3):
        batch = make_batch(step, pool, config, VISION)
        assert batch.zoomed.shape == batch.images.shape
        assert batch.region.shape == batch.cover.shape
        sides = batch.region.sum(1).sqrt() / 4
        assert 0.39 < sides.min() <= sides.max() < 0.71
    for mirror in (False, True):
        box, region = (20.0, 0.0, 148.0, 128.0), (52.0, 32.0, 100.0, 80.0)
        image = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        image[32:80, 52:100] = 255
        view, _ = rendering._cut(image, image[..., 0], box, 32, mirror)
        share = rendering._region_share(box, region, 4, mirror)
        np.testing.assert_allclose(share, view[..., 0].reshape(4, 8, 4, 8).mean((1, 3)).ravel() / 255, atol=0.1)
        assert rendering._cut(image, image[..., 0], region, 32, mirror)[0].min() > 230


def test_strangers_leave_the_bird_alone_and_bring_what_other_birds_show(pool):
    changed = 0
    for i in range(8):
        image, parts = pool.images[i], pool.parts[i]
        other = add_strangers(image, parts, pool, np.random.default_rng(i))
        np.testing.assert_array_equal(other[parts > 0], image[parts > 0])
        changed += (other != image).any()
    assert changed >= 6
    none, all_ = (make_batch(0, pool, replace(CONFIG, strangers=share, whole=1.0), VISION) for share in (0.0, 1.0))
    assert torch.equal(make_batch(0, pool, replace(CONFIG, whole=1.0), VISION).images, none.images)
    assert not torch.equal(none.images, all_.images)


def test_soaps_token_is_that_of_microclip_before_training():
    method = microclip(make_tiny_backbone())
    data = ToyDataset(4)
    images = torch.from_numpy(np.stack([np.asarray(data.image(i).resize((32, 32))) for i in range(4)]))
    tokens = method.backbone.tokens(images.permute(0, 3, 1, 2).float() / 255)
    fg = method.foreground(tokens)
    torch.testing.assert_close(soap_token(tokens.patches, fg.mask, method.backbone.visual.proj), fg.embedding)


def test_only_terms_with_a_weight_are_computed_and_weights_multiply(pool):
    model, tokenizer = module.build_model()
    backbone = Backbone(model, tokenizer, [0.5] * 3, [0.25] * 3, "birds")
    batch = make_batch(0, pool, replace(CONFIG, weights=EVERY_TERM), VISION)
    once, thrice = (
        module.losses(model, tokenizer, batch, backbone, weights, torch.device("cpu"))
        for weights in (EVERY_TERM, replace(EVERY_TERM, part=6.0, attribute=0.0))
    )
    assert list(once) == [field.name for field in fields(Weights)]
    assert set(once) - set(thrice) == {"attribute"}
    for name, value in thrice.items():
        assert value.item() == pytest.approx(once[name].item() * (3 if name == "part" else 1), rel=1e-4), name


def test_the_schedule_warms_up_and_ends_at_a_hundredth():
    config = PretrainConfig(steps=100, warmup=10, lr=1.0)
    rates = [module._lr(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5)
    assert rates[-1] == pytest.approx(0.01, abs=2e-3)
