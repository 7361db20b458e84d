"""Language for birds: captions for pretraining, templates and descriptions for the evaluation species.

All of it follows from the attributes. No caption and no sentence of a description tells the whole bird.
"""

from __future__ import annotations

import re

import numpy as np

from clipviz.birds.world import ATTRIBUTE_NAMES, ATTRIBUTES, NAME_ADJECTIVES, SPECIES, Species, decode

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {} in the wild.", "a close-up of a {}.")
"""Hand-written prompts for class names, as CLIP's template ensembles."""

_PHRASES: dict[str, tuple[str, ...]] = {
    "body": ("a {} body", "{} plumage"),
    "wing": ("{} wings", "a {} wing"),
    "beak_color": ("a {} beak", "a {} bill"),
    "beak_shape": ("a {} beak", "a {} bill"),
    "cap": ("a {} cap", "a {} crown"),
    "eye_ring": ("a {} eye-ring", "a {} ring around the eye"),
    "throat": ("a {} throat", "a {} throat patch"),
    "breast": ("a {} breast", "{} underparts"),
    "wing_bars": ("{} wing bars", "{} bars on the wing"),
    "tail_tip": ("a {} tail tip", "a {}-tipped tail"),
    "legs": ("{} legs", "{} feet"),
}
_ABSENT: dict[str, tuple[str, ...]] = {
    "cap": ("no cap", "a plain crown"),
    "eye_ring": ("no eye-ring", "a plain eye"),
    "throat": ("no throat patch", "a plain throat"),
    "wing_bars": ("no wing bars", "a plain wing"),
    "tail_tip": ("no tail tip", "a plain tail"),
}
_ADJECTIVES: dict[str, str] = {**NAME_ADJECTIVES, "body": "{}-bodied", "wing": "{}-winged", "beak_shape": "{}-beaked"}

_CAPTIONS = (
    "a photo of a {bird} with {parts}",
    "a {bird} with {parts}",
    "a picture of a {bird}: {parts}",
    "this {bird} has {parts}",
    "a close-up of a {bird} that has {parts}",
)
_PROMPTS = ("a bird with {}", "a photo of a bird with {}", "this bird has {}", "a bird that has {}", "{}")
_BACKGROUNDS = ("the background", "an empty background", "background without a bird", "leaves, sky or ground, no bird")
_SENTENCES = (
    "The {name} is a {plan} with {parts}.",
    "A {name} has {parts}.",
    "Look for {parts} to tell a {name}.",
    "A photo of a {name}, a {plan} with {parts}.",
    "The {name} can be recognised by {parts}.",
)


def phrase(attribute: str, value: str, rng: np.random.Generator) -> str:
    """A noun phrase for a value of any attribute but the plan, in one of its wordings ("a red cap", "no wing bars")."""
    wordings = _ABSENT[attribute] if value == "no" else _PHRASES[attribute]
    return wordings[rng.integers(len(wordings))].format(value)


def attribute_prompts(attribute: str, rng: np.random.Generator) -> list[str]:
    """One prompt per value of an attribute ("a bird with a red cap", "a bird with a blue crown", ...), at random."""
    if attribute == "plan":
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        return [_articles(template.format(value)) for value in ATTRIBUTES["plan"]]
    adjective = _ADJECTIVES.get(attribute)
    if adjective is not None and rng.random() < 0.25:
        words = ["plain" if value == "no" else adjective.format(value) for value in ATTRIBUTES[attribute]]
        return [_articles(f"a photo of a {word} bird") for word in words]
    template = _PROMPTS[rng.integers(len(_PROMPTS))]
    return [_articles(template.format(phrase(attribute, value, rng))) for value in ATTRIBUTES[attribute]]


def background_prompt(rng: np.random.Generator) -> str:
    """What is said of the parts of an image that show no bird."""
    return _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]


def caption(code: np.ndarray, rng: np.random.Generator) -> str:
    """A caption that names two to five attributes of a bird (A,), in random order and wording."""
    values = decode(code)
    chosen = rng.choice(ATTRIBUTE_NAMES[1:], size=rng.integers(2, 6), replace=False)
    bird = values["plan"] if rng.random() < 0.8 else "bird"
    first = str(chosen[0])
    if rng.random() < 0.35 and first in _ADJECTIVES and values[first] != "no":
        bird, chosen = f"{_ADJECTIVES[first].format(values[first])} {bird}", chosen[1:]
    parts = _join([phrase(str(name), values[str(name)], rng) for name in chosen])
    return _articles(_CAPTIONS[rng.integers(len(_CAPTIONS))].format(bird=bird, parts=parts))


def descriptions(species: Species, sentences: int = 12, parts: int = 5) -> tuple[str, ...]:
    """Descriptions of a species, as a language model would give, the same on every call.

    Each sentence names `parts` attributes, among which the two discriminative ones take turns.
    """
    rng = np.random.default_rng([*species.code.tolist(), sentences, parts])
    out = []
    for i in range(sentences):
        turn = species.discriminative[i % 2]
        others = [name for name in ATTRIBUTE_NAMES[1:] if name != turn]
        named = [turn, *map(str, rng.choice(others, size=parts - 1, replace=False))]
        rng.shuffle(named)
        text = _join([phrase(name, species.values[name], rng) for name in named])
        sentence = _SENTENCES[rng.integers(len(_SENTENCES))]
        out.append(_articles(sentence.format(name=species.name, plan=species.values["plan"], parts=text)))
    return tuple(out)


def species_descriptions() -> dict[str, tuple[str, ...]]:
    """Class name -> descriptions."""
    return {species.name: descriptions(species) for species in SPECIES}


def _articles(text: str) -> str:
    """Put "an" where a vowel follows: 'a owl' -> 'an owl'."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
