"""NtUA: known answers of its equations, the invariants of its cache, and inputs that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ToyDataset, clusters, make_tiny_backbone

from clipviz import load_backbone, load_dataset
from clipviz.data.base import Batch, Views
from clipviz.data.batches.features import embed_dataset
from clipviz.data.batches.sampling import balanced_index
from clipviz.events import EpochFinished, StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.cache import CacheBatches, Candidates, choose_streaming, class_sums, most_confident
from clipviz.methods.ntua import (
    BACKBONE_PRESETS,
    BENCHMARK_PRESETS,
    BENCHMARKS,
    PRESETS,
    NtUA,
    NtUAConfig,
    cache_logits,
    class_affinity,
    refine_cache,
)
from clipviz.methods.tip_adapter import TipAdapter
from clipviz.ops import class_logits, normalize
from clipviz.training.checkpoint import load_checkpoint, save_checkpoint
from clipviz.training.loop import Adaptation, adapt

SHORT = AdaptConfig(epochs=3, batch_size=16, lr=1e-2, min_lr=0.0, weight_decay=0.01)


def build(dataset, **changes):
    return NtUA(dataset.backbone(), dataset.prompts, replace(NtUAConfig(shots=4, schedule=SHORT), **changes))


def prepared(dataset, **changes):
    method = build(dataset, **changes)
    index = torch.arange(len(dataset))
    method.prepare([Batch(Views(dataset.rows(i)), i, torch.full_like(i, -1)) for i in index.split(50)])
    return method


def state(method):
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


# ----------------------------------------------------------------------------------------------- equations


def test_cache_logits_match_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    queries, keys = normalize(torch.randn(2, 3, 8, generator=generator))
    values = torch.rand(3, 5, generator=generator)
    logits = cache_logits(queries, keys, values, alpha=2.0, beta=5.0)
    for i in range(3):
        expected = sum(2.0 * torch.exp(-5.0 * (1 - queries[i] @ keys[j])) * values[j] for j in range(3))
        torch.testing.assert_close(logits[i], expected)


def test_a_query_that_is_a_key_gets_its_value_times_alpha():
    logits = cache_logits(torch.eye(3), torch.eye(3), torch.eye(3), alpha=2.0, beta=100.0)
    torch.testing.assert_close(logits, 2.0 * torch.eye(3))


def test_an_empty_cache_says_nothing():
    logits = cache_logits(torch.eye(3), torch.zeros(0, 3), torch.zeros(0, 4), 2.0, 5.0)
    assert torch.equal(logits, torch.zeros(3, 4))


def test_refinement_takes_the_teachers_class_and_confidence():
    labels, weights = refine_cache(torch.tensor([[0.2, 0.8], [0.6, 0.4]]))
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(weights, torch.tensor([0.8, 0.6]))


def test_class_affinity_is_relative_to_the_best_of_the_class():
    embeddings = normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    affinity = class_affinity(embeddings, torch.eye(2), torch.tensor([0, 0, 1]), beta=5.0)
    torch.testing.assert_close(affinity, torch.tensor([1.0, float(np.exp(-5 * (1 - 0.5**0.5))), 1.0]))


def test_class_sums_are_the_product_with_one_hot_values():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels, weights = torch.tensor([3, 0, 3, 3, 0, 5, 1, 3, 5]), torch.rand(9, generator=generator, dtype=torch.float64)
    values = weights[:, None] * torch.eye(7, dtype=torch.float64)[labels]
    sums = class_sums(rows, labels, weights, 7)
    torch.testing.assert_close(sums, values.T @ rows)
    assert torch.equal(sums[[2, 4, 6]], torch.zeros(3, 4, dtype=torch.float64))
    direction = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sums * direction).sum(), rows)
    torch.testing.assert_close(gradient, values @ direction)
    assert torch.equal(class_sums(rows[:0], labels[:0], weights[:0], 2), torch.zeros(2, 4, dtype=torch.float64))


def uneven():
    """Embeddings of which most are called the first class, and one image the last."""
    dataset = clusters(noise=0.4)
    order = [i for i, target in enumerate(dataset.targets) if target in (0, 1, 2)] + [5]
    dataset.embeddings, dataset.targets = dataset.embeddings[order], dataset.targets[order]
    return dataset


@pytest.mark.parametrize("changes", [{}, {"weighted": False, "rectify": False}], ids=["ntua", "tip"])
def test_a_class_is_heard_by_the_mean_of_its_entries_and_not_by_their_number(changes):
    dataset = uneven()
    method = prepared(dataset, shots=8, **changes)
    counts = torch.bincount(method.labels, minlength=6)
    assert 0 in counts
    assert len(counts.unique()) > 2
    query = dataset.rows(slice(20))
    got = method.branches(query)["cache"]
    for c in range(6):
        own = method.labels == c
        affinity = torch.exp(-5.0 * (1 - query @ method.keys[own].T))
        mean = (affinity * method.weights[own]).mean(1) if own.any() else torch.zeros(20)
        torch.testing.assert_close(got[:, c], 2.0 * 8 * mean)
    torch.testing.assert_close(got, cache_logits(query, method.keys, method.values, 2.0, 5.0))


def test_the_papers_preset_keeps_the_plain_sum():
    dataset = uneven()
    config = replace(PRESETS["paper"], shots=8, schedule=SHORT)
    method = NtUA(dataset.backbone(), dataset.prompts, config)
    index = torch.arange(len(dataset))
    method.prepare([Batch(Views(dataset.rows(index)), index, index)])
    query = dataset.rows(slice(20))
    plain = method.weights[:, None] * torch.eye(6)[method.labels]
    torch.testing.assert_close(method.branches(query)["cache"], cache_logits(query, method.keys, plain, 2.0, 5.0))
    assert [name for name, config in NtUA.all_presets().items() if not config.balanced] == ["paper"]
    assert not TipAdapter.presets["paper"].balanced


# ----------------------------------------------------------------------------------------------- choosing


def test_the_most_confident_images_of_every_predicted_class():
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.7, 0.3]])
    assert most_confident(probs, 2).tolist() == [0, 2, 3]
    assert most_confident(probs, 9).tolist() == [0, 1, 2, 3, 4]


def test_choosing_from_a_stream_is_choosing_from_all(monkeypatch):
    monkeypatch.setattr("clipviz.methods.cache._PENDING_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    probs, order = torch.rand(100, 4, generator=generator), torch.randperm(100, generator=generator)
    rows = [Candidates(i, probs[i][:, None], probs[i], probs[i]) for i in order.split(9)]
    chosen = choose_streaming(rows, lambda pool: pool.take(most_confident(pool.teacher, 3)))
    assert chosen.position.tolist() == most_confident(probs, 3).tolist()


def test_random_selection_reads_no_further_than_it_needs():
    read = []
    rows = Candidates(torch.arange(10), torch.zeros(10, 1, 2), torch.zeros(10, 2), torch.zeros(10, 2))

    def stream():
        for start in range(0, 10, 2):
            read.append(start)
            yield rows.take(torch.arange(start, start + 2))

    chosen = choose_streaming(stream(), lambda pool: pool.take(torch.arange(4)), full=4)
    assert chosen.position.tolist() == [0, 1, 2, 3]
    assert read == [0, 2]


def test_balanced_choice_wants_permission_and_takes_what_is_there():
    dataset = clusters(n=10, n_classes=3)
    with pytest.raises(ValueError, match="allow_labels"):
        balanced_index(dataset, 2)
    index = balanced_index(dataset, 4, allow_labels=True)
    assert np.bincount(dataset.targets[index.numpy()]).tolist() == [4, 3, 3]
    with pytest.raises(ValueError, match="allow_labels"):
        NtUAConfig(selection="oracle_balanced")


def test_oracle_selection_takes_the_positions_it_is_given():
    dataset = clusters()
    index = balanced_index(dataset, 2, allow_labels=True)
    config = NtUAConfig(selection="oracle_balanced", allow_labels=True)
    method = NtUA(dataset.backbone(), dataset.prompts, config, oracle_index=index)
    rows = torch.arange(len(dataset))
    method.prepare([Batch(Views(dataset.rows(rows)), rows, rows)])
    assert torch.equal(method.cache_index, index)
    with pytest.raises(ValueError, match="go together"):
        NtUA(dataset.backbone(), dataset.prompts, config)


def test_draws_depend_on_seed_and_epoch_alone_and_cover_the_cache():
    views = torch.arange(12.0).reshape(4, 3, 1)
    batches = CacheBatches(torch.tensor([3, 5, 8, 9]), views, 3, seed=1)
    assert len(batches) == 2
    first, again, other = (list(batches.epoch(e)) for e in (0, 0, 1))
    assert all(torch.equal(a.views.weak, b.views.weak) for a, b in zip(first, again, strict=True))
    assert sorted(torch.cat([b.index for b in first]).tolist()) == [3, 5, 8, 9]
    assert not torch.equal(torch.cat([b.views.weak for b in first]), torch.cat([b.views.weak for b in other]))
    assert all((b.target == -1).all() for b in first)


# ----------------------------------------------------------------------------------------------- invariants


def test_alpha_zero_is_zero_shot():
    dataset = clusters()
    method = prepared(dataset, alpha=0.0)
    embeddings = dataset.rows(slice(None))
    assert torch.equal(method.logits(embeddings), class_logits(embeddings, dataset.classifier, 20.0))


def test_a_teacher_that_is_the_student_leaves_values_unchanged():
    dataset = clusters()
    refined, plain = prepared(dataset), prepared(dataset, rectify=False)
    assert torch.equal(refined.value_weights, plain.value_weights)
    assert torch.equal(refined.cache_index, plain.cache_index)


def test_values_carry_the_weights():
    method = prepared(clusters(), balanced=False)
    torch.testing.assert_close(method.values.sum(1), method.weights)
    assert torch.equal(method.values.argmax(1), method.labels)
    assert prepared(clusters(), weighted=False).weights.unique().tolist() == [1.0]
    assert prepared(clusters(), normalized_weights=True).weights.mean().item() == pytest.approx(1.0)


def test_a_run_changes_the_keys_and_nothing_else():
    dataset = clusters(noise=0.6)
    method = build(dataset)
    classifier = method.classifier.clone()
    events = list(adapt(method, dataset, SHORT))
    untrained = prepared(dataset)
    changed = {name for name, value in state(method).items() if not torch.equal(value, untrained.state_dict()[name])}
    assert changed == {"keys"}
    assert torch.equal(method.classifier, classifier)
    assert [name for name, p in method.named_parameters() if p.requires_grad] == ["keys"]
    losses = [e.losses["cross_entropy"].item() for e in events if isinstance(e, StepFinished)]
    assert sum(losses[-2:]) < sum(losses[:2])  # an epoch is two steps


def test_permuted_targets_change_nothing():
    one, other = clusters(), clusters()
    other.targets = np.roll(other.targets, 7)
    methods = [build(dataset) for dataset in (one, other)]
    for method, dataset in zip(methods, (one, other), strict=True):
        list(adapt(method, dataset, SHORT))
    assert all(torch.equal(value, state(methods[1])[name]) for name, value in state(methods[0]).items())


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    dataset = clusters()
    whole = build(dataset)
    list(adapt(whole, dataset, SHORT))
    first = Adaptation(build(dataset), dataset, SHORT)
    for _ in first:
        if first.epoch == 2:
            break
    save_checkpoint(tmp_path / "checkpoint.safetensors", first)
    second = Adaptation(build(dataset), dataset, SHORT)
    load_checkpoint(tmp_path / "checkpoint.safetensors", second)
    list(second)
    assert all(torch.equal(value, state(second.method)[name]) for name, value in state(whole).items())


def test_true_labels_in_the_cache_are_no_worse_than_guesses():
    dataset = clusters(n=300, noise=0.5)
    method = prepared(dataset, shots=16)
    embeddings, targets = dataset.rows(slice(None)), torch.from_numpy(dataset.targets)
    guessed = (method.logits(embeddings).argmax(-1) == targets).float().mean()
    method.labels.copy_(targets[method.cache_index])
    method.weights.fill_(1.0)
    assert (method.logits(embeddings).argmax(-1) == targets).float().mean() >= guessed


def test_the_cache_helps_where_the_classifier_is_off():
    dataset = clusters(n=600, noise=0.3)
    events = adapt(build(dataset, shots=16), dataset, SHORT, eval_dataset=dataset)
    last = [e for e in events if isinstance(e, EpochFinished)][-1].metrics
    assert last["accuracy"] > last["accuracy_zero_shot"]


@pytest.mark.parametrize("affinity", ["none", "reliability", "contrastive"])
def test_every_affinity_trains_the_keys_with_finite_gradients(affinity):
    dataset = clusters()
    method = prepared(dataset, affinity=affinity)
    batch = next(method.training_batches(16, 0).epoch(0))
    terms = method.loss(batch.views, method.pseudo_label(batch.views, batch.index))
    assert ("affinity" in terms) == (affinity == "contrastive")
    sum(terms.values()).backward()
    assert torch.isfinite(method.keys.grad).all()
    assert method.keys.grad.abs().sum() > 0


def test_the_cache_source_leaves_out_the_images_own_entry():
    dataset = clusters()
    method = prepared(dataset)
    rows = torch.tensor([2, 5])
    index, views = method.cache_index[rows], Views(method.cache_views[rows, 0])
    vote = method.pseudo_label(views, index).sources["cache"]
    for row, got in zip(rows, vote, strict=True):
        others = torch.arange(len(method.keys)) != row
        query = method.cache_views[row, :1]
        expected = class_logits(query, method.classifier, 20.0)
        expected = expected + cache_logits(query, method.keys[others], method.values[others], 2.0, 5.0)
        torch.testing.assert_close(got, expected[0])


# ----------------------------------------------------------------------------------------------- unusual input


def test_classes_without_an_entry_keep_their_text_logits_and_are_reported():
    dataset = clusters(noise=0.1)
    keep = dataset.targets < 5  # no image of the last class
    dataset.embeddings, dataset.targets = dataset.embeddings[torch.from_numpy(keep)], dataset.targets[keep]
    method = prepared(dataset)
    assert method.diagnostics()["coverage"] == pytest.approx(5 / 6)
    embeddings = dataset.rows(slice(None))
    text = class_logits(embeddings, method.classifier, 20.0)
    assert torch.equal(method.logits(embeddings)[:, 5], text[:, 5])
    assert torch.equal(method.snapshot()["key_prototypes"][5], method.classifier[5])


def test_shots_that_are_not_there_are_not_missed_and_coverage_says_so():
    dataset = clusters(n=9, n_classes=3)
    assert prepared(dataset, shots=16).diagnostics() == {"coverage": 1.0, "cache_size": 9.0}


def test_one_class():
    dataset = clusters(n=5, n_classes=1)
    method = build(dataset, shots=2)
    list(adapt(method, dataset, SHORT, eval_dataset=dataset))
    assert method.labels.tolist() == [0, 0]


@pytest.mark.parametrize("changes", [{"alpha": -1.0}, {"beta": -1.0}, {"shots": 0}, {"views": 0}])
def test_constants_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        NtUAConfig(**changes)


def test_presets_carry_tip_adapters_table():
    assert len(BENCHMARKS) == 11
    eurosat = BENCHMARK_PRESETS["eurosat"]
    assert (eurosat.alpha, eurosat.beta, eurosat.schedule.epochs) == (2, 1, 100)
    schedule = BENCHMARK_PRESETS["pets"].schedule
    assert (schedule.epochs, schedule.batch_size, schedule.lr, schedule.min_lr) == (20, 256, 1e-3, 0.0)


# ----------------------------------------------------------------------------------------------- on images


def test_images_are_seen_through_averaged_mirrored_views(tiny_backbone):
    toy = ToyDataset(n=6)
    method = NtUA(tiny_backbone, toy.prompts, NtUAConfig(views=4))
    crops = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = crops.clone()
    with torch.no_grad():
        method.prepare([Batch(Views(crops[:, 0], None, crops), torch.tensor([4, 1]), torch.tensor([-1, -1]))])
        mirrored = [crops[:, k].flip(-1) if k % 2 else crops[:, k] for k in range(4)]
        expected = torch.stack([tiny_backbone.embed(view) for view in mirrored], 1)
    assert method.cache_index.tolist() == [1, 4]
    torch.testing.assert_close(method.cache_views, expected.flip(0))
    torch.testing.assert_close(method.keys.detach(), normalize(expected.sum(1)).flip(0))
    probs = class_logits(expected, method.classifier, tiny_backbone.logit_scale).softmax(-1).mean(1)
    torch.testing.assert_close(method.teacher_probs, probs.flip(0))
    assert torch.equal(crops, before)


def test_a_teacher_of_another_size_and_width_gives_labels_and_is_reported(tiny_backbone, toy, toy_test):
    teacher = make_tiny_backbone(seed=1, name="larger", embed_dim=48, image_size=48)
    method = NtUA(tiny_backbone, toy.prompts, NtUAConfig(views=2, schedule=SHORT), teacher=teacher)
    events = list(adapt(method, toy, SHORT, eval_dataset=toy_test))
    first, *_, last = (e for e in events if isinstance(e, EpochFinished))
    assert 0.0 <= first.metrics["accuracy_teacher"] <= 1.0
    assert "accuracy_teacher" not in last.metrics
    assert method.settings["teacher"] == "larger"
    assert torch.equal(method.labels, method.teacher_probs.argmax(-1))
    assert not torch.allclose(method.teacher_probs, method.student, atol=0.01)
    assert method.keys.shape[1] == 32
    step = next(e for e in events if isinstance(e, StepFinished))
    assert set(step.pseudo.sources) == {"zero_shot", "cache", "teacher"}
    assert not any(name.startswith("teacher.") for name, _ in method.named_parameters())


def test_a_teacher_cannot_look_at_embeddings(tiny_backbone):
    dataset = clusters()
    with pytest.raises(ValueError, match="a teacher needs images"):
        NtUA(dataset.backbone(), dataset.prompts, teacher=tiny_backbone)


def test_on_birds_true_labels_in_the_cache_are_no_worse_than_guesses():
    backbone, data, test = load_backbone("birds"), *(load_dataset("birds/dusk", s, n=96) for s in ("train", "test"))
    method = NtUA(backbone, data.prompts, replace(BACKBONE_PRESETS["birds"], views=1, selection="random"))
    events = adapt(method, data, eval_dataset=test)
    next(events), next(events)  # started; the cache formed and measured
    rows = embed_dataset(backbone, test).rows(slice(None))
    with torch.no_grad():
        guessed = method.logits(rows).argmax(-1).numpy() == test.targets
        method.labels.copy_(torch.from_numpy(data.targets)[method.cache_index])
        method.weights.fill_(1.0)
        true = method.logits(rows).argmax(-1).numpy() == test.targets
    assert method.diagnostics()["cache_size"] == 96
    assert true.mean() >= guessed.mean()
