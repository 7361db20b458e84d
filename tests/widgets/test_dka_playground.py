"""DKAPlayground without a browser: the stored source logits mixed again, and the cut made again."""

from __future__ import annotations

import base64
import gc
import html
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from synthetic import synthetic_trace
from widget_helpers import HOSTILE

from clipviz.figures.sources import Crops, SourceLogits
from clipviz.methods.microclip import crop_composite
from clipviz.ncut import foreground_mask, patch_affinity, spectrum, turn_to_side
from clipviz.ops import class_logits, normalize
from clipviz.trace import Trace
from clipviz.widgets import DKAPlayground, ViewState


@pytest.fixture
def trace():
    return synthetic_trace(n_classes=8, epochs=3, n_images=200)


def mixed(trace, gamma):
    first, second = (trace.arrays[f"sources/{name}"].astype(np.float32) for name in ("static", "dynamic"))
    return (gamma * first + (1 - gamma) * second).argmax(1)


def test_gamma_gives_the_labels_of_the_stored_logits(trace):
    playground = DKAPlayground(trace)
    assert playground.gamma.value == 0.7
    assert playground.result.value.startswith("0 of 200 pseudo-labels differ")
    playground.gamma.value = 0.1
    target = trace.arrays["sources/target"]
    now, own = mixed(trace, 0.1), mixed(trace, 0.7)
    n = (now != own).sum()
    assert n > 0
    assert playground.result.value == (
        f"{n} of 200 pseudo-labels differ ({n / 2:.1f} %); {100 * (now == target).mean():.1f} % right "
        f"instead of {100 * (own == target).mean():.1f} % (diagnostic only)"
    )


def test_it_starts_where_the_run_ended(run):
    trace = run.trace
    trace.meta["changes"] = [{"step": 1, "gamma": 0.9}, {"step": 2, "gamma": 0.2, "crop_temperature": 0.1}]
    playground = DKAPlayground(trace)
    assert (playground.gamma.value, playground.temperature.value) == (0.2, pytest.approx(0.1))
    assert playground.result.value.startswith("0 of ")
    assert playground.what_if.spec["marks"] == [[0.2, "this run"]]


def test_the_curve_is_the_figure_of_the_trace(trace):
    from clipviz.figures import gamma_what_if_info

    info = gamma_what_if_info(trace)
    curves = {line["name"]: line["y"] for line in DKAPlayground(trace).what_if.spec["series"]}
    places = [int(np.abs(info.gamma - gamma).argmin()) for gamma in np.linspace(0, 1, 11)]
    right = curves["right (diagnostic only)"][::2]
    np.testing.assert_allclose(right, 100 * info.accuracy[places], atol=0.01)
    changed = curves["labels that differ from the run's"][::2]
    np.testing.assert_allclose(changed, 100 * info.changed[places], atol=0.01)


def test_a_curve_that_is_drawn_from_some_of_the_images_says_so(trace, monkeypatch):
    for most, said in ((2000, "% of the images"), (10, "% of 10 images")):
        monkeypatch.setattr("clipviz.widgets.playground._CURVE_IMAGES", most)
        playground = DKAPlayground(trace)
        assert playground.what_if.spec["y_label"] == said
        assert f'"share": "{said}"' in html.unescape(playground.page(""))


def test_crops_weighed_anew_are_the_composite_of_the_method():
    generator = torch.Generator().manual_seed(0)
    crops = normalize(torch.randn(5, 4, 16, generator=generator))
    embedding = normalize(torch.randn(5, 16, generator=generator))
    classifier = normalize(torch.randn(3, 16, generator=generator))
    gram = crops @ crops.mT
    said = Crops((crops @ embedding[..., None])[..., 0].numpy(), 50 * (crops @ classifier.T).numpy(), gram.numpy(), 1.0)
    for temperature in (1.0, 0.1, 0.01):
        composite, weights = crop_composite(embedding, crops, temperature)
        np.testing.assert_allclose(said.weights(temperature), weights, atol=1e-5)
        expected = 50 * class_logits(composite, classifier)
        np.testing.assert_allclose(said.composite_logits(temperature), expected, atol=1e-3)


def test_the_crop_slider_is_there_where_crops_were_kept(run, trace):
    playground = DKAPlayground(run.trace)
    assert playground.temperature.layout.display == "flex"
    stored = SourceLogits.of(run.trace)
    playground.temperature.value = 0.01
    playground.gamma.value = 1.0
    n = (stored.reweighed(0.01).labels(1.0) != stored.labels(0.5)).sum()
    assert playground.result.value.startswith(f"{n} of 24")
    assert DKAPlayground(trace).temperature.layout.display == "none"


def test_sources_on_one_image(run):
    playground = DKAPlayground(run.trace, run, state=ViewState(selected=("eval/5",)))
    row = int(np.flatnonzero(run.trace.arrays["sources/index"] == 5)[0])
    static = run.trace.arrays["sources/static"][row].astype(float)
    probs = np.exp(static - static.max()) / np.exp(static - static.max()).sum()
    series = {line["name"]: line["y"] for line in playground.ballot.spec["series"]}
    assert list(series) == ["static", "dynamic", "mixed, gamma 0.50"]
    assert max(series["static"]) == pytest.approx(probs.max(), abs=1e-3)
    ticks = [text for _, text in playground.ballot.spec["ticks"]]
    assert sum(text.startswith("✓ ") for text in ticks) == 1


def test_images_whose_label_changes_are_shown(run):
    trace = run.trace
    rng = np.random.default_rng(0)
    for name in ("static", "dynamic"):
        trace.arrays[f"sources/{name}"] = rng.normal(size=(24, 3)).astype(np.float16)
    playground = DKAPlayground(trace, run)
    playground.gamma.value = 1.0
    changed = np.flatnonzero(mixed(trace, 1.0) != mixed(trace, 0.5))
    expected = [f"eval/{index}" for index in trace.arrays["sources/index"][changed]]
    assert playground.gallery.ids == expected
    assert " → " in playground.gallery.captions[0]


def test_the_cut_is_made_again_by_the_model(run):
    playground = DKAPlayground(run.trace, run, state=ViewState(selected=("eval/2",)))
    assert playground.cutting.tau.value == 0.2
    playground.cutting.affinity.value = "cosine"
    playground.cutting.tau.value = 0.6
    playground.cutting.rule.value = "mean"
    playground.cutting.side.value = "border"
    pixels = torch.from_numpy(run.model_probe.pixels("eval", 2).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        tokens = run.method.eval().backbone.tokens(pixels)
    fiedler = spectrum(patch_affinity(tokens.patches, 0.6, "cosine")).fiedler
    expected = foreground_mask(turn_to_side(fiedler, tokens.grid, "border"), "mean")[0].numpy()
    np.testing.assert_array_equal(playground.cutting.maps[0][1].ravel() > 0.5, expected)
    title = f"tau 0.6, cosine, mean, border: {100 * expected.mean():.0f} % of the patches kept"
    assert playground.cutting.canvas.rows[0]["title"] == title
    assert [kind for kind, _ in playground.cutting.maps] == ["ncut", "fiedler", "soap"]


def test_tau_changes_its_range_with_the_affinity(run):
    playground = DKAPlayground(run.trace, run, state=ViewState(selected=("eval/2",)))
    playground.cutting.affinity.value = "dot"
    playground.cutting.tau.value = 150.0
    playground.cutting.affinity.value = "cosine"
    assert (playground.cutting.tau.min, playground.cutting.tau.max, playground.cutting.tau.value) == (0.0, 1.0, 1.0)


def test_a_method_that_mixes_otherwise_says_so():
    playground = DKAPlayground(synthetic_trace(n_classes=8, epochs=2, n_images=60, method="dpa"))
    assert playground.result.value.endswith("hypothetical: this method mixes its sources differently")


@pytest.mark.parametrize("method", ["ntua", "zero_shot"])
def test_other_numbers_of_sources_are_told(method):
    epochs = 0 if method == "zero_shot" else 2
    playground = DKAPlayground(synthetic_trace(n_classes=8, epochs=epochs, n_images=60, method=method))
    assert playground.result.value == "This trace does not hold the logits of exactly two sources."
    playground.gamma.value = 0.9
    assert len(playground.picture()) > 3_000


def test_without_labels_nothing_is_called_right():
    playground = DKAPlayground(synthetic_trace(n_classes=8, epochs=2, n_images=60, labelled=False))
    playground.gamma.value = 0.0
    assert "right" not in playground.result.value
    assert [line["name"] for line in playground.what_if.spec["series"]] == ["labels that differ from the run's"]


def test_bundle_has_a_picture_and_a_text_that_never_changes(run):
    playground = DKAPlayground(run.trace, run, state=ViewState(selected=("eval/2",)))
    data, metadata = playground._repr_mimebundle_()
    assert data["text/plain"] == "DKAPlayground(microclip)"
    assert 8_000 < len(base64.b64decode(data["image/jpeg"])) <= 60_000
    assert "pseudo-labels differ" in metadata["image/jpeg"]["alt"]


def test_five_hundred_hostile_classes_and_nothing_at_all():
    names = [f"{HOSTILE} {i}" for i in range(500)]
    trace = synthetic_trace(epochs=1, n_images=600, n_eval=50, class_names=names)
    trace.meta["accuracy_is"] = "transductive"
    playground = DKAPlayground(trace, state=ViewState(selected=("eval/3",)))
    playground.gamma.value = 0.2
    for _, text in playground.ballot.spec["ticks"]:
        assert len(text) <= 22
        assert "\n" not in text
    assert len(playground.picture()) > 5_000
    assert len(DKAPlayground(Trace()).picture()) > 1_000


def test_memory_stays_flat_over_a_hundred_moves(trace):
    playground = DKAPlayground(trace)

    def use(times):
        for i in range(times):
            playground.gamma.value = i / 100
        gc.collect()

    use(10)
    tracemalloc.start()
    use(10)
    before = tracemalloc.get_traced_memory()[0]
    use(100)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000


def test_an_answer_to_an_old_question_is_dropped(run):
    """A kernel and its subshells ask at once: the panels are three, and those of the newest controls."""
    model_probe, begun, go_on = run.model_probe, threading.Event(), threading.Event()
    playground = DKAPlayground(run.trace, run, state=ViewState(selected=("eval/2",)))
    answer = model_probe.saliency

    def slowly(pixels, kind, **options):
        if options["affinity"] == "dot":
            begun.set()
            assert go_on.wait(20)
        return answer(pixels, kind, **options)

    cutting = playground.cutting
    cutting.affinity.value = "cosine"
    expected = [values.copy() for _, values in cutting.maps]
    model_probe.saliency = slowly
    with ThreadPoolExecutor(1) as subshell:
        old = subshell.submit(setattr, cutting.affinity, "value", "dot")
        assert begun.wait(20)
        cutting.affinity.value = "cosine"
        title = cutting.canvas.rows[0]["title"]
        go_on.set()
        old.result(20)
    assert [kind for kind, _ in cutting.maps] == ["ncut", "fiedler", "soap"]
    assert "cosine" in title
    assert cutting.canvas.rows[0]["title"] == title
    assert len(cutting.canvas.rows[0]["panels"]) == 4
    for (_, values), known in zip(cutting.maps, expected, strict=True):
        np.testing.assert_array_equal(values, known)


def test_no_answer_is_said_in_the_title(run):
    def too_late(pixels, kind, **options):
        raise TimeoutError

    playground = DKAPlayground(run.trace, run, state=ViewState(selected=("eval/2",)))
    run.model_probe.saliency = too_late
    playground.cutting.rule.value = "mean"
    assert playground.cutting.canvas.rows[0]["title"].endswith("mean, peak: no answer in time")
    assert playground.cutting.maps == []
