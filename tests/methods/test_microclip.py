"""microCLIP: golden numbers of the official code, known answers, and what a run may and may not change."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import GOLDEN, make_tiny_backbone

from clipviz.backbone import ImageTokens
from clipviz.data.base import Views
from clipviz.events import PseudoLabels
from clipviz.methods.base import text_classifier
from clipviz.methods.microclip import (
    PRESETS,
    MicroCLIP,
    MicroCLIPConfig,
    crop_composite,
    description_classifier,
    dka_similarity,
    saliency_query,
    soap_pool,
)
from clipviz.ncut import fiedler_vector, foreground_mask, patch_affinity
from clipviz.ops import class_logits, fairness_loss, normalize


def golden(name):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


# ----------------------------------------------------------------------------------------------- equations


@pytest.mark.parametrize("variant", ["", "_identity"])
def test_soap_pool_is_the_official_pooling_without_its_sink(variant):
    g = golden("soap")
    eye = torch.eye(64)
    matrices = (eye, eye, eye) if variant else (g["Wq"], g["Wk"], g["Wv"])
    fg, attention = soap_pool(g["query"], g["patch"], *matrices, g["proj"])
    official = g[f"attn{variant}"][:, :-1]
    torch.testing.assert_close(fg, g[f"pooled{variant}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, official / official.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", ["", "_unr", "_masked"])
def test_soap_pool_of_tokens_with_the_official_sink_among_them(variant):
    g = golden("soap")
    patches = g["patch"] * g["mask"][..., None] if variant == "_masked" else g["patch"]
    sink = g["unr"] if variant == "_unr" else torch.zeros(1, 64)
    tokens = torch.cat([patches, sink.expand(4, 1, 64)], 1)
    fg, attention = soap_pool(g["query"], tokens, g["Wq"], g["Wk"], g["Wv"], g["proj"])
    torch.testing.assert_close(fg, g[f"pooled{variant}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, g[f"attn{variant}"], atol=1e-6, rtol=1e-5)


def test_whole_path_from_patches_to_fg():
    g = golden("soap")
    mask = foreground_mask(fiedler_vector(patch_affinity(g["full_patch"])))
    assert torch.equal(mask, g["full_mask"])
    query = saliency_query(g["full_patch"], mask)
    torch.testing.assert_close(query, g["full_query"], atol=1e-5, rtol=0)
    fg, attention = soap_pool(query, g["full_patch"], g["Wq"], g["Wk"], g["Wv"], g["proj"])
    torch.testing.assert_close(fg, g["full_pooled"], atol=1e-5, rtol=0)
    official = g["full_attn"][:, :-1]
    torch.testing.assert_close(attention, official / official.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_soap_pool_matches_a_slow_loop():
    torch.manual_seed(0)
    b, n, w, e = 2, 5, 4, 3
    query, patches, proj = torch.randn(b, w), torch.randn(b, n, w), torch.randn(w, e)
    wq, wk, wv = torch.randn(3, w, w)
    fg, attention = soap_pool(query, patches, wq, wk, wv, proj)
    for i in range(b):
        scores = torch.stack([(wq @ query[i]) @ (wk @ patches[i, j]) / w**0.5 for j in range(n)])
        weights = scores.exp() / scores.exp().sum()
        pooled = sum(weights[j] * (wv @ patches[i, j]) for j in range(n)) @ proj
        torch.testing.assert_close(attention[i], weights)
        torch.testing.assert_close(fg[i], pooled / pooled.norm())


def test_saliency_query_of_an_empty_mask_is_zero():
    assert saliency_query(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_crop_composite_is_the_official_one():
    g = golden("composite")
    composite, weights = crop_composite(g["global_feat"], g["crop_feats"])
    torch.testing.assert_close(composite, g["composite"], atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, g["relevance"].softmax(-1))


def test_description_classifier_is_the_official_one_on_ragged_descriptions():
    g = golden("fixed_classifier")
    raw, lengths = g["desc_raw_padded"], g["desc_len"].tolist()
    descriptions = [normalize(raw[c, :m]) for c, m in enumerate(lengths)]
    w_fix = description_classifier(descriptions, g["classname_emb"])
    torch.testing.assert_close(w_fix, g["fixed_classifier"], atol=1e-5, rtol=0)
    padded = description_classifier(list(g["desc_padded"]), g["classname_emb"])  # a zero row has no weight
    torch.testing.assert_close(padded, g["fixed_classifier"], atol=1e-5, rtol=0)
    by_weights = normalize(torch.einsum("cm,cme->ce", g["desc_weights"], g["desc_padded"]))
    torch.testing.assert_close(w_fix, by_weights, atol=1e-5, rtol=0)
    initial = normalize(torch.stack([rows.mean(0) for rows in descriptions]))
    torch.testing.assert_close(initial, g["cupl_init"], atol=1e-5, rtol=0)


def test_the_raw_class_name_embedding_is_the_official_one():
    g = golden("fixed_classifier")

    class Text:  # a text tower that says the golden vectors
        def embed_text(self, sentences, unit):
            return g["template_raw"].flatten(0, 1) if not unit else normalize(g["template_raw"].flatten(0, 1))

    sentences = [("a", "b", "c", "d", "e")] * 6
    torch.testing.assert_close(text_classifier(Text(), sentences, unit=False), g["classname_emb"], atol=1e-5, rtol=0)
    assert not torch.allclose(text_classifier(Text(), sentences), g["classname_emb"], atol=1e-3)


def test_three_steps_of_the_official_training_objective(tiny_backbone):
    """Pseudo-labels, loss and gradient of three consecutive steps; the running mean goes through them."""
    g = golden("dka_loss")
    gamma = 0.5
    method = _toy_method(tiny_backbone, n_classes=g["W_fixed"].shape[0])
    for s in range(3):
        static = class_logits(g["composite"][s], g["W_fixed"])
        fused = normalize(0.5 * g["weak_global"][s] + 0.5 * g["weak_fg"][s])
        z = dka_similarity(static, class_logits(fused, g["W_learn_raw"]), gamma)
        torch.testing.assert_close(z, g["pseudo_logits_g5"][s], atol=1e-5, rtol=0)
        labels = z.argmax(-1)
        assert labels.tolist() == g["pseudo_labels_g5"][s].tolist()
        weights = g["W_learn_raw"].clone().requires_grad_(True)
        mean = 0.5 * g["strong_global"][s] + 0.5 * g["strong_fg"][s]
        logits = class_logits(mean, weights, 100.0)
        torch.testing.assert_close(logits, g["train_logits_g5"][s], atol=1e-4, rtol=1e-5)
        ce = F.cross_entropy(logits, labels)
        loss = ce + fairness_loss(method._update_mean_probs(logits.softmax(-1).mean(0))) / 0.5
        torch.testing.assert_close(ce, g["ce_g5"][s], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss, g["loss_g5"][s], atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad(loss, weights)
        official = g["grad_classifier_g5"][s]
        torch.testing.assert_close(gradient, official, atol=1e-5 * official.abs().max().item(), rtol=1e-5)


def test_fairness_is_smallest_where_classes_are_equally_likely():
    assert fairness_loss(torch.full((4,), 0.25)).item() == pytest.approx(np.log(4))
    assert fairness_loss(torch.tensor([0.7, 0.1, 0.1, 0.1])) > np.log(4)


# ----------------------------------------------------------------------------------------------- the method


def _toy_method(backbone, config=None, n_classes=3):
    from clipviz.prompts import ClassPrompts

    names = tuple(f"class {i}" for i in range(n_classes))
    return MicroCLIP(backbone, ClassPrompts(names, ("a {}.",), {}), config)


def _views(b=4, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Views(*(torch.rand(shape, generator=generator) for shape in ((b, 3, 32, 32),) * 2 + ((b, k, 3, 32, 32),)))


def test_pseudo_label_is_equation_5(tiny_backbone):
    method = _toy_method(tiny_backbone, MicroCLIPConfig(gamma=0.3))
    views = _views()
    with torch.no_grad():
        pseudo = method.pseudo_label(views, torch.arange(4))
        tokens = tiny_backbone.tokens(views.weak)
        fg = method.foreground(tokens).embedding
        crops = torch.stack([tiny_backbone.embed(views.crops[:, k]) for k in range(2)], 1)
    composite, weights = crop_composite(tokens.cls, crops)
    z = 0.3 * composite @ method.static_classifier.T
    z = z + 0.7 * normalize(tokens.cls + fg) @ normalize(method.learned_classifier).T
    torch.testing.assert_close(pseudo.probs, (tiny_backbone.logit_scale * z).softmax(-1))
    torch.testing.assert_close(pseudo.crop_weights, weights)
    mixed = 0.3 * pseudo.sources["static"] + 0.7 * pseudo.sources["dynamic"]
    torch.testing.assert_close(mixed.softmax(-1), pseudo.probs)
    assert pseudo.weights.tolist() == [1.0] * 4


def test_inference_averages_branch_logits(tiny_backbone):
    method = _toy_method(tiny_backbone, MicroCLIPConfig(rho=0.25))
    images = _views().weak
    with torch.no_grad():
        branches, logits = method.branches(images), method.logits(images)
    torch.testing.assert_close(logits, 0.25 * branches["cls"] + 0.75 * branches["fg"])


def test_without_soap_everything_is_cls(tiny_backbone):
    method = _toy_method(tiny_backbone, MicroCLIPConfig(soap=False))
    images = _views().weak
    with torch.no_grad():
        torch.testing.assert_close(method.logits(images), method.branches(images)["cls"])
    assert not method.w_query.requires_grad


def test_running_mean_restarts_with_each_epoch(tiny_backbone):
    method = _toy_method(tiny_backbone)
    a, b = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.2, 0.2])
    method.begin_epoch()
    torch.testing.assert_close(method._update_mean_probs(a), a)
    torch.testing.assert_close(method._update_mean_probs(b), 0.5 * (a + b))
    method.begin_epoch()
    torch.testing.assert_close(method._update_mean_probs(b), b)


def test_only_the_declared_parameters_train(tiny_backbone):
    method = _toy_method(tiny_backbone)
    trainable = {name for name, p in method.named_parameters() if p.requires_grad}
    norms = {name for name in trainable if name.startswith("backbone.")}
    assert trainable - norms == {"w_query", "w_key", "w_value", "learned_classifier"}
    assert all("ln_" in name for name in norms)
    assert len(norms) == 2 * (2 + 2 * 2)  # weight and bias of ln_pre, ln_post and two in each of two blocks


def test_the_callers_backbone_is_left_alone():
    backbone = make_tiny_backbone()
    before = {name: p.clone() for name, p in backbone.model.state_dict().items()}
    method = _toy_method(backbone)
    pseudo = PseudoLabels(torch.zeros(4, dtype=torch.int64), torch.ones(4, 3) / 3, torch.ones(4))
    sum(method.loss(_views(), pseudo).values()).backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= p.grad
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in backbone.parameters())


def test_complete_graph_falls_back_to_the_whole_image(tiny_backbone):
    method = _toy_method(tiny_backbone)
    patches = torch.ones(2, 16, 64) + 0.01 * torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    assert method.foreground(ImageTokens(torch.zeros(2, 64), patches, (4, 4))).mask.all()


@pytest.mark.parametrize(("preset", "whole"), [("default", True), ("official", False)])
def test_an_almost_complete_graph_counts_as_complete_but_not_for_parity(tiny_backbone, preset, whole):
    patches = torch.ones(1, 16, 64)
    patches[0, 0, :32], patches[0, 1, 32:] = 0.0, 0.0  # these two, of 120 pairs, are not connected
    mask = _toy_method(tiny_backbone, PRESETS[preset]).foreground(ImageTokens(torch.zeros(1, 64), patches, (4, 4))).mask
    assert bool(mask.all()) == whole


def test_default_follows_the_intention_where_the_code_is_odd():
    default = PRESETS["default"]
    assert (default.fill, default.name_embedding, default.full_density) == ((123, 117, 104), "unit", 0.98)


def test_explain_gives_maps_on_the_patch_grid(tiny_backbone):
    with torch.no_grad():
        maps = _toy_method(tiny_backbone).explain(_views(b=3).weak)
    assert {kind: tuple(m.shape) for kind, m in maps.items()} == dict.fromkeys(("soap", "ncut", "fiedler"), (3, 4, 4))
    torch.testing.assert_close(maps["soap"].sum((1, 2)), torch.ones(3))
    assert set(maps["ncut"].unique().tolist()) <= {0.0, 1.0}


def test_official_preset_has_the_papers_constants():
    official = PRESETS["official"]
    assert (official.gamma, official.rho, official.crops, official.crop_scale) == (0.5, 0.5, 8, (0.5, 0.9))
    assert (official.tau, official.affinity, official.mask_rule, official.side) == (0.2, "dot", "std", "peak")
    assert (official.fill, official.name_embedding, official.full_density) == ((0, 0, 0), "raw", 1.0)
    schedule = official.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.lr, schedule.weight_decay) == (15, 64, 1e-4, 0.1)


@pytest.mark.parametrize(("field", "value"), [("gamma", 1.5), ("rho", -0.1), ("crops", 0)])
def test_constants_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        MicroCLIPConfig(**{field: value})
