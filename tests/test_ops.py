"""Shared math at its edges, and what the equations say of tensors that do not fit together."""

import math

import pytest
import torch
from tiny import clusters

from clipviz.events import StepFinished
from clipviz.loop import adapt
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import DPA, align_distribution, alignment_loss, image_prototypes, ranking_weights
from clipviz.methods.microclip import crop_composite, description_classifier, saliency_query, soap_pool
from clipviz.methods.ntua import cache_logits
from clipviz.ncut import fiedler_vector
from clipviz.ops import fairness_loss


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
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
