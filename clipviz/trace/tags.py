"""Tags: words that a reader gave to images of a run, in a small file beside it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipviz.errors import one_line, parse_json
from clipviz.files import read_text, write_json

_HEAD = {"format": "clipviz-tags", "format_version": 1}
_IMAGE, _MOST_LETTERS, _MOST_BYTES = re.compile(r"(eval|train|probe)/\d{1,10}"), 60, 64_000_000


class Tags:
    """Tags of images by id ("eval/12"), kept as `tags.json` in a run folder; in memory where the folder is "".

    A file there that is none of ours is a ValueError, and is left as it is.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "tags.json" if folder else None
        self.by_image: dict[str, list[str]] = {}
        self._read()

    def _read(self) -> None:  # other views write the file as well
        try:
            if self.path is not None and self.path.exists():
                if not self.path.is_file() or self.path.stat().st_size > _MOST_BYTES:  # a pipe would never end
                    raise ValueError("it is not a file, or too large")
                self.by_image = _checked(parse_json(read_text(self.path, self.path.name)))
        except (OSError, ValueError) as error:
            reason = f"{self.path} cannot be read as tags ({one_line(error)})"
            raise ValueError(f"{reason}; move it elsewhere to tag images") from error

    def change(self, images: Iterable[str], tag: str, *, add: bool) -> None:
        """Give images a tag, or take it from them, and keep that; ValueError if it is no tag, or cannot be kept."""
        if not _is_tag(tag := tag.strip()):
            raise ValueError(f"a tag has 1 to {_MOST_LETTERS} letters on one line, got {tag[:80]!r}")
        self._read()
        changed = {image: [*(set(self.by_image.get(image, ())) - {tag}), *[tag] * add] for image in images}
        kept = {image: sorted(own) for image, own in (self.by_image | changed).items() if own}
        if self.path is not None:
            write_json(self.path, {**_HEAD, "tags": kept})
        self.by_image = kept

    @property
    def names(self) -> list[str]:
        """All tags, in order."""
        return sorted({tag for tags in self.by_image.values() for tag in tags})


def _is_tag(tag: object) -> bool:
    return isinstance(tag, str) and 0 < len(tag) <= _MOST_LETTERS and tag.isprintable() and tag == tag.strip()


def _checked(content: Any) -> dict[str, list[str]]:
    if not isinstance(content, dict) or not isinstance(tags := content.pop("tags", None), dict) or content != _HEAD:
        raise ValueError(f"wanted an object with tags by image and {_HEAD}")
    for image, own in tags.items():
        if not _IMAGE.fullmatch(image) or not isinstance(own, list) or not all(map(_is_tag, own)):
            raise ValueError(f"wanted a list of tags for an image, got {str({image: own})[:80]}")
    return tags
