"""TransCLIP and StatA: the authors' numbers, a slow loop, what must hold, degenerate data, and the loop of epochs."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from tiny import GOLDEN, assert_same_bits, clusters, differences

from clipviz.data.batches.features import FeatureDataset
from clipviz.events import EpochFinished, StepFinished
from clipviz.methods.neighbors import nearest
from clipviz.methods.transclip import Problem, StatA, TransCLIP, TransCLIPConfig, passes, solve
from clipviz.ops import normalize
from clipviz.training.loop import adapt
from clipviz.training.recorder import record
from clipviz.training.run import Run

METHODS = pytest.mark.parametrize("build", [TransCLIP, StatA])


def unit(n, width=16, seed=0):
    return normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


def golden(name, case):
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {key.removeprefix(case): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(case)}


# ----------------------------------------------------------------------------------------------- the authors' numbers


def test_all_passes_agree_with_the_authors_code():
    numbers = golden("transclip", "default/")
    found = list(passes(Problem(numbers["features"], numbers["text"])))
    torch.testing.assert_close(torch.stack([s.assignments for s in found]), numbers["z"], rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.stack([s.prototypes for s in found[1:]]), numbers["mu"], rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.stack([s.variances for s in found[1:]]), numbers["sigma"], rtol=2e-5, atol=0)
    torch.testing.assert_close(found[0].prototypes, numbers["mu0"], rtol=0, atol=2e-5)
    first = next(passes(Problem(numbers["features"], numbers["text"], TransCLIPConfig(sweeps=1)))).assignments
    torch.testing.assert_close(first, numbers["z_inner_first"][0], rtol=0, atol=2e-5)
    other = golden("transclip", "prototypes/")
    z = solve(other["features"], other["initial"]).assignments
    torch.testing.assert_close(z, other["z_final"], rtol=0, atol=2e-5)


def test_the_anchor_agrees_with_the_authors_code():
    inputs, numbers = golden("online", ""), golden("online", "stata/")
    found = list(passes(Problem(inputs["features"], inputs["text"], anchor=True)))
    torch.testing.assert_close(torch.stack([s.assignments for s in found]), numbers["z"], rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.stack([s.prototypes for s in found[1:]]), numbers["mu"], rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.stack([s.variances for s in found[1:]]), numbers["cov"], rtol=2e-5, atol=0)
    assert solve(inputs["features"], inputs["text"], anchor=True).variances.shape == (5, 64)


# ----------------------------------------------------------------------------------------------- what must hold


def test_much_text_weight_leaves_the_predictions_of_the_text():
    f, t = unit(50), unit(6, seed=1)
    z = solve(f, t, TransCLIPConfig(text_weight=1e6)).assignments
    assert torch.equal(z.argmax(1), (f @ t.T).argmax(1))


def test_without_neighbors_and_at_infinite_temperature_nothing_happens():
    f, t = unit(50), unit(6, seed=1)
    z = solve(f, t, TransCLIPConfig(neighbors=0, temperature=1e30)).assignments
    torch.testing.assert_close(z, (100 * f @ t.T).softmax(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("anchor", [False, True])
def test_permuted_images_get_permuted_assignments(anchor):
    f, t = unit(40), unit(5, seed=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    one, other = solve(f, t, anchor=anchor), solve(f[order], t, anchor=anchor)
    torch.testing.assert_close(other.assignments, one.assignments[order], rtol=0, atol=2e-5)
    torch.testing.assert_close(other.prototypes, one.prototypes, rtol=0, atol=2e-5)


def test_much_anchor_leaves_the_prototypes_at_the_texts():
    t = unit(5, seed=1)
    torch.testing.assert_close(solve(unit(40), t, TransCLIPConfig(alpha=1e30), anchor=True).prototypes, t)


def test_the_anchor_keeps_a_class_without_images_at_its_text_where_transclip_does_not():
    t = unit(6, seed=1)
    f = normalize(t[torch.arange(60) % 2] + 0.15 * torch.randn(60, 16, generator=torch.Generator().manual_seed(3)))
    free, anchored = solve(f, t), solve(f, t, anchor=True)
    assert set(anchored.assignments.argmax(1).tolist()) <= {0, 1}
    torch.testing.assert_close(anchored.prototypes[2:], t[2:], rtol=0, atol=1e-6)
    assert (free.prototypes[2:] * t[2:]).sum(1).max() < 0.9


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize(("n", "c"), list(itertools.product((1, 2, 5, 9), (1, 2, 30))))
def test_few_images_and_few_classes_run(n, c, anchor):
    solution = solve(unit(n), unit(c, seed=1), anchor=anchor)
    assert solution.assignments.shape == (n, c)
    assert solution.variances.shape == ((c, 16) if anchor else (16,))
    assert all(torch.isfinite(part).all() for part in solution)
    torch.testing.assert_close(solution.assignments.sum(1), torch.ones(n))
    torch.testing.assert_close(solution.prototypes.norm(dim=1), torch.ones(c))


@pytest.mark.parametrize("anchor", [False, True])
def test_identical_images_opposite_classes_and_halves_run(anchor):
    f, t = unit(1).expand(20, -1), unit(3, seed=1)
    z = solve(f, torch.cat([t, -t]), anchor=anchor).assignments
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z, z[:1].expand(20, -1))
    assert z[0].argmax() == (f[0] @ torch.cat([t, -t]).T).argmax()
    far = normalize(unit(1) + 0.01 * unit(30, seed=4))
    assert torch.isfinite(solve(far, torch.cat([unit(1), -unit(1)]), anchor=anchor).assignments).all()
    assert solve(unit(9).half(), t.half(), anchor=anchor).assignments.dtype == torch.float32


def test_what_fits_no_formula_is_refused():
    f, t = unit(5), unit(3, seed=1)
    with pytest.raises(ValueError, match="logit_scale must be a finite number of at least 0, got nan"):
        solve(f, t, logit_scale=math.nan)
    nan = f.clone()
    nan[3, 2] = math.nan
    for bad, message in (
        ((nan, t), "row 3 of embeddings must be finite and of unit norm"),
        ((f, 2 * t), "row 0 of classifier must be finite and of unit norm, its norm is 2"),
        ((f, unit(3, 8)), "classifier must be"), ((f[0], t), "embeddings must be"),
        ((f.double(), t), "must be float64"), ((f[:0], t), "at least one row"), ((f, t[:0]), "at least one row"),
        (((f * 9).long(), t), "floating point"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            solve(*bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        TransCLIPConfig(temperature=0.0)
    with pytest.raises(ValueError, match="search"):
        TransCLIPConfig(search="some")


# ----------------------------------------------------------------------------------------------- neighbors


@pytest.mark.parametrize("n", [7, 1500])
def test_neighbors_in_blocks_are_those_of_the_whole_matrix(n, monkeypatch):
    monkeypatch.setattr("clipviz.methods.neighbors._BLOCK", 896)
    f = unit(n)
    similarity = f @ f.T
    similarity.fill_diagonal_(-torch.inf)
    wanted, rows = similarity.topk(3)
    found = nearest(f, f, 3, same=True)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-6)
    assert torch.equal(found[1], rows)
    torch.testing.assert_close(nearest(f[:4], f, 2)[0][:, 0], torch.ones(4))  # an unseen copy finds its original


def test_the_exact_search_says_when_it_takes_long_and_what_does_not(monkeypatch):
    monkeypatch.setattr("clipviz.methods.transclip._AFFORDABLE", 29)
    f, t = unit(30), unit(3, seed=1)
    with pytest.warns(UserWarning, match=r"among 30 images takes long.*--set search=likely"):
        solve(f, t)
    with warnings.catch_warnings(action="error"):
        solve(f[:29], t)
        solve(f, t, TransCLIPConfig(search="likely"))


def test_a_duplicate_is_a_neighbor_and_the_image_itself_is_not():
    f = unit(30)
    f = torch.cat([f, f[4:5], f[4:5]])
    rows = nearest(f, f, 3, same=True)[1]
    assert set(rows[4, :2].tolist()) == {30, 31}
    assert not (rows == torch.arange(32)[:, None]).any()


def test_likely_classes_are_searched_only_and_all_of_few_classes():
    f, t = unit(400), unit(60, seed=1)
    assert torch.equal(nearest(f, f, 3, t[:5], same=True)[1], nearest(f, f, 3, same=True)[1])
    weights, rows = nearest(f, f, 3, t, same=True)
    found = weights > 0
    asked, held = (f @ t.T).topk(5)[1], (f @ t.T).argmax(1)
    assert found.float().mean() > 0.95
    assert ((held[rows][..., None] == asked[:, None]).any(-1) | ~found).all()
    torch.testing.assert_close(weights[found], (f[:, None] * f[rows]).sum(-1)[found], rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------- as a method


@METHODS
def test_a_pass_is_an_epoch_and_its_addends_make_the_label(build):
    data = clusters()
    f = data.rows(slice(None))
    wanted = list(passes(Problem(f, data.classifier, anchor=build.anchor, logit_scale=20.0)))
    method = build(data.backbone(), data.prompts)
    z = {}
    for event in adapt(method, data, eval_dataset=data):
        if isinstance(event, StepFinished):
            torch.testing.assert_close(sum(event.pseudo.sources.values()).softmax(1), event.pseudo.probs)
            z.setdefault(event.epoch, torch.zeros(120, 6))[event.index] = event.pseudo.probs
        if isinstance(event, EpochFinished) and event.epoch >= 0:  # of the same images: they keep what they were given
            torch.testing.assert_close(event.predictions.probs, z[event.epoch], rtol=0, atol=1e-5)
            assert event.metrics["accuracy"] == event.metrics["pseudo_label_accuracy"]
            torch.testing.assert_close(event.snapshot["prototypes"], wanted[event.epoch].prototypes)
    assert len(z) == 11
    for epoch, solution in enumerate(wanted):
        torch.testing.assert_close(z[epoch], solution.assignments, rtol=0, atol=1e-5)


def test_an_unseen_image_is_judged_by_text_gaussian_and_stored_neighbors():
    data, unseen = clusters(), unit(9, seed=5)
    method = TransCLIP(data.backbone(), data.prompts)
    list(adapt(method, data))
    f, z, v = data.rows(slice(None)), method.assignments, method.variances
    for image, logits in zip(unseen, method.logits(unseen), strict=True):
        score = 20.0 * data.classifier @ image
        score = score - 0.5 * ((image - method.prototypes) ** 2 / v).sum(1) / 50
        for j in (f @ image).argsort(descending=True)[:3]:
            score = score + (f[j] @ image) * z[j] / 3
        torch.testing.assert_close(logits.softmax(0), score.softmax(0), rtol=0, atol=1e-5)
    votes = method.cache_contributions(unseen, 5)
    assert votes.index.shape == (9, 3)
    assert torch.equal(votes.labels, z.argmax(1)[votes.index])
    own = method.cache_contributions(f[:4], 5)
    assert not (own.index == torch.arange(4)[:, None]).any()


def test_it_starts_as_zero_shot_and_names_both_accuracies():
    data, test = clusters(), clusters(n=60, seed=0, noise=0.3)
    trace = record(adapt(TransCLIP(data.backbone(), data.prompts), data, eval_dataset=test))
    assert trace.metric("accuracy")[-1] == trace.metric("accuracy_zero_shot")[-1]
    assert (trace.meta["labels_are"], trace.meta["epochs"]) == ("transductive", 11)
    assert trace.metric("pseudo_label_accuracy").index.tolist() == list(range(11))


@METHODS
def test_an_interrupted_run_goes_on_to_the_same_bits(build, tmp_path):
    data, test = clusters(), clusters(n=30, seed=0, noise=0.3)

    def run(folder):
        return Run(build(data.backbone(), data.prompts), data, eval_dataset=test, folder=tmp_path / folder, seed=3)

    whole, part, rest = run("whole"), run("part"), run("part")
    whole.fit()
    part.listeners.append(lambda event: part.stop() if getattr(event, "step", 0) == 4 else None)
    part.fit()
    assert rest.restore()
    rest.fit()
    assert_same_bits(whole.method.trainable_state(), rest.method.trainable_state())
    assert [text for text in differences(whole.trace, rest.trace) if "status" not in text] == []
    assert torch.equal(whole.method.logits(test.rows(slice(9))), rest.method.logits(test.rows(slice(9))))


def test_one_image_of_one_class_is_a_run():
    one = FeatureDataset(unit(1), name="one", targets=torch.zeros(1, dtype=torch.int64), classifier=unit(1, seed=1))
    for build in (TransCLIP, StatA):
        trace = record(adapt(build(one.backbone(), one.prompts), one, eval_dataset=one))
        assert trace.metric("accuracy").tolist() == [1.0] * 12
