"""PrototypeExplorer without a browser: one plane for all epochs, from points to images, fifty thousand of them."""

from __future__ import annotations

import base64

import numpy as np
import pandas as pd
from synthetic import synthetic_trace
from widget_helpers import HOSTILE

from clipviz.figures.prototypes import RIGHT, UNKNOWN, WRONG, Scene
from clipviz.trace import Trace
from clipviz.widgets import PrototypeExplorer, SaliencyExplorer, ViewState
from clipviz.widgets.album import Album
from clipviz.widgets.finder import Nearest


def test_the_plane_is_the_same_at_every_epoch_and_exact(run):
    trace = run.trace
    scene = Scene.of(trace)
    vectors = np.concatenate([trace.arrays[f"snapshot/{name}"] for name in list(scene.groups)[:-1]], axis=1).astype(
        float
    )
    points = vectors.reshape(-1, vectors.shape[-1])
    center = points.mean(0)
    directions = np.linalg.svd(points - center, full_matrices=False)[2][:2].T
    images = trace.arrays["embeddings/images"].astype(float)
    expected = (np.concatenate([vectors, images], axis=1) - center) @ directions
    signs = np.sign((expected * scene.places).sum((0, 1)))
    np.testing.assert_allclose(scene.places, expected * signs, atol=1e-5)
    assert list(scene.groups) == ["learned_classifier", "static_classifier", "images"]
    assert scene.places.shape == (4, 3 + 3 + 24, 2)


def test_marks_are_those_of_the_epoch(run):
    scene = Scene.of(run.trace)
    for place in range(4):
        rows = run.trace.predictions.query(f"epoch == {place - 1}").set_index("index")
        is_right = (rows["prediction"] == rows["target"]).reindex(scene.index[scene.is_image])
        np.testing.assert_array_equal(scene.marks[place, scene.is_image], np.where(is_right, RIGHT, WRONG))
    assert (scene.marks[:, ~scene.is_image] == UNKNOWN).all()


def test_a_lasso_shows_its_images_and_their_maps(run):
    explorer = PrototypeExplorer(run.trace, run)
    explorer.scatter.chosen = [0, 10, 12]  # a prototype among them does not count
    ids = [f"eval/{explorer.scene.index[i]}" for i in (10, 12)]
    assert explorer.gallery.ids == ids
    assert explorer.state.selected == (ids[0],)
    assert explorer.count.value == "2 images chosen, 2 shown"
    explorer.gallery.selected = [ids[1]]
    assert explorer.inspector.rows[0].panels[0].title == ids[1]
    assert explorer.inspector.rows[0].panels[1].values is not None


def test_all_images_of_a_large_lasso_are_counted(run):
    explorer = PrototypeExplorer(run.trace, run)
    explorer.scatter.set_state({"n_chosen": 812, "chosen": [10, 12]})  # of which the browser names the first
    assert explorer.count.value == "812 images chosen, 2 shown"
    explorer.scatter.set_state({"n_chosen": 1, "chosen": [0]})  # a prototype
    assert explorer.count.value.startswith(f"{len(explorer.gallery.ids)} image")


def test_a_prototype_shows_the_images_that_are_called_so(run):
    explorer = PrototypeExplorer(run.trace, run)
    predictions = run.trace.predictions.query("epoch == 2")
    label = int(predictions["prediction"].mode()[0])
    explorer.scatter.chosen = [label]
    called = predictions[predictions["prediction"] == label]["index"]
    assert sorted(explorer.gallery.ids) == sorted(f"eval/{index}" for index in called)


def test_chosen_images_are_called_what_they_are_called_at_the_epoch(run):
    explorer = PrototypeExplorer(run.trace, run)
    explorer.scatter.chosen = [int(np.flatnonzero(explorer.scene.is_image)[0])]
    chosen = explorer.state.selected
    for epoch in range(-1, run.trace.final_epoch + 1):
        explorer.state.epoch = epoch
        assert explorer.gallery.captions == [explorer.inspector.album.caption(chosen[0], epoch)]
    assert explorer.state.selected == chosen


def test_pixels_that_the_trace_lacks_are_told(run):
    explorer = PrototypeExplorer(run.trace)
    explorer.scatter.chosen = [int(i) for i in np.flatnonzero(explorer.scene.is_image)]
    assert "are not in the trace; open the run to see them" in explorer.count.value


def test_the_epoch_moves_the_points_and_linked_views(run):
    state = ViewState(epoch=2)
    explorer, other = PrototypeExplorer(run.trace, run, state=state), SaliencyExplorer(run.trace, run, state=state)
    explorer.inspector.epoch.value = -1
    assert explorer.scatter.epoch == -1
    assert explorer.play.value == -1
    assert explorer.scatter.title == "before training"
    assert other.inspector.epoch.value == -1
    before = explorer.picture()
    explorer.play.value = 2
    assert (state.epoch, explorer.inspector.epoch.value, other.inspector.epoch.value) == (2, 2, 2)
    assert explorer.picture() != before


def large_trace(n=50_000, n_epochs=3):
    rng = np.random.default_rng(0)
    trace = synthetic_trace(n_classes=100, epochs=n_epochs - 1, n_images=200, n_eval=200)
    embeddings = rng.normal(size=(n_epochs, n, 32)).astype(np.float16)
    trace.arrays["embeddings/images"] = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    trace.arrays["embeddings/index"], trace.arrays["embeddings/target"] = np.arange(n), np.arange(n) % 100
    rows = [
        {"epoch": epoch, "index": np.arange(n), "prediction": np.arange(n) % 97, "confidence": np.float32(0.5),
         "target": np.arange(n) % 100}
        for epoch in range(-1, n_epochs - 1)
    ]  # fmt: skip
    trace.predictions = pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)
    return trace


def test_images_that_were_not_measured_stand_where_they_were_last_seen():
    whole, some = large_trace(4, 4), large_trace(4, 4)  # as of 200,000 images: before and after training only
    some.predictions = some.predictions[some.predictions["epoch"].isin((-1, 2))]
    some.arrays["embeddings/images"] = some.arrays["embeddings/images"][[0, 3]]
    (seen, known), is_image = (Scene.of(trace).places for trace in (some, whole)), Scene.of(some).is_image
    np.testing.assert_array_equal(seen[:, is_image], known[[0, 0, 0, 3]][:, is_image])
    nearest = Nearest(Album(some))
    for epoch, row in ((-1, 0), (1, 0), (2, 1)):
        np.testing.assert_array_equal(nearest._recorded(epoch)["eval/3"], some.arrays["embeddings/images"][row, 3])


def test_fifty_thousand_points_are_sent_once(monkeypatch):
    explorer = PrototypeExplorer(large_trace())
    assert len(explorer.scatter.places) == 3 * 50_200 * 2 * 4
    sent = set()
    monkeypatch.setattr(
        explorer.scatter, "send_state", lambda key=None: sent.update([key] if isinstance(key, str) else key)
    )
    for epoch in (-1, 0, 1):
        explorer.inspector.epoch.value = epoch
    explorer.scatter.chosen = list(range(200, 700))
    assert sent <= {"epoch", "title", "chosen"}  # an epoch is a number, a lasso is five hundred
    assert {"epoch", "title"} <= sent
    assert 5_000 < len(explorer.picture()) <= 60_000
    assert "50000 images" in explorer.alt


def test_bundle_has_a_picture_and_a_text_that_never_changes():
    explorer = PrototypeExplorer(synthetic_trace(n_classes=8, epochs=2, n_images=40, n_eval=30))
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "PrototypeExplorer(microCLIP)"
    assert 8_000 < len(base64.b64decode(data["image/jpeg"])) <= 60_000
    assert "16 prototypes" in metadata["image/jpeg"]["alt"]


def test_hostile_names_no_labels_and_nothing_at_all():
    names = [f"{HOSTILE} {i}" for i in range(500)]
    trace = synthetic_trace(epochs=1, n_images=50, n_eval=50, class_names=names, labelled=False)
    explorer = PrototypeExplorer(trace)
    assert all(len(name) <= 60 and "\n" not in name for name in explorer.scatter.names)
    assert not explorer.scene.marks.any()
    assert len(explorer.picture()) > 5_000
    empty = PrototypeExplorer(Trace())
    assert empty.scatter.places == b""
    assert len(empty.picture()) > 1_000


def test_nonsense_from_the_browser_is_ignored(run):
    explorer = PrototypeExplorer(run.trace, run)
    explorer.scatter.chosen = [10**9, -5]
    assert explorer.gallery.ids == []
