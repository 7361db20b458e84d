"""The folder of a trace on disk: written whole or not at all, read from one save only, every file checked.

`manifest.json` is what makes a folder a trace: it holds the SHA-256 of every other file. A file is compared with it
before any parser sees it, so a damaged bit is an error and never a slightly different curve.
"""

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from clipviz.errors import one_line, parse_json
from clipviz.files import replacing

T = TypeVar("T")

FORMAT = "clipviz-trace"
FORMAT_VERSION = 1

_TRIES, _SWAPPING = 20, "swapping"
_MANIFEST = "manifest.json"


class Refused(ValueError):
    """A well-formed file with contents that are not ours; its message is complete."""


def write_folder(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write files (name -> content) and their manifest as a folder; an older trace at that place is replaced.

    A ValueError if the place holds something other than a trace; `CannotWrite` if the disk is full or the place not
    writable, and what was there before is untouched.
    """
    _refuse_to_replace_foreign(directory, {*files, _MANIFEST})
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": hashes}
    with replacing(directory) as place:
        place.mkdir()
        for name, content in {**files, _MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            (place / name).write_bytes(content)
    return directory


def read_folder(path: Path, names: Collection[str]) -> tuple[Path, dict[str, bytes]]:
    """Read the files of a trace folder, or of the run folder that holds it as `trace/`; all of them from one save.

    A live run may put another in its place meanwhile. Returns the folder, and name -> content; a ValueError if there is
    none, or it is incomplete, altered, foreign or from a newer clipviz.
    """
    for tries_left in reversed(range(_TRIES)):
        before = _places(path)
        try:
            directory = _find(path)
            return directory, _read_checked(directory, names)
        except ValueError:
            if not tries_left or (before == _places(path) and _SWAPPING not in before):
                raise
            time.sleep(0.05)
    raise AssertionError("the last try returns or raises")


def parse(path: Path, content: bytes, parser: Callable[[bytes], T]) -> T:
    """What a parser makes of a file; whatever it raises becomes a ValueError that names the file."""
    try:
        return parser(content)
    except Refused as refusal:
        raise ValueError(f"{path}: {refusal}") from None
    except Exception as error:  # parsers of foreign bytes raise what they like; all of it means the same
        raise ValueError(f"{path} cannot be read as a trace: {type(error).__name__}: {one_line(error)}") from error


def _refuse_to_replace_foreign(directory: Path, names: Collection[str]) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"a trace is a folder, but {directory} is a file; choose another place")
    foreign = sorted(set(os.listdir(directory)) - set(names))
    if foreign:
        raise ValueError(f"{directory} holds {foreign[0]!r}, not part of a trace: it would be lost; use another folder")


def _places(path: Path) -> list[object]:
    """What lies where a trace may be: a folder by its number, `_SWAPPING` while a newer one comes, or nothing."""
    found: list[object] = []
    for directory in (path, path / "trace"):
        try:
            found.append(directory.stat().st_ino)
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                is_moved = any(directory.parent.glob(f".{glob.escape(directory.name)}.*.older"))
                found.append(_SWAPPING if is_moved else None)
    return found


def _find(path: Path) -> Path:
    try:
        for directory in (path, path / "trace"):
            if (directory / _MANIFEST).is_file():
                return directory
        exists, is_directory = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # no permission; a NUL byte in the name
        raise ValueError(f"cannot look into {path!s}: {error}") from error
    if not exists:
        raise ValueError(f"no trace at {path}: there is no such folder")
    if not is_directory:
        raise ValueError(f"{path} is {_kind_of(path)}; a trace is a folder (give the run folder or its trace/)")
    raise ValueError(f"no trace in {path}: neither it nor its trace/ holds {_MANIFEST}; give a run folder")


def _kind_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return "a file"
    if head[:1] == b"\x80" or head == b"PK\x03\x04":
        return "a file that looks pickled (torch.save, pickle, npz), which clipviz never unpickles"
    return "a file"


def _read_checked(directory: Path, names: Collection[str]) -> dict[str, bytes]:
    """Bytes of every file that the manifest must list, each equal to its recorded hash."""
    hashes = parse(directory / _MANIFEST, _read(directory / _MANIFEST), partial(_parse_manifest, names=names))
    contents = {}
    for name in sorted(names):
        contents[name] = _read(directory / name)
        if hashlib.sha256(contents[name]).hexdigest() != hashes[name]:
            raise ValueError(
                f"{directory / name} is not what was saved ({len(contents[name]):,} bytes whose SHA-256 is not the "
                f"one in {_MANIFEST}): truncated, altered or pickled; copy the trace again or repeat the run"
            )
    return contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the trace is incomplete; copy it again or repeat the run") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _parse_manifest(content: bytes, names: Collection[str]) -> dict[str, str]:
    manifest = parse_json(content)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Refused(f"wanted the manifest of a {FORMAT}, this is something else")
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Refused(f"format_version must be a whole number of at least 1, got {version!r}")
    if version > FORMAT_VERSION:
        raise Refused(f"format {version} is newer than this clipviz reads (up to {FORMAT_VERSION}); upgrade clipviz")
    hashes = manifest.get("files")
    if not isinstance(hashes, dict) or set(hashes) != set(names):
        raise Refused(f"must list the hash of each of {', '.join(sorted(names))}, and no more")
    return hashes
