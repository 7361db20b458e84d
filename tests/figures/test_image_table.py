"""The table of images: known answers, filters, sorting, and cells that no spreadsheet executes."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_trace

from clipviz.figures.image_table import OUTCOMES, SORTS, Filter, export_csv, image_table, ordered, outcomes, passing
from clipviz.trace import Trace

NAMES = ("ant", "bee", "cat")


def small(**meta):
    """Four evaluation images over three measurements, and three training images over two epochs."""
    measured = [(-1, [0, 1, 2, 0]), (0, [1, 1, 2, 0]), (1, [0, 0, 2, 1])]
    predictions = pd.concat(
        [
            pd.DataFrame({"epoch": e, "index": range(4), "prediction": p, "confidence": [0.9, 0.8, 0.7, 0.6],
                          "target": [0, 1, -1, 1]})
            for e, p in measured
        ],
        ignore_index=True,
    )  # fmt: skip
    rows = [(0, 0, 0, 0, 1), (0, 1, 1, 1, 1), (0, 2, 2, 0, 1), (1, 0, 1, 0, 1), (1, 1, 1, 1, 1)]
    samples = pd.DataFrame(rows, columns=["epoch", "index", "pseudo_label", "static_label", "dynamic_label"])
    samples = samples.assign(confidence=0.5, margin=[0.1, 0.2, 0.3, 0.4, 0.5], weight=1.0, target=[0, 1, 2, 0, 1])
    facts = {"class_names": list(NAMES), "sources": ["static", "dynamic"], **meta}
    facts.setdefault("files", {"measured": ["a.png", "=1+1.png", "C.png", "d.png"], "learned": []})
    return Trace(predictions=predictions, samples=samples, meta=facts)


def test_the_last_epoch_of_the_evaluation_images():
    table = image_table(small())
    assert table["label"].tolist() == [0, 0, 2, 1]
    assert table["before"].tolist() == [0, 1, 2, 0]
    assert table["flips"].tolist() == [2, 1, 0, 1]
    assert table["file"].tolist() == ["a.png", "=1+1.png", "C.png", "d.png"]
    assert table["margin"].isna().all()
    assert (table["decider"] == "").all(), "they are not learned from"
    found = {name: list(table.index[mask]) for name, mask in outcomes(table).items()}
    assert found == {"right": [0, 3], "wrong": [1], "fixed": [3], "broken": [1], "changed": [1, 3]}
    assert tuple(found) == OUTCOMES


def test_flips_are_those_up_to_the_epoch():
    trace = small()
    assert image_table(trace, epoch=0)["flips"].tolist() == [1, 0, 0, 0]
    assert image_table(trace, epoch=-1)["flips"].tolist() == [0, 0, 0, 0]
    assert image_table(trace, epoch=-2).empty
    with pytest.raises(ValueError, match=r"unknown split 'test'. Choose from 'eval', 'train'"):
        image_table(trace, "test")


def test_a_stream_is_listed_as_far_as_it_has_come():
    trace = small(labels_are="online")
    trace.samples = trace.samples.drop_duplicates("index", keep="last")  # each image comes once: 2, then 0 and 1
    assert image_table(trace, "train", 0).index.tolist() == [2]
    table = image_table(trace, "train", 5)  # slices at the end may be empty
    assert table["label"].to_dict() == {2: 2, 0: 1, 1: 1}
    assert table["decider"].to_dict() == {2: "neither", 0: "dynamic", 1: "all agree"}


def test_pseudo_labels_and_who_decided_them():
    table = image_table(small(), "train", 0)
    assert table["decider"].tolist() == ["static", "all agree", "neither"]
    assert table["margin"].tolist() == [0.1, 0.2, 0.3]
    assert image_table(small(), "train", 1)["decider"].to_dict() == {0: "dynamic", 1: "all agree"}
    own = image_table(small(accuracy_is="transductive"), "eval", 1)
    assert own["decider"].to_dict() == {0: "dynamic", 1: "all agree", 2: "", 3: ""}


def test_flips_equal_a_slow_loop():
    trace = synthetic_trace(n_classes=5, epochs=4, n_images=40, n_eval=30)
    for split, table, column in (
        ("eval", trace.predictions, "prediction"),
        ("train", trace.samples, "pseudo_label"),
    ):
        found = image_table(trace, split)
        for index, row in found.iterrows():
            labels = table[table["index"] == index].sort_values("epoch")[column].tolist()
            assert row["flips"] == sum(a != b for a, b in pairwise(labels))
            assert row["before"] == labels[0]
            assert row["label"] == labels[-1]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter(target=[1]), [1, 3]),
        (Filter(label=[0]), [0, 1]),
        (Filter(label=(0, 2)), [0, 1, 2]),
        (Filter(target=()), []),
        (Filter(confidence=(0.65, 0.85)), [1, 2]),
        (Filter(margin=(0.0, 0.5)), []),
        (Filter(flips=1), [0, 1, 3]),
        (Filter(outcome="fixed"), [3]),
        (Filter(text="c.P"), [2]),
        (Filter(text="+1"), [1]),
        (Filter(target=[1], outcome="broken"), [1]),
    ],
)
def test_filters(wanted, expected):
    assert list(passing(image_table(small()), wanted).index) == expected


def test_filter_by_who_decided():
    assert list(passing(image_table(small(), "train", 0), Filter(decider="static")).index) == [0]


@pytest.mark.parametrize("by", SORTS)
def test_sorting(by):
    table = image_table(small(), "train", 0).assign(file=["b", "a", "c"])
    rising, falling = (ordered(table, by, falling=falling) for falling in (False, True))
    column = SORTS[by]
    if column is None:
        assert (list(rising.index), list(falling.index)) == ([0, 1, 2], [2, 1, 0])
    else:
        assert list(rising[column]) == sorted(table[column])
        assert list(falling[column]) == sorted(table[column], reverse=True)


def test_no_cell_is_a_formula():
    trace = small(
        class_names=["@cmd", "bee", "-2"], files={"measured": ["=1+1", "+2", "\tx", 'a "b",\nc'], "learned": []}
    )
    read = pd.read_csv(io.StringIO(export_csv(image_table(trace), trace.class_names, {0: ["=odd", "b"]})), dtype=str)
    assert read["image"].tolist() == ["0", "1", "2", "3"]
    assert read["file"].tolist() == ["'=1+1", "'+2", "'\\tx", 'a "b",\\nc']
    assert read["predicted class"].tolist() == ["'@cmd", "'@cmd", "'-2", "bee"]
    assert read["tags"].fillna("").tolist() == ["'=odd; b", "", "", ""]
    assert read["true class"].fillna("").tolist() == ["'@cmd", "bee", "", "bee"]


def test_nothing_at_all():
    empty = image_table(Trace())
    assert empty.empty
    assert export_csv(empty, (), {}).startswith("image,file,")
    assert passing(empty, Filter(outcome="wrong", text="a", flips=1)).empty


def test_a_margin_that_is_text_is_unknown():
    trace = small()
    trace.predictions["margin"] = "wide"
    assert image_table(trace)["margin"].isna().all()
    assert np.isnan(image_table(trace)["margin"].to_numpy(float)).all()
