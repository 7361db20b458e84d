"""CoOp's split files, `split_zhou_*.json`, which most papers on few labels or none report on.

    {"train": [["banded/banded_0002.jpg", 0, "banded"], ...], "val": [...], "test": [...]}

Paths are relative to a folder of images beside the file. These splits differ from the official ones of Food-101,
Flowers-102, DTD, EuroSAT and Caltech-101, so the split of such a data set is called "CoOp train", and so on.
"""

from __future__ import annotations

import os

from clipviz.data.sources.layout import SPLITS, Layout, NoSuchSplit
from clipviz.data.sources.scan import display_name
from clipviz.errors import choose, parse_json
from clipviz.files import read_text
from clipviz.prompts import check_class_names

Item = tuple[str, int, str]


def is_coop_split(path: str) -> bool:
    """Whether a path looks like a CoOp split file, by its name."""
    return os.path.basename(path).lower().startswith("split_") and path.lower().endswith(".json")


def read_coop_split(path: str, split: str, root: str | None = None) -> tuple[Layout, str]:
    """Read one split of a CoOp file.

    Returns:
        The images with their classes, and the folder that their paths are relative to: `root`, else the file's own or
        one beside the file, whichever holds the first image.

    Raises:
        NoSuchSplit: If the file lacks this split.
        ValueError: If it cannot be read, is no such file, or its images cannot be found.
    """
    choose("split", split, SPLITS)
    source = f"split file {display_name(path)!r}"
    splits = _read(path, source)
    if split not in splits:
        raise NoSuchSplit(f"{source}: has no split {split!r}; it has {', '.join(splits)}")
    layout = Layout(f"CoOp {split}", _class_names([item for items in splits.values() for item in items], source))
    folder = _image_folder(path, splits[split], root, source)
    for name, target, _ in splits[split]:
        layout.add_listed(folder, name, target)
    return layout, folder


def _read(path: str, source: str) -> dict[str, list[Item]]:
    text = read_text(path, source)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{source}: is not valid JSON ({error})") from error
    # without a val split, some files have an empty one
    splits = {name: content[name] for name in SPLITS if content.get(name)} if isinstance(content, dict) else {}
    if not splits or not all(isinstance(items, list) for items in splits.values()):
        raise ValueError(f"{source}: wanted {{'train': [[path, label, class name], ...], 'test': ...}}")
    for name, items in splits.items():
        for position, item in enumerate(items):
            if not isinstance(item, list) or list(map(type, item)) != [str, int, str] or item[1] < 0:
                raise ValueError(
                    f"{source}: item {position} of {name!r} is {repr(item)[:80]}, wanted [path, label, class name]"
                )
    return splits


def _class_names(items: list[Item], source: str) -> tuple[str, ...]:
    """The class names by label; every label needs exactly one."""
    by_label: dict[int, str] = {}
    for _, label, name in items:
        if by_label.setdefault(label, name) != name:
            raise ValueError(f"{source}: label {label} is called both {by_label[label]!r} and {name!r}")
    if missing := [label for label in range(len(by_label)) if label not in by_label]:
        raise ValueError(f"{source}: its labels should be 0..{len(by_label) - 1}, but {missing[0]} does not occur")
    names = tuple(by_label[label] for label in sorted(by_label))
    check_class_names(names, source)
    return names


def _image_folder(path: str, items: list[Item], root: str | None, source: str) -> str:
    """The first folder that holds the first image: the given one, the file's own, or one beside the file."""
    here = os.path.dirname(os.path.abspath(path))
    below = sorted(entry.path for entry in os.scandir(here) if entry.is_dir())
    candidates = [root] if root is not None else [here, *below]
    first = items[0][0].replace("\0", "")
    for folder in candidates:
        if os.path.lexists(os.path.join(folder, first)):
            return folder
    where = f"in {display_name(root)!r}" if root is not None else f"in {display_name(here)!r} or a folder in it"
    raise ValueError(f"{source}: its first image {first!r} is not {where}; put the images there, or give root=FOLDER")
