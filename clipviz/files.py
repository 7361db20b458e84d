"""Writing files so that none is ever half-written, and folders that can be written to."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def prepare_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and make sure that it can be written to.

    Raises:
        ValueError: with the reason, before any work was done.
    """
    if not os.fspath(path):
        raise ValueError("wanted a folder to write to, got an empty name; give one, or . for this folder")
    folder = Path(path)
    probe = folder / f".write-test-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write to folder {os.fspath(path)!r}: {error.strerror or error}; choose another place"
        ) from error
    return folder


def lock_folder(folder: Path, *, shared: bool = False) -> int | None:
    """Keep others out of a folder until the descriptor is closed, by the system if this process dies.

    Returns:
        The descriptor; None where a system or a file system has no locks.

    Raises:
        BlockingIOError: if somebody else has locked it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def is_locked(folder: Path) -> bool:
    """Whether somebody keeps others out of a folder, or might: where there are no locks nobody knows."""
    try:
        descriptor = lock_folder(folder, shared=True)
    except OSError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file, which moves to `path` when the block ends and vanishes if it fails.

    It is in a hidden folder beside `path`, not beside `path` itself: safetensors writes under names of its own beside
    its target, and what a killed process leaves of them is to be found under a name of ours.
    """
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder / path.name
        (folder / path.name).chmod(folder.stat().st_mode & 0o666)  # the umask's; safetensors lets only its owner read
        with (folder / path.name).open("rb+") as file:
            os.fsync(file.fileno())
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there."""
    with replacing(path) as place:
        place.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text.encode("utf-8", "backslashreplace").decode())  # a name that is no Unicode stays an escape
