"""DescriptionPlayground without a browser: one row turns with its words, and one logit with the row."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import ToyDataset, make_tiny_backbone
from widget_helpers import HOSTILE

from clipviz.methods import METHODS
from clipviz.methods.base import text_classifier
from clipviz.prompts import ClassPrompts
from clipviz.trace import Trace
from clipviz.training.loop import adapt
from clipviz.training.model_probe import ModelProbe
from clipviz.training.recorder import record
from clipviz.widgets import DescriptionPlayground, ViewState

WORDS = ["a square", "a photo of something blue"]


@pytest.fixture(scope="module")
def opened():
    """(method, data, trace) of a zero-shot run."""
    data = ToyDataset(24)
    method = METHODS["zero_shot"](make_tiny_backbone(), data.prompts)
    return method, data, record(adapt(method, data, eval_dataset=data))


@pytest.fixture
def view(opened):
    method, data, trace = opened
    return DescriptionPlayground(trace, ModelProbe(method, data, data))


def points(chart, name):
    (series,) = [each for each in chart.spec["series"] if each["name"] == name]
    return series["y"]


def test_the_field_of_sentences_says_what_goes_there(view):
    assert view.words.placeholder == "one sentence per line"


def test_the_row_is_the_classifiers_and_one_logit_follows_it(opened, view):
    method, data, _ = opened
    cosines, logits = view.canvases
    assert points(cosines, "these sentences") == points(cosines, "given sentences")
    view.chosen.value, view.words.value = 1, "\n".join(["", *WORDS, "  "])
    (row,) = text_classifier(method.backbone, [tuple(WORDS)]).numpy()
    rows = text_classifier(method.backbone, [data.prompts.description_sentences(name) for name in data.class_names])
    rows = rows.numpy()
    near = np.argsort(-(rows @ rows[1]))
    np.testing.assert_allclose(points(cosines, "given sentences"), (rows @ rows[1])[near], rtol=2e-3)
    np.testing.assert_allclose(points(cosines, "these sentences"), (rows @ row)[near], rtol=2e-3)
    probe, index = ModelProbe(method, data, data), int(view.gallery.ids[0].split("/")[1])
    (image,) = probe.embed(probe.pixels("eval", index)[None])
    given, new = (method.backbone.logit_scale * image @ each.T for each in (rows, np.stack([rows[0], row, rows[2]])))
    best = np.argsort(-np.maximum(given, new))
    np.testing.assert_allclose(points(logits, "given sentences"), given[best], rtol=2e-3)
    moved = [None if c != 1 else pytest.approx(new[1], rel=2e-3) for c in best]
    assert points(logits, "these sentences") == moved
    assert view.result.value.startswith(f"The new row has cosine {row @ rows[1]:.3f} with the given one.")
    assert data.class_names[int(new.argmax())] in view.gallery.captions[0]


def test_how_many_images_are_right_is_counted_by_both_words(opened, view):
    method, data, trace = opened
    images = [int(image.split("/")[1]) for image in view.gallery.ids]
    assert 0 < len(images) <= 10
    probe = ModelProbe(method, data, data)
    embedded = probe.embed(np.stack([probe.pixels("eval", i) for i in images]))
    given = text_classifier(method.backbone, [data.prompts.description_sentences(name) for name in data.class_names])
    view.words.value = WORDS[1]
    new = given.clone()
    new[view.chosen.value] = text_classifier(method.backbone, [(WORDS[1],)])[0]
    right = [
        int(((embedded @ rows.numpy().T).argmax(1) == [data.targets[i] for i in images]).sum()) for rows in (new, given)
    ]
    said = f"Right on {right[0]} of {len(images)} images, with the given sentences on {right[1]} (diagnostic only)."
    assert said in view.result.value
    for n, words in ((2, " of 2 labeled images, "), (1, " of 1 labeled image, ")):
        unknown = ~trace.predictions["index"].isin(images[:n])
        target = trace.predictions["target"].mask(unknown, -1)
        partly = Trace(predictions=trace.predictions.assign(target=target), meta=trace.meta)
        assert words in DescriptionPlayground(partly, probe).result.value


def test_without_words_it_says_so_and_the_button_brings_the_given_ones_back(view):
    given = view.words.value
    view.words.value = " \n "
    assert view.result.value == "Write at least one sentence."
    view.again.click()
    assert view.words.value == given
    assert "cosine 1.000" in view.result.value


def test_an_image_chosen_in_another_view_comes_first(opened):
    method, data, trace = opened
    state = ViewState(selected=("eval/3",))
    view = DescriptionPlayground(trace, ModelProbe(method, data, data), state=state)
    view.words.value = WORDS[0]
    chosen = next(f"eval/{i}" for i in range(24) if f"eval/{i}" not in view.gallery.ids)
    assert view.canvases[1].spec["title"] == "Logits of eval/3"
    state.selected = (chosen,)
    assert view.gallery.ids[0] == chosen
    assert view.words.value == WORDS[0], "choosing an image keeps what was written"
    assert view.canvases[1].spec["title"] == f"Logits of {chosen}"
    assert len(view.picture()) < 60_000


def test_without_a_model_or_images_it_says_what_to_do(opened):
    method, _, trace = opened
    with pytest.raises(ValueError, match=r"^this run has recorded nothing yet; start it"):
        DescriptionPlayground(Trace(), ModelProbe(*opened[:2], opened[1]))
    with pytest.raises(ValueError, match="give a Run or a ModelProbe"):
        DescriptionPlayground(trace, None)
    view = DescriptionPlayground(trace, ModelProbe(method))
    assert {*view.gallery.ids} <= {f"eval/{i}" for i in trace.highlights.index}, "only those that the trace holds"
    view.album.shown = lambda index, split: []
    view.begin()
    assert view.gallery.ids == []
    assert view.result.value == "The new row has cosine 1.000 with the given one."
    assert points(view.canvases[0], "given sentences")
    assert view.picture()


def test_names_that_are_markup_are_shown_letter_by_letter():
    data = ToyDataset(6)
    data.class_names = ("<b>x</b>$y$", HOSTILE, "owl")
    data.prompts = ClassPrompts(data.class_names, ("a {}.",))
    method = METHODS["zero_shot"](make_tiny_backbone(), data.prompts)
    view = DescriptionPlayground(record(adapt(method, data, eval_dataset=data)), ModelProbe(method, data, data))
    view.words.value = "<i>owl</i>"
    assert ": <b>x</b>$y$." in view.alt
    assert "&lt;img" in view.result.value
    assert not {"<", "$"} & {*view.result.value}
    assert view.picture()
