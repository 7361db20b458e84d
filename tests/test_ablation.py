"""microCLIP with true masks, and the table of its variants: `python -m benchmarks.ablation`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks import ablation, accuracy
from benchmarks.true_masks import ObjectMasks, TrueMaskMicroCLIP
from clipviz import adapt, load_dataset
from clipviz.birds import dataset
from clipviz.data.base import ViewConfig
from clipviz.data.images import views
from clipviz.data.images.views import eval_parts, eval_view, make_views
from clipviz.events import StepFinished
from clipviz.methods import METHODS, AdaptConfig
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.ops import normalize
from tests.tiny import ToyDataset, assert_same_bits, make_tiny_backbone, method_state

CONFIG = MicroCLIPConfig(crops=1, affinity="cosine", full_density=1.0, fill=(0, 0, 0))
SCHEDULE = AdaptConfig(epochs=2, batch_size=5)


class WhiteOnBlack(ToyDataset):
    """Images that are their masks."""

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.parts(index) * np.uint8(255)).convert("RGB")


class Watched(TrueMaskMicroCLIP):
    """Keeps every strong view with the mask that the loss was given."""

    def loss(self, views, pseudo):
        terms = super().loss(views, pseudo)
        self.seen = [*getattr(self, "seen", []), (views.strong, self._region)]
        return terms


def masked(data: ToyDataset, test: ToyDataset, seed: int = 0, kind: type = TrueMaskMicroCLIP) -> TrueMaskMicroCLIP:
    return kind(make_tiny_backbone(), data.prompts, CONFIG, ObjectMasks(data, test, 32, seed))


def as_images(*pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 255


def leave_colors(monkeypatch):
    """Of the strong view only the geometry."""
    for name in views.INCREASING_OPS:
        if not name.startswith(("Rotate", "Shear", "Translate")):
            monkeypatch.setitem(views.INCREASING_OPS, name, lambda level, sign: ())
            monkeypatch.setitem(views.NAME_TO_OP, name, lambda image, **kwargs: image)


def test_in_a_run_the_mask_of_every_strong_view_is_where_the_view_has_the_object(monkeypatch):
    leave_colors(monkeypatch)  # then a view of such an image is its mask
    data = WhiteOnBlack(16)
    method = masked(data, data, seed=3, kind=Watched)
    for _ in range(2):  # a second run counts its epochs anew
        list(adapt(method, data, SCHEDULE, seed=3))
    strong, region = (torch.cat(each) for each in zip(*method.seen, strict=True))
    assert len(strong) == 2 * SCHEDULE.epochs * len(data)
    assert torch.equal(strong[:, 0] > 0.5, region)
    assert len({mask.numpy().tobytes() for mask in region}) == SCHEDULE.epochs * len(data)  # each view has its own


def test_colors_that_change_do_not_move_the_mask():
    data, white = ToyDataset(12), WhiteOnBlack(12)
    config, index = ViewConfig(32, strong=True, fill=(9, 8, 7)), range(12)
    with pytest.MonkeyPatch.context() as patch:
        leave_colors(patch)
        expected = [make_views(white.image(i), replace(config, fill=(0, 0, 0)), 0, 1, i).strong for i in index]
    strong = as_images(*(make_views(data.image(i), config, 0, 1, i).strong for i in index))
    masks = ObjectMasks(data, data, 32, 0).strong(strong, 1, index, config.fill)
    assert torch.equal(masks, as_images(*expected)[:, 0] > 0.5)


def test_a_whole_bird_is_found_by_its_view_which_is_also_the_weak_one_and_the_only_crop_of_the_variant():
    data, test = (load_dataset("birds/clutter", split, n=3) for split in ("train", "test"))
    masks = ObjectMasks(data, test, 64, 0)
    alone = MicroCLIPConfig(crops=1, crop_scale=(1.0, 1.0))
    config = ViewConfig(64, crops=alone.crops, crop_scale=alone.crop_scale)
    for each in (data, test):
        views = [make_views(each.image(i), config, 0, 5, i) for i in range(3)]
        for i, view in enumerate(views):
            whole = eval_view(each.image(i), 64)
            assert np.array_equal(view.weak, whole)
            assert np.array_equal(view.crops, [whole])
        found = masks.whole(as_images(*(view.weak for view in views)))
        assert found.tolist() == [(eval_parts(each.parts(i), 64) > 0).tolist() for i in range(3)]
    with pytest.raises(ValueError, match="wanted views of whole square images"):
        masks.whole(torch.zeros(1, 3, 64, 64))


def test_the_query_is_the_mean_of_the_true_mask_and_of_all_patches_where_nothing_is_visible():
    data = ToyDataset(4)
    data._parts[2] = 0
    method = masked(data, ToyDataset(4, seed=1))
    images = as_images(*(eval_view(data.image(i), 32) for i in range(4)))
    with torch.no_grad():
        tokens, logits = method.backbone.tokens(images), method.logits(images)
        branches, mask = method.branches(images), method.explain(images)["ncut"].bool().flatten(1)
    for i in range(4):
        shares = (eval_parts(data.parts(i), 32) > 0).reshape(4, 8, 4, 8).mean((1, 3)).ravel()
        truth = torch.from_numpy(shares > 0.25 if i != 2 else shares == 0)
        assert mask[i].tolist() == truth.tolist()
        patches = tokens.patches[i]
        attention = (patches @ patches[truth].mean(0) / 64**0.5).softmax(0)
        fg = normalize((attention @ patches) @ method.backbone.visual.proj)
        classes = method.backbone.logit_scale * normalize(method.learned_classifier)
        torch.testing.assert_close(branches["fg"][i], classes @ fg)
        torch.testing.assert_close(logits[i], classes @ (0.5 * tokens.cls[i] + 0.5 * fg))


class FoundByNCut:
    """In place of the true masks those that NCut finds, as regions of pixels."""

    method: MicroCLIP

    def whole(self, images):
        with torch.no_grad():
            tokens = self.method.backbone.tokens(images)
            mask = MicroCLIP.foreground(self.method, tokens).mask.unflatten(1, tokens.grid)
        return mask.repeat_interleave(8, 1).repeat_interleave(8, 2)

    def strong(self, images, epoch, index, fill):
        return self.whole(images)


def test_with_the_masks_that_ncut_finds_it_is_microclip_to_the_bit():
    data, masks = ToyDataset(12), FoundByNCut()
    plain = MicroCLIP(make_tiny_backbone(), data.prompts, CONFIG)
    other = masks.method = TrueMaskMicroCLIP(make_tiny_backbone(), data.prompts, CONFIG, masks)
    both = [
        [event for event in adapt(method, data, SCHEDULE, seed=1) if isinstance(event, StepFinished)]
        for method in (plain, other)
    ]
    for one, another in zip(*both, strict=True):
        assert_same_bits(dict(one.losses), dict(another.losses))
        assert torch.equal(one.pseudo.probs, another.pseudo.probs)
    assert_same_bits(method_state(plain), method_state(other))
    images = as_images(eval_view(data.image(0), 32))
    assert torch.equal(plain.logits(images), other.logits(images))


def test_views_of_another_seed_and_data_without_masks_are_refused():
    data = ToyDataset(6)
    with pytest.raises(ValueError, match=r"not the strong view of image \d in epoch 0 with seed 1"):
        list(adapt(masked(data, data, seed=1), data, SCHEDULE, seed=0))
    data.parts = lambda index: None
    with pytest.raises(ValueError, match="need part masks, and toy has none"):
        list(adapt(masked(data, data), data, SCHEDULE))


@pytest.fixture
def tiny_birds(monkeypatch, tmp_path):
    """A tiny model as the bundled one, and a sentence for each species, so that building a method costs nothing."""
    sentences = {name: [f"a {name}"] for name in load_dataset("birds", n=1).class_names}
    (tmp_path / "descriptions.json").write_text(json.dumps(sentences))
    monkeypatch.setattr(dataset, "DESCRIPTIONS", tmp_path / "descriptions.json")
    backbone = make_tiny_backbone(name="birds")
    for module in (accuracy, ablation):
        monkeypatch.setattr(module, "load_backbone", lambda name, device=None: backbone)


def test_the_variants_are_the_preset_but_for_one_thing(tiny_birds):
    args = argparse.Namespace(images=2, test_images=2, epochs=1, lr=None, workers=0)
    splits = accuracy.rendered_on_demand(args, "fog", 0)
    backbone = accuracy.load_backbone("birds")
    made = list(accuracy.cells(args, ablation.VARIANTS.values(), backbone, splits, "fog", 0))
    config = METHODS["microclip"].default_config(backbone)
    assert {key["method"]: method.config for key, method, _ in made} == {
        "microclip": config,
        "microclip with true masks": config,
        "microclip without SOAP": replace(config, soap=False),
        "microclip without crops": replace(config, crops=1, crop_scale=(1.0, 1.0)),
        "microclip without fairness": replace(config, fairness_weight=0.0),
    }
    assert isinstance(made[1][1], TrueMaskMicroCLIP)


def test_runs_are_done_once_and_the_table_is_of_the_bundled_model(tiny_birds, tmp_path, monkeypatch, capsys):
    file = tmp_path / "runs.csv"
    command = ["--images", "6", "--test-images", "5", "--epochs", "1", "--domains", "fog", "--runs", str(file)]
    command += ["--variants", "microclip,with true masks", "--seeds"]
    ablation.main([*command, "1"])
    ablation.main([*command, "2"])
    rows = pd.read_csv(file)
    names = ["microclip", "microclip with true masks"]
    assert list(zip(rows["seed"], rows["method"], strict=True)) == [(seed, name) for seed in (0, 1) for name in names]
    shown = capsys.readouterr().out.split("Top-1")[-1]
    assert "on 5 unseen birds after adapting to 6 unlabeled images (epochs: 1)" in shown
    assert "| with true masks | 2 |" in shown
    assert f"{100 * rows['accuracy'][[0, 2]].mean():.1f} ±" in shown
    for changed in ({"model": "another"}, {"epochs": 2}, {"settings": "of before"}):
        rows.assign(accuracy=0.0, **changed).to_csv(file, mode="a", header=False, index=False)
    monkeypatch.setattr(accuracy, "run", lambda *args: pytest.fail("done twice"))
    ablation.main([*command, "2"])
    assert capsys.readouterr().out.split("Top-1")[-1] == shown
    rows.assign(model="another").to_csv(file, index=False)
    ablation.main([*command, "2", "--markdown"])
    assert capsys.readouterr().out == "no runs yet\n"


def test_the_difference_is_paired_by_seed_over_the_domains_that_both_have():
    values = {
        ("microclip", "fog"): [0.5, 0.6, 0.7],
        ("microclip", "night"): [0.4, 0.4, 0.4],
        ("microclip", "blur"): [0.9, 0.9, 0.9],  # nothing is compared there
        ("microclip without SOAP", "fog"): [0.4, 0.5, 0.6],
        ("microclip without SOAP", "night"): [0.4, 0.4, 0.4],
        ("microclip without crops", "night"): [0.5, 0.6],
    }
    rows = [(m, d, s, accuracy) for (m, d), all_ in values.items() for s, accuracy in enumerate(all_)]
    known = {"images": 480, "test_images": 480, "epochs": 8, "order": 0, "code": "aaaa"}
    runs = pd.DataFrame(rows, columns=["method", "domain", "seed", "accuracy"]).assign(**known)
    assert ablation.ablation_table(runs).splitlines()[2:] == [
        "| variant | seeds | night | fog | mean | microclip minus variant |",
        "| --- | --- | --- | --- | --- | --- |",
        "| microclip | 3 | 40.0 ± 0.0 | 60.0 ± 24.8 | 50.0 ± 12.4 |  |",
        "| without SOAP | 3 | 40.0 ± 0.0 | 50.0 ± 24.8 | 45.0 ± 12.4 | +5.0 ± 0.0 |",
        "| without crops | 2 | 55.0 ± 63.5 |  |  | -15.0 ± 63.5 |",
    ]
    assert ablation.ablation_table(runs[runs["method"] == "microclip"]) == "no runs yet"
