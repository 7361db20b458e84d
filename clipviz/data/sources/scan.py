"""Find the image files of a folder tree, whatever else lies there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from clipviz.data.base import Skipped

# HEIC cannot be decoded, but phones make it: better listed as skipped than passed over in silence
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}
    | {".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".heic", ".heif"}
)


@dataclass
class Listing:
    """What lies in one folder, by name and sorted; hidden things are left out.

    Attributes:
        folders: Names of sub-folders.
        images: Names of regular files with an image suffix.
        unusable: (name, reason) of things that look like images by name but are not files.
        other_suffixes: Suffixes of the other files, for error messages.
    """

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    other_suffixes: set[str] = field(default_factory=set)


@dataclass
class Tree:
    """All images below a folder.

    Attributes:
        images: Paths, sorted folder by folder.
        skipped: What could not be entered or used; paths are relative to the data set.
        other_suffixes: Suffixes of the files that are no images by name.
    """

    images: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    other_suffixes: set[str] = field(default_factory=set)


def display_name(path: str) -> str:
    r"""Return a path as valid Unicode: bytes that are no UTF-8 become "\xff" and the like."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def data_name(path: str) -> str:
    """What results call data on disk: `photos`, `photos/` and `./photos` are the same data, and get the same name."""
    name = display_name(os.path.normpath(path))
    return f"./{name}" if path.startswith("./") and name.partition("/")[0] == "birds" else name


def display_path(path: str, root: str) -> str:
    """Return a path relative to `root`, as valid Unicode."""
    return display_name(os.path.relpath(path, root))


def inside(folder: str, name: str) -> str | None:
    """The path of a file that a list names, or None if it would lie outside its folder."""
    path = os.path.normpath(os.path.join(folder, name))
    return path if path.startswith(os.path.join(os.path.normpath(folder), "")) and "\0" not in path else None


def list_folder(path: str) -> Listing:
    """List one folder.

    Raises:
        OSError: If it cannot be read.
    """
    listing = Listing()
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    for entry in sorted(visible, key=lambda entry: entry.name):
        _sort_in(entry, listing)
    return listing


def _sort_in(entry: os.DirEntry[str], listing: Listing) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    looks_like_image = suffix in IMAGE_SUFFIXES
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if looks_like_image:
            reason = "broken symbolic link" if entry.is_symlink() else str(error.strerror)
            listing.unusable.append((entry.name, reason))
        return
    if stat.S_ISDIR(mode) and not looks_like_image:
        listing.folders.append(entry.name)
    elif stat.S_ISDIR(mode):
        listing.unusable.append((entry.name, "a folder, not an image"))
    elif not looks_like_image:
        listing.other_suffixes.add(suffix or "no suffix")
    elif stat.S_ISREG(mode):
        listing.images.append(entry.name)
    else:  # a pipe would block for ever
        listing.unusable.append((entry.name, "not a regular file"))


def folder_keys(folders: Iterable[str]) -> set[tuple[int, int]]:
    """What folders are known by, whatever they are called: one look at each, where a real path takes one a level."""
    keys = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found = os.stat(folder)
            keys.add((found.st_dev, found.st_ino))
    return keys


def find_images(folder: str, root: str, deep: bool = True, elsewhere: Set[tuple[int, int]] = frozenset()) -> Tree:
    """Find all images below a folder, through symbolic links, each real folder once.

    Args:
        folder: Where to look.
        root: The data set's folder, for the paths of what is skipped.
        deep: Whether to enter sub-folders.
        elsewhere: `folder_keys` of those that are read on their own, so that a link to one of them adds nothing here.
    """
    tree = Tree()
    for path, listing in _walk(folder, root, tree.skipped, elsewhere):
        tree.images += [os.path.join(path, name) for name in listing.images]
        tree.skipped += [
            Skipped(display_path(os.path.join(path, name), root), reason) for name, reason in listing.unusable
        ]
        tree.other_suffixes |= listing.other_suffixes
        if not deep:
            break
    return tree


def _walk(
    folder: str, root: str, skipped: list[Skipped], elsewhere: Set[tuple[int, int]]
) -> Iterator[tuple[str, Listing]]:
    """Yield (path, listing) of a folder and those below it, depth first, without recursion."""
    seen: set[tuple[int, int]] = set()
    to_visit = [folder]
    while to_visit:
        path = to_visit.pop()
        keys = folder_keys([path])
        if keys & seen or (seen and keys & elsewhere):
            skipped.append(Skipped(display_path(path, root), "a link to a folder that was already read"))
            continue
        seen |= keys
        try:
            listing = list_folder(path)
        except OSError as error:
            skipped.append(Skipped(display_path(path, root), f"cannot read this folder: {error.strerror}"))
            continue
        yield path, listing
        to_visit += [os.path.join(path, name) for name in reversed(listing.folders)]
