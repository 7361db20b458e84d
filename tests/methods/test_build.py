"""From what a user writes to a method: presets, constants, teachers, and what is refused."""

import pytest
from tiny import ToyDataset, clusters

from clipviz.methods import METHODS
from clipviz.methods.build import build_method, parse_constants


@pytest.mark.parametrize("name", ["zero_shot", "tip_adapter", "ntua", "dpa"])
def test_every_method_is_built_with_its_default(name):
    dataset = clusters(n=6, n_classes=3)
    method = build_method(name, dataset.backbone(), dataset)
    assert isinstance(method, METHODS[name])
    assert method.config == METHODS[name].default_config(dataset.backbone())


def test_presets_and_constants():
    dataset = clusters(n=6, n_classes=3)
    method = build_method(
        "dpa", dataset.backbone(), dataset, preset="pets", constants={"a": "1", "window": "4", "text": "descriptions"}
    )
    assert (method.config.a, method.config.window, method.config.text) == (1.0, 4, "descriptions")
    assert isinstance(method.config.a, float)
    assert method.schedule.lr == 7e-5
    cached = build_method("ntua", dataset.backbone(), dataset, constants={"shots": "2", "weighted": "False"})
    assert (cached.config.shots, cached.config.weighted) == (2, False)


def test_the_bundled_model_has_presets_of_its_own(tiny_backbone, monkeypatch):
    monkeypatch.setattr(tiny_backbone, "name", "birds")
    for name in ("wca", "tip_adapter", "ntua", "dpa", "microclip"):
        assert build_method(name, tiny_backbone, ToyDataset(n=3)).config == METHODS[name].backbone_presets["birds"]


@pytest.mark.parametrize("model", ["paper", "official", "dtd"])
def test_a_model_that_is_called_like_another_preset_does_not_get_it(model):
    dataset = clusters(n=6, n_classes=3)
    dataset.model = model  # whoever wrote the file said so
    for name in ("tip_adapter", "ntua", "dpa"):
        method = build_method(name, dataset.backbone(), dataset)
        assert (method.config, method.preset) == (METHODS[name].presets["default"], "default")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpa", {"preset": "dtt"}, "did you mean 'dtd'"),
        ("dpa", {"constants": {"b": "1"}}, "unknown constant of dpa 'b'"),
        ("dpa", {"constants": {"schedule": "1"}}, "unknown constant of dpa 'schedule'"),
        ("dpa", {"constants": {"a": "much"}}, r"a of dpa needs a number such as 0\.5, its default; got 'much'"),
        ("dpa", {"constants": {"a": "2"}}, r"a must be in \[0, 1\]"),
        ("dpa", {"constants": {"window": "1" + "0" * 20}}, r"window must be below 2,147,483,648, got 10{20}"),
        (
            "ntua",
            {"constants": {"view_scale": "[0, 1]"}},
            r"view_scale must be two numbers in \(0, 1\], .*, got \(0, 1\)",
        ),
        ("ntua", {"constants": {"selection": "best"}}, "unknown selection of ntua 'best'"),
        ("tip_adapter", {"constants": {"rectify": "true"}}, "rectify of tip_adapter is always false; leave it out"),
        ("ntua", {"constants": {"selection": "oracle_balanced"}}, "--allow-labels"),
        ("zero_shot", {"constants": {"a": "1"}}, "no constants"),
        ("dpa", {"allow_labels": True}, "selects no images"),
    ],
)
def test_what_a_method_does_not_have_is_refused(name, options, message):
    dataset = clusters(n=6, n_classes=3)
    with pytest.raises(ValueError, match=message):
        build_method(name, dataset.backbone(), dataset, **options)


@pytest.mark.parametrize(
    ("given", "preset"), [("oxford_iiit_pet", "pets"), ("FGVC-Aircraft", "fgvc"), ("flowers102", "flowers")]
)
def test_a_benchmarks_preset_answers_to_all_names_of_the_benchmark(given, preset):
    dataset = clusters(n=6, n_classes=3)
    for name in ("dpa", "ntua"):
        method = build_method(name, dataset.backbone(), dataset, preset=given)
        assert method.config == METHODS[name].all_presets()[preset]


def test_labels_choose_images_only_with_permission():
    dataset = clusters(n=12, n_classes=3)
    options = {"constants": {"selection": "oracle_balanced", "shots": "2"}, "allow_labels": True}
    method = build_method("ntua", dataset.backbone(), dataset, **options)
    assert len(method._oracle_index) == 6


def test_assignments():
    assert parse_constants(["a=1", "text = templates"]) == {"a": "1", "text": "templates"}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_constants(["a"])
