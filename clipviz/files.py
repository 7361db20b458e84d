"""Writing files so that none is ever half-written, and folders that can be written to.

All that clipviz writes to disk is written here: `writing` gives an open file, `replacing` a place for libraries that
want a name, and for whole folders. Links are followed; streams and devices are written to as such.
"""

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_ABANDONED = 3600.0  # seconds after which what is half-written belongs to nobody any more
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CannotWrite(OSError, ValueError):
    """A file that could not be written, by its own name and in one line; what was there before is untouched."""

    def __str__(self) -> str:
        room = "make room, or " if self.errno in _FULL else ""
        return f"cannot write {self.filename}: {self.strerror}; {room}choose another place"


def prepare_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and make sure that it can be written to, before any work is done; `~` is the user's home."""
    if not os.fspath(path):
        raise ValueError("wanted a folder to write to, got an empty name; give one, or . for this folder")
    folder = Path(os.path.expanduser(path))
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

    None where a system or a file system has no locks; a BlockingIOError if somebody else has locked it.
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


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a pipe, a terminal, a device, or the file that a shell lets this process print to."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) or _printed_to(found) is not None
    return False


def _printed_to(found: os.stat_result) -> int | None:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


@contextmanager
def writing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """An open file whose content is at `path` when the block ends; of a block that fails or is killed nothing is left.

    Where the system can, the file has no name until it is whole. Links are followed, folders on the way are made; a
    stream or device is written to as it is. What is not `durable`, a cache, need not outlive a power failure.
    """
    with _told_by_name(path):
        if is_stream(path):
            printed = _printed_to(os.stat(path))
            with open(path if printed is None else os.dup(printed), "wb") as file:
                yield file
            return
        target = _target(path)
        if durable:
            clear_abandoned(target.parent, glob.escape(target.name))
        try:
            nameless = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (AttributeError, OSError):  # not Linux, not this file system, or no permission, which comes up again
            with replacing(target, durable=durable) as place, place.open("wb") as file:
                yield file
            return
        with open(nameless, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(nameless)
            named = _hidden(target)
            # without a folder's descriptor Python would link the link in /proc, not the file
            os.link(f"/proc/self/fd/{nameless}", named, src_dir_fd=nameless, follow_symlinks=True)
            try:
                named.replace(target)
            finally:
                named.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """A place to write a file or a folder, which moves to `path` when the block ends and vanishes if it fails.

    It is in a hidden folder beside `path`, not beside `path` itself: safetensors writes under names of its own beside
    its target, and what a killed process leaves of them is to be found under a name of ours. Arguments and errors: as
    for `writing`, but for streams.
    """
    with _told_by_name(path):
        target = _target(path)
        if durable:
            clear_abandoned(target.parent, glob.escape(target.name))
        folder = _hidden(target)
        try:
            folder.mkdir()
            place = folder / target.name
            yield place
            if not place.is_dir():
                place.chmod(folder.stat().st_mode & 0o666)  # the umask's; safetensors lets only its owner read
            if durable:
                _sync(*(place.iterdir() if place.is_dir() else ()), place)
            _swap_in(place, target)
            if durable:
                _sync(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _swap_in(new: Path, target: Path) -> None:
    """Put a complete file or folder where another may be; an older folder goes only once it is replaced."""
    if not (new.is_dir() and target.exists()):
        new.replace(target)
        return
    older = Path(f"{new.parent}.older")
    target.rename(older)
    try:
        new.rename(target)
    except OSError:
        older.rename(target)
        raise
    shutil.rmtree(older, ignore_errors=True)


def clear_abandoned(folder: Path, names: str) -> None:
    """Remove what killed processes left of half-written files whose names match a pattern."""
    for left in folder.glob(f".{names}.{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError):  # another process was faster
            if left.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _target(path: str | os.PathLike[str]) -> Path:
    """Where a file belongs, links followed; its folder is made."""
    target = Path(os.path.realpath(os.path.expanduser(path)))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _sync(*paths: Path) -> None:
    """Have the disk hold files and folders; not every system lets a folder be opened."""
    for path in paths:
        with contextlib.suppress(PermissionError):
            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs no other file
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def _told_by_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system or a library says of a file under its hidden name, said of the file itself."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:  # numpy says how much it wrote, and not why it was not all
        if not str(error):
            raise
        number = errno.ENOSPC if error.errno is None else error.errno
        raise CannotWrite(number, error.strerror or str(error), os.fspath(path)) from error
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # of a library that is not written in Python: safetensors
        if not found:
            raise
        raise CannotWrite(int(found[1]), os.strerror(int(found[1])), os.fspath(path)) from error


def read_text(path: str | os.PathLike[str], source: str, advice: str = "") -> str:
    """The text of a UTF-8 file; the error of one that cannot be read begins with `source` and ends with `advice`."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror}){advice}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all; what is no Unicode becomes question marks."""
    with writing(path) as file:
        file.write(text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text.encode("utf-8", "backslashreplace").decode())  # a name that is no Unicode stays an escape
