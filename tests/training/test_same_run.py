"""`--resume` goes on with the same run only: what differs in data, texts, probe or settings is named, and refused."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import ToyDataset, assert_same_bits, clusters, make_tiny_backbone, method_state

from clipviz.cli import main as cli
from clipviz.data import DiskCache, FeatureDataset, load_dataset
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import DPA
from clipviz.methods.zero_shot import ZeroShot
from clipviz.training.checkpoint import _digest, load_weights
from clipviz.training.evaluate import spread_probe
from clipviz.training.run import CHECKPOINT, Run


def paint(path, seed, size=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes of which each image is called as one of the other."""
    for split in ("train", "test"):
        for i in range(6):
            paint(tmp_path / "photos" / split / f"class {i % 2}" / f"{i // 2}.png", (i, len(split)))
    return tmp_path / "photos"


def make_run(folder, data, evaluation=None, probe=None, **options):
    if isinstance(data, FeatureDataset):
        return Run(ZeroShot(data.backbone(), data.prompts), data, eval_dataset=evaluation or data, folder=folder)
    method = ZeroShot(make_tiny_backbone(), data.prompts)
    return Run(method, data, eval_dataset=evaluation, probe=probe, folder=folder, **options)


def of_folder(folder, photos, **options):
    return make_run(folder, *(load_dataset(photos, split, **options) for split in ("train", "test")))


def replace_all(photos):
    for i, path in enumerate(sorted(photos.glob("train/*/*.png"))):
        paint(path, 100 + i)


def rename(one, other):
    return lambda photos: (photos / one).rename(photos / other)


def swap(photos):
    for split in ("train", "test"):
        for one, other in (("class 0", "x"), ("class 1", "class 0"), ("x", "class 1")):
            (photos / split / one).rename(photos / split / other)


CHANGES = {
    "all replaced": (replace_all, r"data differs in contents;"),
    "one pixel": (lambda photos: paint(photos / "test/class 0/1.png", 9), r"evaluation data differs in contents;"),
    "moved": (
        rename("train/class 0/1.png", "train/class 1/9.png"), r"data differs in image names, labels, contents;"
    ),
    "swapped": (swap, r"data differs in contents;"),
    "renamed": (rename("test/class 1/0.png", "test/class 1/00.png"), "evaluation data differs in image names"),
    "one fewer": (
        lambda photos: (photos / "test/class 1/0.png").unlink(),
        r"evaluation data differs in number of images \(was 6, now 5\), image names, labels, contents;",
    ),
    "damaged": (
        lambda photos: (photos / "test/class 1/0.png").write_bytes(b"x"), r"evaluation data differs in number of images"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_and_named(photos, tmp_path, change):
    of_folder(tmp_path / "run", photos).fit()
    happens, complaint = CHANGES[change]
    happens(photos)
    with pytest.raises(ValueError, match=rf"belongs to another run: (n_images|{complaint})"):
        of_folder(tmp_path / "run", photos).restore()


@pytest.mark.parametrize("kind", ["moved", "touched", "copied"])
def test_the_same_images_elsewhere_or_newer_are_the_same(photos, tmp_path, kind):
    of_folder(tmp_path / "run", photos).fit()
    place = tmp_path / "elsewhere" / "called otherwise" if kind != "touched" else photos
    if kind == "moved":
        place.parent.mkdir()
        photos.rename(place)
    elif kind == "copied":
        shutil.copytree(photos, place)
    for path in place.glob("*/*/*.png"):
        os.utime(path, (1, 1))
    assert of_folder(tmp_path / "run", place).restore()


def test_images_that_a_cache_made_smaller_are_others(photos, tmp_path):
    of_folder(tmp_path / "run", photos, disk_cache=DiskCache(tmp_path / "cache", side=16)).fit()
    assert of_folder(tmp_path / "run", photos, disk_cache=DiskCache(tmp_path / "other", side=16)).restore()
    with pytest.raises(ValueError, match="data differs in contents"):
        of_folder(tmp_path / "run", photos).restore()


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"evaluation": ToyDataset(9, seed=2, split="test")}, "evaluation data differs in contents"),
        ({"evaluation": ToyDataset(12, seed=1, split="test")}, r"evaluation data differs in number of images \(was 9"),
        ({"evaluation": ToyDataset(9, seed=1, split="test", labelled=False)}, "evaluation data differs in labels"),
        ({"evaluation": None}, "evaluation data was given, now it is None"),
        ({"data": ToyDataset(9, seed=3)}, "data differs in contents"),
        ({"probe": torch.zeros(2, 3, 32, 32)}, "probe was"),
        ({"probe": None}, "probe was .*, now it is None"),
    ],
)
def test_other_data_of_ones_own_are_refused(tmp_path, other, complaint):
    test = ToyDataset(9, seed=1, split="test")
    same = {"data": ToyDataset(9), "evaluation": test, "probe": spread_probe(test, 32, 3)}
    make_run(tmp_path, **same).fit()
    assert make_run(tmp_path, **same).restore()
    with pytest.raises(ValueError, match=rf"belongs to another run: {complaint}"):
        make_run(tmp_path, **{**same, **other}).restore()


def test_a_trace_of_another_run_beside_the_checkpoint_is_refused(tmp_path):
    make_run(tmp_path / "own", ToyDataset(9)).fit()
    make_run(tmp_path / "other", ToyDataset(9), seed=1).fit()
    shutil.rmtree(tmp_path / "own" / "trace")
    shutil.copytree(tmp_path / "other" / "trace", tmp_path / "own" / "trace")
    with pytest.raises(ValueError, match=r"is of another run than the trace beside it: seed was 1, now it is 0; put"):
        make_run(tmp_path / "own", ToyDataset(9)).restore()


@pytest.mark.parametrize("kind", ["embeddings", "labels", "classifier", "scale"])
def test_other_embeddings_are_refused_and_a_file_may_move(tmp_path, kind):
    def features(name="a", changed=None):
        data = clusters(30)
        data.name = name
        if changed == "labels":
            data.targets[3] = 0
        elif changed == "scale":
            data.logit_scale = 30.0
        elif changed:
            getattr(data, changed)[-1, 3] += 1e-3
        return data

    make_run(tmp_path, features()).fit()
    assert make_run(tmp_path, features("b")).restore()
    with pytest.raises(ValueError, match=r"data differs in (labels|contents);|frozen weights was"):
        make_run(tmp_path, features(changed=kind)).restore()


@pytest.mark.parametrize("other", [{"seed": 1}, {"severity": 0.5}, {"n": 12}])
def test_other_birds_are_refused(tmp_path, other):
    bird = load_dataset("birds/fog", "test", n=24)
    make_run(tmp_path, bird).fit()
    assert make_run(tmp_path, load_dataset("birds/fog", "test", n=24)).restore()
    for domain in ("birds/fog", "birds/night")[: 1 + ("seed" in other)]:
        with pytest.raises(ValueError, match=r"belongs to another run: (data|n_images)"):
            make_run(tmp_path, load_dataset(domain, "test", **{"n": 24, **other})).restore()


def test_a_label_of_a_table_is_a_part_of_it(photos, tmp_path):
    table = tmp_path / "photos" / "table.csv"

    def written(first):
        rows = [f"train/class 0/{i}.png,{label}" for i, label in enumerate((first, "a", "b"))]
        table.write_text("\n".join(["path,label", *rows]))
        return make_run(tmp_path / "run", load_dataset(table))

    written("a").fit()
    assert written("a").restore()
    with pytest.raises(ValueError, match="data differs in labels;"):
        written("b").restore()


def rewritten(path, **changes):
    """A checkpoint whose metadata are others, as another version would have written it."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["digest"]
    metadata.update(changes)
    metadata["digest"] = _digest(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def test_other_versions_are_told_in_one_line_and_an_older_format_is_refused(tmp_path):
    make_run(tmp_path, ToyDataset(6)).fit()
    with safe_open(tmp_path / CHECKPOINT, "pt") as file:
        versions = json.loads(file.metadata()["versions"])
    rewritten(tmp_path / CHECKPOINT, versions=json.dumps({**versions, "torch": "1.0"}))
    with pytest.warns(UserWarning, match=r"was written by torch 1\.0 \(now .*\): last digits may differ"):
        assert make_run(tmp_path, ToyDataset(6)).restore()
    rewritten(tmp_path / CHECKPOINT, format="clipviz-checkpoint-2")
    with pytest.raises(ValueError, match=r"of another version of clipviz \(clipviz-checkpoint-2\); use another folder"):
        make_run(tmp_path, ToyDataset(6)).restore()


def test_the_command_line_refuses_in_one_line_and_says_other_versions(photos, tmp_path, capfd):
    def adapt(*more, images=photos):
        # fmt: off
        arguments = ["adapt", "zero_shot", "--model", "birds", "--data", str(images / "train"), "--out",
                     str(tmp_path / "run"), *map(str, more)]
        # fmt: on
        return cli.main(arguments), capfd.readouterr().err

    assert adapt("--eval-data", photos / "test")[0] == 0
    shutil.copytree(photos / "test", tmp_path / "other")
    paint(tmp_path / "other" / "class 1" / "2.png", 50)
    status, error = adapt("--eval-data", tmp_path / "other", "--resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "belongs to another run: evaluation data differs in contents; use the same" in error
    photos.rename(tmp_path / "moved")
    rewritten(tmp_path / "run" / CHECKPOINT, versions="{}")
    status, error = adapt("--eval-data", tmp_path / "moved" / "test", "--resume", images=tmp_path / "moved")
    assert (status, error.count("\n")) == (0, 1)
    assert "was written by" in error


def test_what_was_learned_can_be_had_without_the_data(tmp_path):
    data = ToyDataset(12)
    learned = DPA(make_tiny_backbone(), data.prompts)
    Run(learned, data, AdaptConfig(epochs=1, batch_size=6), folder=tmp_path).fit()
    fresh = DPA(make_tiny_backbone(), data.prompts)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(fresh.eval().logits(images), learned.eval().logits(images))
        load_weights(tmp_path / CHECKPOINT, fresh)
        assert torch.equal(fresh.logits(images), learned.logits(images))
    for other, complaint in (
        (ZeroShot(make_tiny_backbone(), data.prompts), "method was 'dpa', now it is 'zero_shot'"),
        (DPA(make_tiny_backbone(seed=1), data.prompts), "frozen weights was"),
    ):
        with pytest.raises(ValueError, match=complaint):
            load_weights(tmp_path / CHECKPOINT, other)


@pytest.mark.parametrize("name", ["ntua", "tip_adapter", "dpa", "tda"])
def test_rows_of_a_feature_file_are_in_no_checkpoint_and_the_run_goes_on_to_the_same_bits(name, tmp_path):
    data, build = clusters(), METHODS[name]

    def run(folder):
        method = build(data.backbone(), data.prompts)
        return Run(method, data, config=AdaptConfig(epochs=3, batch_size=16), folder=tmp_path / folder)

    whole, part, rest = run("whole"), run("part"), run("part")
    whole.fit()
    part.listeners.append(lambda event: part.stop() if getattr(event, "step", 0) == 4 else None)
    part.fit()
    assert rest.restore() or name == "tip_adapter"  # which has one epoch and is over before it can be stopped
    rest.fit()
    assert_same_bits(method_state(whole.method), method_state(rest.method))
    kept = load_file(tmp_path / "part" / CHECKPOINT)
    assert build.rows_of_data.keys() <= method_state(whole.method).keys()
    assert not {f"method/{buffer}" for buffer in build.rows_of_data} & kept.keys()
    fresh = build(data.backbone(), data.prompts)
    load_weights(tmp_path / "part" / CHECKPOINT, fresh)
    assert torch.equal(fresh.logits(data.rows(slice(9))), whole.method.logits(data.rows(slice(9))))
