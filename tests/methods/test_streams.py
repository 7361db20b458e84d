"""TDA and OGA: the authors' numbers, a slow loop, what must hold of their caches, and the stream as epochs."""

import math

import numpy as np
import pytest
import torch
from tiny import GOLDEN, assert_same_bits, clusters, differences

from clipviz.events import EpochFinished, StepFinished
from clipviz.methods import oga, tda
from clipviz.methods.base import AdaptConfig
from clipviz.methods.oga import OGA, OGAConfig
from clipviz.methods.tda import TDA, TDAConfig
from clipviz.ops import normalize
from clipviz.training.loop import adapt
from clipviz.training.recorder import record
from clipviz.training.run import Run

NUMBERS = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "online.npz").items()}
FEATURES, TEXT = NUMBERS["features"], NUMBERS["text"]
BOTH = pytest.mark.parametrize("build", [TDA, OGA])


def unit(n, width=16, seed=0):
    return normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


def run_through(f, t, config):
    """The caches after a stream."""
    caches = tda.empty_caches(t, config)
    for i, x in enumerate(f):
        tda.take_in(x[None], 100 * x[None] @ t.T, torch.tensor(i), caches, config)
    return caches


# ----------------------------------------------------------------------------------------------- TDA


@pytest.mark.parametrize(("case", "negative"), [("tda", True), ("tda_positive_only", False)])
def test_tda_agrees_with_the_authors_code(case, negative):
    logits = tda.stream(FEATURES, TEXT, negative=negative)
    torch.testing.assert_close(logits, NUMBERS[f"{case}/logits"], rtol=0, atol=2e-5)
    caches = run_through(FEATURES, TEXT, TDAConfig(negative=negative))
    for sign in ("positive", "negative")[: 1 + negative]:
        labels, slots = (caches[sign]["index"] >= 0).nonzero(as_tuple=True)
        assert torch.equal(labels, NUMBERS[f"{case}/{sign}_class"])
        torch.testing.assert_close(caches[sign]["keys"][labels, slots], NUMBERS[f"{case}/{sign}_keys"])
        torch.testing.assert_close(caches[sign]["entropy"][labels, slots], NUMBERS[f"{case}/{sign}_entropy"])


def slow_tda(f, t, alpha, beta, before):
    """Eqs. (1)-(3) with lists."""
    positive, negative, rows = {}, {}, []
    for x in f.double():
        logits = 100 * t.double() @ x
        p = logits.softmax(0)
        entropy, c = -float((p * p.log()).sum()), int(p.argmax())

        def predict(x=x, logits=logits):
            z = logits.clone()
            for label, entries in positive.items():
                for _, key, _ in entries:
                    z[label] += alpha * math.exp(-beta * (1 - float(key @ x)))
            for entries in negative.values():
                for _, key, q in entries:
                    z -= 0.117 * math.exp(-(1 - float(key @ x))) * ((q > 0.03) & (q < 1))
            return z

        early = predict()
        caches = [(positive, 3)] + [(negative, 2)] * (0.2 < entropy / math.log2(len(t)) < 0.5)
        for cache, most in caches:
            entries = cache.setdefault(c, [])
            if len(entries) < most:
                entries.append((entropy, x, p))
            elif entropy < entries[-1][0]:
                entries[-1] = (entropy, x, p)
            entries.sort(key=lambda entry: entry[0])
        rows.append(early if before else predict())
    return torch.stack(rows)


@pytest.mark.parametrize("before", [False, True])
def test_tda_agrees_with_lists(before):
    t = unit(7, seed=1)
    f = normalize(0.4 * t[torch.arange(80) % 7] + unit(80))
    found = tda.stream(f, t, alpha=1.5, beta=4.0, vote_before_store=before, logit_scale=100.0)
    torch.testing.assert_close(found, slow_tda(f, t, 1.5, 4.0, before).float(), rtol=0, atol=1e-4)


def test_without_weight_and_negative_cache_tda_is_zero_shot():
    torch.testing.assert_close(tda.stream(FEATURES, TEXT, alpha=0.0, negative=False), 100 * FEATURES @ TEXT.T)


def test_a_single_image_votes_for_itself_unless_it_is_predicted_first():
    x, t = unit(1), unit(4, seed=1)
    logits = 100 * x @ t.T
    own = 2 * torch.nn.functional.one_hot(logits.argmax(1), 4)
    torch.testing.assert_close(tda.stream(x, t, negative=False), logits + own)
    torch.testing.assert_close(tda.stream(x, t, negative=False, vote_before_store=True), logits)


def test_caches_never_overflow_and_keep_the_surest_in_order():
    f, t = unit(300), unit(4, seed=1)
    caches = run_through(f, t, TDAConfig(entropy_range=(0.0, 0.69)))
    p = (100 * f @ t.T).softmax(1)
    entropy, labels = torch.special.entr(p).sum(1), p.argmax(1)
    for label in range(4):
        wanted = entropy[labels == label].sort().values
        for sign, most in (("positive", 3), ("negative", 2)):
            torch.testing.assert_close(caches[sign]["entropy"][label], wanted[:most], rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------------- OGA


def test_oga_agrees_with_the_authors_code_and_differs_by_the_empty_slots():
    official = oga.stream(FEATURES, TEXT, batch_size=20, official=True)
    torch.testing.assert_close(official, NUMBERS["oga/z"], rtol=0, atol=2e-5)
    assert (oga.stream(FEATURES, TEXT, batch_size=20) - official).abs().max() > 0.01
    memory, config = oga.empty_memory(TEXT, OGAConfig(official=True)), OGAConfig(official=True)
    for i in torch.arange(60).split(20):
        oga.take_in(FEATURES[i], i, memory, TEXT, 100.0, config)
    torch.testing.assert_close(memory["means"].float(), NUMBERS["oga/mu"])
    torch.testing.assert_close(memory["precision"].float(), NUMBERS["oga/inv_cov"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(memory["entropy"].float(), NUMBERS["oga/memory_entropy"])
    assert torch.equal(memory["index"] >= 0, NUMBERS["oga/memory_state"])


def test_ours_means_are_those_of_the_filled_slots():
    memory, config = oga.empty_memory(TEXT, OGAConfig()), OGAConfig()
    oga.take_in(FEATURES, torch.arange(60), memory, TEXT, 100.0, config)
    filled = memory["index"] >= 0
    for label in range(5):
        keys = FEATURES[memory["index"][label][filled[label]]].double()
        torch.testing.assert_close(memory["means"][label], keys.mean(0) if len(keys) > 1 else TEXT[label].double())


def test_until_a_class_has_two_images_the_gaussians_are_those_of_the_texts():
    f, t = unit(3), unit(3, seed=1)
    f = normalize(t + 0.1 * f)  # one of each class
    gaussian = -0.5 * 16 * (f[:, None] - t).double().pow(2).sum(-1)
    wanted = ((100 * f @ t.T).double() + 0.05 * gaussian).softmax(1)
    torch.testing.assert_close(oga.stream(f, t), wanted.float())


def test_the_precision_is_the_shrunk_inverse_of_few_rows_and_the_plain_one_of_many():
    rows = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m = np.cov(rows.T.numpy())
    np.testing.assert_allclose(oga.precision(rows), np.linalg.pinv(m))
    few = rows[:9]
    m = np.cov(few.T.numpy())
    np.testing.assert_allclose(oga.precision(few), 4 * np.linalg.pinv(8 * m + np.trace(m) * np.eye(4)))
    assert torch.equal(oga.precision(rows[:1].expand(5, -1)), torch.zeros(4, 4, dtype=torch.float64))


# ----------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("stream", [tda.stream, oga.stream])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (5, 1), (1, 3), (40, 60), (9, 2)])
def test_few_images_few_classes_and_copies_run(stream, n, c):
    for f in (unit(n), unit(1).expand(n, -1)):
        found = stream(f, unit(c, seed=1))
        assert found.shape == (n, c)
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("stream", [tda.stream, oga.stream])
def test_what_fits_no_formula_is_refused(stream):
    f, t = unit(5), unit(3, seed=1)
    for scale in (math.nan, -1.0, "100"):
        with pytest.raises(ValueError, match="logit_scale must be a finite number of at least 0, got"):
            stream(f, t, logit_scale=scale)
    nan = f.clone()
    nan[1, 1] = math.nan
    for bad, message in (((nan, t), "row 1 of embeddings"), ((f, 3 * t), "unit norm"), ((f, unit(3, 8)), "classifier")):
        with pytest.raises(ValueError, match=message):
            stream(*bad)
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {wrong}"):
            oga.stream(f, t, batch_size=wrong)
    with pytest.raises(ValueError, match="entropy_range must be two numbers"):
        tda.stream(f, t, entropy_range=(0.5, 0.2))


@BOTH
def test_a_run_is_the_stream_in_slices_and_its_addends_make_the_prediction(build):
    data = clusters()
    config = AdaptConfig(epochs=3, batch_size=16)
    method = build(data.backbone(), data.prompts)
    steps = [e for e in adapt(method, data, config, seed=5) if isinstance(e, StepFinished)]
    order = torch.cat([event.index for event in steps])
    assert sorted(order.tolist()) == list(range(120))
    assert [sum(len(e.index) for e in steps if e.epoch == epoch) for epoch in range(3)] == [48, 48, 24]
    probs = torch.cat([event.pseudo.probs for event in steps])
    f = data.rows(order)
    if build is TDA:
        wanted = tda.stream(f, data.classifier, logit_scale=20.0).softmax(1)
    else:
        wanted = oga.stream(f, data.classifier, batch_size=16, logit_scale=20.0)
    torch.testing.assert_close(probs, wanted, rtol=0, atol=1e-5)
    for event in steps:
        torch.testing.assert_close(sum(event.pseudo.sources.values()).softmax(1), event.pseudo.probs)
    other = [e.index for e in adapt(build(data.backbone(), data.prompts), data, config, seed=6) if hasattr(e, "index")]
    assert not torch.equal(torch.cat(other), order)


@BOTH
def test_measuring_leaves_the_caches_as_they_are_and_the_start_is_zero_shot(build):
    data, test = clusters(), clusters(n=30, noise=0.4)
    method = build(data.backbone(), data.prompts)
    events = list(adapt(method, data, eval_dataset=test))
    before = next(event for event in events if isinstance(event, EpochFinished))
    text = test.rows(slice(None)) @ data.classifier.T
    assert torch.equal(before.predictions.probs.argmax(1), text.argmax(1))
    state = {name: tensor.clone() for name, tensor in method.trainable_state().items()}
    first, second = method.logits(test.rows(slice(None))), method.logits(test.rows(slice(None)))
    heaviest = method.cache_contributions(test.rows(slice(4)), 5)
    assert torch.equal(first, second)
    assert_same_bits(state, method.trainable_state())
    assert heaviest.index.shape == (4, 5)
    assert (heaviest.index >= 0).all()
    assert (heaviest.contributions.abs().diff() <= 1e-6).all() or build is OGA


def test_what_a_positive_entry_adds_is_what_the_logit_loses_without_it():
    data = clusters()
    method = TDA(data.backbone(), data.prompts, TDAConfig(negative=False))
    list(adapt(method, data))
    x = data.rows(slice(3))
    heaviest, before = method.cache_contributions(x, 4), method.logits(x)
    for row, (index, label, contribution) in enumerate(
        zip(heaviest.index[:, 0], heaviest.labels[:, 0], heaviest.contributions[:, 0], strict=True)
    ):
        kept = method.positive_index.clone()
        method.positive_index[method.positive_index == index] = -1
        lost = before[row] - method.logits(x)[row]
        assert abs(lost[label] - contribution) < 1e-5
        assert lost.count_nonzero() == 1
        method.positive_index.copy_(kept)


@BOTH
def test_an_interrupted_stream_goes_on_to_the_same_bits(build, tmp_path):
    data, test = clusters(), clusters(n=30, noise=0.3)

    def run(folder):
        method = build(data.backbone(), data.prompts)
        config = AdaptConfig(epochs=3, batch_size=16)
        return Run(method, data, config, eval_dataset=test, folder=tmp_path / folder, seed=3)

    whole, part, rest = run("whole"), run("part"), run("part")
    whole.fit()
    part.listeners.append(lambda event: part.stop() if getattr(event, "step", 0) == 4 else None)
    part.fit()
    assert rest.restore()
    rest.fit()
    assert_same_bits(whole.method.trainable_state(), rest.method.trainable_state())
    assert [text for text in differences(whole.trace, rest.trace) if "status" not in text] == []


@BOTH
def test_a_stream_shorter_than_its_slices_is_a_run(build):
    data = clusters(n=7)
    trace = record(adapt(build(data.backbone(), data.prompts), data, eval_dataset=data))
    assert len(trace.samples) == 7
    assert (trace.meta["labels_are"], trace.meta["epochs"]) == ("online", 10)


def test_an_entry_that_adds_nothing_is_shown_before_a_place_without_one():
    data = clusters(n=7)
    method = TDA(data.backbone(), data.prompts, TDAConfig(beta=1e4))  # so sharp that it adds 0 to all other images
    record(adapt(method, data))
    assert (method.cache_contributions(clusters(n=7, seed=1).rows(slice(4)), 5).index >= 0).all()
