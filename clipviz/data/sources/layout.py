"""Which images a data set has, and of which classes; and how a folder says so.

Understood are class folders, a flat folder of images, and either of them inside train/, val/ and test/, whatever else
lies there.
"""

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field

from clipviz.data.base import Skipped
from clipviz.errors import choose, listed, one_line
from clipviz.events import UNLABELLED
from clipviz.files import read_text
from clipviz.prompts import check_class_names, normalize_name

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
            listing = Listing(skipped=[Skipped(display_path(path, root), f"cannot read this folder: {error.strerror}")])
        found.images += listing.images
        found.skipped += listing.skipped
        found.other_suffixes |= listing.other_suffixes
        if deep:
            to_visit += [os.path.join(path, name) for name in reversed(listing.folders)]
    return found


SPLITS = ("train", "val", "test")
ALL = "all"
SPLIT_FOLDERS = {name: name for name in SPLITS} | {
    "training": "train", "valid": "val", "validation": "val", "testing": "test"
}  # fmt: skip


class NoSuchSplit(ValueError):
    """Data have splits, but not the one that was asked for."""


@dataclass(frozen=True)
class Layout:
    """The candidates of a data set of files, not yet opened."""

    split: str  # its name; `ALL` if the data have no splits
    class_names: tuple[str, ...]  # in the order of the class indices; empty if nothing names them
    paths: list[str] = field(default_factory=list)  # one for each candidate
    targets: list[int] = field(default_factory=list)  # class index of each candidate, -1 if unlabeled
    skipped: list[Skipped] = field(default_factory=list)  # what was not even a candidate

    def add(self, path: str, target: int) -> None:
        """One more candidate."""
        self.paths.append(path)
        self.targets.append(target)

    def add_listed(self, folder: str, name: str, target: int) -> None:
        """A file that a list names; skipped if it would lie outside its folder."""
        path = os.path.normpath(os.path.join(folder, name))
        if path.startswith(os.path.join(os.path.normpath(folder), "")) and "\0" not in path:
            self.add(path, target)
        else:
            self.skipped.append(Skipped(display_name(name), "lies outside the folder of images"))

    def add_found(self, found: Listing, target: int) -> None:
        """All images that were found in a folder."""
        self.paths.extend(found.images)
        self.targets.extend([target] * len(found.images))
        self.skipped.extend(found.skipped)


def read_layout(root: str, split: str, classes: Sequence[str] | None = None) -> Layout:
    """Find the images of one split of a folder, and their classes.

    If there is no test/, val/ stands in; a folder without splits gives all images, one without this split raises
    NoSuchSplit. Classes are the given ones in their order, else the class folders (of all splits together, so that
    class indices agree between splits), else those of classes.txt in the folder.
    """
    choose("split", split, (*SPLITS, ALL))
    bases = _split_folders(root) or {ALL: root}
    used = used_split(split, bases) if ALL not in bases else ALL
    if used not in bases:
        there = ", ".join(repr(os.path.basename(folder)) for folder in bases.values())
        raise NoSuchSplit(
            f"no split {split!r} in the folder {display_name(root)!r}; it has {there}; ask for one of these, or give "
            f"its folder as the data ({display_name(next(iter(bases.values())))!r})"
        )
    base = bases[used]
    folders = _class_folders(base, root)
    named = sorted({folder for other in bases.values() for folder in _class_folders(other, root)})
    layout = Layout(used, tuple(classes) if classes is not None else _class_names(root, base, named))
    loose = find_images(base, root, deep=False)
    if folders:
        outside = [Skipped(display_path(path, root), "lies outside the class folders") for path in loose.images]
        layout.skipped.extend(loose.skipped + outside)
        # a link from one class to another, or to all of them, must not make the images of that one this one's
        read_anyway = folder_keys([root, base, *(os.path.join(base, folder) for folder in folders)])
        for folder, target in zip(folders, _targets_of(folders, layout.class_names, root), strict=True):
            layout.add_found(find_images(os.path.join(base, folder), root, elsewhere=read_anyway), target)
    elif loose.images:
        layout.add_found(loose, UNLABELLED)
    else:
        raise ValueError(_no_image(base, root))
    return layout


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names from a UTF-8 text file, one on a line; the line's position is the class index."""
    source = f"class list {os.fspath(path)!r}"
    text = read_text(path, source, "; give a list, or a text file with one name per line")
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not names or (len(names) == 1 and "," in names[0]):
        found = f"one class only, {one_line(names[0], 60)!r}" if names else "no class"
        raise ValueError(f"{source}: names {found}; put one name on each line")
    check_class_names(names, source)
    return names


def _split_folders(root: str) -> dict[str, str]:
    """Return split -> folder; empty if the sub-folders are not splits.

    A class may be called "train", so one such name among others is one; train beside another split is not.
    """
    try:
        folders = list_folder(root).folders
    except OSError as error:
        raise ValueError(f"cannot read the folder {display_name(root)!r}: {error.strerror}") from error
    found: dict[str, str] = {}
    for name in folders:
        if split := SPLIT_FOLDERS.get(name.lower()):
            found.setdefault(split, os.path.join(root, name))
    only_splits = all(name.lower() in SPLIT_FOLDERS for name in folders)
    return found if only_splits or ("train" in found and len(found) > 1) else {}


def used_split(split: str, there: Collection[str]) -> str:
    """The split that is asked for, but val where it stands in for a test split that is not there."""
    return "val" if split == "test" and "test" not in there and "val" in there else split


def _class_folders(base: str, root: str) -> list[str]:
    """The names of the class folders: all sub-folders, provided that at least one holds an image."""
    with contextlib.suppress(OSError):
        folders = list_folder(base).folders
        return folders if any(find_images(os.path.join(base, name), root).images for name in folders) else []
    return []


def _class_names(root: str, base: str, class_folders: Sequence[str]) -> tuple[str, ...]:
    lists = [path for folder in (base, root) if os.path.isfile(path := os.path.join(folder, "classes.txt"))]
    if class_folders or not lists:
        return tuple(map(display_name, class_folders))
    return read_class_names(lists[0])


def _targets_of(folders: Sequence[str], class_names: tuple[str, ...], root: str) -> list[int]:
    """Match class folders to classes by name, in either spelling; never by position."""
    exact = {name: target for target, name in enumerate(class_names)}
    loose = {normalize_name(name): target for target, name in enumerate(class_names)}
    shown = [display_name(folder) for folder in folders]
    targets = [exact.get(name, loose.get(normalize_name(name))) for name in shown]
    if unknown := [name for name, target in zip(shown, targets, strict=True) if target is None]:
        raise ValueError(
            f"class folders of {display_name(root)!r} that are not in the class list: {listed(map(repr, unknown))}; "
            "add them to the list or leave the list out"
        )
    return [target for target in targets if target is not None]


def _no_image(base: str, root: str) -> str:
    found = find_images(base, root)
    message = f"no image in the folder {display_name(base)!r}"
    if found.skipped:
        return f"{message}; {found.skipped[0].path!r}: {found.skipped[0].reason}"
    if found.other_suffixes:
        kinds = ", ".join(sorted(found.other_suffixes))
        return f"{message}, only other files ({kinds}); images end in .jpg, .png, .webp, .tif, .gif, .bmp ..."
    return f"{message}: it is empty; put images into it, or into one sub-folder for each class"
