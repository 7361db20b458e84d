"""What pretraining sees and reads: random birds unlike the evaluation species, captions and prompts for them.

All of it follows from the attributes, and no caption tells the whole bird. Whatever differs from an evaluation species
in fewer than `MIN_DISTANCE` attributes never occurs, so recognizing a species takes composition, not memory
(`sample_attributes`, proved in `tests/birds/test_world.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipviz.birds.dataset import TEMPLATES
from clipviz.birds.world import ATTRIBUTE_NAMES, ATTRIBUTES, NAME_ADJECTIVES, SPECIES, decode
from tools.captions import joined, phrase, with_articles

CARDINALITIES = np.array([len(values) for values in ATTRIBUTES.values()])
SPECIES_CODES = np.stack([species.code for species in SPECIES])

MIN_DISTANCE = 3
"""Pretraining birds differ from every evaluation species in at least this many attributes."""

_ADJECTIVES: dict[str, str] = {**NAME_ADJECTIVES, "body": "{}-bodied", "wing": "{}-winged", "beak_shape": "{}-beaked"}
_CAPTIONS = (
    "a photo of a {bird} with {parts}",
    "a {bird} with {parts}",
    "a picture of a {bird}: {parts}",
    "this {bird} has {parts}",
    "a close-up of a {bird} that has {parts}",
)
_PROMPTS = ("a bird with {}", "a photo of a bird with {}", "this bird has {}", "a bird that has {}", "{}")
FROM_AFAR = ("body", "wing")
"""What a coarse caption speaks of, besides the plan."""
_BACKGROUNDS = ("the background", "an empty background", "background without a bird", "leaves, sky or ground, no bird")


def distance_to_species(codes: np.ndarray) -> np.ndarray:
    """Smallest number of attributes in which each bird differs from an evaluation species, (n, A) -> (n,) int."""
    return (codes[:, None, :] != SPECIES_CODES[None]).sum(-1).min(1)


def sample_attributes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pretraining birds, (n, A) int64: uniform, but for the evaluation species and their near neighbors."""
    codes = rng.integers(0, CARDINALITIES, size=(n, len(CARDINALITIES)))
    while (near := distance_to_species(codes) < MIN_DISTANCE).any():
        codes[near] = rng.integers(0, CARDINALITIES, size=(int(near.sum()), len(CARDINALITIES)))
    return codes


def attribute_prompts(attribute: str, rng: np.random.Generator) -> list[str]:
    """One prompt per value of an attribute ("a bird with a red cap", "a bird with a blue crown", ...), at random."""
    if attribute == "plan":
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        return [with_articles(template.format(value)) for value in ATTRIBUTES["plan"]]
    adjective = _ADJECTIVES.get(attribute)
    if adjective is not None and rng.random() < 0.25:
        words = ["plain" if value == "no" else adjective.format(value) for value in ATTRIBUTES[attribute]]
        return [with_articles(f"a photo of a {word} bird") for word in words]
    template = _PROMPTS[rng.integers(len(_PROMPTS))]
    return [with_articles(template.format(phrase(attribute, value, rng))) for value in ATTRIBUTES[attribute]]


def background_prompt(rng: np.random.Generator) -> str:
    """What is said of the parts of an image that show no bird."""
    return _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]


def caption(code: np.ndarray, rng: np.random.Generator, among: Sequence[str] = ATTRIBUTE_NAMES[1:]) -> str:
    """A caption that names two to five attributes of a bird (A,), or all of few, in random order and wording."""
    values = decode(code)
    chosen = rng.choice(among, size=min(rng.integers(2, 6), len(among)), replace=False)
    bird = values["plan"] if rng.random() < 0.8 else "bird"
    first = str(chosen[0])
    if rng.random() < 0.35 and first in _ADJECTIVES and values[first] != "no":
        bird, chosen = f"{_ADJECTIVES[first].format(values[first])} {bird}", chosen[1:]
    parts = joined([phrase(str(name), values[str(name)], rng) for name in chosen])
    return with_articles(_CAPTIONS[rng.integers(len(_CAPTIONS))].format(bird=bird, parts=parts))
