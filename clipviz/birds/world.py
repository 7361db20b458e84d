"""Which birds exist: attributes and the 24 evaluation species.

A bird is a vector of attribute values, one per entry of `ATTRIBUTES`. The evaluation species come in six
groups, one per body plan; the four look-alikes of a group agree everywhere but in two small parts. Pretraining saw
no species and nothing near one (`tools/pretraining_data.py`): recognising it takes composition, not memory.

The idea of a procedural bird world with known parts is FunnyBirds (Hesse et al., ICCV 2023); this one is 2-D and
written from scratch.
"""

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

_GROUPS = """
plan        finch      heron        duck         swallow    pheasant        owl
body        yellow     gray         brown        blue       red             green
wing        brown      blue         green        gray       brown           red
beak_color  black      yellow/red   yellow       black      white           black
beak_shape  short      long         broad        short      hooked          hooked
cap         red/black  black        no           no         white/blue      no
eye_ring    no         no           white/no     no         orange          orange/white
throat      no         white        white/black  red/white  black           no
breast      plain      streaked     plain        plain      barred/spotted  spotted
wing_bars   white/no   no           white        no         yellow          black/yellow
tail_tip    white      no           black        white/no   black           no
legs        pink       orange/blue  orange       black      black           pink
"""
# The two attributes in which the look-alikes of a group differ: a/b in the table.
_DIFFERING = (
    ("cap", "wing_bars"), ("beak_color", "legs"), ("throat", "eye_ring"), ("throat", "tail_tip"), ("cap", "breast"),
    ("eye_ring", "wing_bars"),
)  # fmt: skip


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


NAME_ADJECTIVES: dict[str, str] = {
    "cap": "{}-capped", "beak_color": "{}-billed", "legs": "{}-legged", "throat": "{}-throated",
    "eye_ring": "{}-eyed", "breast": "{}", "wing_bars": "{}-barred", "tail_tip": "{}-tailed",
}  # fmt: skip
"""The adjective a name is made of, by attribute ("red-capped finch")."""


def encode(values: dict[str, str]) -> np.ndarray:
    """Attribute values -> indices (A,) int64. Raises `ValueError` for an unknown value."""
    return np.array([options.index(choose(name, values[name], options)) for name, options in ATTRIBUTES.items()])


def decode(code: np.ndarray) -> dict[str, str]:
    """Indices (A,) -> attribute values, the inverse of `encode`."""
    return {name: values[int(i)] for (name, values), i in zip(ATTRIBUTES.items(), code, strict=True)}


def _members(group: int, one: str, two: str) -> list[Species]:
    """The four species of a group. Each pair of values is named by the part that the neighbor does not name."""
    shared = {name: columns[group] for name, *columns in map(str.split, _GROUPS.strip().splitlines())}
    (a, other_a), (b, other_b) = shared[one].split("/"), shared[two].split("/")
    members = []
    for first, second, named in ((a, b, one), (other_a, b, two), (a, other_b, two), (other_a, other_b, one)):
        values = {**shared, one: first, two: second}
        adjective = "plain" if values[named] == "no" else NAME_ADJECTIVES[named].format(values[named])
        members.append(Species(f"{adjective} {values['plan']}", values, group, (one, two)))
    return members


SPECIES: tuple[Species, ...] = tuple(species for i, pair in enumerate(_DIFFERING) for species in _members(i, *pair))
