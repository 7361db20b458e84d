"""Read a folder's layout: which split, which classes, which images belong to which class.

Understood are class folders, a flat folder of images, and either of them inside train/, val/ and test/.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from clipviz.data.base import UNLABELLED, Skipped
from clipviz.data.sources.scan import Listing, display_name, display_path, find_images, folder_keys, list_folder
from clipviz.errors import choose, listed
from clipviz.prompts import check_class_names, normalize_name

SPLITS = ("train", "val", "test")
ALL = "all"
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class NoSuchSplit(ValueError):
    """A folder has splits, but not the one that was asked for."""


@dataclass(frozen=True)
class Layout:
    """The candidates of a folder data set, not yet opened.

    Attributes:
        split: One of `SPLITS`, or `ALL` if the folder has no splits.
        class_names: In the order of the class indices; empty if nothing names them.
        paths: One for each candidate.
        targets: Class index of each candidate, -1 if unlabelled.
        skipped: What was not even a candidate.
    """

    split: str
    class_names: tuple[str, ...]
    paths: list[str]
    targets: list[int]
    skipped: list[Skipped]


def read_layout(root: str, split: str, classes: Sequence[str] | None = None) -> Layout:
    """Find the images of one split of a folder, and their classes.

    Args:
        root: The folder.
        split: "train", "val" or "test". If there is no test/, val/ stands in; a folder without splits gives
            all images.
        classes: The names and order of the classes; None takes the class folders (of all splits together, so
            that class indices agree between splits), else classes.txt in the folder.

    Raises:
        NoSuchSplit: If the folder has splits, but not this one.
        ValueError: If there is no such folder, no image, or a class folder that is not in `classes`.
    """
    choose("split", split, (*SPLITS, ALL))
    listing = _list_root(root)
    split_folders = _split_folders(listing)
    used = _pick_split(split, split_folders, root) if split_folders else ALL
    bases = [os.path.join(root, name) for name in split_folders.values()] or [root]
    base = os.path.join(root, split_folders[used]) if split_folders else root
    folders = _class_folders(base, root)
    named = {folder for other in bases for folder in _class_folders(other, root)}
    class_names = _class_names(root, base, sorted(named), classes)
    paths, targets, skipped = _candidates(base, root, folders, class_names)
    return Layout(used, class_names, paths, targets, skipped)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names from a text file, one on a line; the line's position is the class index.

    Raises:
        ValueError: If the file cannot be read as UTF-8 text, is empty or names a class twice.
    """
    source = f"class list {os.fspath(path)!r}"
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            names = tuple(line.strip() for line in file if line.strip())
    except OSError as error:
        raise ValueError(
            f"{source}: cannot be read ({error.strerror}); give a list, or a text file with one name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not names:
        raise ValueError(f"{source}: names no class; put one name on each line")
    check_class_names(names, source)
    return names


def _list_root(root: str) -> Listing:
    try:
        return list_folder(root)
    except OSError as error:
        raise ValueError(f"cannot read the folder {display_name(root)!r}: {error.strerror}") from error


def _split_folders(listing: Listing) -> dict[str, str]:
    """Return split -> folder name; empty if the sub-folders are not splits.

    A class may be called "train", so one such name among others is one; train beside another split is not.
    """
    found: dict[str, str] = {}
    for name in listing.folders:
        if split := SPLIT_FOLDERS.get(name.lower()):
            found.setdefault(split, name)
    only_splits = all(name.lower() in SPLIT_FOLDERS for name in listing.folders)
    return found if only_splits or ("train" in found and len(found) > 1) else {}


def _pick_split(split: str, split_folders: dict[str, str], root: str) -> str:
    if split == "test" and "test" not in split_folders and "val" in split_folders:
        return "val"
    if split not in split_folders:
        there = ", ".join(repr(name) for name in split_folders.values())
        one = display_name(os.path.join(root, next(iter(split_folders.values()))))
        raise NoSuchSplit(
            f"no split {split!r} in the folder {display_name(root)!r}; it has {there}; ask for one of these, or give "
            f"its folder as the data ({one!r})"
        )
    return split


def _class_folders(base: str, root: str) -> list[str]:
    """Return the names of the class folders: all sub-folders, provided that at least one holds an image."""
    try:
        folders = list_folder(base).folders
    except OSError:
        return []
    return folders if any(find_images(os.path.join(base, name), root).images for name in folders) else []


def _class_names(root: str, base: str, class_folders: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        return tuple(classes)
    if class_folders:
        return tuple(display_name(name) for name in class_folders)
    for folder in (base, root):
        if os.path.isfile(path := os.path.join(folder, "classes.txt")):
            return read_class_names(path)
    return ()


def _candidates(
    base: str, root: str, folders: Sequence[str], class_names: tuple[str, ...]
) -> tuple[list[str], list[int], list[Skipped]]:
    """Return paths, targets and what was skipped, of a folder with or without class folders."""
    loose = find_images(base, root, deep=False)
    if not folders:
        if not loose.images:
            raise ValueError(_no_image(base, root))
        return loose.images, [UNLABELLED] * len(loose.images), loose.skipped
    paths: list[str] = []
    targets: list[int] = []
    skipped = loose.skipped + [
        Skipped(display_path(path, root), "lies outside the class folders") for path in loose.images
    ]
    # a link from one class to another, or to all of them, must not make the images of that one this one's
    read_anyway = folder_keys([root, base, *(os.path.join(base, folder) for folder in folders)])
    for folder, target in zip(folders, _targets_of(folders, class_names, root), strict=True):
        tree = find_images(os.path.join(base, folder), root, elsewhere=read_anyway)
        paths += tree.images
        targets += [target] * len(tree.images)
        skipped += tree.skipped
    return paths, targets, skipped


def _targets_of(folders: Sequence[str], class_names: tuple[str, ...], root: str) -> list[int]:
    """Match class folders to classes by name, in either spelling; never by position."""
    exact = {name: target for target, name in enumerate(class_names)}
    loose = {normalize_name(name): target for target, name in enumerate(class_names)}
    shown = [display_name(folder) for folder in folders]
    targets = [exact.get(name, loose.get(normalize_name(name))) for name in shown]
    unknown = [name for name, target in zip(shown, targets, strict=True) if target is None]
    if unknown:
        raise ValueError(
            f"class folders of {display_name(root)!r} that are not in the class list: {listed(map(repr, unknown))}; "
            "add them to the list or leave the list out"
        )
    return [target for target in targets if target is not None]


def _no_image(base: str, root: str) -> str:
    tree = find_images(base, root)
    message = f"no image in the folder {display_name(base)!r}"
    if tree.skipped:
        return f"{message}; {tree.skipped[0].path!r}: {tree.skipped[0].reason}"
    if tree.other_suffixes:
        kinds = ", ".join(sorted(tree.other_suffixes))
        return f"{message}, only other files ({kinds}); images end in .jpg, .png, .webp, .tif, .gif, .bmp ..."
    return f"{message}: it is empty; put images into it, or into one sub-folder for each class"
