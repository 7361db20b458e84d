"""DPA: the official numbers step by step, known answers, and what a run may and may not change."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from tiny import GOLDEN, TINY, ToyDataset, assert_same_bits

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, Views
from clipviz.data.batches.features import FeatureBackbone
from clipviz.events import StepFinished
from clipviz.methods import dpa
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import (
    BENCHMARK_PRESETS,
    BENCHMARKS,
    DPA,
    PRESETS,
    DPAConfig,
    align_distribution,
    alignment_loss,
    image_prototypes,
    ranking_weights,
    refine_probs,
)
from clipviz.ops import normalize
from clipviz.prompts import ClassPrompts
from clipviz.training.checkpoint import load_checkpoint, save_checkpoint
from clipviz.training.loop import Adaptation, adapt
from clipviz.training.run import Run

SHORT = AdaptConfig(epochs=2, batch_size=8, lr=1e-3)


def golden():
    arrays = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "dpa.npz").items()}
    return {key.removesuffix("_a"): value for key, value in arrays.items()}


def close(got, wanted, rtol=0.0, atol=1e-5):
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


# ----------------------------------------------------------------------------------------------- equations


def test_prototypes_of_the_official_bank():
    g = golden()
    close(image_prototypes(g["mem0_feat"], g["mem0_lab"], g["cls0_raw"]), g["center0"])


def test_a_class_that_lost_its_last_image_has_its_text_prototype():
    g = golden()
    labels = torch.where(g["mem0_lab"] == 6, 5, g["mem0_lab"])
    prototypes = image_prototypes(g["mem0_feat"], labels, g["cls0_raw"])
    close(prototypes[6], normalize(g["cls0_raw"])[6])
    close(prototypes[:5], g["center0"][:5])


def test_prototypes_of_a_bank_in_parts_and_of_images_not_seen_yet(monkeypatch):
    monkeypatch.setattr(dpa, "_SUMMED_ROWS", 3)
    embeddings = normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([0, 1, -1, 0, 1, 1, -1, 0])
    prototypes = image_prototypes(embeddings, labels, torch.eye(4)[:3])
    close(prototypes[0], normalize(embeddings[[0, 3, 7]].sum(0)))
    close(prototypes[1], normalize(embeddings[[1, 4, 5]].sum(0)))
    close(prototypes[2], torch.eye(4)[2])


def test_prototypes_carry_no_gradient():
    embeddings, text = torch.eye(4).requires_grad_(), torch.eye(4).requires_grad_()
    assert not image_prototypes(embeddings, torch.tensor([0, 1, 1, 2]), text).requires_grad


@pytest.mark.parametrize("label", [3, -2])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match=r"labels must be in -1\.\.2"):
        image_prototypes(torch.eye(4)[:1], torch.tensor([label]), torch.eye(4)[:3])


def test_alignment_of_a_distribution_that_is_already_uniform_changes_nothing():
    probs = torch.tensor([[0.7, 0.2, 0.1]])
    close(align_distribution(probs, torch.full((3,), 1 / 3)), probs)
    close(align_distribution(probs, torch.tensor([0.7, 0.2, 0.1])), torch.full((1, 3), 1 / 3))


def test_a_of_zero_and_one_reduce_to_one_vote():
    text, image = torch.rand(2, 4, 3).softmax(-1)
    assert torch.equal(refine_probs(text, image, 0.0), text)
    assert torch.equal(refine_probs(text, image, 1.0), image)


def test_ranking_weights_are_one_where_both_votes_agree():
    text, image = torch.tensor([[0.6, 0.4], [0.6, 0.4]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    weights = ranking_weights(text, image, torch.tensor([0, 1]))
    close(weights, torch.tensor([1.0, 0.4 / 0.6]))


def test_alignment_gradient_reaches_the_text_prototypes_only():
    image = normalize(torch.randn(3, 4)).requires_grad_()
    text = torch.randn(3, 4, requires_grad=True)
    alignment_loss(image, text, 100.0).backward()
    assert image.grad is None
    assert text.grad is not None


# ----------------------------------------------------------------------------------------------- the pipeline


class _Tower(FeatureBackbone):
    """The golden vectors' encoder x -> nrm(x A)."""

    def __init__(self, matrix):
        names = tuple(f"class {c}" for c in range(7))
        super().__init__(16, 100.0, "toy", dict(zip(names, torch.eye(16)[:7], strict=True)))
        self.visual.ln = torch.nn.Linear(16, 16, bias=False)  # "ln": what DPA may train
        self.visual.ln.weight.data = matrix


def test_an_epoch_of_the_official_training(monkeypatch):
    """Bank, window, labels, weights, losses and gradients of four steps, the optimizer's included."""
    g = golden()
    a, reg, align, w = g["cfg"].tolist()
    monkeypatch.setattr(dpa, "embed", lambda backbone, x: normalize(x @ backbone.visual.ln.weight))
    method = DPA(
        _Tower(torch.eye(16)),
        ClassPrompts(tuple(f"class {c}" for c in range(7)), ("{}",)),
        replace(PRESETS["official"], a=a, reg=reg, align=align, w=w),
    )
    with torch.no_grad():
        method.text_prototypes.copy_(g["cls0_raw"])
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        method.prepare(Batch(Views(g["weak"][i]), i, torch.full((len(i),), -1)) for i in order.split(8))
    close(method.bank_embeddings, g["mem0_feat"])
    assert torch.equal(method.bank_labels, g["mem0_lab"])
    close(method.image_prototypes, g["center0"])
    method.window[:30] = g["prob_list0"]
    method.window_steps.fill_(30)
    optimizer = torch.optim.AdamW(method.parameter_groups(0.1), lr=1e-3)
    for s, index in enumerate(g["idx"]):
        views = Views(g["weak"][index], g["strong"][index])
        with torch.no_grad():
            pseudo = method.pseudo_label(views, index)
        assert torch.equal(pseudo.labels, g["pseudo_labels"][s])
        close(pseudo.probs, g["probs"][s])
        close(pseudo.sources["image"].softmax(-1), g["probs_centre"][s])
        close(pseudo.weights, g["w_txt"][s] * g["w_centre"][s])
        aligned = (pseudo.probs - a * g["probs_centre"][s]) / (1 - a)
        close(aligned, g["probs_txt_da"][s])
        losses = method.loss(views, pseudo)
        strong = method.logits(views.strong).detach()
        close(strong, g["strong_logits"][s], rtol=1e-5)
        close(F.cross_entropy(strong, pseudo.labels, reduction="none"), g["ce_none"][s], rtol=1e-5)
        close(losses["cross_entropy"], (g["w_txt"][s] * g["w_centre"][s] * g["ce_none"][s]).mean(), rtol=1e-5)
        close(losses["alignment"], align * g["align_ce"][s], rtol=1e-5)
        total = sum(losses.values())
        close(total, g["loss"][s], rtol=1e-5)
        optimizer.zero_grad()
        total.backward()
        for parameter, gradient in ((method.text_prototypes, "grad_cls"), (method.backbone.visual.ln.weight, "grad_A")):
            largest = g[gradient][s].abs().max().item()
            close(parameter.grad, g[gradient][s], atol=1e-5 * largest, rtol=1e-5)
        optimizer.step()
    method.end_epoch()
    close(method.text_prototypes.detach(), g["cls_end"], atol=1e-4)
    close(method.backbone.visual.ln.weight.detach(), g["A_end"], atol=1e-4)
    assert torch.equal(method.bank_labels, g["mem_end_lab"])
    close(method.bank_embeddings, g["mem_end_feat"])
    close(method.image_prototypes, g["center_end"])
    oldest = int(method.window_steps) % 32
    close(method.window.roll(-oldest, 0), g["prob_list_end"])


# ----------------------------------------------------------------------------------------------- the method


@pytest.fixture
def make_dpa(tiny_backbone):
    return lambda: DPA(tiny_backbone, ToyDataset().prompts, DPAConfig(schedule=SHORT))


def state(method):
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def run(method, dataset, seed=0):
    return list(adapt(method, dataset, SHORT, seed=seed))


def test_loss_falls_and_only_the_declared_parameters_change(toy, make_dpa):
    method = make_dpa()
    before = state(method)
    events = run(method, toy)
    changed = {name for name, value in state(method).items() if not torch.equal(value, before.get(name, value))}
    trainable = {name for name, p in method.named_parameters() if p.requires_grad}
    own = {"text_prototypes", "image_prototypes", "bank_embeddings", "bank_labels", "window", "window_steps"}
    assert {name for name in trainable if not name.startswith("backbone.")} == {"text_prototypes"}
    assert all("ln_" in name for name in trainable - {"text_prototypes"})
    assert changed - own <= trainable
    assert "text_prototypes" in changed
    losses = [sum(e.losses.values()).item() for e in events if isinstance(e, StepFinished)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_permuted_targets_change_nothing(toy, make_dpa):
    one, other = make_dpa(), make_dpa()
    run(one, toy)
    toy.targets = np.roll(toy.targets, 5)
    run(other, toy)
    assert all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_biases_do_not_decay(make_dpa):
    method = make_dpa()
    decayed, kept = method.parameter_groups(0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in method.named_parameters()}
    assert all(names[id(p)].endswith("bias") for p in kept["params"])
    assert not any(names[id(p)].endswith("bias") for p in decayed["params"])
    assert any(p is method.text_prototypes for p in decayed["params"])


@pytest.mark.parametrize(("epoch", "steps"), [(1, 0), (1, 2)])
def test_a_resumed_run_ends_in_the_same_bits(toy, tmp_path, make_dpa, epoch, steps):
    whole = make_dpa()
    run(whole, toy)
    first = Adaptation(make_dpa(), toy, SHORT)
    for _ in first:
        if (first.epoch, first.steps_in_epoch) == (epoch, steps):
            break
    save_checkpoint(tmp_path / "checkpoint.safetensors", first)
    second = Adaptation(make_dpa(), toy, SHORT)
    load_checkpoint(tmp_path / "checkpoint.safetensors", second)
    assert torch.equal(second.method.bank_embeddings, first.method.bank_embeddings)
    list(second)
    assert all(torch.equal(value, state(second.method)[name]) for name, value in state(whole).items())


def test_bank_and_window_are_rebuilt_epoch_by_epoch(toy, make_dpa):
    method = make_dpa()
    events = run(method, toy)
    last = [e for e in events if isinstance(e, StepFinished) and e.epoch == 1]
    labels = torch.cat([e.pseudo.labels for e in last])
    index = torch.cat([e.index for e in last])
    assert torch.equal(method.bank_labels[index], labels)
    assert int(method.window_steps) == 2 * 3
    close(method.window[6:], torch.zeros(26, 3))
    expected = image_prototypes(method.bank_embeddings, method.bank_labels, method.text_prototypes)
    assert torch.equal(method.image_prototypes, expected)


def test_one_class_and_fewer_images_than_a_batch(tiny_backbone):
    toy = ToyDataset(n=5)
    toy.class_names, toy.targets = ("red square",), np.zeros(5, dtype=np.int64)
    method = DPA(tiny_backbone, ClassPrompts(toy.class_names), DPAConfig(schedule=SHORT))
    events = run(method, toy)
    assert all((e.pseudo.labels == 0).all() for e in events if isinstance(e, StepFinished))


def test_presets_carry_the_authors_table():
    assert len(BENCHMARKS) == 13
    pets, flowers = BENCHMARK_PRESETS["pets"], BENCHMARK_PRESETS["flowers"]
    assert (pets.a, pets.schedule.lr, pets.schedule.epochs) == (0.01, 7e-5, 15)
    assert (flowers.w, BENCHMARK_PRESETS["eurosat"].align, BENCHMARK_PRESETS["sun397"].reg) == (1, 0.01, 0.2)
    official = PRESETS["official"]
    assert (official.a, official.reg, official.align, official.w, official.window) == (0.5, 1, 1, 100, 32)
    assert (official.text, official.fairness, official.schedule) == ("templates", "batch", AdaptConfig())
    assert pets.fairness == "batch"


def test_fairness_of_a_window_does_not_pull_towards_classes_that_a_batch_lacks():
    """Certain and even predictions of 64 classes in batches of 16 are fair, as the window finds and no batch does."""
    names = tuple(f"class {c}" for c in range(64))
    method = DPA(
        FeatureBackbone(64, 100.0, "f", dict(zip(names, torch.eye(64), strict=True))), ClassPrompts(names, ("{}",))
    )
    index = torch.arange(64)
    method.prepare([Batch(Views(torch.eye(64)), index, index)])
    for rows in index.split(16):
        views = Views(torch.eye(64)[rows])
        with torch.no_grad():
            pseudo = method.pseudo_label(views, rows)
    fair = {}
    for fairness in ("window", "batch"):
        method.config = replace(method.config, fairness=fairness)
        fair[fairness] = method.loss(views, pseudo)["fairness"].item()
    assert fair["window"] == pytest.approx(np.log(64), rel=1e-4)
    assert fair["batch"] > 10 * np.log(64)


@pytest.mark.parametrize("changes", [{"a": 1.5}, {"window": 0}])
def test_constants_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(DPAConfig(), **changes)


def test_frozen_encoder_trains_the_prototypes_alone():
    generator = torch.Generator().manual_seed(0)
    backbone = FeatureBackbone(8, 20.0, "features", dict(zip(("x", "y"), torch.eye(8)[:2], strict=True)))
    method = DPA(backbone, ClassPrompts(("x", "y"), ("{}",)))
    assert [name for name, p in method.named_parameters() if p.requires_grad] == ["text_prototypes"]
    views = Views(normalize(torch.randn(4, 8, generator=generator)))
    index = torch.arange(4)
    method.prepare([Batch(views, index, index)])
    losses = method.loss(views, method.pseudo_label(views, index))
    sum(losses.values()).backward()
    # the loss sees directions only, so its gradient is orthogonal to each prototype
    assert F.cosine_similarity(method.text_prototypes.grad, method.text_prototypes).abs().max() < 1e-5


def test_a_resumed_run_on_a_resnet_ends_with_the_same_bits(toy, tmp_path):
    """BatchNorms of a tower that is trained gather statistics, which no parameter holds."""

    def make_run(folder=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
            model = open_clip.CLIP(**{**TINY, "vision_cfg": vision})
        tokenizer = open_clip.SimpleTokenizer(context_length=24)
        backbone = Backbone(model, tokenizer, (0.5,) * 3, (0.25,) * 3, "resnet").requires_grad_(False).eval()
        return Run(DPA(backbone, toy.prompts), toy, AdaptConfig(epochs=2, batch_size=8, lr=1e-3), folder=folder)

    whole, stopped, resumed = make_run(), make_run(tmp_path), make_run(tmp_path)
    start = whole.method.backbone.visual.bn1.running_mean.clone()
    whole.fit()
    assert not torch.equal(whole.method.backbone.visual.bn1.running_mean, start)
    stopped.listeners.append(lambda event: stopped.stop() if getattr(event, "step", -1) == 3 else None)
    stopped.fit()
    assert resumed.restore()
    resumed.fit()
    assert_same_bits(whole.method.backbone.visual.state_dict(), resumed.method.backbone.visual.state_dict())
