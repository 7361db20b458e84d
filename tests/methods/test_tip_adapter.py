"""Tip-Adapter on pseudo-labels: NtUA without weights, teacher and training."""

import pytest
import torch
from tiny import clusters

from clipviz.events import EpochFinished, StepFinished
from clipviz.methods.ntua import NtUAConfig, cache_logits
from clipviz.methods.tip_adapter import TipAdapter
from clipviz.ops import class_logits
from clipviz.training.loop import adapt
from clipviz.training.run import Run


def test_every_entry_counts_the_same_and_nothing_trains():
    dataset = clusters()
    method = TipAdapter(dataset.backbone(), dataset.prompts, NtUAConfig(shots=4, alpha=3.0, beta=1.0))
    events = list(adapt(method, dataset, eval_dataset=dataset))
    assert method.weights.unique().tolist() == [1.0]
    assert not any(p.requires_grad for p in method.parameters())
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [-1, 0]
    steps = [e for e in events if isinstance(e, StepFinished)]
    assert all(e.losses == {} and set(e.pseudo.sources) == {"zero_shot", "cache"} for e in steps)
    embeddings = dataset.rows(slice(None))
    expected = class_logits(embeddings, dataset.classifier, 20.0)
    expected = expected + cache_logits(embeddings, method.keys, method.values, 3.0, 1.0)
    torch.testing.assert_close(method.logits(embeddings), expected)
    zero_shot = class_logits(embeddings, dataset.classifier, 20.0)[method.cache_index]
    assert torch.equal(method.labels, zero_shot.argmax(-1))


def test_a_finished_run_is_taken_up_with_its_cache(tmp_path):
    dataset = clusters()
    first, second = (TipAdapter(dataset.backbone(), dataset.prompts, NtUAConfig(shots=4)) for _ in range(2))
    run = Run(first, dataset, eval_dataset=dataset, folder=tmp_path)
    run.fit()
    again = Run(second, dataset, eval_dataset=dataset, folder=tmp_path)
    assert again.restore()
    again.fit()
    assert torch.equal(second.logits(dataset.rows(slice(9))), first.logits(dataset.rows(slice(9))))


def test_a_teacher_is_refused(tiny_backbone):
    dataset = clusters()
    with pytest.raises(ValueError, match="no teacher"):
        TipAdapter(dataset.backbone(), dataset.prompts, teacher=tiny_backbone)
