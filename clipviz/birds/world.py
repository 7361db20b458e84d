"""Which birds exist: attributes, the 24 evaluation species, and the birds that pretraining may see.

A bird is a vector of attribute values, one per entry of `ATTRIBUTES`. The evaluation species come in six
groups, one per body plan; the four look-alikes of a group agree everywhere but in two small parts. A species
and everything that differs from it in fewer than `MIN_DISTANCE` attributes never occurs in pretraining, so
recognising it takes composition, not memory (`sample_attributes`, proved in `tests/birds/test_world.py`).

The idea of a procedural bird world with known parts is FunnyBirds (Hesse et al., ICCV 2023); this one is 2-D and
written from scratch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clipviz.errors import choose

# Attribute -> its values. The first value of a part that can be missing is "no".
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "plan": ("finch", "heron", "duck", "swallow", "pheasant", "owl"),
    "body": ("red", "yellow", "blue", "green", "brown", "gray"),
    "wing": ("red", "yellow", "blue", "green", "brown", "gray"),
    "beak_color": ("yellow", "red", "black", "white"),
    "beak_shape": ("short", "long", "hooked", "broad"),
    "cap": ("no", "red", "black", "white", "blue"),
    "eye_ring": ("no", "white", "orange"),
    "throat": ("no", "white", "red", "black"),
    "breast": ("plain", "spotted", "streaked", "barred"),
    "wing_bars": ("no", "white", "yellow", "black"),
    "tail_tip": ("no", "white", "black", "red"),
    "legs": ("orange", "black", "pink", "blue"),
}
ATTRIBUTE_NAMES = tuple(ATTRIBUTES)
CARDINALITIES = np.array([len(values) for values in ATTRIBUTES.values()])

MIN_DISTANCE = 3
"""Pretraining birds differ from every evaluation species in at least this many attributes."""


class Group(NamedTuple):
    """Four look-alikes: a shared base and two attributes with two values each."""

    base: dict[str, str]
    first: tuple[str, str, str]  # attribute, value, other value
    second: tuple[str, str, str]


GROUPS: tuple[Group, ...] = (
    Group(
        {"plan": "finch", "body": "yellow", "wing": "brown", "beak_color": "black", "beak_shape": "short",
         "eye_ring": "no", "throat": "no", "breast": "plain", "tail_tip": "white", "legs": "pink"},
        ("cap", "red", "black"), ("wing_bars", "white", "no"),
    ),
    Group(
        {"plan": "heron", "body": "gray", "wing": "blue", "beak_shape": "long", "cap": "black", "eye_ring": "no",
         "throat": "white", "breast": "streaked", "wing_bars": "no", "tail_tip": "no"},
        ("beak_color", "yellow", "red"), ("legs", "orange", "blue"),
    ),
    Group(
        {"plan": "duck", "body": "brown", "wing": "green", "beak_color": "yellow", "beak_shape": "broad",
         "cap": "no", "breast": "plain", "wing_bars": "white", "tail_tip": "black", "legs": "orange"},
        ("throat", "white", "black"), ("eye_ring", "white", "no"),
    ),
    Group(
        {"plan": "swallow", "body": "blue", "wing": "gray", "beak_color": "black", "beak_shape": "short",
         "eye_ring": "no", "breast": "plain", "wing_bars": "no", "legs": "black", "cap": "no"},
        ("throat", "red", "white"), ("tail_tip", "white", "no"),
    ),
    Group(
        {"plan": "pheasant", "body": "red", "wing": "brown", "beak_color": "white", "beak_shape": "hooked",
         "throat": "black", "eye_ring": "orange", "tail_tip": "black", "legs": "black", "wing_bars": "yellow"},
        ("cap", "white", "blue"), ("breast", "barred", "spotted"),
    ),
    Group(
        {"plan": "owl", "body": "green", "wing": "red", "beak_color": "black", "beak_shape": "hooked", "cap": "no",
         "throat": "no", "breast": "spotted", "tail_tip": "no", "legs": "pink"},
        ("eye_ring", "orange", "white"), ("wing_bars", "black", "yellow"),
    ),
)  # fmt: skip


class Species(NamedTuple):
    """One evaluation class.

    Attributes:
        name: what people call it; it tells one of the two parts that set it apart, as real bird names do.
        values: attribute -> value, in the order of `ATTRIBUTES`.
        group: index of its look-alike group, 0..5.
        discriminative: the two attributes in which the group differs.
    """

    name: str
    values: dict[str, str]
    group: int
    discriminative: tuple[str, str]

    @property
    def code(self) -> np.ndarray:
        """The values as indices, (A,) int64."""
        return encode(self.values)


# The adjective a name is made of, by attribute ("red-capped finch").
NAME_ADJECTIVES: dict[str, str] = {
    "cap": "{}-capped",
    "beak_color": "{}-billed",
    "legs": "{}-legged",
    "throat": "{}-throated",
    "eye_ring": "{}-eyed",
    "breast": "{}",
    "wing_bars": "{}-barred",
    "tail_tip": "{}-tailed",
}


def encode(values: dict[str, str]) -> np.ndarray:
    """Attribute values -> indices (A,) int64. Raises `ValueError` for an unknown value."""
    return np.array([options.index(choose(name, values[name], options)) for name, options in ATTRIBUTES.items()])


def decode(code: np.ndarray) -> dict[str, str]:
    """Indices (A,) -> attribute values, the inverse of `encode`."""
    return {name: values[int(i)] for (name, values), i in zip(ATTRIBUTES.items(), code, strict=True)}


def _members(index: int, group: Group) -> list[Species]:
    """The four species of a group. Each pair of values is named by the part that the neighbour does not name."""
    (attr1, a, other_a), (attr2, b, other_b) = group.first, group.second
    # (value of the first attribute, value of the second, the attribute that gives the name)
    rows = [(a, b, attr1), (other_a, b, attr2), (a, other_b, attr2), (other_a, other_b, attr1)]
    members = []
    for first, second, named in rows:
        values = {**group.base, attr1: first, attr2: second}
        value = values[named]
        adjective = "plain" if value == "no" else NAME_ADJECTIVES[named].format(value)
        ordered = {name: values[name] for name in ATTRIBUTES}
        members.append(Species(f"{adjective} {values['plan']}", ordered, index, (attr1, attr2)))
    return members


SPECIES: tuple[Species, ...] = tuple(species for i, group in enumerate(GROUPS) for species in _members(i, group))
SPECIES_CODES = np.stack([species.code for species in SPECIES])


def distance_to_species(codes: np.ndarray) -> np.ndarray:
    """Smallest number of attributes in which each bird differs from an evaluation species.

    Args:
        codes: (n, A) attribute indices.

    Returns:
        (n,) int, 0 for an evaluation species itself.
    """
    return (codes[:, None, :] != SPECIES_CODES[None]).sum(-1).min(1)


def sample_attributes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pretraining birds: uniform over attribute vectors, evaluation species and near neighbours rejected.

    Args:
        n: how many.
        rng: source of randomness.

    Returns:
        (n, A) int64 with `distance_to_species` >= `MIN_DISTANCE` in every row.
    """
    codes = rng.integers(0, CARDINALITIES, size=(n, len(CARDINALITIES)))
    while (near := distance_to_species(codes) < MIN_DISTANCE).any():
        codes[near] = rng.integers(0, CARDINALITIES, size=(int(near.sum()), len(CARDINALITIES)))
    return codes
