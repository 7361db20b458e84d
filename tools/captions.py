"""Language for birds, from their attributes; `python -m tools.captions` writes the descriptions that birds come with.

No sentence of a description tells the whole bird.
"""

import re

import numpy as np

from clipviz.birds.dataset import DESCRIPTIONS
from clipviz.birds.world import ATTRIBUTE_NAMES, SPECIES, Species
from clipviz.files import write_json

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
        text = joined([phrase(name, species.values[name], rng) for name in named])
        sentence = _SENTENCES[rng.integers(len(_SENTENCES))]
        out.append(with_articles(sentence.format(name=species.name, plan=species.values["plan"], parts=text)))
    return tuple(out)


def species_descriptions() -> dict[str, tuple[str, ...]]:
    """Class name -> descriptions."""
    return {species.name: descriptions(species) for species in SPECIES}


def with_articles(text: str) -> str:
    """Put "an" where a vowel follows: 'a owl' -> 'an owl'."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def joined(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


if __name__ == "__main__":
    write_json(DESCRIPTIONS, species_descriptions())
