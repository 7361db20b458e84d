"""Class names, templates and descriptions as text; `Backbone` turns the sentences into a classifier.

Descriptions come in the format of CuPL, a JSON object of class name -> sentences, and are matched to classes by name.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from clipviz.errors import listed, one_line, parse_json, path_text, several_texts, unknown
from clipviz.files import read_text

Descriptions = str | os.PathLike[str] | Mapping[str, Sequence[str]]
"""A CuPL JSON file, or class name -> sentences."""

TextSource = Literal["templates", "descriptions"]
"""What a text classifier is made of; where nobody wrote descriptions, the templates stand in for them."""

DEFAULT_TEMPLATES = (
    "a photo of a {}.", "a close-up photo of a {}.", "a photo of the {}.", "a good photo of a {}.",
    "a cropped photo of a {}.",
)  # fmt: skip


def normalize_name(name: str) -> str:
    """Normal form of the spellings of a class name: lower case, composed (NFC), one space for "_", "-" and spaces."""
    return " ".join(unicodedata.normalize("NFC", name).lower().replace("_", " ").replace("-", " ").split())


def spoken_name(name: str) -> str:
    """Return the class name as it stands in a sentence: "_" and line breaks become spaces."""
    return " ".join(name.replace("_", " ").split())


def fill_template(template: str, name: str) -> str:
    """Put a class name into a template: as text, so that braces, quotes and percent signs on either side are safe."""
    return template.replace("{}", spoken_name(name))


def short_hash(parts: Iterable[str | bytes | memoryview]) -> str:
    """16 hex digits that differ where any of some texts or contents does, or their order."""
    digest = hashlib.sha256()
    for part in parts:
        content = memoryview(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
        digest.update(content.nbytes.to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ClassPrompts:
    """What the text tower reads for each class.

    A name that occurs twice or is blank, a template without "{}", and descriptions that do not fit are ValueErrors.
    """

    names: tuple[str, ...]  # the position is the class index; empty if the classes are not known yet
    # patterns with "{}" where the class name goes; the first serves where one is asked for
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    # class name -> its sentences, for all classes or (nobody wrote any) for none
    descriptions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = field(default="", compare=False)  # the file of the descriptions, "" where they are of none

    def __post_init__(self) -> None:
        check_class_names(self.names)
        _check_templates(several_texts("templates", self.templates))
        if self.descriptions:
            object.__setattr__(self, "descriptions", read_descriptions(self.descriptions, self.names))

    @property
    def descriptions_given(self) -> bool:
        """Whether there are descriptions; if not, the template sentences are used instead."""
        return bool(self.descriptions)

    @cached_property
    def digest(self) -> str:
        """A short hash of all names, templates and descriptions."""
        described = (text for name, texts in self.descriptions.items() for text in ("", name, *texts))
        return short_hash([*self.names, "", *self.templates, *described])

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def template_sentences(self, name: str) -> tuple[str, ...]:
        """Return the class name in every template, in the order of `templates`."""
        if name not in self._known:
            raise unknown("class", name, self.names)
        return tuple(fill_template(template, name) for template in self.templates)

    def description_sentences(self, name: str) -> tuple[str, ...]:
        """Return the sentences that describe the class; its template sentences if no descriptions were given."""
        return self.descriptions.get(name) or self.template_sentences(name)


def make_prompts(
    class_names: tuple[str, ...], templates: str | Sequence[str] | None, descriptions: Descriptions | None
) -> ClassPrompts:
    """Put the texts of a data set together; without class names those of the descriptions count."""
    described = {} if descriptions is None else read_descriptions(descriptions, class_names or None)
    patterns = several_texts("templates", [templates] if isinstance(templates, str) else templates or DEFAULT_TEMPLATES)
    source = Path(descriptions).name if isinstance(descriptions, str | os.PathLike) else ""
    return ClassPrompts(class_names or tuple(described), patterns, described, source)


def check_class_names(names: Sequence[str], source: str = "class names") -> None:
    """Check that every class has a name of its own; `source` says where the names came from."""
    if odd := [name for name in several_texts(source, names) if not isinstance(name, str)]:
        raise ValueError(f"{source}: every class needs a name, got {one_line(repr(odd[0]), 60)}")
    blank = [index for index, name in enumerate(names) if not spoken_name(name)]
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    problems = [f"blank at position {index}" for index in blank] + [f"{name!r} occurs twice" for name in twice]
    problems += [f"{name!r} is broken Unicode (a lone surrogate)" for name in names if not _is_encodable(name)]
    if problems:
        raise ValueError(f"{source}: every class needs a name of its own, but {listed(problems, '; ')}")


def _check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise ValueError("templates: wanted at least one pattern such as 'a photo of a {}.', got none")
    if broken := [template for template in templates if not (isinstance(template, str) and _is_encodable(template))]:
        raise ValueError(f"templates: {broken[0]!r} is broken Unicode (a lone surrogate), or no text")
    if lacking := listed(repr(template) for template in templates if "{}" not in template):
        raise ValueError(f"templates: put {{}} where the class name goes; it is missing in {lacking}")


def read_descriptions(
    descriptions: Descriptions, class_names: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Check descriptions: a CuPL file (UTF-8, a JSON object), or class name -> list of sentences.

    Returns them without surrounding blanks, in the order and spelling of `class_names`, which they must describe, each
    exactly once and no others; spellings may differ in case and in "_", "-" and spaces. None takes the classes from the
    keys.

    Raises:
        ValueError: If the file cannot be read or is not a JSON object, or with one line that lists every missing, extra
            and ambiguous key, empty list and entry that is not a sentence.
    """
    source, pairs = description_pairs(descriptions)
    if problems := description_problems(pairs, class_names):
        raise ValueError(f"{source}: {listed(problems, '; ')}")
    by_name = {normalize_name(key): sentences for key, sentences in pairs}
    classes = [key.strip() for key, _ in pairs] if class_names is None else class_names
    return {name: tuple(sentence.strip() for sentence in by_name[normalize_name(name)]) for name in classes}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs in order: a dict would silently drop all but the last of equal keys."""


def description_pairs(descriptions: Descriptions) -> tuple[str, list[tuple[str, Any]]]:
    """Return the name of a source of descriptions and its entries in order, unchecked."""
    if isinstance(descriptions, Mapping):
        return "descriptions", [(str(key), sentences) for key, sentences in descriptions.items()]
    path = path_text("a file of descriptions (or give a mapping, class name -> list of sentences)", descriptions)
    text = read_text(path, source := f"descriptions file {path!r}")
    try:
        content = parse_json(text, object_pairs_hook=_Pairs)
    except ValueError as error:
        raise ValueError(
            f"{source}: is not valid JSON ({error}); wanted an object, class name -> list of sentences "
            "(`clipviz describe` writes one to fill in)"
        ) from error
    if not isinstance(content, _Pairs):
        raise ValueError(f"{source}: wanted a JSON object, class name -> list of sentences; got {_json_type(content)}")
    return source, content


def description_problems(pairs: Sequence[tuple[str, Any]], class_names: Sequence[str] | None = None) -> list[str]:
    """Everything that keeps descriptions from being used, one phrase each; nothing if they are valid."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, _ in pairs:
        by_name[normalize_name(key)].append(key)
    classes = [key.strip() for key, _ in pairs] if class_names is None else class_names
    of_sentences = (_sentences_problem(key, sentences) for key, sentences in pairs)
    return _key_problems(by_name, classes) + [problem for problem in of_sentences if problem]


def _key_problems(by_name: Mapping[str, list[str]], classes: Sequence[str]) -> list[str]:
    """Say which classes have no key, which keys have no class, and which cannot be told apart."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        wanted[normalize_name(name)].append(name)
    missing = [name for norm, names in wanted.items() if norm not in by_name for name in names]
    extra = [key for norm, keys in by_name.items() if norm not in wanted for key in keys]
    problems = [(what, names) for what, names in (("no entry for", missing), ("entries for no class:", extra)) if names]
    problems += [("ambiguous keys for one class:", keys) for keys in by_name.values() if len(keys) > 1]
    shared = (names for norm, names in wanted.items() if len(names) > 1 and len(by_name.get(norm, ())) <= 1)
    problems += [("classes that share one key:", names) for names in shared]
    said = [f"{problem} {listed(map(repr, names))}" for problem, names in problems]
    return said + ["no class is described"] * (not classes) + ["a key is blank"] * ("" in by_name)


def _sentences_problem(key: str, sentences: Any) -> str | None:
    if not _is_encodable(key):
        return f"key {key!r} is broken Unicode (a lone surrogate)"
    if not isinstance(sentences, list | tuple) or isinstance(sentences, _Pairs):
        return f"{key!r} needs a list of sentences, got {_json_type(sentences)}"
    if not sentences:
        return f"{key!r} has an empty list"
    if wrong := sorted({_json_type(item) for item in sentences if not isinstance(item, str)}):
        return f"{key!r} holds {' and '.join(wrong)} where a sentence belongs"
    if any(not sentence.strip() for sentence in sentences):
        return f"{key!r} has a blank sentence"
    if not all(_is_encodable(sentence) for sentence in sentences):
        return f"{key!r} has a sentence with broken Unicode (a lone surrogate)"
    return None


def _is_encodable(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _json_type(value: Any) -> str:
    if isinstance(value, str | bool | type(None)):
        return {str: "a string", bool: "true or false"}.get(type(value), "null")
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list | tuple) and not isinstance(value, _Pairs) else "an object"
