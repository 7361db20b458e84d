"""What is to be said about a file of descriptions: everything that is wrong with it at once, and what is merely odd.

A text tower cuts sentences that are too long without notice; one that does not name its class was often split wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from clipviz.errors import listed, one_line
from clipviz.prompts.classes import Descriptions, description_pairs, description_problems, normalize_name

_BATCH = 512


class DescriptionCheck(NamedTuple):
    """What a file of descriptions holds."""

    source: str  # its name, for messages
    # what makes it unusable, one phrase each: missing, extra and ambiguous keys, empty lists, ...
    problems: tuple[str, ...]
    n_classes: int  # keys with sentences
    n_sentences: int  # sentences of all keys
    fewest: int  # least number of sentences of a key that has any
    most: int  # largest number
    context: int | None  # tokens that the text tower reads; None if no tokenizer was given
    cut: tuple[tuple[str, str], ...]  # (key, sentence) of those that are longer
    nameless: tuple[tuple[str, str], ...]  # (key, sentence) of those that do not contain their class's name

    def counts(self) -> str:
        """How many sentences there are."""
        if not self.n_sentences:
            return "no sentence at all"
        return (
            f"{self.n_sentences} sentences for {self.n_classes} classes, {self.fewest} to {self.most} for one "
            f"(mean {self.n_sentences / self.n_classes:.1f})"
        )

    def notices(self) -> list[str]:
        """What is odd but no error."""
        too_long = f"are longer than the {self.context} tokens that the text tower reads and are cut"
        return [
            f"{len(pairs)} ({100 * len(pairs) / self.n_sentences:.1f} %) {what}, "
            f"for example of {pairs[0][0]!r}: {one_line(pairs[0][1], 60)!r}"
            for pairs, what in ((self.cut, too_long), (self.nameless, "do not name their class")) if pairs
        ]  # fmt: skip

    def report(self) -> str:
        """All of it in one line."""
        problems = [listed(self.problems, "; ")] if self.problems else []
        return f"{self.source}: {'; '.join([*problems, self.counts(), *self.notices()])}"

    def require(self) -> DescriptionCheck:
        """Return itself; problems are refused with the whole report in one line."""
        if self.problems:
            raise ValueError(f"{self.report()}; correct the file, then run `clipviz describe --check` again")
        return self


def check_descriptions(
    descriptions: Descriptions, class_names: Sequence[str] | None = None, tokenizer: Callable[..., Any] | None = None
) -> DescriptionCheck:
    """Look at descriptions, a CuPL JSON file or class name -> sentences, without using them.

    They must be of `class_names`, or of any. `tokenizer`, as open_clip's, makes of texts and a `context_length` token
    ids (L, T); without one lengths are left out. A ValueError if the file is no JSON object of UTF-8 text; all else is
    reported.
    """
    source, pairs = description_pairs(descriptions)
    lists = [
        [(key, text.strip()) for text in sentences if isinstance(text, str) and text.strip()]
        for key, sentences in pairs if isinstance(sentences, list | tuple)
    ]  # fmt: skip
    sentences = [pair for of_key in lists for pair in of_key]
    counts = [len(of_key) for of_key in lists if of_key] or [0]
    context = None if tokenizer is None else int(getattr(tokenizer, "context_length", 77))
    cut = () if tokenizer is None or context is None else tuple(_cut(sentences, tokenizer, context))
    nameless = tuple((key, text) for key, text in sentences if normalize_name(key) not in normalize_name(text))
    problems = tuple(description_problems(pairs, class_names))
    n_described, least, most = sum(map(bool, lists)), min(counts), max(counts)
    return DescriptionCheck(source, problems, n_described, len(sentences), least, most, context, cut, nameless)


def _cut(sentences: Sequence[tuple[str, str]], tokenizer: Callable[..., Any], context: int) -> list[tuple[str, str]]:
    """Those with more tokens than `context`: with twice the room, something stands behind it that is no padding."""
    found, padding = [], tokenizer([""], context_length=2 * context)[0, -1]
    for start in range(0, len(sentences), _BATCH):
        batch = sentences[start : start + _BATCH]
        ids = tokenizer([text for _, text in batch], context_length=2 * context)
        too_long = (ids[:, context:] != padding).any(1).tolist()
        found += [pair for pair, is_cut in zip(batch, too_long, strict=True) if is_cut]
    return found
