"""Explorables: what they store is what our functions compute, and no name in them is markup."""

from __future__ import annotations

import json
import re

import IPython.display
import numpy as np
import pytest
import torch
from synthetic import empty_trace, synthetic_trace
from tiny import ToyDataset

from clipviz.backbone import ImageTokens
from clipviz.figures import explorables, style
from clipviz.methods.microclip import MicroCLIPConfig, dka_similarity, foreground, soap_pool
from clipviz.methods.transclip import TransCLIPConfig, solve
from clipviz.ncut import edge_density, foreground_mask, patch_affinity, spectrum
from clipviz.ops import normalize

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "a\nb", "$x$ {} `${x}`", "'\""]


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, with its metadata."""
    outputs = []

    def display(data, metadata=None, raw=False):
        assert raw
        outputs.append((data, metadata))

    monkeypatch.setattr(IPython.display, "display", display)
    return outputs


def stored(shown: list) -> dict:
    """The numbers in the last page."""
    (text,) = re.findall(r"previousElementSibling, (\{.*\})\);</script>$", shown[-1][0]["text/html"])
    return json.loads(text)


def rows(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def small_cut(taus=(-0.5, 0.0, 0.4, 0.9)):
    patches = rows(1, 16, 8)
    matrices = (torch.eye(8),) * 3 + (torch.eye(8)[:, :5],)
    graphs = torch.cat([patch_affinity(patches, tau, "cosine") for tau in taus])
    tokens = ImageTokens(rows(1, 5), patches, (4, 4))
    found = [foreground(tokens, MicroCLIPConfig(affinity="cosine", tau=tau), *matrices) for tau in taus]
    asked = soap_pool(patches[0], patches.expand(16, -1, -1), *matrices)[1]
    image = np.zeros((8, 8, 3), np.uint8)
    explorables.cut(image, (4, 4), taus, graphs, found, asked)
    return patches, asked


def test_the_graph_of_every_tau_can_be_had_from_what_is_stored(shown):
    taus = -0.5, 0.0, 0.4, 0.9
    patches, asked = small_cut(taus)
    data = stored(shown)
    assert data["taus"] == list(taus)
    for t, tau in enumerate(taus):
        graph = patch_affinity(patches, tau, "cosine")
        assert np.array_equal(np.array(data["level"]) > t, graph[0] > 0.5), tau
        fiedler = spectrum(graph).fiedler
        assert data["fiedler"][t] == pytest.approx(fiedler[0].tolist(), abs=6e-5)
        assert data["mask"][t] == foreground_mask(fiedler)[0].int().tolist()
        assert data["density"][t] == pytest.approx(float(edge_density(graph)), abs=6e-5)
    assert np.array(data["asked"]) == pytest.approx(asked.numpy(), abs=6e-5)
    assert np.array(data["attention"]).sum(1) == pytest.approx(np.ones(4), abs=2e-3)


def test_gamma_shows_images_whose_sources_differ_and_mixes_them_as_dka(shown):
    trace = synthetic_trace(epochs=2, n_images=40)
    explorables.gamma(trace, ToyDataset(40), n=3)
    data = stored(shown)
    first, second = (torch.tensor(data[name]) for name in ("first", "second"))
    assert first.shape == (3, len(trace.class_names))
    assert (first.argmax(1) != second.argmax(1)).all()
    static, dynamic = (torch.from_numpy(np.asarray(logits, np.float32)) for logits in trace.sources.logits.values())
    at = [int((static - row).abs().sum(1).argmin()) for row in first]
    assert trace.sources.target[at].tolist() == data["target"]
    for gamma in (0.0, 0.3, 0.5, 1.0):
        expected = dka_similarity(static[at], dynamic[at], gamma)
        assert torch.allclose(gamma * first + (1 - gamma) * second, expected, atol=1e-3)


def test_prototypes_have_the_cosines_of_the_whole_space(shown):
    trace = synthetic_trace(epochs=3, method="dpa")
    explorables.prototypes(trace)
    data = stored(shown)
    text, image = (trace.snapshots[name].astype(np.float64) for name in data["sets"])
    for e, c in ((0, 0), (3, 1), (2, len(trace.class_names) - 1)):
        a, b = text[e, c], image[e, c]
        cosine = sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5
        assert data["cosines"][e][c] == pytest.approx(cosine, abs=6e-5)
    assert np.array(data["paths"]).shape == (2, 4, len(trace.class_names), 2)
    assert data["turned"][0][0] == [0] * len(trace.class_names)


def test_the_anchor_shows_the_mass_that_solve_gives(shown):
    images, classifier, target = rows(12, 6), rows(4, 6), torch.arange(12) % 2
    alphas = 0.0, 1.0, 10.0
    shares = torch.stack([solve(images, classifier, TransCLIPConfig(alpha=a), anchor=True).assignments for a in alphas])
    text = (100 * images @ classifier.T).softmax(-1)
    explorables.anchor(["a", "b", "c", "d"], alphas, shares, text, target)
    data = stored(shown)
    for mass, right, each in zip(data["mass"], data["right"], shares, strict=True):
        assert mass == pytest.approx(each.sum(0).tolist(), abs=6e-5)
        assert right == pytest.approx(100 * float((each.argmax(1) == target).float().mean()), abs=6e-5)
    assert data["truth"] == [6, 6, 0, 0]


@pytest.fixture
def drawn(monkeypatch):
    """The pictures that were drawn."""
    figures = []
    monkeypatch.setattr(explorables, "_show", lambda kind, figure, data: figures.append(figure))
    return figures


def test_no_picture_tells_by_color_alone(drawn):
    explorables.gamma(synthetic_trace(epochs=2, n_images=40), ToyDataset(40))
    dashes = [line.get_linestyle() for line in drawn[0].axes[1].lines if line.get_color() != "black"]
    assert len(dashes) > 1
    assert len({*dashes}) == len(dashes)
    shares = torch.tensor([[[0.6, 0.2, 0.2], [0.7, 0.1, 0.2]]])
    explorables.anchor(["a", "b", "c"], [1.0], shares, shares[0], torch.tensor([0, 0]))
    drawn[1].draw_without_rendering()
    assert [text.get_text() for text in drawn[1].axes[0].get_xticklabels()] == ["✓ a", "b", "c"]


def test_colors_are_those_of_the_figures(shown):
    explorables.softmax(["a", "b"], [0.3, 0.2], 100.0)
    (named,) = re.findall("const COLORS = {(.*?)}", shown[-1][0]["text/html"])
    colors = dict(re.findall(r'(\w+): "(#\w+)"', named))
    assert len(colors) == 6
    assert colors == {name: getattr(style, name.upper()) for name in colors}


def test_a_name_is_never_markup(shown):
    explorables.softmax(HOSTILE, torch.zeros(5), 100.0)
    html = shown[-1][0]["text/html"]
    assert html.count("<script") == html.count("</script>") == 1
    assert "<img" not in html
    assert len(stored(shown)["names"]) == 5


def test_two_outputs_a_picture_with_words_and_what_moves(shown):
    explorables.softmax(["a", "b"], [0.3, 0.2], 100.0)
    small_cut()
    assert [set(data) for data, _ in shown] == [{"image/jpeg", "text/plain"}, {"text/html", "text/plain"}] * 2
    assert all(len(metadata["image/jpeg"]["alt"]) > 20 for _, metadata in shown[::2])
    assert "run this cell" in shown[1][0]["text/html"]


@pytest.mark.parametrize("draw", [lambda trace: explorables.gamma(trace, ToyDataset(4)), explorables.prototypes])
def test_a_trace_without_what_it_takes_is_answered_in_words(draw):
    with pytest.raises(ValueError, match=r"^wanted the trace of a run with two (sources|sets).*, got"):
        draw(empty_trace())


def test_sources_that_agree_everywhere_leave_gamma_nothing_to_decide():
    trace = synthetic_trace(epochs=2, n_images=40)
    one, other = (f"sources/{name}" for name in trace.sources.logits)
    trace.arrays[other] = trace.arrays[one]
    with pytest.raises(ValueError, match="that differ somewhere"):
        explorables.gamma(trace, ToyDataset(40))
