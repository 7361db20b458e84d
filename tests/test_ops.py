"""Shared math at its edges, and what the equations say of tensors that do not fit together."""

import math

import numpy as np
import pytest
import torch
from tiny import clusters

from clipviz.events import StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import (
    DPA,
    DPAConfig,
    align_distribution,
    alignment_loss,
    image_prototypes,
    ranking_weights,
    refine_probs,
)
from clipviz.methods.microclip import (
    MicroCLIPConfig,
    crop_composite,
    description_classifier,
    dka_similarity,
    saliency_query,
    soap_pool,
)
from clipviz.methods.ntua import NtUAConfig, cache_logits, refine_cache
from clipviz.methods.wca import WCAConfig
from clipviz.ncut import fiedler_vector, foreground_mask, patch_affinity
from clipviz.ops import fairness_loss
from clipviz.training.loop import adapt


def test_fairness_of_a_class_with_probability_zero_is_large_and_finite():
    probs = torch.tensor([1.0, 1e-30, 0.0, 1e-45], requires_grad=True)
    loss = fairness_loss(probs)
    tiny = torch.finfo(torch.float32).tiny
    assert loss.item() == pytest.approx(-(math.log(1e-30) + 2 * math.log(tiny)) / 4, rel=1e-6)
    loss.backward()
    assert torch.isfinite(probs.grad).all()


def test_alignment_by_a_class_that_nobody_predicts():
    aligned = align_distribution(torch.tensor([[0.8, 0.2, 0.0]]), torch.tensor([0.8, 0.2, 0.0]))
    torch.testing.assert_close(aligned, torch.tensor([[0.5, 0.5, 0.0]]))


def test_dpa_on_classes_so_far_apart_that_probabilities_vanish():
    dataset = clusters(n=50, n_classes=5, width=3, noise=0.02)
    dataset.logit_scale = 100.0
    method = DPA(dataset.backbone(), dataset.prompts)
    events = adapt(method, dataset, AdaptConfig(epochs=2, batch_size=1, lr=1e-3))
    assert all(torch.isfinite(event.pseudo.probs).all() for event in events if isinstance(event, StepFinished))
    assert torch.isfinite(method.text_prototypes).all()


def test_labels_and_cache_values_may_be_any_whole_numbers():
    embeddings, text = torch.eye(3), torch.eye(3)[:2]
    labels = torch.tensor([0, 1, 1])
    expected = image_prototypes(embeddings, labels, text)
    assert torch.equal(image_prototypes(embeddings, labels.int(), text), expected)
    onehot = torch.tensor([[1, 0], [0, 1], [0, 1]])
    votes = cache_logits(embeddings, embeddings, onehot.float(), 1.0, 1.0)
    assert torch.equal(cache_logits(embeddings, embeddings, onehot, 1.0, 1.0), votes)


def zeros(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: saliency_query(zeros(2, 9, 4), zeros(2, 8)), r"mask must be \(B, N\) with B = 2, N = 9, got \(2, 8\)"),
        (lambda: saliency_query(zeros(9, 4), zeros(9)), r"patches must be \(B, N, W\), got \(9, 4\)"),
        (lambda: soap_pool(zeros(1, 4), zeros(2, 9, 4), *3 * [zeros(4, 4)], zeros(4, 3)), "patches must be"),
        (lambda: soap_pool(zeros(2, 4), zeros(2, 9, 4), *3 * [zeros(4, 4)], zeros(3, 4)), r"projection must be \(W"),
        (lambda: crop_composite(zeros(1, 4), zeros(2, 3, 4)), "crops must be"),
        (lambda: crop_composite(zeros(2, 4), zeros(2, 0, 4)), r"crops must be \(B, K, E\) with K >= 1, got \(2, 0"),
        (lambda: description_classifier([zeros(2, 4)], zeros(2, 4)), "wanted descriptions of 2 classes, got 1"),
        (lambda: description_classifier([zeros(2, 4), zeros(0, 4)], zeros(2, 4)), r"none for classes \[1\]"),
        (lambda: description_classifier([zeros(2, 5)], zeros(1, 4)), "descriptions must be"),
        (lambda: fairness_loss(zeros(2, 3)), r"mean_probs must be \(C\)"),
        (lambda: align_distribution(zeros(3, 3), zeros(3, 1)), "mean_probs must be"),
        (lambda: ranking_weights(zeros(3, 4), zeros(3, 4), torch.zeros(1, dtype=torch.int64)), "labels must be"),
        (lambda: alignment_loss(zeros(3, 4), zeros(2, 4), 1.0), "text_prototypes must be"),
        (lambda: image_prototypes(zeros(3, 4), torch.zeros(2, dtype=torch.int64), zeros(2, 4)), "labels must be"),
        (lambda: image_prototypes(zeros(3, 4), zeros(3), zeros(2, 4)), "labels must be integers"),
        (lambda: cache_logits(zeros(1, 4), zeros(2, 4), zeros(1, 3), 1.0, 1.0), "values must be"),
        (lambda: fiedler_vector(torch.full((1, 4, 4), torch.nan)), "finite"),
        (lambda: soap_pool(zeros(2, 4), zeros(2, 9, 4), *3 * [zeros(4, 5)], zeros(4, 3)), r"\(W, W\) with W = 4, got"),
        (lambda: dka_similarity(zeros(3, 4), zeros(1, 4), 0.5), "dynamic must be"),
        (lambda: refine_probs(zeros(3, 4), zeros(4), 0.5), "image_probs must be"),
        (lambda: refine_cache(zeros(4)), r"teacher_probs must be \(M, C\), got \(4,\)"),
        (lambda: refine_cache(zeros(4, 0)), "C >= 1"),
        (lambda: foreground_mask(zeros(4)), r"fiedler must be \(B, N\), got \(4,\)"),
        (lambda: foreground_mask(zeros(4, 1)), "N >= 2"),
        (lambda: description_classifier([zeros(2, 4)], zeros(4)), r"name_embeddings must be \(C, E\)"),
        (lambda: description_classifier([], zeros(0, 4)), "wanted descriptions of at least one class"),
        (lambda: description_classifier([torch.eye(3)[1:]], torch.eye(3)[:1]), r"classes \[0\] have no similarity"),
        (lambda: ranking_weights(zeros(1, 4), zeros(1, 4), torch.tensor([4])), r"labels must be in 0\.\.3"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # of whole numbers, absent edges were 0 and not eps
        (lambda: patch_affinity(torch.ones(1, 4, 3, dtype=torch.int64)), "patches must be floating point, got int64"),
        (lambda: patch_affinity(np.ones((1, 4, 3))), r"patches must be a tensor \(B, N, W\), got ndarray"),
        (lambda: fiedler_vector(torch.eye(3, dtype=torch.int64)[None]), "affinity must be floating point"),
        (lambda: fiedler_vector(np.ones((1, 3, 3))), r"affinity must be a tensor \(B, N, N\), got ndarray"),
        (lambda: foreground_mask(torch.ones(1, 3, dtype=torch.int64)), "fiedler must be floating point"),
        (lambda: saliency_query(torch.ones(1, 3, 2, dtype=torch.int64), torch.ones(1, 3).bool()), "patches must be"),
        (lambda: soap_pool(zeros(1, 2), zeros(1, 3, 2).double(), *4 * [zeros(2, 2)]), "patches must be float32"),
        (lambda: crop_composite(zeros(1, 2).half(), zeros(1, 3, 2)), "crops must be float16 as embedding is"),
        (lambda: description_classifier([zeros(1, 2).double()], zeros(1, 2)), "descriptions must be float32"),
        (lambda: fairness_loss(torch.ones(3, dtype=torch.int64)), "mean_probs must be floating point"),
        (lambda: align_distribution(torch.ones(1, 2, dtype=torch.int64), zeros(2)), "probs must be floating point"),
        (lambda: image_prototypes(zeros(2, 2), torch.ones(2).bool(), zeros(2, 2)), "labels must be integers, got bool"),
        (lambda: ranking_weights(zeros(1, 2), zeros(1, 2), zeros(1)), "labels must be integers, got float32"),
        (lambda: alignment_loss(zeros(2, 2).double(), zeros(2, 2), 1.0), "text_prototypes must be float64"),
        (lambda: dka_similarity(zeros(1, 2), zeros(1, 2).double(), 0.5), "dynamic must be float32"),
        (lambda: refine_probs(zeros(1, 2), zeros(1, 2).double(), 0.5), "image_probs must be float32"),
        (lambda: ranking_weights(zeros(1, 2).long(), zeros(1, 2), zeros(1).long()), "text_probs must be floating"),
        (lambda: cache_logits(zeros(1, 2), zeros(1, 2).half(), zeros(1, 1), 1.0, 1.0), "keys must be float32"),
        (lambda: refine_cache(torch.ones(1, 2, dtype=torch.int64)), "teacher_probs must be floating point"),
    ],
)  # fmt: skip
def test_numbers_of_the_wrong_kind_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_prototypes_of_more_images_than_half_precision_counts():
    embeddings = torch.eye(2).half()[torch.zeros(70_000, dtype=torch.int64)]
    prototypes = image_prototypes(embeddings, torch.zeros(70_000, dtype=torch.int64), torch.eye(2).half())
    assert torch.equal(prototypes, torch.eye(2).half())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MicroCLIPConfig(crop_temperature=0.0), "crop_temperature must be positive"),
        (lambda: MicroCLIPConfig(fairness_weight=math.nan), "fairness_weight must be at least 0 and finite"),
        (lambda: MicroCLIPConfig(name_embedding="row"), "unknown name embedding 'row'; did you mean 'raw'"),
        (lambda: MicroCLIPConfig(tau=math.nan), "tau must be finite"),
        (lambda: DPAConfig(text="template"), "did you mean 'templates'"),
        (lambda: DPAConfig(align=-1.0), "align must be at least 0"),
        (lambda: NtUAConfig(affinity="relaible"), "did you mean 'reliability'"),
        (lambda: NtUAConfig(selection="topk"), "unknown selection 'topk'"),
        (lambda: NtUAConfig(beta=math.nan), "beta must be at least 0 and finite"),
        (lambda: NtUAConfig(shots=2.5), "shots must be a whole number such as 16, got 2.5"),
        (lambda: NtUAConfig(balanced="no"), "balanced must be true or false such as True, got 'no'"),
        (lambda: DPAConfig(a="0.5"), "a must be a number such as 0.5, got '0.5'"),
        (lambda: DPAConfig(window=True), "window must be a whole number such as 32, got True"),
        (lambda: DPAConfig(fill=(1, 2)), r"fill must be a list such as \(123, 117, 104\), got \(1, 2\)"),
        (lambda: DPAConfig(fill=(1.5, 2, 3)), r"fill must be a list such as .*, got \(1.5, 2, 3\)"),
        (lambda: DPAConfig(fill=(1, 2, 300)), r"fill must be three whole numbers from 0 to 255, got \(1, 2, 300\)"),
        (lambda: MicroCLIPConfig(fill=[-1, 2, 3]), r"fill must be three whole numbers from 0 to 255, got \[-1, 2, 3\]"),
        (
            lambda: DPAConfig(schedule={"epochs": 3}),
            r"schedule must be an object such as .*AdaptConfig.*, got \{'epochs'",
        ),
        (lambda: AdaptConfig(lr="1e-3"), "lr must be a number such as 0.0001, got '1e-3'"),
        (lambda: WCAConfig(image_scale=math.inf), "image_scale must be at least 0 and finite"),
        (lambda: AdaptConfig(epochs=1.5), "epochs must be a whole number"),
    ],
)
def test_constants_that_no_formula_can_use_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
