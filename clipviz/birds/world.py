"""Which birds exist: attributes and the 24 evaluation species, by `world.toml`.

A bird is a vector of attribute values, one per entry of `ATTRIBUTES`. The evaluation species come in six
groups, one per body plan; the four look-alikes of a group agree everywhere but in two small parts. Pretraining saw
no species and nothing near one (`tools/pretraining_data.py`): recognizing it takes composition, not memory.

The idea of a procedural bird world with known parts is FunnyBirds (Hesse et al., ICCV 2023); this one is 2-D and
written from scratch.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipviz.errors import choose

WORLD: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ATTRIBUTES = {name: tuple(values) for name, values in WORLD["attributes"].items()}
ATTRIBUTE_NAMES = tuple(ATTRIBUTES)
NAME_ADJECTIVES: dict[str, str] = WORLD["adjectives"]


class Species(NamedTuple):
    """One evaluation class."""

    name: str  # it tells one of the two parts that set it apart, as real bird names do
    values: dict[str, str]  # attribute -> value, in the order of `ATTRIBUTES`
    group: int  # index of its look-alike group, 0..5
    discriminative: tuple[str, str]  # the two attributes in which the group differs

    @property
    def code(self) -> np.ndarray:
        """The values as indices, (A,) int64."""
        return encode(self.values)


def encode(values: dict[str, str]) -> np.ndarray:
    """Attribute values -> indices (A,) int64. Raises `ValueError` for an unknown value."""
    return np.array([options.index(choose(name, values[name], options)) for name, options in ATTRIBUTES.items()])


def decode(code: np.ndarray) -> dict[str, str]:
    """Indices (A,) -> attribute values, the inverse of `encode`."""
    return {name: values[int(i)] for (name, values), i in zip(ATTRIBUTES.items(), code, strict=True)}


def _members(group: int, one: str, two: str) -> list[Species]:
    """The four species of a group. Each pair of values is named by the part that the neighbor does not name."""
    shared = {name: columns[group] for name, *columns in map(str.split, WORLD["species"].strip().splitlines())}
    (a, other_a), (b, other_b) = shared[one].split("/"), shared[two].split("/")
    members = []
    for first, second, named in ((a, b, one), (other_a, b, two), (a, other_b, two), (other_a, other_b, one)):
        values = {**shared, one: first, two: second}
        adjective = "plain" if values[named] == "no" else NAME_ADJECTIVES[named].format(values[named])
        members.append(Species(f"{adjective} {values['plan']}", values, group, (one, two)))
    return members


SPECIES = tuple(species for i, pair in enumerate(WORLD["differing"]) for species in _members(i, *pair))
