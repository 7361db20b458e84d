"""Which birds exist, and the proof that pretraining never sees the species that are tested."""

from __future__ import annotations

import numpy as np
import pytest

from clipviz.birds.world import ATTRIBUTE_NAMES, ATTRIBUTES, SPECIES, decode, encode
from tools import pool
from tools.pretraining_data import CARDINALITIES, MIN_DISTANCE, SPECIES_CODES, distance_to_species, sample_attributes
from tools.recipe import PretrainConfig


def slow_distance(code):
    return min(sum(a != b for a, b in zip(code, species.code, strict=True)) for species in SPECIES)


def test_species_and_near_neighbours_never_occur_in_pretraining():
    codes = sample_attributes(20_000, np.random.default_rng(0))
    nearest = [slow_distance(code) for code in codes[:2000]]
    assert min(nearest) >= MIN_DISTANCE == 3
    assert distance_to_species(codes).min() >= MIN_DISTANCE
    species = {tuple(code) for code in SPECIES_CODES}
    assert not species & {tuple(code) for code in codes}


def test_without_the_rejection_neighbours_would_occur():
    """The proof above can fail: plain sampling does come closer."""
    codes = np.random.default_rng(0).integers(0, CARDINALITIES, (200_000, len(CARDINALITIES)))
    assert distance_to_species(codes).min() < MIN_DISTANCE


def test_the_pool_that_pretraining_renders_is_such_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_render_chunk", _render_nothing)
    codes = pool.render_pool(PretrainConfig(pool=4000), tmp_path, workers=1).codes
    assert codes.shape == (4000, len(ATTRIBUTES))
    assert min(slow_distance(code) for code in codes) >= MIN_DISTANCE


def _render_nothing(bounds, **options):
    assert bounds[1] > bounds[0]


def test_pretraining_birds_have_every_value_of_every_attribute():
    codes = sample_attributes(2000, np.random.default_rng(1))
    for column, values in zip(codes.T, ATTRIBUTES.values(), strict=True):
        assert sorted(set(column)) == list(range(len(values)))


def test_the_distance_is_that_of_a_slow_loop():
    codes = np.random.default_rng(2).integers(0, CARDINALITIES, (50, len(CARDINALITIES)))
    assert distance_to_species(codes).tolist() == [slow_distance(code) for code in codes]
    assert distance_to_species(SPECIES_CODES).tolist() == [0] * 24


def test_sampling_is_seeded():
    one, same, other = (sample_attributes(100, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_six_groups_of_four_lookalikes_that_differ_in_their_two_parts_only():
    assert len(SPECIES) == 24
    assert len({species.name for species in SPECIES}) == 24
    for group in range(6):
        members = [species for species in SPECIES if species.group == group]
        assert len(members) == 4
        assert len({species.values["plan"] for species in members}) == 1
        assert len({species.discriminative for species in members}) == 1
        differing = [name for name in ATTRIBUTE_NAMES if len({species.values[name] for species in members}) > 1]
        assert sorted(differing) == sorted(members[0].discriminative)
        assert len({tuple(species.values[name] for name in differing) for species in members}) == 4


def test_a_name_tells_a_true_part_of_its_species():
    for species in SPECIES:
        adjective, plan = species.name.split()
        assert plan == species.values["plan"]
        told = adjective.split("-")[0]
        discriminative = {species.values[name] for name in species.discriminative}
        assert told in discriminative or (told == "plain" and "no" in discriminative), species.name


def test_codes_and_values_are_inverse():
    for species in SPECIES:
        assert decode(species.code) == species.values
        np.testing.assert_array_equal(encode(decode(species.code)), species.code)
    with pytest.raises(ValueError, match="purple"):
        encode({**SPECIES[0].values, "body": "purple"})
