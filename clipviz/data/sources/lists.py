"""Two benchmarks that torchvision does not read: CUB-200-2011 and NWPU-RESISC45, from the files as they are published.

torchgeo brings lightning, kornia, rasterio and geopandas for a list of file names, and the splits of the copies that
Hugging Face's datasets read differ:

    CUB_200_2011/images/001.Black_footed_Albatross/*.jpg      NWPU-RESISC45/airplane/airplane_001.jpg ...
    CUB_200_2011/classes.txt             1 001.Black_foot...  resisc45-train.txt, -val.txt, -test.txt beside it or in it
    CUB_200_2011/images.txt              1 001.Black_foot...     airplane_002.jpg
    CUB_200_2011/image_class_labels.txt  1 1
    CUB_200_2011/train_test_split.txt    1 0   (1 = train)
"""

from __future__ import annotations

import os

from clipviz.data.base import Skipped
from clipviz.data.sources.layout import ALL, SPLITS, Layout, NoSuchSplit
from clipviz.data.sources.scan import display_name, find_images, list_folder
from clipviz.files import read_text


def read_cub(folder: str, split: str) -> Layout:
    """CUB-200-2011's own training or test split; `folder` is CUB_200_2011.

    Raises:
        ValueError: if a list is missing or damaged, with its first bad line.
    """
    classes, images, labels, in_train = (
        _numbered(os.path.join(folder, f"{name}.txt"))
        for name in ("classes", "images", "image_class_labels", "train_test_split")
    )
    order = {number: target for target, number in enumerate(sorted(classes, key=int))}
    layout = Layout(
        f"official {split}", tuple(classes[number].partition(".")[2] or classes[number] for number in order)
    )
    for number, name in images.items():
        if number not in in_train or labels.get(number) not in order:
            raise ValueError(f"image {number} of images.txt has no class of classes.txt, or no split")
        if (in_train[number] == "1") == (split == "train"):
            layout.add_listed(os.path.join(folder, "images"), name, order[labels[number]])
    return layout


def _numbered(path: str) -> dict[str, str]:
    """Lines of a number and a text."""
    found: dict[str, str] = {}
    for line, text in enumerate(_lines(path), 1):
        number, _, rest = text.partition(" ")
        if not number.isdecimal() or not rest or number in found:
            raise ValueError(
                f"line {line} of {os.path.basename(path)} is {text[:80]!r}, wanted a new number and a text"
            )
        found[number] = rest.strip()
    return found


def _lines(path: str) -> list[str]:
    return [line.strip() for line in read_text(path, os.path.basename(path)).split("\n") if line.strip()]


def read_resisc45(folder: str, split: str) -> Layout:
    """NWPU-RESISC45 by the lists that torchgeo uses; without them there is no split, and all images are given.

    Raises:
        NoSuchSplit: if there are lists, but not this one.
        ValueError: if a list cannot be read, or there are no class folders.
    """
    classes = list_folder(folder).folders
    used, listed = _resisc_list(folder, split)
    layout = Layout(used, tuple(classes))
    missing = dict.fromkeys(listed or (), True)
    for target, name in enumerate(classes):
        found = find_images(os.path.join(folder, name), folder)
        if listed is not None:
            found.images = [path for path in found.images if missing.pop(os.path.basename(path), False)]
        layout.add_found(found, target)
    layout.skipped.extend(Skipped(display_name(name), "in the list, but not in the folder") for name in missing)
    return layout


def _resisc_list(folder: str, split: str) -> tuple[str, list[str] | None]:
    """The name of the split that is used, and the file names in it."""
    beside = os.path.dirname(os.path.abspath(folder))
    lists = {
        name: path
        for place in (folder, beside)
        for name in SPLITS
        if os.path.isfile(path := os.path.join(place, f"resisc45-{name}.txt"))
    }
    if not lists or split == ALL:
        return ALL, None
    if split not in lists:
        there = ", ".join(os.path.basename(path) for path in lists.values())
        raise NoSuchSplit(f"NWPU-RESISC45 has no resisc45-{split}.txt in {display_name(beside)!r}; it has {there}")
    return f"torchgeo {split}", [line.rpartition("/")[2] for line in _lines(lists[split])]
