"""Embeddings as data: files in and out, methods that can do with them, and files that cannot be used."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import ToyDataset, clusters, make_tiny_backbone

from clipviz.data import load_dataset
from clipviz.data.base import ViewConfig
from clipviz.data.batches.features import FeatureDataset, FeatureLoader, embed_dataset
from clipviz.data.batches.loader import ViewLoader
from clipviz.data.sources.feature_files import write_features
from clipviz.events import EpochFinished, StepFinished
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.training.loop import adapt

SHORT = AdaptConfig(epochs=2, batch_size=32, lr=1e-3)


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def arrays(n=12, n_classes=3, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embeddings": rng.normal(size=(n, width)).astype(np.float32),
        "labels": np.arange(n) % n_classes,
        "classifier": rng.normal(size=(n_classes, width)).astype(np.float32),
        "class_names": np.array([f"bird_{i}" for i in range(n_classes)]),
    }


# ----------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_written_is_read(tmp_path, suffix):
    dataset = clusters(n=9, n_classes=3)
    write_features(tmp_path / f"f{suffix}", dataset)
    read = load_dataset(tmp_path / f"f{suffix}")
    assert torch.equal(read.embeddings, dataset.embeddings)
    assert torch.equal(read.classifier, dataset.classifier)
    assert read.targets.tolist() == dataset.targets.tolist()
    assert (read.class_names, read.logit_scale, read.split) == (("class 0", "class 1", "class 2"), 20.0, "all")
    assert [path.name for path in tmp_path.iterdir()] == [f"f{suffix}"]


def test_a_file_of_others_with_half_floats_and_no_scale(tmp_path):
    content = arrays()
    tensors = {key: torch.from_numpy(content[key]) for key in ("embeddings", "labels", "classifier")}
    tensors["embeddings"] = tensors["embeddings"].half()
    save_file(tensors, tmp_path / "f.safetensors", {"class_names": json.dumps(["a", "b", "c"])})
    read = load_dataset(tmp_path / "f.safetensors")
    assert (read.class_names, read.logit_scale) == (("a", "b", "c"), 100.0)
    assert read.embeddings.dtype == torch.float16
    rows = read.rows(torch.tensor([1, 3]))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def test_embeddings_alone_are_unlabelled_and_need_a_text_tower(tmp_path, tiny_backbone):
    rng = np.random.default_rng(0)
    path = save_npz(tmp_path / "f.npz", embeddings=rng.normal(size=(5, 32)))
    dataset = load_dataset(path, classes=["red square", "green square"])
    assert not dataset.has_targets
    with pytest.raises(ValueError, match="no classifier"):
        dataset.backbone()
    method = METHODS["zero_shot"](dataset.backbone(tiny_backbone), dataset.prompts)
    expected = METHODS["zero_shot"](tiny_backbone, dataset.prompts)
    assert torch.equal(method.classifier, expected.classifier)
    narrow = load_dataset(save_npz(tmp_path / "g.npz", embeddings=np.ones((2, 8))), classes=["a", "b"])
    with pytest.raises(ValueError, match=r"width 8.*gives 32"):
        narrow.backbone(tiny_backbone)


def test_descriptions_are_read_by_the_text_tower_in_place_of_the_classifier(tmp_path, tiny_backbone):
    content = {**arrays(width=32), "class_names": np.array(["a", "b", "c"])}
    path = save_npz(tmp_path / "f.npz", **content)
    described = load_dataset(path, descriptions={name: [f"the letter {name}"] for name in "abc"})
    with pytest.raises(ValueError, match="give the model"):
        described.backbone()
    method = METHODS["descriptions"](described.backbone(tiny_backbone), described.prompts)
    expected = tiny_backbone.embed_text([f"the letter {name}" for name in "abc"])
    torch.testing.assert_close(method.classifier, expected)


def test_a_number_of_rows_is_drawn(tmp_path):
    path = save_npz(tmp_path / "f.npz", **arrays())
    some, same = load_dataset(path, n=5, seed=1), load_dataset(path, n=5, seed=1)
    assert (len(some), len(some.names)) == (5, 5)
    assert torch.equal(some.embeddings, same.embeddings)


BAD = [
    ({"embeddings": np.ones((3, 4), dtype=int)}, "floating-point matrix"),
    ({"embeddings": np.ones(4)}, "floating-point matrix"),
    ({"embeddings": np.ones((0, 4))}, "at least one row"),
    ({"embeddings": np.array([[1.0, 2.0], [np.nan, 1.0]])}, "row 1 of embeddings holds NaN"),
    ({"embeddings": np.array([[1.0, 2.0], [np.inf, 1.0]])}, "row 1 of embeddings holds NaN or infinite"),
    ({"embeddings": np.array([[0.0, 0.0], [1.0, 1.0]])}, "row 0 of embeddings is all zero"),
    ({"embeddings": np.array([[1.0, 1.0], [1e-200, 0.0]])}, "row 1 of embeddings is all zero in float32"),
    (
        {"embeddings": np.array([[1.0, 1.0], [1e200, 0.0]])},
        "holds NaN or infinite numbers in float32; leave such rows out of the file",
    ),
    ({"classifier": np.ones((3, 7))}, "the classifier is 7 wide, embeddings 4; both must come"),
    ({"classifier": np.full((3, 4), np.nan)}, "row 0 of classifier holds NaN"),
    ({"labels": np.arange(12)}, r"labels must be 0\.\.2.*got 0\.\.11"),
    ({"labels": np.full(12, -2)}, r"got -2\.\.-2"),
    ({"labels": np.zeros(5, dtype=int)}, "labels must be 12 integers"),
    ({"labels": np.zeros(12)}, "labels must be 12 integers"),
    ({"class_names": np.array(["a", "b"])}, "2 class names for a classifier with 3 rows"),
    ({"class_names": np.array(["a", "b", "a"])}, "occurs twice"),
    ({"class_names": np.arange(3)}, "list of strings"),
    ({"labels": np.array(["a"] * 12)}, "labels must be an array of numbers.*go into class_names"),
    ({"embeddings": np.array([["1", "2"]])}, "embeddings must be an array of numbers"),
    ({"labels": np.full(12, np.datetime64("2020-01-01"))}, "labels must be an array of numbers"),
    ({"classifier": np.ones((3, 4), complex)}, "classifier must be an array of numbers"),
    ({"logit_scale": np.array(0.0)}, "logit_scale must be positive"),
    ({"logit_scale": np.array(np.inf)}, "logit_scale must be a finite number, got inf"),
]


@pytest.mark.parametrize("scale", ["5", None, [1.0, 2.0]], ids=str)
def test_a_logit_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match="rows: logit_scale must be a finite number, got"):
        FeatureDataset(torch.eye(4), name="rows", classifier=torch.eye(4), logit_scale=scale)


def test_a_classifier_that_is_rows_of_the_embeddings_is_written_as_any_other(tmp_path):
    rows = torch.eye(4)
    write_features(path := tmp_path / "f.safetensors", FeatureDataset(rows, name="rows", classifier=rows[:2]))
    assert torch.equal(load_dataset(path).classifier, rows[:2])


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_files_that_cannot_be_used_are_refused_with_the_reason(tmp_path, changes, message):
    path = save_npz(tmp_path / "f.npz", **{**arrays(), **changes})
    with pytest.raises(ValueError, match=message):
        load_dataset(path)


@pytest.mark.parametrize(
    ("embeddings", "labels"), [("<f4", "u8"), (">f4", ">i4"), (np.longdouble, "u2"), (np.float16, "i1")]
)
def test_numbers_of_every_width_and_byte_order_are_read(tmp_path, embeddings, labels):
    plain = arrays()
    converted = {"embeddings": plain["embeddings"].astype(embeddings), "labels": plain["labels"].astype(labels)}
    dataset = load_dataset(save_npz(tmp_path / "f.npz", **{**plain, **converted}))
    np.testing.assert_allclose(dataset.embeddings, plain["embeddings"], rtol=1e-3)
    assert dataset.targets.tolist() == plain["labels"].tolist()
    assert load_dataset(save_npz(tmp_path / "g.npz", **converted)).class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_of_unknown_names_are_named(tmp_path, suffix):
    content = {key: arrays()[key] for key in ("embeddings", "classifier")} | {"targets": np.zeros(12, int)}
    if suffix == ".npz":
        save_npz(tmp_path / "f.npz", **content)
    else:
        save_file({key: torch.from_numpy(value) for key, value in content.items()}, tmp_path / "f.safetensors")
    with pytest.warns(UserWarning, match="not used: targets; used are embeddings"):
        assert not load_dataset(tmp_path / f"f{suffix}").has_targets


def test_damaged_pickled_and_empty_files_are_refused(tmp_path):
    good = save_npz(tmp_path / "good.npz", **arrays())
    (tmp_path / "short.npz").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickled.npz", embeddings=np.array([{}], dtype=object))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("short.npz", "pickled.npz", "empty.safetensors"):
        with pytest.raises(ValueError, match="cannot read features"):
            load_dataset(tmp_path / name)
    with pytest.raises(ValueError, match=r"damaged or not an \.npz archive"):
        load_dataset(tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"wanted an array 'embeddings'.*holds features"):
        load_dataset(save_npz(tmp_path / "other.npz", features=np.ones((2, 2))))
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        write_features(tmp_path / "f.csv", clusters())


# ----------------------------------------------------------------------------------------------- in a run


@pytest.mark.parametrize("name", ["zero_shot", "tip_adapter", "ntua", "dpa"])
def test_methods_run_on_embeddings_without_a_model(name):
    dataset = clusters(n=90, n_classes=3)
    method = METHODS[name](dataset.backbone(), dataset.prompts)
    events = list(adapt(method, dataset, SHORT, eval_dataset=dataset))
    last = [e for e in events if isinstance(e, EpochFinished)][-1]
    assert last.metrics["accuracy"] > 0.8
    assert last.explanation == {}
    assert events[-1].highlights is None
    assert all(len(e.pseudo.labels) == len(e.target) for e in events if isinstance(e, StepFinished))


@pytest.mark.parametrize("name", ["wca", "microclip", "descriptions"])
def test_methods_that_need_more_refuse_with_the_reason(name):
    dataset = clusters()
    with pytest.raises(ValueError, match=r"embeddings only|no sentences"):
        METHODS[name](dataset.backbone(), dataset.prompts)


def test_embedding_first_gives_the_numbers_of_the_images(tiny_backbone, toy_test):
    method = METHODS["zero_shot"](tiny_backbone, toy_test.prompts)
    features = embed_dataset(tiny_backbone, toy_test, method.classifier)
    on_features = METHODS["zero_shot"](features.backbone(), features.prompts)
    assert features.backbone().logit_scale == pytest.approx(tiny_backbone.logit_scale)
    events = [list(adapt(m, d, eval_dataset=d)) for m, d in ((method, toy_test), (on_features, features))]
    images, rows = (next(e for e in run if isinstance(e, EpochFinished)).predictions for run in events)
    torch.testing.assert_close(images.probs, rows.probs)
    assert torch.equal(images.target, rows.target)


def test_a_model_with_nan_is_told_of_the_model_and_not_of_a_file(toy_test):
    broken = make_tiny_backbone()
    with torch.no_grad():
        broken.visual.proj[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'tiny' gives embeddings that are not finite; its weights hold NaN"):
        embed_dataset(broken, toy_test)


def test_batches_come_in_the_order_of_the_images():
    toy = ToyDataset(n=10)
    dataset = FeatureDataset(torch.eye(10), name="f", targets=torch.from_numpy(toy.targets), class_names=list("abc"))
    images = [batch.index.tolist() for batch in ViewLoader(toy, ViewConfig(8), 4, seed=3).epoch(1)]
    rows = list(FeatureLoader(dataset, 4, seed=3).epoch(1))
    assert [batch.index.tolist() for batch in rows] == images
    assert torch.equal(torch.cat([batch.views.weak for batch in rows]).argmax(1), torch.cat([b.index for b in rows]))


def test_there_are_no_pixels():
    with pytest.raises(ValueError, match="not images"):
        clusters().image(0)


def test_numbers_may_be_of_numpy_or_in_lists():
    embeddings, classifier, labels = np.eye(3, 4), np.eye(2, 4), [0, 1, -1]
    data = FeatureDataset(embeddings, name="mine", targets=labels, classifier=classifier)
    assert torch.equal(data.rows(slice(3)), torch.eye(3, 4))
    assert torch.equal(data.classifier, torch.eye(2, 4, dtype=torch.float64))
    assert data.targets.tolist() == labels
    for name, wrong in {
        "embeddings": [["a"]],
        "labels": ["cat", "dog", "cat"],
        "classifier": [[1.0], [1.0, 2.0]],
    }.items():
        given = {"embeddings": embeddings, {"labels": "targets"}.get(name, name): wrong}
        with pytest.raises(ValueError, match=f"mine: {name} must be an array of numbers"):
            FeatureDataset(name="mine", **given)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_embeddings_of_a_network_are_written_whatever_their_precision(tmp_path, suffix):
    rows = torch.eye(2, 4, dtype=torch.bfloat16, requires_grad=True) * 2
    write_features(tmp_path / f"a{suffix}", FeatureDataset(rows, name="mine", classifier=rows.clone()))
    assert torch.equal(load_dataset(tmp_path / f"a{suffix}").embeddings.float(), 2 * torch.eye(2, 4))
