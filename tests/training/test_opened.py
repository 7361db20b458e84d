"""A run folder opened again: everything from the folder alone, or one sentence that says what cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import ToyDataset, assert_same_bits, clusters, make_tiny_backbone, microclip
from torch import Tensor

import clipviz
from clipviz import METHODS, AdaptConfig, ClassPrompts, Run, load_backbone, load_dataset
from clipviz.backbone import Backbone
from clipviz.cli import main as cli
from clipviz.data import DiskCache, Views
from clipviz.data.sources.feature_files import write_features
from clipviz.events import EpochFinished, PseudoLabels, StepFinished
from clipviz.methods.base import Method, guesses, prompt_sentences, text_classifier, unfreeze_norms
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.ops import class_logits
from clipviz.training.evaluate import evaluation_inputs, predict, probe_images
from clipviz.training.run_folder import kept_weights

CONFIG = AdaptConfig(epochs=2, batch_size=8, lr=1e-3)


def says_what_the_trace_says(run) -> bool:
    """Whether the model of an epoch gives the confidences that were recorded, bit by bit."""
    epoch = run.trace.final_epoch if run.epoch is None else run.epoch
    rows = run.trace.predictions[run.trace.predictions["epoch"] == epoch]
    probs = predict(run.method, evaluation_inputs(run.method, run.eval_data)).probs
    return np.array_equal(probs.amax(-1).numpy(), rows["confidence"]) and len(rows) > 0


@pytest.fixture(scope="module")
def birds():
    return load_backbone("birds"), load_dataset("birds/fog", "train", n=16), load_dataset("birds/fog", "test", n=12)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run of the command line on a folder of images, which it is measured on as well."""
    place = tmp_path_factory.mktemp("photos")
    toy = ToyDataset(12)
    for i, target in enumerate(toy.targets):
        folder = place / "images" / toy.class_names[target]
        folder.mkdir(parents=True, exist_ok=True)
        toy.image(i).save(folder / f"{i}.png")
    command = ["adapt", "microclip", "--model", "birds", "--data", str(place / "images"), "--out", str(place / "run")]
    assert cli.main([*command, "--epochs", "2", "--batch-size", "6", "--set", "crops=2", "--set", "gamma=0.3"]) == 0
    return place


@pytest.fixture
def moved(photos, tmp_path):
    """The same, to be damaged: the run and its images lie at another place."""
    shutil.copytree(photos, tmp_path / "there")
    return tmp_path / "there"


def all_of(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.stat() for path in [folder, *folder.rglob("*")]}
    return {name: (state.st_mtime_ns, state.st_size) for name, state in found.items()}


# ------------------------------------------------------------------------------------------------- what opens


@pytest.mark.parametrize("name", METHODS)
def test_every_method_opens_with_the_weights_of_every_epoch_to_the_bit(birds, tmp_path, name):
    backbone, data, test = birds
    run = Run(METHODS[name](backbone, data.prompts), data, CONFIG, eval_dataset=test, folder=tmp_path)
    run.fit()
    before = all_of(tmp_path)
    opened = clipviz.open(tmp_path)
    assert says_what_the_trace_says(opened)
    images = probe_images(test, np.arange(6), backbone.image_size).images
    assert torch.equal(opened.method.logits(images), run.method.logits(images))
    assert opened.method.config == run.method.config
    assert opened.method.settings == run.method.settings
    assert opened.epochs == ((-1, 0, 1) if run.adaptation.evolves else (-1, 0))
    assert all(says_what_the_trace_says(opened.at(epoch)) for epoch in opened.epochs)
    assert (len(opened.data), len(opened.eval_data)) == (16, 12)
    assert all_of(tmp_path) == before


def test_questions_about_all_epochs_share_one_model_in_memory(birds, tmp_path):
    backbone, data, test = birds
    Run(METHODS["dpa"](backbone, data.prompts), data, CONFIG, eval_dataset=test, folder=tmp_path).fit()
    opened = clipviz.open(tmp_path, epoch=-1)
    pixels = opened.model_probe.pixels("eval", 3)
    for epoch in (1, -1, 0, 1, -1):
        rows = opened.trace.predictions[opened.trace.predictions["epoch"] == epoch]
        confidence = opened.at(epoch).model_probe.probs(pixels).max()
        assert confidence == pytest.approx(rows.set_index("index")["confidence"][3], rel=1e-4)
    maps = [opened.at(epoch).model_probe.saliency(pixels, "cls_attention") for epoch in (-1, 1)]
    assert not np.array_equal(*maps)
    assert opened.at(0).data is opened.data
    assert opened.at(0).model_probe._method is opened.model_probe._method


def test_a_run_of_the_command_line_opens(photos):
    opened = clipviz.open(photos / "run")
    assert opened.config["settings"]["method"]["gamma"] == 0.3
    assert opened.method.config.gamma == 0.3
    assert says_what_the_trace_says(opened)
    assert opened.eval_data is opened.data  # it is measured on what it learns from
    assert repr(opened).startswith("OpenedRun(Trace(microclip on ")


def test_the_trace_opens_without_torch(photos):
    code = f"import sys, clipviz; run = clipviz.open({str(photos / 'run')!r}); run.trace.probe; run.config; run.folder"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def test_constants_that_changed_on_the_way_are_those_of_the_epoch(birds, tmp_path):
    backbone, data, test = birds
    method = METHODS["microclip"](backbone, data.prompts)
    run = Run(method, data, CONFIG, eval_dataset=test, folder=tmp_path)
    change = lambda event: run.set(rho=0.9) if isinstance(event, EpochFinished) and event.epoch == 0 else None  # noqa: E731
    run.listeners.append(change)
    run.fit()
    opened = clipviz.open(tmp_path)
    assert (opened.method.config.rho, opened.at(0).method.config.rho) == (0.9, 0.5)
    assert says_what_the_trace_says(opened)
    assert says_what_the_trace_says(opened.at(0))


def test_a_benchmark_is_found_again_from_everywhere(tmp_path, monkeypatch):
    """Where it lay by default is a folder of the place where clipviz was started."""
    place = tmp_path / "data" / "dtd" / "dtd"
    for part in ("images/banded", "labels"):
        (place / part).mkdir(parents=True)
    for name in ("1", "2"):
        ToyDataset(1).image(0).save(place / "images" / "banded" / f"{name}.jpg")
    for split in ("train1", "val1", "test1"):
        (place / "labels" / f"{split}.txt").write_text("banded/1.jpg\nbanded/2.jpg\n")
    monkeypatch.delenv("CLIPVIZ_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    data = load_dataset("dtd", "train")
    assert (data.origin["spec"], data.origin["root"]) == ("dtd", str(tmp_path / "data"))
    monkeypatch.chdir("/")
    assert load_dataset(**data.origin).identity == data.identity


@pytest.mark.parametrize("with_classifier", [True, False])
def test_files_of_embeddings_open_with_their_classes_or_a_text_tower(tmp_path, with_classifier):
    width = 16 if with_classifier else 512
    features = clusters(60, 3, width) if with_classifier else clusters(60, 3, load_backbone("birds").embed_dim)
    if not with_classifier:
        features.classifier = None
        features.class_names = ("a red cap", "a blue wing", "a long tail")
    write_features(tmp_path / "rows.npz", features)
    command = ["adapt", "dpa", "--data", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "run"), "--epochs", "2"]
    assert cli.main(command + ([] if with_classifier else ["--model", "birds"])) == 0
    opened = clipviz.open(tmp_path / "run")
    assert says_what_the_trace_says(opened)
    assert says_what_the_trace_says(opened.at(-1))
    view = clipviz.CompareExplorer([opened, tmp_path / "run"])
    assert view.info.cells["both right"] + view.info.cells["neither right"] == len(view.info.table) > 0
    assert view.inspector.kinds == {}, "there is nothing to look at, and nothing to refuse"
    assert clipviz.explore(tmp_path / "run").alt
    view.close()
    (tmp_path / "rows.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(ValueError, match=r"no such file of embeddings.*if the images moved, give it: clipviz\.open\("):
        _ = clipviz.open(tmp_path / "run").data
    assert says_what_the_trace_says(clipviz.open(tmp_path / "run", data=tmp_path / "moved.npz"))


def test_prompts_of_a_methods_own_and_images_chosen_by_label_are_had_again(birds, tmp_path):
    backbone, _, test = birds
    data = load_dataset("birds/fog", "train", n=32)
    prompts = ClassPrompts(data.class_names, ("a bird, {}.",))
    config = NtUAConfig(shots=2, views=2, selection="oracle_balanced", allow_labels=True)
    index = torch.arange(24)
    method = NtUA(backbone, prompts, config, oracle_index=index)
    Run(method, data, CONFIG, eval_dataset=test, folder=tmp_path).fit()
    opened = clipviz.open(tmp_path)
    assert opened.method.prompts == prompts
    assert says_what_the_trace_says(opened)


class Entropy(Method):
    """A method that is not of clipviz."""

    name = "entropy"

    def __init__(self, backbone: Backbone, prompts: ClassPrompts) -> None:
        super().__init__(backbone, prompts)
        self.register_buffer("classifier", text_classifier(backbone, prompt_sentences(prompts, "templates")))
        unfreeze_norms(self.backbone.visual)

    def logits(self, images: Tensor) -> Tensor:
        return class_logits(self.backbone.embed(images), self.classifier, self.backbone.logit_scale)

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        logits = self.logits(views.weak)
        return guesses(logits.softmax(-1), {"model": logits})

    def loss(self, views: Views, pseudo: PseudoLabels) -> dict[str, Tensor]:
        return {"entropy": torch.special.entr(self.logits(views.weak).softmax(-1)).sum(-1).mean()}


def test_what_was_made_by_hand_is_asked_for_and_taken(tmp_path):
    backbone, data, test = make_tiny_backbone(), ToyDataset(20), ToyDataset(9, seed=1, split="test")
    Run(Entropy(backbone, data.prompts), data, CONFIG, eval_dataset=test, folder=tmp_path).fit()
    opened = clipviz.open(tmp_path)
    assert opened.trace.final_epoch == 1
    for part, said in (
        (
            "data",
            r"the data of this run, 'toy', was not loaded by load_dataset; give it: clipviz\.open\(.*, data=\.\.\.",
        ),
        ("eval_data", r"the evaluation data of this run, 'toy', was not loaded .* eval_data=\.\.\."),
        ("backbone", r"the model of this run, 'tiny', was not loaded by load_backbone; give it: .* model=\.\.\."),
        ("method", r"'entropy' is not a method of clipviz; give it: .*method=\.\.\.\), its class"),
    ):
        with pytest.raises(ValueError, match=said):
            getattr(opened, part)
    given = {"data": data, "eval_data": test, "model": make_tiny_backbone(), "method": Entropy}
    whole = clipviz.open(tmp_path, **given)
    assert says_what_the_trace_says(whole)
    assert whole.data is data
    with pytest.raises(ValueError, match="has other weights than asked for: frozen weights was"):
        _ = clipviz.open(tmp_path, **{**given, "model": make_tiny_backbone(seed=1)}).method


def test_a_subclass_with_the_name_of_its_parent_does_not_open_as_its_parent(tmp_path):
    class Mine(METHODS["zero_shot"]):
        pass

    given = {"model": make_tiny_backbone(), "data": ToyDataset(6)}
    Run(Mine(given["model"], given["data"].prompts), given["data"], folder=tmp_path).fit()
    with pytest.raises(ValueError, match=r"'Mine' is not a method of clipviz; give it: .*method=\.\.\.\), its class"):
        _ = clipviz.open(tmp_path, **given).method
    assert type(clipviz.open(tmp_path, **given, method=Mine).method) is Mine
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("method_class") == "Mine"
    (tmp_path / "config.json").write_text(json.dumps(config))  # as earlier versions wrote it
    assert type(clipviz.open(tmp_path, **given).method) is METHODS["zero_shot"]


# ------------------------------------------------------------------------------------------------- what changed


def test_images_that_moved_are_named_and_taken_from_their_new_place(moved):
    opened = clipviz.open(moved / "run")
    assert says_what_the_trace_says(clipviz.open(moved / "run", data=moved / "images"))
    config = json.loads((moved / "run" / "config.json").read_text())
    meta_spec = config["origins"]["data"]["spec"]
    shutil.move(meta_spec, f"{meta_spec}.away")
    try:
        with pytest.raises(ValueError, match=r"no such folder: .*; if the images moved, give it: .*data=\.\.\."):
            _ = opened.data
        assert opened.method.logits(torch.zeros(1, 3, 64, 64)).shape == (1, 3)  # the model wants no images
        with pytest.warns(UserWarning, match="no such folder"):
            assert opened.model_probe.has("eval", 0) is False
    finally:
        shutil.move(f"{meta_spec}.away", meta_spec)


@pytest.mark.parametrize("kind", ["a cache", "its folder"])
def test_images_that_a_cache_made_smaller_are_as_small_again_without_it(tmp_path, kind):
    places = {"a cache": DiskCache(tmp_path / "cache", side=16), "its folder": tmp_path / "cache"}
    (tmp_path / "images").mkdir()
    ToyDataset(1).image(0).resize((1200, 900)).save(tmp_path / "images" / "large.png")
    data = load_dataset(tmp_path / "images", classes=["square"], disk_cache=places[kind])
    backbone = make_tiny_backbone()
    Run(METHODS["zero_shot"](backbone, data.prompts), data, eval_dataset=data, folder=tmp_path / "run").fit()
    shutil.rmtree(tmp_path / "cache")
    opened = clipviz.open(tmp_path / "run", model=backbone)
    for found in (opened.data, opened.eval_data):
        assert found.image(0).size == data.image(0).size != (1200, 900)
        assert found.image(0).tobytes() == data.image(0).tobytes()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda images: next(images.rglob("*.png")).unlink(), r"number of images \(was 12, now 11\), image names"),
        (lambda images: (images / "red square" / "0.png").rename(images / "red square" / "x.png"), "image names"),
        (lambda images: ToyDataset(1, seed=9).image(0).save(images / "red square" / "0.png"), "contents"),
        (lambda images: (images / "blue square").rename(images / "cyan square"), "class names"),
    ],
    ids=["fewer", "renamed", "other pixels", "another class"],
)
def test_images_that_changed_since_are_refused_with_what_differs(moved, damage, said):
    damage(moved / "images")
    opened = clipviz.open(moved / "run", data=moved / "images")
    with pytest.raises(ValueError, match=rf"has changed since this run: data differs in .*{said}.*; give it: "):
        _ = opened.data
    assert opened.trace.final_epoch == 1


def test_a_config_that_was_altered_is_refused_and_the_trace_shown(moved):
    path = moved / "run" / "config.json"
    good = path.read_text()

    def altered(change) -> clipviz.training.opened.OpenedRun:
        config = json.loads(good)
        change(config)
        path.write_text(json.dumps(config))
        return clipviz.open(moved / "run", data=moved / "images")

    def said(run, part) -> str:
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            getattr(run, part)
        assert run.trace.final_epoch == 1
        return str(caught.value)

    gamma = altered(lambda config: config["settings"]["method"].update(gamma=0.9))
    assert "and the trace beside it differ in settings; only what the trace holds can be shown" in said(gamma, "method")
    evil = altered(lambda config: config["origins"]["model"].update(name="hf-hub:evil/model"))
    assert "and the trace beside it differ in origins" in said(evil, "method")
    words = altered(lambda config: config["prompts"].update(templates=["a bad {}."]))
    assert "are not those that the run was made with" in said(words, "method")
    shape = altered(lambda config: config.update(prompts=[1]))
    assert "the prompts in" in said(shape, "method")
    for text in ("", "[]", "{", "[" * 100_000, '{"seed": NaN}', "\x00"):
        path.write_text(text)
        assert "only what the trace holds can be shown" in said(clipviz.open(moved / "run"), "config")
    path.unlink()
    assert "config.json: cannot be read (No such file or directory)" in said(clipviz.open(moved / "run"), "data")


def test_weights_that_were_altered_or_not_kept_are_refused(moved):
    run = moved / "run"
    with pytest.raises(ValueError, match=r"the weights of epoch 7 were not kept in .*; there are those of -1, 0, 1$"):
        clipviz.open(run, epoch=7)
    file = kept_weights(run)[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not what was saved"):
        _ = clipviz.open(run, epoch=0, data=moved / "images").method
    (run / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no checkpoint\.safetensors, so no learned weights are available"):
        _ = clipviz.open(run).method
    assert clipviz.open(run).epochs == (-1, 0, 1)
    shutil.rmtree(run / "trace")
    with pytest.raises(ValueError, match="no trace in"):
        clipviz.open(run)


# ------------------------------------------------------------------------------------------- weights of every epoch


def kept_run(folder, n=20, **options):
    data = ToyDataset(n)
    return Run(microclip(make_tiny_backbone()), data, AdaptConfig(3, 8, 1e-3), folder=folder, **options)


def test_weights_of_every_epoch_are_kept_up_to_a_size_and_those_alone(tmp_path, monkeypatch):
    run = kept_run(tmp_path / "default", n=8)
    run.fit()
    kept = kept_weights(run.folder)
    assert list(kept) == [-1, 0, 1, 2]
    trained = sum(tensor.nbytes for tensor in run.method.trainable_state().values())
    assert trained < kept[2].stat().st_size < trained + 20_000  # without moments
    for size, asked, expected in (
        (trained - 1, None, 0),
        (trained, None, 4),
        (trained - 1, True, 4),
        (trained, False, 0),
    ):
        monkeypatch.setattr("clipviz.training.run_folder.KEPT_BYTES", size)
        again = kept_run(tmp_path / f"{size} {asked}", n=8, keep_epochs=asked)
        again.fit()
        assert len(kept_weights(again.folder)) == expected


def test_a_resumed_run_keeps_its_weights_and_a_new_one_none_of_another(tmp_path):
    whole, folder = kept_run(tmp_path / "whole"), tmp_path / "stopped"
    whole.fit()
    stopped = kept_run(folder)
    stop = lambda event: stopped.stop() if isinstance(event, StepFinished) and event.step == 4 else None  # noqa: E731
    stopped.listeners.append(stop)
    stopped.fit()
    first = kept_weights(folder)
    assert list(first) == [-1, 0]
    stamp = first[0].stat().st_mtime_ns
    (folder / "epochs" / "1.safetensors").write_bytes(b"of a session whose end was not saved")
    resumed = kept_run(folder)
    assert resumed.restore()
    resumed.fit()
    assert kept_weights(folder)[0].stat().st_mtime_ns == stamp
    for path in kept_weights(whole.folder).values():
        assert_same_bits(load_file(path), load_file(folder / "epochs" / path.name))
    (folder / "epochs" / "mine.safetensors").write_bytes(b"x")
    shorter = Run(microclip(make_tiny_backbone()), ToyDataset(8), AdaptConfig(1, 8), folder=folder)
    shorter.fit()
    assert list(kept_weights(folder)) == [-1, 0]
    assert (folder / "epochs" / "mine.safetensors").exists()
    assert not [name for name in os.listdir(folder / "epochs") if name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "differs"),
    [({"seed": 1}, "seed was 0, now it is 1"), ({"rho": 0.4}, "settings.rho was 0.5, now it is 0.4"),
     ({"config": AdaptConfig(2, 4)}, "schedule.batch_size was 8, now it is 4")],
)  # fmt: skip
def test_weights_of_another_run_that_were_copied_in_are_refused(tmp_path, changes, differs):
    def make(folder, seed=0, config=AdaptConfig(2, 8), **constants):  # noqa: B008
        backbone = make_tiny_backbone()
        method = microclip(backbone, **constants)
        Run(method, ToyDataset(8), config, folder=folder, seed=seed).fit()
        return folder, {"model": backbone, "data": ToyDataset(8)}

    (own, given), (other, _) = make(tmp_path / "own"), make(tmp_path / "other", **changes)
    shutil.copyfile(kept_weights(other)[0], kept_weights(own)[0])
    assert clipviz.open(own, **given).method is not None
    assert clipviz.open(own, epoch=-1, **given).method is not None
    message = rf"0\.safetensors is of another run than the trace beside it: {differs}; put back the files of one run"
    with pytest.raises(ValueError, match=message):
        _ = clipviz.open(own, epoch=0, **given).method
    shutil.copyfile(other / "checkpoint.safetensors", own / "checkpoint.safetensors")
    for part in ("method", "model_probe", "data", "epochs"):
        with pytest.raises(ValueError, match=rf"checkpoint\.safetensors is of another run than .*: {differs}"):
            getattr(clipviz.open(own, **given), part)


def test_weights_that_were_saved_after_a_run_was_opened_are_there(tmp_path):
    backbone, data = make_tiny_backbone(), ToyDataset(8)
    Run(microclip(backbone), data, AdaptConfig(1, 8), folder=tmp_path / "run").fit()
    newest = (tmp_path / "run" / "checkpoint.safetensors").rename(tmp_path / "later")
    run = clipviz.open(tmp_path / "run", model=backbone, data=data)
    with pytest.raises(ValueError, match=r"holds no checkpoint\.safetensors, so no learned weights"):
        _ = run.method
    newest.rename(tmp_path / "run" / "checkpoint.safetensors")
    assert run.method is not None


# ------------------------------------------------------------------------------------------------- explore


def test_explore_opens_the_views_on_a_run_and_says_what_cannot_be_had(photos, moved):
    views = clipviz.explore(photos / "run")
    assert list(views.widget.titles) == ["Images and maps", "Prototypes", "Mixtures"]
    album = views.saliency.inspector.album
    assert album.has("eval/11")
    assert "attention_rollout" in views.saliency.inspector.kinds or len(views.saliency.inspector.kinds) > 3
    assert "image/jpeg" in views._repr_mimebundle_()[0]
    views.close()
    shutil.rmtree(moved / "run" / "epochs")
    (moved / "run" / "checkpoint.safetensors").unlink()
    with pytest.warns(UserWarning, match="holds no checkpoint"):
        alone = clipviz.explore(moved / "run")
    assert alone.saliency.inspector.album.model_probe is None
    assert alone.draw() is not None
    alone.close()
