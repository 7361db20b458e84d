"""CompareExplorer without a browser: the cells list their images, both runs are shown, and the timelines say why."""

from __future__ import annotations

import base64

import pandas as pd
import pytest
from synthetic import synthetic_trace
from widget_helpers import HOSTILE

from clipviz.figures.compare import timeline_info
from clipviz.widgets import CompareExplorer


def two(**options):
    sizes = {"n_classes": 6, "epochs": 3, "n_images": 60, "n_eval": 60}
    first = synthetic_trace(**sizes | options)
    second = synthetic_trace(**sizes | options, method="dpa", skill=0.8)
    second.predictions["target"] = first.predictions["target"].to_numpy()
    return [first, second]


def test_cells_list_their_images_and_both_runs_say_what_they_see():
    traces = two()
    view = CompareExplorer(traces)
    one, other = (trace.predictions.query("epoch == 2").set_index("index") for trace in traces)
    only_a = (one["prediction"] == one["target"]) & (other["prediction"] != one["target"])
    view.cells["only a right"].value = True
    assert sorted(view._ids) == sorted(f"eval/{index}" for index in one.index[only_a])
    assert view.cells["only a right"].description == f"only a: {only_a.sum()}"
    assert not view.cells["all"].value
    view.gallery.selected = [view.shown[0]]
    first, second = view.inspector.rows
    index = int(view.shown[0].split("/")[1])
    assert first.title.startswith("microCLIP, epoch 2: ✓ ")
    assert second.title.startswith("DPA, epoch 2: ✗ ")
    assert f"{other.loc[index, 'confidence']:.2f}" in second.title
    view.state.method = "DPA"  # chosen in a linked view
    assert len(view.inspector.rows) == 2
    view.cells["only a right"].value = False
    assert view.cells["all"].value
    assert len(view._ids) == 60


def test_timelines_show_the_epochs_of_both_runs():
    traces = two()
    for trace in traces:
        trace.meta["accuracy_is"] = "transductive"
    view = CompareExplorer(traces)
    view.state.selected = ("eval/4",)
    for canvas, trace in zip(view.timelines, traces, strict=True):
        info = timeline_info(trace, "eval/4")
        bars = pd.DataFrame({line["name"]: line["y"] for line in canvas.spec["series"]})
        assert bars.sum(axis=1).tolist() == pytest.approx(info.confidence, abs=1e-3)
        assert (bars > 0).sum(axis=1).tolist() == [1, 1, 1, 1]
        assert len(canvas.spec["marks"]) == len(info.turns())


def test_training_images_are_compared_by_their_pseudo_labels():
    traces = two()
    traces[1].samples["target"] = traces[0].samples["target"].to_numpy()
    view = CompareExplorer(traces)
    view.split.value = "train"
    one, other = (trace.samples.query("epoch == 2").set_index("index") for trace in traces)
    both = (one["pseudo_label"] == one["target"]) & (other["pseudo_label"] == one["target"])
    assert view.info.cells["both right"] == both.sum()
    view.state.selected = ("train/4",)
    names = [{line["name"] for line in canvas.spec["series"]} for canvas in view.timelines]
    assert names[0] <= {"all agree", "only static", "only dynamic", "neither"}
    assert names[1] <= {"all agree", "only text", "only image", "neither"}
    view.state.epoch = -1
    assert view._ids == [], "there are no pseudo-labels before training"


def test_the_epoch_turns_the_table():
    view = CompareExplorer(two())
    after = dict(view.info.cells)
    view.state.epoch = -1
    assert view.info.cells != after
    assert sum(view.info.cells.values()) == 60


def test_without_labels_they_agree_or_differ():
    view = CompareExplorer(two(labelled=False))
    assert set(view.info.cells) == {"agree", "differ"}
    view.cells["differ"].value = True
    assert len(view._ids) == view.info.cells["differ"]
    assert not any("✗" in row.title or "✓" in row.title for row in view.inspector.rows)
    assert list(view.cells) == ["all", "agree", "differ"]


def test_a_list_names_both_runs(tmp_path):
    view = CompareExplorer(two())
    view.finder.file.value = str(tmp_path / "both.csv")
    view.finder.export()
    read = pd.read_csv(tmp_path / "both.csv")
    assert len(read) == 60
    assert read["cell"].value_counts().to_dict() == {cell: n for cell, n in view.info.cells.items() if n}
    assert read["DPA: predicted class"].isin(view.inspector.album.trace.class_names).all()


def test_folders_and_runs(make_run, tmp_path):
    run, other = make_run(), make_run(method="dpa")
    run.fit().save(tmp_path / "trace")
    with pytest.warns(UserWarning, match="holds no checkpoint.safetensors"):
        view = CompareExplorer([tmp_path, run])
    assert view.info.cells["only a right"] == 0
    other.fit()
    view = CompareExplorer([run, other])
    view.state.selected = ("eval/3",)
    assert [row.title.split(",")[0] for row in view.inspector.rows] == ["microCLIP", "DPA"]
    assert view.inspector.rows[0].panels[1].values is not None


def test_what_cannot_be_compared_is_refused():
    traces = two()
    with pytest.raises(ValueError, match="two runs are compared, got 1"):
        CompareExplorer(traces[:1])
    with pytest.raises(ValueError, match="two runs are compared, got 'runs/dpa'; give two"):
        CompareExplorer("runs/dpa")
    traces[1].meta["eval_data"] = "birds/night"
    with pytest.raises(ValueError, match="compare runs on the same"):
        CompareExplorer(traces)


def test_bundle_and_hostile_names():
    view = CompareExplorer(two(class_names=[f"{HOSTILE} {i}" for i in range(6)]))
    data, metadata = view._repr_mimebundle_()
    assert data["text/plain"] == "CompareExplorer(microCLIP, DPA)"
    assert 8_000 < len(base64.b64decode(data["image/jpeg"])) <= 60_000
    assert "\n" not in metadata["image/jpeg"]["alt"]
    for canvas in view.timelines:
        assert all(len(text) < 40 and "\n" not in text for _, text in canvas.spec["marks"])
