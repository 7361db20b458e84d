"""What the trace keeps so that views need no model: embeddings on the way to predictions, and each crop's vote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ToyDataset

from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.saliency import KINDS, saliency_maps
from clipviz.training import recorder as recorder_module
from clipviz.training.evaluate import predict
from clipviz.training.run import Run


@pytest.fixture
def run(tiny_backbone):
    data = ToyDataset(20)
    method = METHODS["microclip"](tiny_backbone, data.prompts)
    return Run(method, data, AdaptConfig(epochs=2, batch_size=8, lr=1e-3), eval_dataset=data, seed=1)


@pytest.mark.parametrize("name", ["zero_shot", "microclip", "dpa", "wca"])
def test_embeddings_are_those_of_the_tower_and_cost_no_second_pass(tiny_backbone, name):
    data = ToyDataset(20)
    method = METHODS[name](tiny_backbone, data.prompts)
    passes = []
    handle = method.backbone.visual.register_forward_hook(lambda *_: passes.append(1))
    predictions = predict(method, data, batch_size=8)
    handle.remove()
    images = torch.stack([torch.from_numpy(np.array(data.image(i).resize((32, 32), 3))) for i in range(20)])
    expected = method.backbone.embed(images.permute(0, 3, 1, 2) / 255)
    assert len(passes) <= 2 * 3  # three batches, the crops of some methods apart
    if predictions.embeddings is not None:  # WCA may send images and crops through together
        torch.testing.assert_close(predictions.embeddings.float(), expected, atol=2e-3, rtol=0)
    else:
        assert name == "wca"
    assert not method.backbone.visual._forward_hooks


def test_the_trace_keeps_as_many_embeddings_as_fit(run, monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_EMBEDDED", 7)
    trace = run.fit()
    assert trace.arrays["embeddings/images"].shape == (3, 7, 32)
    assert trace.arrays["embeddings/images"].dtype == np.float16
    index = trace.arrays["embeddings/index"]
    assert index[0] == 0
    assert index[-1] == 19
    np.testing.assert_array_equal(trace.arrays["embeddings/target"], run.adaptation.dataset.targets[index])
    np.testing.assert_allclose(np.linalg.norm(trace.arrays["embeddings/images"].astype(float), axis=-1), 1, atol=2e-3)


@pytest.mark.parametrize("name", ["zero_shot", "ntua", "dpa", "microclip"])
def test_the_gallery_has_the_attention_of_cls_beside_the_maps_of_the_method(tiny_backbone, name):
    data = ToyDataset(20)
    method = METHODS[name](tiny_backbone, data.prompts)
    arrays = Run(method, data, AdaptConfig(epochs=1, batch_size=8, lr=1e-3), eval_dataset=data).fit().arrays
    images = torch.from_numpy(arrays["gallery/images"]).permute(0, 3, 1, 2) / 255
    expected = saliency_maps(method, images, "cls_attention").raw
    np.testing.assert_allclose(arrays["gallery/cls_attention"], expected, atol=1e-5)
    own = {"soap", "ncut", "fiedler"} if name == "microclip" else set()
    assert {kind for kind in KINDS if f"gallery/{kind}" in arrays} == own | {"cls_attention"}


def test_crop_logits_give_the_static_logits_back(run):
    arrays = run.fit().arrays
    similarity = arrays["sources/crop_similarity"].astype(np.float64)
    weights = np.exp(similarity) / np.exp(similarity).sum(1, keepdims=True)
    mean = (weights[..., None] * arrays["sources/crop_logits"]).sum(1)
    norm = np.sqrt(np.einsum("nk,nkl,nl->n", weights, arrays["sources/crop_gram"], weights))
    np.testing.assert_allclose(mean / norm[:, None], arrays["sources/static"], atol=0.05)


def test_votes_that_are_too_many_are_left_out(run, monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_SOURCE_LOGITS", 20 * 3)
    arrays = run.fit().arrays
    assert "sources/static" in arrays
    assert "sources/crop_logits" not in arrays
