"""The numbers of every figure: known answers on hand-made traces, slow loops where there is a formula."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_comparison, synthetic_trace

from clipviz import figures
from clipviz.figures.image_table import decided, disputed_rows, image_table
from clipviz.trace import Trace, named_classes
from clipviz.widgets.album import Album

NAMES = ["ant", "bee", "cat"]


def samples(rows, **columns):
    """A samples table from (epoch, index, pseudo_label, confidence, target)."""
    table = pd.DataFrame(rows, columns=["epoch", "index", "pseudo_label", "confidence", "target"])
    return table.assign(margin=0.5, weight=1.0, **columns)


def predictions(rows):
    return pd.DataFrame(rows, columns=["epoch", "index", "prediction", "confidence", "target"])


def trace(**fields):
    return Trace(meta={"method": "microclip", "class_names": NAMES, **fields.pop("meta", {})}, **fields)


@pytest.fixture(scope="module")
def run():
    return synthetic_trace(n_classes=6, epochs=3, n_images=60, n_eval=40, n_probe=3)


# ------------------------------------------------------------------------------------------- accuracy


def test_accuracy_over_epochs_takes_both_metrics_and_keeps_methods_apart():
    epochs = pd.DataFrame(
        [(1, "accuracy", 0.5), (-1, "accuracy", 0.25), (0, "accuracy", 0.75), (0, "pseudo_label_accuracy", 0.4)],
        columns=["epoch", "metric", "value"],
    )
    (alone,) = figures.accuracy_over_epochs_info(trace(epochs=epochs)).series
    series = figures.accuracy_over_epochs_info([trace(epochs=epochs), trace()]).series
    np.testing.assert_equal(alone.test, series[0].test)
    assert [s.label for s in series] == ["microCLIP, run 1", "microCLIP, run 2"]
    assert series[0].test[0].tolist() == [-1, 0, 1]
    assert series[0].test[1].tolist() == [0.25, 0.75, 0.5]
    assert [part.tolist() for part in series[0].pseudo_label] == [[0], [0.4]]
    assert len(series[1].test[1]) == 0


def test_runs_of_one_method_can_be_told_apart():
    runs = [trace(meta={"method": name}) for name in ("dpa", "dpa", "microclip", "dpa")]
    styles = [series.style for series in figures.accuracy_over_epochs_info(runs).series]
    assert len({(style.dash, style.symbol, style.color) for style in styles}) == 4
    assert len({style.color for style in styles if style.name == "DPA"}) == 1
    assert [style.symbol.endswith("-open") for style in styles] == [False, True, False, True]


def test_per_class_accuracy_counts_and_sorts_by_gain():
    rows = [(-1, 0, 1, 0.9, 0), (-1, 1, 0, 0.9, 0), (-1, 2, 1, 0.9, 1), (-1, 3, 0, 0.9, -1)]
    rows += [(2, 0, 0, 0.9, 0), (2, 1, 0, 0.9, 0), (2, 2, 2, 0.9, 1), (2, 3, 0, 0.9, -1)]
    info = figures.per_class_accuracy_info(trace(predictions=predictions(rows)))
    assert info.names == ["ant", "bee"], "a class without images is left out"
    assert info.n_images.tolist() == [2, 1]
    assert info.before.tolist() == [0.5, 1.0]
    assert info.after.tolist() == [1.0, 0.0]
    assert info.epochs == (-1, 2)


# ------------------------------------------------------------------------------------------- confidence


def test_confidence_quantiles_and_accuracy_equal_a_loop(run):
    info = figures.confidence_evolution_info(run)
    assert info.epochs.tolist() == [0, 1, 2]
    for i, epoch in enumerate(info.epochs):
        rows = run.samples[run.samples["epoch"] == epoch]
        right = (rows["pseudo_label"] == rows["target"]).to_numpy()
        values = rows["confidence"].to_numpy(float)
        for chosen, got in ((slice(None), info.all), (right, info.right), (~right, info.wrong)):
            np.testing.assert_allclose(got[i], np.quantile(values[chosen], [0.05, 0.25, 0.5, 0.75, 0.95]), rtol=1e-6)
        assert info.accuracy[i] == pytest.approx(right.mean())


def test_confidence_without_targets_has_no_right_and_wrong():
    info = figures.confidence_evolution_info(synthetic_trace(n_classes=6, labelled=False))
    assert (info.right, info.wrong, info.accuracy) == (None, None, None)
    assert np.isfinite(info.all).all()


def test_reliability_bins_and_ece_by_hand():
    rows = [(0, 0, 0, 0.95, 0), (0, 1, 0, 0.85, 1), (0, 2, 0, 0.9, 0), (0, 3, 0, 0.05, 1), (0, 4, 0, 0.5, -1)]
    info = figures.reliability_info(trace(samples=samples(rows)), n_bins=10)
    # 0.9 belongs to (0.8, 0.9]: two images there, one of them right; the unlabelled image counts nowhere.
    assert info.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 2, 1]
    assert info.accuracy[[0, 8, 9]].tolist() == [0.0, 0.5, 1.0]
    assert np.isnan(info.accuracy[1:8]).all()
    assert info.ece == pytest.approx((1 * 0.05 + 2 * abs(0.5 - 0.875) + 1 * 0.05) / 4)


def test_ece_equals_a_loop_over_bins(run):
    info = figures.reliability_info(run, epoch=1, n_bins=15)
    rows = run.samples[run.samples["epoch"] == 1]
    ece = 0.0
    for i in range(15):
        inside = rows[(rows["confidence"] > i / 15) & (rows["confidence"] <= (i + 1) / 15)]
        if len(inside):
            right = float((inside["pseudo_label"] == inside["target"]).mean())
            ece += len(inside) / len(rows) * abs(right - float(inside["confidence"].mean()))
    assert info.ece == pytest.approx(ece, abs=1e-6)
    assert info.ece_by_epoch[1] == info.ece
    assert figures.reliability_info(run, epoch=99).epoch is None


# ------------------------------------------------------------------------------------------- flips


FLIPS = [
    (0, 0, 0, 0.5, 0), (1, 0, 0, 0.5, 0),  # right, stays
    (0, 1, 1, 0.5, 0), (1, 1, 0, 0.5, 0),  # corrected
    (0, 2, 1, 0.5, 0), (1, 2, 2, 0.5, 0),  # wrong in another way
    (0, 3, 1, 0.5, 1), (1, 3, 2, 0.5, 1),  # spoilt
    (0, 4, 1, 0.5, 0), (1, 4, 1, 0.5, 0),  # wrong, stays
    (0, 5, 1, 0.5, 0),  # not seen again
]  # fmt: skip


def test_flips_are_sorted_into_kinds():
    info = figures.label_flips_info(trace(samples=samples(FLIPS)))
    assert info.steps == [(0, 1)]
    assert {name: share.tolist() for name, share in info.shares.items()} == {
        "right → right": [0.2],
        "wrong → right": [0.2],
        "wrong → same wrong": [0.2],
        "wrong → other wrong": [0.2],
        "right → wrong": [0.2],
    }


def test_images_without_a_target_are_flips_too():
    rows = [row if row[1] < 4 else (*row[:4], -1) for row in FLIPS] + [(0, 6, 0, 0.5, -1), (1, 6, 1, 0.5, -1)]
    partly = trace(samples=samples(rows))
    shares = {name: share[0] for name, share in figures.label_flips_info(partly).shares.items() if share[0]}
    seen = ["right → right", "wrong → right", "wrong → other wrong", "right → wrong", "unchanged", "changed"]
    assert shares == pytest.approx(dict.fromkeys(seen, 1 / 6))
    assert figures.label_flow_info(partly).n_moved / 6 == pytest.approx(1 - 2 / 6), "the flow counts the same images"


def test_slices_of_a_stream_have_no_flips():
    stream = trace(samples=samples([(0, 0, 1, 0.5, 1), (1, 1, 0, 0.5, 0), (2, 2, 1, 0.5, 1)]))
    assert figures.label_flips_info(stream).steps == []
    assert figures.label_flow_info(stream).epochs is None, "not that no label changed"


def test_a_source_that_names_no_class_is_none():
    rows = samples([(0, 0, 1, 0.5, 1), (0, 1, 0, 0.5, 0)], a_label=[1, -1], b_label=[0, 0], c_label=[-1, -1])
    assert figures.source_decisions_info(trace(samples=rows)).sources == ["a", "b"]


def test_a_tie_on_top_names_no_class():
    assert named_classes(np.array([[0.0, 2.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [-1, 2, -1]
    assert named_classes(np.array([[3.0]])).tolist() == [0]


def test_flips_within_bounds_and_without_targets():
    unlabelled = synthetic_trace(n_classes=6, epochs=4, labelled=False)
    info = figures.label_flips_info(unlabelled, epoch_from=1, epoch_to=2)
    assert info.steps == [(1, 2)]
    labels = unlabelled.samples.pivot(index="index", columns="epoch", values="pseudo_label")
    assert info.shares["changed"][0] == pytest.approx((labels[1] != labels[2]).mean())
    assert info.shares["changed"][0] + info.shares["unchanged"][0] == pytest.approx(1)


def test_flow_names_who_traded_with_the_outcome():
    info = figures.label_flow_info(trace(samples=samples(FLIPS)))
    assert (info.epochs, info.n_moved, info.n_images) == ((0, 1), 3, 5)
    assert {tuple(flow) for flow in info.flows} == {
        ("bee", "ant", "wrong → right", 1),
        ("bee", "cat", "wrong → other wrong", 1),
        ("bee", "cat", "right → wrong", 1),
    }


def test_flow_equals_a_loop_and_is_largest_first(run):
    info = figures.label_flow_info(run, max_flows=10_000)
    first, last = (run.samples[run.samples["epoch"] == epoch].set_index("index")["pseudo_label"] for epoch in (0, 2))
    counts: dict[tuple[int, int], int] = {}
    for index in first.index:
        if first[index] != last[index]:
            pair = (run.class_names[first[index]], run.class_names[last[index]])
            counts[pair] = counts.get(pair, 0) + 1
    found: dict[tuple[str, str], int] = {}
    for flow in info.flows:
        found[flow.start, flow.end] = found.get((flow.start, flow.end), 0) + flow.n
    assert found == counts
    assert [flow.n for flow in info.flows] == sorted((flow.n for flow in info.flows), reverse=True)
    assert info.n_moved == sum(counts.values())
    assert len(figures.label_flow_info(run, max_flows=1).flows) == 1


# ------------------------------------------------------------------------------------------- sources


def test_who_decided_by_what_margin_and_how_rightly():
    table = samples(
        [(0, 0, 0, 0.5, 0), (0, 1, 1, 0.5, 0), (0, 2, 1, 0.5, 1), (0, 3, 2, 0.5, 0)],
        static_label=[0, 1, 0, 0],
        dynamic_label=[0, 0, 1, 1],
        static_confidence=0.5,
        dynamic_confidence=0.5,
    )
    table["margin"] = [0.9, 0.1, 0.2, 0.05]
    info = figures.source_decisions_info(trace(samples=table, meta={"sources": ["static", "dynamic"]}))
    assert info.sources == ["static", "dynamic"]
    order = ["all agree", "static", "dynamic", "neither"]
    assert {name: values.tolist() for name, values in info.decided.items()} == {name: [0.25] for name in order}
    assert [info.margin[name][0] for name in order] == pytest.approx([0.9, 0.1, 0.2, 0.05])
    assert [info.right[name][0] for name in order] == [1, 0, 1, 0]
    assert {name: values.tolist() for name, values in info.accuracy.items()} == {
        "pseudo-label": [0.5],
        "static": [0.5],
        "dynamic": [0.75],
    }


def test_of_three_sources_several_can_decide():
    table = samples([(0, 0, 1, 0.5, -1)], a_label=1, b_label=1, c_label=0)
    info = figures.source_decisions_info(trace(samples=table))
    assert info.decided.keys() == {"several"}
    assert (info.accuracy, info.right) == ({}, {})


def test_a_source_that_names_no_class_is_not_asked():
    table = samples(
        [(0, index, label, 0.5, -1) for index, label in enumerate((1, 1, 1, 0))],
        a_label=[1, 1, 1, 1],
        b_label=[1, -1, 0, 1],
        c_label=[-1, -1, -1, 0],
        **{f"{name}_confidence": 0.5 for name in "abc"},
    )
    info = figures.source_decisions_info(trace(samples=table))
    assert {name: values.tolist() for name, values in info.decided.items()} == {
        "all agree": [0.25],
        "a": [0.5],
        "c": [0.25],
    }
    assert decided(trace(samples=table), table).tolist() == ["all agree", "a", "a", "c"]
    assert sorted(disputed_rows(trace(samples=table), 0)["index"]) == [2, 3]


def test_a_single_source_decides_nothing():
    table = samples([(0, 0, 1, 0.5, -1)], only_label=1)
    assert len(figures.source_decisions_info(trace(samples=table)).epochs) == 0


def test_gamma_what_if_equals_a_loop(run):
    info = figures.gamma_what_if_info(run)
    static, dynamic = (run.arrays[f"sources/{name}"].astype(np.float32) for name in ("static", "dynamic"))
    target = run.arrays["sources/target"]

    def labels(gamma):
        return [int(np.argmax(gamma * s + (1 - gamma) * d)) for s, d in zip(static, dynamic, strict=True)]

    own = labels(0.7)
    assert (info.sources, info.reference, info.is_own) == (("static", "dynamic"), 0.7, True)
    for i in (0, 13, 35, 50):
        now = labels(info.gamma[i])
        assert info.accuracy[i] == pytest.approx(np.mean(np.array(now) == target))
        assert info.changed[i] == pytest.approx(np.mean(np.array(now) != np.array(own)))
    assert info.changed[35] == 0  # gamma = 0.7


def test_gamma_what_if_starts_from_the_gamma_that_the_run_ended_with(run):
    changed = Trace(samples=run.samples, arrays=run.arrays, meta={**run.meta, "changes": [{"step": 3, "gamma": 0.2}]})
    assert figures.gamma_what_if_info(changed).reference == 0.2


# ------------------------------------------------------------------------------------------- crops


def test_crop_weights_by_hand():
    table = samples(
        [(0, 0, 0, 0.5, 0), (0, 1, 0, 0.5, 0), (1, 0, 0, 0.5, 0), (1, 1, 0, 0.5, 0)],
        crop_effective=[4.0, 2.0, 1.0, 1.0],
        crop_weight_max=[0.25, 0.5, 1.0, 1.0],
    )
    info = figures.crop_weights_info(trace(samples=table, meta={"n_crops": 4}))
    assert (info.epochs.tolist(), info.n_crops) == ([0, 1], 4)
    assert info.effective[:, 2].tolist() == [3.0, 1.0]
    assert (info.largest_first[0], info.largest_last[-1]) == (0.5, 1.0)
    assert info.largest_first.sum() == info.largest_last.sum() == 1
    first = next(line for line in figures.draw_crop_weights(info).data if line.name == "first epoch")
    assert (first.x[0], first.x[-1]) == (info.largest_edges[0], info.largest_edges[-1]), "the outer bins are whole"
    assert first.x[1] == info.largest_edges[:2].mean()
    assert first.y[0] == first.y[1] == 50


# ------------------------------------------------------------------------------------------- prototypes


def snapshots(**arrays):
    return trace(arrays={f"snapshot/{name}": np.asarray(array, float) for name, array in arrays.items()})


def test_drift_is_the_angle_to_the_beginning():
    path = [[[1, 0], [0, 2]], [[1, 1], [0, 1]], [[0, 3], [0, -1]]]
    info = figures.prototype_drift_info(snapshots(w=path))
    assert info.epochs.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(info.angles["w"], [[0, 0], [45, 0], [90, 180]], atol=1e-6)


def test_paths_are_one_projection_of_all_epochs_and_snapshots(run):
    info = figures.prototype_paths_info(run)
    points = {name: run.arrays[f"snapshot/{name}"].astype(float) for name in info.paths}
    together = np.concatenate([array.reshape(-1, array.shape[-1]) for array in points.values()])
    center = together.mean(0)
    _, singular, directions = np.linalg.svd(together - center, full_matrices=False)
    directions = directions[:2] * np.sign(directions[:2][[0, 1], np.abs(directions[:2]).argmax(1)])[:, None]
    for name, path in info.paths.items():
        np.testing.assert_allclose(path, (points[name] - center) @ directions.T, atol=1e-8)
    np.testing.assert_allclose(info.explained, (singular**2 / (singular**2).sum())[:2])


def test_a_later_epoch_does_not_turn_the_axes_of_a_static_vector(run):
    path = figures.prototype_paths_info(run).paths["static_classifier"]
    np.testing.assert_allclose(path, np.repeat(path[:1], len(path), 0), atol=1e-12)


def test_similarity_is_the_cosine_of_every_pair_and_its_change():
    start, end = [[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]], [[1.0, 1.0], [0.0, 5.0], [1.0, 1.0]]
    info = figures.prototype_similarity_info(snapshots(w=[start, end], still=[start, start]))
    assert (info.rows, info.columns, info.names) == ("w", "w", NAMES)
    for vectors, got in ((start, info.before), (end, info.after)):
        for i, a in enumerate(vectors):
            for j, b in enumerate(vectors):
                cosine = (a[0] * b[0] + a[1] * b[1]) / (math.hypot(*a) * math.hypot(*b))
                assert got[i, j] == pytest.approx(cosine)


def test_similarity_of_text_with_image_prototypes_where_both_move():
    moving = np.arange(12.0).reshape(2, 3, 2) + 1
    info = figures.prototype_similarity_info(snapshots(text_prototypes=moving, image_prototypes=moving[:, ::-1] ** 2))
    assert (info.rows, info.columns) == ("text_prototypes", "image_prototypes")
    with pytest.raises(ValueError, match=r"no snapshot 'nothing'.*image_prototypes, text_prototypes"):
        figures.prototype_similarity_info(snapshots(text_prototypes=moving, image_prototypes=moving), rows="nothing")
    with pytest.raises(ValueError, match="no snapshot 'nothing'"):
        figures.prototype_similarity_info(snapshots(text_prototypes=moving), columns="nothing")


# ------------------------------------------------------------------------------------------- confusion, losses


def test_confusion_counts_and_ranks_pairs():
    rows = [(0, 0, 1, 0.9, 0), (0, 1, 1, 0.9, 0), (0, 2, 2, 0.9, 1), (0, 3, 2, 0.9, 2), (-1, 4, 0, 0.9, 0)]
    info = figures.confusion_info(trace(predictions=predictions([*rows, (0, 5, 0, 0.9, -1)])))
    assert info.epoch == 0
    assert info.counts.tolist() == [[0, 2, 0], [0, 0, 1], [0, 0, 1]]
    assert [tuple(pair) for pair in info.pairs] == [("ant", "bee", 2), ("bee", "cat", 1)]
    assert figures.confusion_info(trace(predictions=predictions(rows)), epoch=-1).counts.tolist()[0] == [1, 0, 0]


def test_loss_terms_keep_short_runs_and_average_long_ones():
    rows = [(step // 400, step, term, float(step)) for step in range(600) for term in ("loss", "a")]
    info = figures.loss_terms_info(trace(steps=pd.DataFrame(rows, columns=["epoch", "step", "term", "value"])))
    assert list(info.terms) == ["loss", "a"]
    steps, values = info.terms["a"]
    assert len(steps) == 300
    np.testing.assert_allclose(values, 2 * np.arange(300) + 0.5)
    np.testing.assert_allclose(steps, values)
    assert info.epoch_starts.tolist() == [0, 400]
    short = pd.DataFrame(rows[:6], columns=["epoch", "step", "term", "value"])
    assert figures.loss_terms_info(trace(steps=short)).terms["loss"][1].tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------- images


def test_saliency_grid_takes_the_first_and_last_epoch_and_scales_each_map():
    maps = np.arange(3 * 2 * 4, dtype=float).reshape(3, 2, 2, 2)
    arrays = {
        "probe/images": np.zeros((2, 4, 4, 3), np.uint8),
        "probe/target": np.array([1, -1]),
        "probe/index": np.array([5, 9]),
        "probe/soap": maps,
        "probe/ncut": np.ones((3, 2, 2, 2)),
    }
    info = figures.saliency_grid_info(trace(arrays=arrays), kinds=("soap", "ncut", "absent"))
    assert info.titles == ["bee", "image 9"]
    assert [c.title for c in info.columns] == [
        "SOAP attention\nbefore", "SOAP attention\nafter", "NCut mask\nbefore", "NCut mask\nafter"
    ]  # fmt: skip
    assert [c.is_mask for c in info.columns] == [False, False, True, True]
    np.testing.assert_allclose(info.columns[0].values[0], [[0, 1 / 3], [2 / 3, 1]], rtol=1e-6)
    np.testing.assert_allclose(info.columns[2].values, 1)


def test_why_wrong_gathers_votes_examples_and_history():
    arrays = {
        "gallery/images": np.zeros((2, 4, 4, 3), np.uint8),
        "gallery/index": np.array([3, 8]),
        "gallery/target": np.array([0, 2]),
        "gallery/probs": np.array([[0.1, 0.9, 0.0], [0.2, 0.7, 0.1]]),
        "gallery/branch/cls": np.array([[0.2, 0.8, 0.0], [0.3, 0.3, 0.4]]),
        "gallery/ncut": np.ones((2, 2, 2)),
        "gallery/soap": np.arange(8.0).reshape(2, 2, 2),
        "examples/images": np.stack([np.full((2, 2, 3), i, np.uint8) for i in (1, 2)]),
        "examples/label": np.array([0, 1]),
    }
    rows = predictions([(-1, 8, 2, 0.4, 2), (0, 8, 1, 0.7, 2), (0, 3, 1, 0.9, 0)])
    said = [[0, 0, "An ant.", 0.3], [1, 1, "A bee.", 0.5], [1, 1, "It hums.", 0.4], [1, 2, "A cat.", 0.1]]
    arrays["cache/labels"] = np.array([[0, 0], [2, 1]])
    arrays["cache/votes"] = np.array([[1.0, 0.5], [0.75, 0.25]])
    meta = {**trace().meta, "gallery_sentences": said}
    full = Trace(predictions=rows, arrays=arrays, meta=meta)
    info = figures.why_wrong_info(full, position=1, n_classes=2)
    assert [(entry.name, entry.contribution, entry.image) for entry in info.cache] == [
        ("cat", 0.75, None),
        ("bee", 0.25, None),
    ]
    assert [(s.name, s.is_target, s.nearest) for s in info.sentences] == [
        ("bee", False, [("A bee.", 0.5), ("It hums.", 0.4)]), ("cat", True, [("A cat.", 0.1)])
    ]  # fmt: skip
    drawn = {text.get_text() for text in figures.draw_why_wrong(info).texts}
    assert {"cat +0.75", "0.40  It hums.", "✓ cat"} <= drawn
    assert (info.number, info.target) == (8, "cat")
    assert [one.name for one in info.classes] == ["bee", "ant", "cat"]
    assert info.classes[2].probs == {"method": 0.1, "cls": 0.4}
    assert [one.is_target for one in info.classes] == [False, False, True]
    assert [item.title for item in info.maps] == ["SOAP attention", "NCut mask"]
    assert [item.is_mask for item in info.maps] == [False, True]
    assert [(e.name, None if e.image is None else int(e.image.max())) for e in info.examples] == [
        ("bee", 2), ("ant", 1), ("cat", None)
    ]  # fmt: skip
    seen = zip(*info.history[:3], info.history.is_right, strict=True)
    assert list(seen) == [(-1, "cat", 0.4, True), (0, "bee", 0.7, False)]
    assert info.strip == []


def test_why_wrong_of_a_sum_shows_its_addends():
    addends = {"text": np.array([[3.0, 1.0, -8.0]]), "neighbors": np.array([[-1.0, 2.0, 0.5]])}
    total = sum(addends.values())
    softmax = {name: np.exp(x) / np.exp(x).sum() for name, x in {**addends, "sum": total}.items()}
    arrays = {"gallery/images": np.zeros((1, 4, 4, 3), np.uint8), "gallery/probs": softmax.pop("sum")}
    arrays |= {f"gallery/branch/{name}": probs for name, probs in softmax.items()}
    meta = {"class_names": ["ant", "bee", "cat"], "labels_are": "transductive"}
    classes = figures.why_wrong_info(Trace(arrays=arrays, meta=meta), n_classes=2).classes
    assert [one.name for one in classes] == ["bee", "ant"]
    for name, wanted in {"text": -1.0, "neighbors": 1.5, "method": 0.5}.items():
        assert classes[0].addends[name] == pytest.approx(wanted)
        assert classes[1].addends[name] == pytest.approx(-wanted)
    meta.pop("labels_are")
    assert figures.why_wrong_info(Trace(arrays=arrays, meta=meta)).classes[0].addends is None


def test_why_wrong_follows_a_probe_through_the_epochs_and_asks_the_sources_of_a_transductive_run(run):
    transductive = Trace(
        samples=run.samples,
        predictions=run.predictions,
        arrays={**run.arrays, "probe/index": np.array([4, 5, 6])},
        meta={**run.meta, "accuracy_is": "transductive"},
    )
    info = figures.why_wrong_info(transductive, position=1, group="probe", n_classes=6)
    row = np.flatnonzero(run.arrays["sources/index"] == 5)[0]
    exp = np.exp(run.arrays["sources/static"][row].astype(float))
    probs = {one.name: one.probs["static"] for one in info.classes}
    assert probs == pytest.approx(dict(zip(run.class_names, exp / exp.sum(), strict=True)))
    assert [epoch for epoch, _ in info.strip] == [-1, 0, 1, 2]
    assert figures.why_wrong_info(run, position=1, group="probe").classes == []


def test_why_wrong_of_an_absent_image_is_empty(run):
    for position in (-1, 99):
        assert figures.why_wrong_info(run, position).image is None


def test_the_confident_the_fickle_and_the_disputed():
    table = samples(
        [(0, 0, 0, 0.5, 0), (1, 0, 1, 0.5, 0), (2, 0, 0, 0.5, 0), (0, 1, 1, 0.5, -1), (1, 1, 2, 0.5, -1),
         (2, 1, 2, 0.5, -1), (0, 2, 0, 0.5, 0), (1, 2, 0, 0.5, 0), (2, 2, 0, 0.5, 0)],
        static_label=[0, 0, 0, 0, 0, 1, 0, 0, 2],
        dynamic_label=[0, 0, 0, 0, 0, 2, 0, 0, 0],
        static_confidence=[0, 0, 0.9, 0, 0, 0.6, 0, 0, 0.9],
        dynamic_confidence=[0, 0, 0.9, 0, 0, 0.7, 0, 0, 0.5],
    )  # fmt: skip
    rows = predictions([(0, 9, 1, 0.99, 0), (1, 0, 1, 0.6, 0), (1, 1, 2, 0.8, 0), (1, 2, 0, 0.9, 0), (1, 3, 0, 1, -1)])
    run = trace(samples=table, predictions=rows, meta={"sources": ["static", "dynamic"]})
    album = Album(run, SimpleNamespace(has=lambda *_: True))
    assert album.chosen("confidently wrong", 1) == ["eval/1", "eval/0"]
    assert image_table(run, "train")["flips"].to_dict() == {0: 2, 1: 1, 2: 0}
    assert disputed_rows(run, 2)["index"].tolist() == [1, 2]
    assert len(disputed_rows(run, 0)) == len(disputed_rows(trace(samples=table[["epoch", "index"]]), 2)) == 0


def test_images_are_named_by_their_files_where_they_are_files():
    table = samples([(0, 0, 0, 0.5, 0), (1, 0, 1, 0.5, 0)])
    rows = predictions([(1, 1, 2, 0.8, 0)])
    files = {"learned": ["train/<b>.jpg"], "measured": ["test/0.jpg", "test/1.jpg"]}
    run = trace(samples=table, predictions=rows, meta={"files": files})
    assert image_table(run, "train")["file"].to_dict() == {0: "train/<b>.jpg"}
    assert image_table(run)["file"].to_dict() == {1: "test/1.jpg"}
    assert (run.file_name(1), run.file_name(2), run.file_name(0, "learned")) == ("test/1.jpg", None, "train/<b>.jpg")
    for nonsense in (None, [], {"learned": 3}):
        unnamed = trace(samples=table, predictions=rows, meta={"files": nonsense})
        assert not any(image_table(unnamed, "train")["file"])


def test_every_trained_method_of_a_comparison_has_sources():
    for made in synthetic_comparison(epochs=2)[2:]:
        assert figures.source_decisions_info(made).sources == made.meta["sources"]


def test_the_explorer_lists_the_disputed_in_their_order(run):
    album = Album(run, SimpleNamespace(has=lambda *_: True))
    found = disputed_rows(run, 2)
    assert len(found)
    assert album.chosen("sources disagree", 2) == [f"train/{number}" for number in found["index"]]
    least = found[[f"{name}_confidence" for name in run.meta["sources"]]].min(axis=1).tolist()
    assert least == sorted(least, reverse=True)
    wrong = image_table(run).query("label != target").sort_values("confidence", ascending=False, kind="stable")
    assert album.chosen("confidently wrong", 2) == [f"eval/{number}" for number in wrong.index]
