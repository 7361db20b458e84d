"""Two runs on the same images: known answers of the table and of the timeline, and runs that cannot be compared."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic import synthetic_trace

from clipviz.figures.compare import comparison_info, other_images, timeline_info
from clipviz.trace import Trace

NAMES = ["ant", "bee", "cat"]


def measured(last, target=(0, 1, 2, 0), before=(0, 0, 0, 0), **meta):
    table = pd.concat(
        [
            pd.DataFrame({"epoch": epoch, "index": range(4), "prediction": labels, "confidence": 0.5, "target": target})
            for epoch, labels in ((-1, before), (0, last))
        ],
        ignore_index=True,
    )
    facts = {"method": "dpa", "class_names": NAMES, "eval_data": "pets", "eval_split": "test", **meta}
    return Trace(predictions=table, meta=facts)


def test_who_is_right():
    info = comparison_info(measured([0, 1, 0, 1]), measured([0, 0, 2, 1], method="ntua"))
    assert info.names == ("DPA", "NtUA")
    assert info.cells == {"both right": 1, "only a right": 1, "only b right": 1, "neither right": 1}
    assert info.table["cell"].tolist() == ["both right", "only a right", "only b right", "neither right"]
    assert info.said("only b right") == "only NtUA right"
    before = comparison_info(measured([0, 1, 0, 1]), measured([0, 0, 2, 1]), -1)
    assert before.cells == {"both right": 2, "only a right": 0, "only b right": 0, "neither right": 2}


def test_runs_of_one_method_are_named_by_what_differs():
    settings = [{"settings": {"method": {"a": a}, "schedule": None}} for a in (0.3, 0.7)]
    info = comparison_info(*(measured([0, 0, 0, 0], **own) for own in settings))
    assert info.names == ("DPA, a 0.3", "DPA, a 0.7")


def test_without_labels_they_agree_or_differ():
    unknown = (-1, -1, -1, -1)
    info = comparison_info(measured([0, 1, 0, 1], unknown), measured([0, 0, 2, 1], unknown))
    assert info.cells == {"agree": 2, "differ": 2}
    some = comparison_info(measured([0, 1, 0, 1], (0, -1, -1, 1)), measured([0, 0, 0, 0], unknown))
    assert some.cells == {
        "both right": 1, "only a right": 1, "only b right": 0, "neither right": 0, "agree": 1, "differ": 1,
    }  # fmt: skip
    assert some.table["target"].tolist() == [0, -1, -1, 1], "one run's labels are the images'"


def test_runs_that_were_not_measured_are_compared_by_their_pseudo_labels():
    one, other = (synthetic_trace(n_classes=4, epochs=2, n_images=30, n_eval=9, seed=seed) for seed in (0, 0))
    for trace in (one, other):
        trace.predictions = trace.predictions[:0]
    info = comparison_info(one, other)
    assert info.split == "train"
    assert sum(info.cells.values()) == 30
    assert info.cells["only a right"] == info.cells["only b right"] == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (measured([0, 0, 0, 0], eval_data="birds"), r"images in common \(4 of pets \(test\) and 4 of birds \(test\)\)"),
        (measured([0, 0, 0, 0], (1, 1, 1, 1)), "same images"),
        (measured([0, 0, 0, 0], files={"measured": list("abcd"), "learned": []}), "same images"),
        (measured([0, 0, 0, 0], class_names=["ant", "bee", "dog"]), "different classes"),
        (Trace(meta={"class_names": NAMES, "eval_data": "pets", "eval_split": "test"}), "4 of pets .* and 0 of pets"),
        (
            Trace(meta={"class_names": NAMES}),
            r"the second run has no .* \(4 of pets \(test\) and 0 of no images\), .*give",
        ),
        (Trace(), "the second run has no predictions of evaluation images"),
    ],
)
def test_runs_on_other_images_are_refused_in_one_sentence(other, said):
    with pytest.raises(ValueError, match=said) as refused:
        comparison_info(measured([0, 0, 0, 0]), other)
    assert "\n" not in str(refused.value)
    assert ("in common" in str(refused.value)) is (len(other.predictions) > 0 and other.class_names == tuple(NAMES))


def test_the_run_that_was_not_measured_is_named():
    with pytest.raises(ValueError, match="the first run has no predictions of evaluation images"):
        comparison_info(Trace(), measured([0, 0, 0, 0]))


@pytest.mark.parametrize(
    ("key", "one", "other", "said"),
    [
        ("files", {"measured": ["a/0.jpg"]}, {"measured": ["b/0.jpg"]}, "files"),
        ("files", {"measured": ["a/0.jpg"]}, {"measured": []}, ""),
        ("origins", {"eval_data": {"spec": "birds", "seed": 0}}, {"eval_data": {"spec": "birds", "seed": 1}}, "seed"),
        ("origins", {"eval_data": {"spec": "/pets", "seed": 0}}, {"eval_data": {"spec": "/pets", "seed": 1}}, ""),
        ("origins", {"eval_data": {"spec": "birds/fog", "severity": 1}}, {"eval_data": None}, ""),
    ],
)
def test_images_of_one_name_are_others_by_their_files_or_how_they_were_drawn(key, one, other, said):
    traces = [measured([0, 0, 0, 0], **{key: each}) for each in (one, other, one)]
    assert other_images(traces).startswith(said)
    assert not other_images(traces[::2])
    if said:
        with pytest.raises(ValueError, match="no images in common"):
            comparison_info(*traces[:2])


def test_timeline_of_a_training_image():
    rows = [(0, 7, 0, 0, 1), (1, 7, 1, 0, 1), (2, 7, 1, 1, 1), (0, 8, 2, 2, 2)]
    samples = pd.DataFrame(rows, columns=["epoch", "index", "pseudo_label", "static_label", "dynamic_label"])
    samples = samples.assign(confidence=[0.4, 0.5, 0.6, 0.7], margin=0.1, weight=1.0, target=1)
    trace = Trace(samples=samples, meta={"class_names": NAMES, "sources": ["static", "dynamic"]})
    line = timeline_info(trace, "train/7")
    assert line.epochs == [0, 1, 2]
    assert line.labels == ["ant", "bee", "bee"]
    assert line.confidence == [0.4, 0.5, 0.6]
    assert line.deciders == ["static", "dynamic", "all agree"]
    assert line.is_right == [False, True, True]
    assert line.turns() == [0, 1]


def test_timeline_of_an_evaluation_image():
    line = timeline_info(measured([1, 0, 0, 0], (-1, 1, 2, 0), files={"measured": [], "learned": []}), "eval/0")
    assert (line.epochs, line.labels, line.is_right) == ([-1, 0], ["ant", "bee"], [None, None])
    assert line.deciders == ["", ""], "no pseudo-label is known of an image that was not learned from"
    own = synthetic_trace(n_classes=4, epochs=3, n_images=40, n_eval=40)
    own.meta["accuracy_is"] = "transductive"
    line = timeline_info(own, "eval/5")
    assert line.deciders[0] == "", "there are no pseudo-labels before training"
    known = own.samples[own.samples["index"] == 5].sort_values("epoch")
    agree = (known["static_label"] == known["pseudo_label"]) & (known["dynamic_label"] == known["pseudo_label"])
    assert [decider == "all agree" for decider in line.deciders[1:]] == agree.tolist()


@pytest.mark.parametrize("image", ["eval/999", "train/999", "probe/0"])
def test_timeline_of_an_image_that_nothing_is_known_of(image):
    assert timeline_info(measured([0, 0, 0, 0]), image).epochs == []
