"""Birds as a data set: sizes, splits that share nothing, masks that fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipviz.birds.dataset import DOMAINS, SIZES, BirdsDataset, discriminative_parts
from clipviz.birds.render import PART_NAMES
from clipviz.birds.world import SPECIES
from clipviz.data import load_dataset


@pytest.mark.parametrize("split", SIZES)
def test_a_split_has_its_size_and_every_class_equally_often(split):
    data = load_dataset("birds/fog", split)
    assert len(data) == SIZES[split]
    counts = np.bincount(data.targets, minlength=24)
    assert counts.max() - counts.min() <= 1
    assert data.class_names == tuple(species.name for species in SPECIES)
    assert (data.name, data.split) == ("birds/fog", split)
    assert len(set(data.names)) == len(data)
    assert data.has_targets


def pixels(data, n=24):
    return {data.image(i).tobytes() for i in range(n)}


def test_no_two_splits_seeds_or_domains_share_an_image():
    sets = [pixels(BirdsDataset("source", split, seed=seed, n=24)) for split in SIZES for seed in (0, 1)]
    sets += [pixels(BirdsDataset(domain, "train", n=24, severity=0.0)) for domain in DOMAINS if domain != "source"]
    assert [len(images) for images in sets] == [24] * len(sets)
    assert len(set().union(*sets)) == 24 * len(sets)


def test_an_image_depends_on_seed_split_domain_and_index_only():
    one, more = BirdsDataset("clutter", "test", n=3), BirdsDataset("clutter", "test", n=100)
    backwards = [more.image(i).tobytes() for i in (2, 1, 0)]
    assert [one.image(i).tobytes() for i in (0, 1, 2)] == backwards[::-1]


def test_images_and_masks_fit_each_other():
    data = BirdsDataset("source", "train", n=4)
    for i in range(4):
        image, parts = data.image(i), data.parts(i)
        assert image.size == (160, 160)
        assert image.mode == "RGB"
        assert parts.shape == (160, 160)
        assert parts.max() < len(data.part_names) == len(PART_NAMES)
        bird = np.asarray(image)[parts > 0].mean(0)
        sky = np.asarray(image)[parts == 0].mean(0)
        assert np.abs(bird - sky).max() > 5


def test_changing_an_image_does_not_change_the_data_set():
    data = BirdsDataset("source", "train", n=1)
    before = data.image(0).tobytes()
    data.image(0).paste((0, 0, 0), (0, 0, 160, 160))
    assert data.image(0).tobytes() == before


def test_severity_and_domain_reach_the_pixels():
    plain, fog = (BirdsDataset("fog", "test", n=1, severity=severity) for severity in (0.0, 1.0))
    assert np.asarray(fog.image(0)).std() < np.asarray(plain.image(0)).std()


def test_prompts_come_from_the_attributes_or_from_the_user(tmp_path):
    data = BirdsDataset("source", "train", n=1)
    assert data.prompts.descriptions_given
    assert len(data.prompts.description_sentences("red-capped finch")) == 12
    own = {name: [f"{name} is a bird."] for name in data.class_names}
    assert BirdsDataset("source", "train", n=1, descriptions=own).prompts.description_sentences("red-capped finch") == (
        "red-capped finch is a bird.",
    )
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    assert BirdsDataset("source", "train", n=1, descriptions=path).prompts.descriptions["plain duck"] == (
        "plain duck is a bird.",
    )
    assert BirdsDataset("source", "train", n=1, templates="one {}").prompts.templates == ("one {}",)
    with pytest.raises(ValueError, match="no entry for"):
        BirdsDataset("source", "train", n=1, descriptions={"plain duck": ["A duck."]})


def test_discriminative_parts_are_those_of_the_two_attributes():
    finch = next(i for i, species in enumerate(SPECIES) if species.values["plan"] == "finch")
    names = {PART_NAMES[part] for part in discriminative_parts(finch)}
    assert names == {"cap", "head", "wing_bars", "wing"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("frog", "train"), "unknown domain 'frog'; did you mean 'fog'"), (("fog", "tset"), "did you mean 'test'")],
)
def test_unknown_names_get_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        BirdsDataset(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": "5"}, "n, the number of images, must be a whole number of at least 1, got '5'"),
        ({"n": 5.5}, "whole number of at least 1, got 5.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.5}, "whole number of at least 0, got 1.5"),
    ],
)
def test_numbers_of_another_kind_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("birds/fog", **{"n": 4, **options})


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="whole number of at least 1, got 0"):
        BirdsDataset("fog", "train", n=0)


def test_rendered_images_are_kept_up_to_a_size_and_the_rest_is_rendered_again(monkeypatch):
    import clipviz.birds.dataset as module

    rendered = []
    render = module.render_image
    monkeypatch.setattr(module, "render_image", lambda *a: rendered.append(a) or render(*a))
    size = 160 * 160 * 4
    data = BirdsDataset("fog", "train", n=6, cache_bytes=3 * size + 1)
    first = [(data.image(i).tobytes(), data.parts(i).tobytes()) for i in range(6)]
    assert len(rendered) == 3 + 2 * 3
    rendered.clear()
    assert [(data.image(i).tobytes(), data.parts(i).tobytes()) for i in range(6)] == first
    assert len(rendered) == 2 * 3
    assert size * max(SIZES.values()) <= module.CACHE_BYTES
