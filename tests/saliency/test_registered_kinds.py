"""A kind of map from outside the package: a module of the user's, registered, used wherever a kind can be."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ToyDataset, assert_same_bits, method_state
from tiny import microclip as make_microclip
from torch import Tensor

from clipviz import SaliencyExplorer, figures
from clipviz.backbone import Backbone
from clipviz.methods.base import AdaptConfig, Method
from clipviz.saliency import KINDS, available_kinds, register, saliency_maps, saliency_scores, sanity_check
from clipviz.saliency.maps import BUILT_IN, option_names
from clipviz.training.evaluate import spread_probe
from clipviz.training.run import Run

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
(EXAMPLE,) = [block for block in re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL) if "register(" in block]
MODULE = f"""{EXAMPLE}

def brightness(model, images):
    return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 4)[:, 0]


register("brightness", brightness, needs="patches")
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Kinds that a test registers are gone after it."""
    yield
    for name in set(KINDS) - set(BUILT_IN):
        del KINDS[name]


def import_mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "maps_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "maps_of_mine", raising=False)
    importlib.import_module("maps_of_mine")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_mine(tmp_path, monkeypatch)


def test_it_is_a_kind_like_any_other(mine: None, microclip: Method, images: Tensor, resnet: Backbone) -> None:
    assert list(KINDS)[-2:] == ["gradient_input", "brightness"]
    assert {"gradient_input", "brightness"} <= set(available_kinds(microclip))
    assert "gradient_input" in available_kinds(resnet)
    assert "brightness" not in available_kinds(resnet)
    assert option_names("gradient_input") == ("cells",)
    maps = saliency_maps(microclip, images, "gradient_input", target=0, contrast=1, cells=2)
    back = saliency_maps(microclip, images, "gradient_input", target=1, contrast=0, cells=2)
    assert maps.raw.shape == (3, 2, 2)
    torch.testing.assert_close(maps.raw, -back.raw)
    bright = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 4)[:, 0]
    torch.testing.assert_close(saliency_maps(microclip, images, "brightness").raw, bright)
    with pytest.raises(ValueError, match=r"brightness is the same for every class.*these have:.*gradient_input"):
        saliency_maps(microclip, images, "brightness", contrast=1)
    with pytest.raises(
        ValueError, match=r"brightness needs the patch tokens.*these kinds work with it:.*gradient_input"
    ):
        saliency_maps(resnet, torch.rand(1, 3, 64, 64), "brightness")


def test_it_has_rows_in_the_tables(mine: None, microclip: Method, images: Tensor) -> None:
    kinds = ["gradient_input", "brightness"]
    scores = saliency_scores(microclip, images, kinds, metrics=["deletion_auc", "sensitivity", "sanity"])
    assert set(scores["kind"]) == set(kinds)
    assert np.isfinite(scores["value"]).all()
    stages = sanity_check(microclip, images, "brightness")
    np.testing.assert_allclose(stages["correlation"], 1.0)  # it does not look at the model: the check says so
    assert {"gradient_input", "brightness"} <= set(saliency_scores(microclip, images, metrics=["sanity"])["kind"])


def toy_run(backbone: Backbone) -> Run:
    data = ToyDataset(8)
    config = AdaptConfig(epochs=2, batch_size=4, lr=1e-3)
    return Run(make_microclip(backbone), data, config, eval_dataset=data, probe=spread_probe(data, 32, 3), seed=1)


def test_runs_keep_it_and_grids_and_explorers_show_it(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = toy_run(tiny_backbone)
    assert "brightness" not in alone.fit().probe.maps
    import_mine(tmp_path, monkeypatch)
    run = toy_run(tiny_backbone)
    trace = run.fit()
    assert_same_bits(method_state(run.method), method_state(alone.method))  # looking changed nothing
    n_probe = len(trace.probe.images)
    assert trace.probe.maps["brightness"].shape == (3, n_probe, 4, 4)  # before training and after both epochs
    assert trace.highlights.maps["gradient_input"].shape[1:] == (8, 8)
    titles = [column.title for column in figures.saliency_grid_info(trace).columns]
    assert titles[4:] == [
        f"{name}\n{when}" for name in ("brightness", "gradient input") for when in ("before", "after")
    ]
    kept = SaliencyExplorer(trace)
    assert kept.inspector.kinds["brightness"].description == "brightness"
    explorer = SaliencyExplorer(alone.trace, alone)  # the run did not keep it, but its model can be asked
    for name in ("gradient_input", "brightness"):
        explorer.inspector.kinds[name].value = True
    drawn = {panel.title: panel.values for panel in explorer.inspector.rows[0].panels}
    assert drawn["gradient input, now"].shape == (8, 8)
    assert drawn["brightness, now"].shape == (4, 4)


@pytest.mark.parametrize(
    ("name", "needs", "message"),
    [
        ("soap", "pixels", "there already is a kind of map 'soap'; choose another name$"),
        ("twice", "pixels", r"; choose another name, or first: del clipviz.saliency.KINDS\['twice'\]"),
        ("my map", "pixels", "needs a name of letters, digits and _, got 'my map'"),
        (7, "pixels", "needs a name of letters, digits and _, got 7"),
        ("images", "pixels", "a trace holds other things by that name"),
        ("mine", "patch", "unknown need of a kind of map 'patch'; did you mean 'patches'"),
    ],
)
def test_names_and_needs_that_are_refused(name: object, needs: str, message: str) -> None:
    register("twice", lambda model, images: images[:, 0])
    with pytest.raises(ValueError, match=message) as error:
        register(name, lambda model, images: images[:, 0], needs=needs)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "function",
    [
        None,
        lambda images: images,
        lambda *everything: everything[1],
        lambda model, images, question, steps=3: images,
    ],
)
def test_functions_of_other_parameters_are_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"needs function\(model, images\) or function\(model, images, question\)"):
        register("mine", function)  # type: ignore[arg-type]
    assert "mine" not in KINDS


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda images: images, r"mine must give a tensor \(B, h, w\) with a map for each of 3 images, got \(3, 3, 32"),
        (lambda images: images[:2, 0], r"for each of 3 images, got \(2, 32, 32\)"),
        (lambda images: images[:, 0, :0], r"for each of 3 images, got \(3, 0, 32\)"),
        (lambda images: images[:, 0].numpy(), "for each of 3 images, got ndarray"),
        (lambda images: None, "for each of 3 images, got NoneType"),
        (lambda images: images[:, 0] / 0, "mine is not finite"),
    ],
)
def test_maps_that_are_none_are_refused(
    made: Callable[[Tensor], object], message: str, microclip: Method, images: Tensor
) -> None:
    register("mine", lambda model, images: made(images))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=message) as error:
        saliency_maps(microclip, images, "mine")
    assert "\n" not in str(error.value)


def test_masks_and_whole_numbers_are_maps(microclip: Method, images: Tensor) -> None:
    register("mask", lambda model, images: images[:, 0] > 0.5)
    assert saliency_maps(microclip, images, "mask").raw.dtype == torch.float32


def test_a_run_goes_on_without_a_map_that_fails(tiny_backbone: Backbone) -> None:
    register("half", lambda model, images: images[:1, 0])
    run = toy_run(tiny_backbone)
    with pytest.warns(UserWarning, match=r"no map of the kind half is recorded: half must give a tensor \(B, h, w\)"):
        trace = run.fit()
    assert "half" not in trace.probe.maps
    assert trace.final_epoch == 1
