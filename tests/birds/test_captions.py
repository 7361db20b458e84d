"""Language of birds: whatever is said about a bird is true of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from clipviz.birds.dataset import DESCRIPTIONS, TEMPLATES, BirdsDataset
from clipviz.birds.world import ATTRIBUTE_NAMES, ATTRIBUTES, SPECIES, decode
from tools.captions import (
    _ABSENT,
    _PHRASES,
    descriptions,
    phrase,
    species_descriptions,
)
from tools.pretraining_data import attribute_prompts, caption, sample_attributes


def mentions(text):
    """Every (attribute, value) that a text names, found by its phrases."""
    found = set()
    for attribute, wordings in _PHRASES.items():
        for value in ATTRIBUTES[attribute]:
            spoken = _ABSENT[attribute] if value == "no" else tuple(wording.format(value) for wording in wordings)
            for words in spoken:
                words = re.sub(r"^a (?=[aeiou])", "an ", words)
                if re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text):
                    found.add((attribute, value))
    return found


def test_the_search_for_mentions_finds_them():
    text = "This bird has an orange eye-ring, no cap, white wing bars and gray plumage."
    assert mentions(text) == {("eye_ring", "orange"), ("cap", "no"), ("wing_bars", "white"), ("body", "gray")}


def test_every_class_has_several_sentences_all_of_them_true():
    everything = species_descriptions()
    assert list(everything) == [species.name for species in SPECIES]
    for species in SPECIES:
        sentences = everything[species.name]
        assert len(sentences) == len(set(sentences)) == 12
        for sentence in sentences:
            named = mentions(sentence)
            assert len(named) == 5, sentence
            assert all(species.values[attribute] == value for attribute, value in named), sentence
            assert species.name in sentence


def test_both_parts_that_tell_a_species_apart_are_described():
    for species in SPECIES:
        named = set().union(*(mentions(sentence) for sentence in descriptions(species)))
        assert {(name, species.values[name]) for name in species.discriminative} <= named


def test_lookalikes_are_described_differently():
    for group in range(6):
        told = []
        for species in (s for s in SPECIES if s.group == group):
            named = set().union(*(mentions(sentence) for sentence in descriptions(species)))
            told.append(frozenset(pair for pair in named if pair[0] in species.discriminative))
        assert len(set(told)) == 4


def test_descriptions_are_the_same_on_every_call_and_can_be_had_shorter():
    assert descriptions(SPECIES[5]) == descriptions(SPECIES[5])
    short = descriptions(SPECIES[5], sentences=3, parts=2)
    assert [len(mentions(sentence)) for sentence in short] == [2, 2, 2]


def test_captions_are_true_and_name_two_to_five_parts():
    rng = np.random.default_rng(0)
    counts, seen = set(), set()
    for code in sample_attributes(400, rng):
        values, text = decode(code), caption(code, rng)
        named = mentions(text)
        assert all(values[attribute] == value for attribute, value in named), text
        adjective = bool(re.search(r"\w-(bodied|winged|beaked|capped|billed|legged|throated|eyed|barred|tailed)", text))
        adjective |= bool(re.search(rf"(plain|spotted|streaked|barred) ({values['plan']}|bird)", text))
        counts.add(len(named) + adjective)
        seen |= {attribute for attribute, _ in named}
        plans = [plan for plan in ATTRIBUTES["plan"] if re.search(rf"\b{plan}\b", text)]
        assert plans in ([], [values["plan"]]), text
    assert counts == {2, 3, 4, 5}
    assert seen == set(ATTRIBUTE_NAMES) - {"plan"}


def test_captions_are_seeded():
    code = SPECIES[0].code
    texts = [caption(code, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("attribute", ATTRIBUTE_NAMES)
def test_attribute_prompts_differ_in_the_value_alone(attribute):
    rng = np.random.default_rng(1)
    for _ in range(10):
        prompts = attribute_prompts(attribute, rng)
        assert len(prompts) == len(set(prompts)) == len(ATTRIBUTES[attribute])
        for value, prompt in zip(ATTRIBUTES[attribute], prompts, strict=True):
            assert value in prompt or value == "no", prompt


def test_articles_fit_the_next_word():
    rng = np.random.default_rng(2)
    texts = [caption(code, rng) for code in sample_attributes(300, rng)]
    texts += [sentence for species in SPECIES for sentence in descriptions(species)]
    assert not [text for text in texts if re.search(r"\b[Aa] [aeiou]", text)]
    assert not [text for text in texts if re.search(r"\b[Aa]n [^aeiou]", text)]
    assert any(" an " in text for text in texts)


def test_phrases_say_what_is_missing_in_words():
    rng = np.random.default_rng(0)
    assert {phrase("cap", "no", rng) for _ in range(20)} == {"no cap", "a plain crown"}
    assert {phrase("cap", "red", rng) for _ in range(20)} == {"a red cap", "a red crown"}


def test_templates_have_one_place_for_the_name():
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_birds_come_with_these_descriptions():
    assert json.loads(DESCRIPTIONS.read_text("utf-8")) == {
        name: list(said) for name, said in species_descriptions().items()
    }
    assert BirdsDataset("fog", "test", n=1).prompts.descriptions == species_descriptions()
