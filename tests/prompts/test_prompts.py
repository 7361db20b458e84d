import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipviz.prompts import (
    DEFAULT_TEMPLATES,
    ClassPrompts,
    fill_template,
    normalize_name,
    read_descriptions,
)

NASTY_NAMES = ["<script>alert(1)</script>", "{}", "{0.real}", "100% {x!r}", "a \"quoted\" 'one'", "naïve é"]


@pytest.fixture
def write(tmp_path):
    def write_file(content):
        path = tmp_path / "descriptions.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_name_is_put_into_a_template_as_text(name):
    assert fill_template("a photo of {}, 100% {real}.", name) == f"a photo of {name}, 100% {{real}}."


def test_underscores_and_line_breaks_in_a_name_become_spaces():
    assert fill_template("a {}.", "foie_gras\n de  canard") == "a foie gras de canard."


@pytest.mark.parametrize("spelling", ["Foie_Gras", "foie-gras", " foie  gras ", "FOIE GRAS"])
def test_spellings_of_a_name_agree_after_normalization(spelling):
    assert normalize_name(spelling) == "foie gras"


def test_composed_and_decomposed_accents_are_the_same_name():
    assert normalize_name("e\u0301tang") == normalize_name("\u00e9tang")


def test_templates_stand_in_for_missing_descriptions():
    prompts = ClassPrompts(("red_bird", "owl"), ("a {}.", "one {}."))
    assert not prompts.descriptions_given
    assert prompts.template_sentences("red_bird") == ("a red bird.", "one red bird.")
    assert prompts.description_sentences("owl") == prompts.template_sentences("owl")


def test_descriptions_are_matched_by_name_and_not_by_position():
    prompts = ClassPrompts(("red_bird", "owl"), descriptions={"Owl": ["It hoots. "], "red bird": ["It is red."]})
    assert prompts.descriptions_given
    assert prompts.description_sentences("red_bird") == ("It is red.",)
    assert list(prompts.descriptions) == ["red_bird", "owl"]
    assert prompts.template_sentences("owl")[0] == DEFAULT_TEMPLATES[0].replace("{}", "owl")


def test_an_unknown_class_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown class 'owel'; did you mean 'owl'\?"):
        ClassPrompts(("owl", "wren")).template_sentences("owel")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("a", "b", "a")}, "'a' occurs twice"),
        ({"names": ("a", " _ ")}, "blank at position 1"),
        ({"names": ("a",), "templates": ()}, "at least one pattern"),
        ({"names": ("a",), "templates": ("a photo.", "a {}.")}, "missing in 'a photo.'"),
        ({"names": ("a",), "templates": "a {}."}, "wanted a list"),
        ({"names": ("a", "b"), "descriptions": {"a": ["x"]}}, "no entry for 'b'"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassPrompts(**arguments)


def test_a_file_is_read_in_the_order_and_spelling_of_the_classes(write):
    path = write({"Foie-gras": ["Rich."], "pho": [" Soup.", "Noodles."]})
    assert read_descriptions(path, ["pho", "foie_gras"]) == {
        "pho": ("Soup.", "Noodles."),
        "foie_gras": ("Rich.",),
    }
    assert list(read_descriptions(path)) == ["Foie-gras", "pho"]


def test_a_byte_order_mark_is_no_problem(write):
    assert read_descriptions(write(b'\xef\xbb\xbf{"a": ["x"]}')) == {"a": ("x",)}


def test_one_error_lists_every_problem_on_one_line(write):
    path = write(
        '{"a b": ["x"], "a_b": ["y"], "c": [], "d": ["ok", 3, null], "e": "text", "f": [" "],'
        ' "ex\\ntra": ["x"], "g": {"h": ["x"]}, "i": ["\\ud800"]}'
    )
    with pytest.raises(ValueError, match="descriptions file") as error:
        read_descriptions(path, ["a b", "c", "d", "e", "f", "g", "i", "missing one", "missing two"])
    message = str(error.value)
    for part in (
        "no entry for 'missing one', 'missing two'",
        r"entries for no class: 'ex\ntra'",
        "ambiguous keys for one class: 'a b', 'a_b'",
        "'c' has an empty list",
        "'d' holds a number and null where a sentence belongs",
        "'e' needs a list of sentences, got a string",
        "'f' has a blank sentence",
        "'g' needs a list of sentences, got an object",
        "'i' has a sentence with broken Unicode",
    ):
        assert part in message
    assert "\n" not in message


def test_equal_keys_are_noticed_although_json_would_drop_one(write):
    with pytest.raises(ValueError, match="ambiguous keys for one class: 'a', 'a'"):
        read_descriptions(write('{"a": ["x"], "a": ["y"]}'), ["a"])


def test_classes_that_differ_in_spelling_only_are_ambiguous():
    with pytest.raises(ValueError, match="classes that share one key: 'a_b', 'a b'"):
        read_descriptions({"a b": ["x"]}, ["a_b", "a b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{'a': ['x']}", "not valid JSON"),
        ('{"a": ["x"]', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "wanted a JSON object, class name -> list of sentences; got a list"),
        ("3", "got a number"),
        ("{}", "no class is described"),
        ('{" ": ["x"]}', "a key is blank"),
        ('{"\\udc80": ["x"]}', "broken Unicode"),
        (b'{"a": ["\xff"]}', "not UTF-8"),
    ],
)
def test_a_file_that_is_no_description_file_is_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_descriptions(write(content))


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_descriptions(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="Is a directory"):
        read_descriptions(tmp_path)


def read_or_refuse(path, classes):
    try:
        return read_descriptions(path, classes), ""
    except ValueError as error:
        return {}, str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(content=json_values, classes=st.none() | st.lists(st.text(max_size=5), max_size=3))
def test_any_json_is_resolved_or_refused_in_one_line(tmp_path_factory, content, classes):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    described, refusal = read_or_refuse(path, classes)
    assert "\n" not in refusal
    assert all(sentences for sentences in described.values())
    assert refusal or classes is None or list(described) == classes


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_resolved_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="descriptions file"):
        read_descriptions(path)
