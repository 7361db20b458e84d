"""Find the image files of a folder tree, whatever else lies there."""

import contextlib
import os
import stat
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from clipviz.data.base import Skipped

# HEIC cannot be decoded, but phones make it: better listed as skipped than passed over in silence
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".webp"}
    | {".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".heic", ".heif"}
)


@dataclass
class Listing:
    """What lies in one folder, or in all below it; sorted, without hidden things."""

    folders: list[str] = field(default_factory=list)  # names of the sub-folders of one folder
    images: list[str] = field(default_factory=list)  # paths of the regular files with an image suffix
    # what looks like an image by name but is none, and folders that could not be entered
    skipped: list[Skipped] = field(default_factory=list)
    other_suffixes: set[str] = field(default_factory=set)  # suffixes of the other files, for error messages


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


def list_folder(path: str, root: str | None = None) -> Listing:
    """List one folder, whose `OSError` is the caller's; the paths of what is skipped are relative to `root`."""
    listing = Listing()
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    for entry in sorted(visible, key=lambda entry: entry.name):
        _sort_in(entry, listing, root or path)
    return listing


def _sort_in(entry: os.DirEntry[str], listing: Listing, root: str) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    try:
        mode = entry.stat().st_mode
        reason = "a folder, not an image" if stat.S_ISDIR(mode) else "not a regular file"  # a pipe would block for ever
    except OSError as error:
        mode, reason = 0, "broken symbolic link" if entry.is_symlink() else str(error.strerror)
    if suffix in IMAGE_SUFFIXES and stat.S_ISREG(mode):
        listing.images.append(entry.path)
    elif suffix in IMAGE_SUFFIXES:
        listing.skipped.append(Skipped(display_path(entry.path, root), reason))
    elif stat.S_ISDIR(mode):
        listing.folders.append(entry.name)
    elif mode:
        listing.other_suffixes.add(suffix or "no suffix")


def folder_keys(folders: Iterable[str]) -> set[tuple[int, int]]:
    """What folders are known by, whatever they are called: one look at each, where a real path takes one a level."""
    keys = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found = os.stat(folder)
            keys.add((found.st_dev, found.st_ino))
    return keys


def find_images(folder: str, root: str, deep: bool = True, elsewhere: Set[tuple[int, int]] = frozenset()) -> Listing:
    """Find all images in a folder and, if `deep`, below it, through symbolic links, each real folder once.

    Paths of what is skipped are relative to `root`. A link to a folder that is read on its own, of which `elsewhere`
    has the `folder_keys`, adds nothing here.
    """
    found = Listing()
    seen: set[tuple[int, int]] = set()
    to_visit = [folder]  # depth first, without recursion
    while to_visit:
        path = to_visit.pop()
        keys = folder_keys([path])
        if keys & seen or (seen and keys & elsewhere):
            found.skipped.append(Skipped(display_path(path, root), "a link to a folder that was already read"))
            continue
        seen |= keys
        try:
            listing = list_folder(path, root)
        except OSError as error:
            reason = f"cannot read this folder: {error.strerror}"
            listing = Listing(skipped=[Skipped(display_path(path, root), reason)])
        found.images += listing.images
        found.skipped += listing.skipped
        found.other_suffixes |= listing.other_suffixes
        if deep:
            to_visit += [os.path.join(path, name) for name in reversed(listing.folders)]
    return found
