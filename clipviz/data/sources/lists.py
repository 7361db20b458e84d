"""Lists that published data sets come with: CoOp's split files, CUB-200-2011's, NWPU-RESISC45's.

CoOp's `split_zhou_*.json`, which most papers on few labels or none report on, hold

    {"train": [["banded/banded_0002.jpg", 0, "banded"], ...], "val": [...], "test": [...]}

with paths relative to a folder of images beside the file. They differ from the official splits of Food-101,
Flowers-102, DTD, EuroSAT and Caltech-101, so the split of such a data set is called "CoOp train", and so on.

torchvision reads neither CUB nor RESISC45; torchgeo brings lightning, kornia, rasterio and geopandas for a list of file
names, and the splits of the copies that Hugging Face's datasets read differ. The files as they are published:

    CUB_200_2011/images/001.Black_footed_Albatross/*.jpg      NWPU-RESISC45/airplane/airplane_001.jpg ...
    CUB_200_2011/classes.txt             1 001.Black_foot...  resisc45-train.txt, -val.txt, -test.txt beside it or in it
    CUB_200_2011/images.txt              1 001.Black_foot...     airplane_002.jpg
    CUB_200_2011/image_class_labels.txt  1 1
    CUB_200_2011/train_test_split.txt    1 0   (1 = train)
"""

import os

from clipviz.data.base import Skipped
from clipviz.data.sources.layout import ALL, SPLITS, Layout, NoSuchSplit, display_name, find_images, list_folder
from clipviz.errors import choose, parse_json
from clipviz.files import read_text
from clipviz.prompts import check_class_names

Item = tuple[str, int, str]


def is_coop_split(path: str) -> bool:
    """Whether a path looks like a CoOp split file, by its name."""
    return os.path.basename(path).lower().startswith("split_") and path.lower().endswith(".json")


def read_coop_split(path: str, split: str, root: str | None = None) -> tuple[Layout, str]:
    """One split of a CoOp file, and the folder of its images.

    That is `root`, else the file's own or one beside the file, whichever holds an image.
    """
    choose("split", split, SPLITS)
    source = f"split file {display_name(path)!r}"
    splits = _coop_items(path, source)
    if split not in splits:
        raise NoSuchSplit(f"{source}: has no split {split!r}; it has {', '.join(splits)}")
    layout = Layout(f"CoOp {split}", _class_names([item for items in splits.values() for item in items], source))
    folder = _image_folder(path, [name.replace("\0", "") for name, _, _ in splits[split]], root, source)
    for name, target, _ in splits[split]:
        layout.add_listed(folder, name, target)
    return layout, folder


def _coop_items(path: str, source: str) -> dict[str, list[Item]]:
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
        for i, item in enumerate(items):
            if not isinstance(item, list) or list(map(type, item)) != [str, int, str] or item[1] < 0:
                raise ValueError(f"{source}: item {i} of {name!r} is {repr(item)[:80]}, wanted [path, label, name]")
    return splits


def _class_names(items: list[Item], source: str) -> tuple[str, ...]:
    by_label: dict[int, str] = {}
    for _, label, name in items:
        if by_label.setdefault(label, name) != name:
            raise ValueError(f"{source}: label {label} has two names, {by_label[label]!r} and {name!r}")
    if missing := [label for label in range(len(by_label)) if label not in by_label]:
        raise ValueError(f"{source}: its labels should be 0..{len(by_label) - 1}, but {missing[0]} does not occur")
    names = tuple(by_label[label] for label in sorted(by_label))
    check_class_names(names, source)
    return names


def _image_folder(path: str, names: list[str], root: str | None, source: str) -> str:
    here = os.path.dirname(os.path.abspath(path))
    where = f"in {display_name(root)!r}" if root is not None else f"in {display_name(here)!r} or a folder in it"
    below = sorted(entry.path for entry in os.scandir(here) if entry.is_dir())
    for folder in [here, *below] if root is None else [root]:
        if any(os.path.lexists(os.path.join(folder, name)) for name in names):
            return folder
    give = "put the images there, or give their folder (root=, --root)"
    raise ValueError(f"{source}: none of its images, such as {names[0]!r}, is {where}; {give}")


def read_cub(folder: str, split: str) -> Layout:
    """CUB-200-2011's own training or test split; `folder` is CUB_200_2011."""
    classes, images, labels, in_train = (
        _numbered(os.path.join(folder, f"{name}.txt"))
        for name in ("classes", "images", "image_class_labels", "train_test_split")
    )
    order = {number: target for target, number in enumerate(sorted(classes, key=int))}
    names = tuple(classes[number].partition(".")[2] or classes[number] for number in order)
    layout = Layout(f"official {split}", names)
    for number, name in images.items():
        if number not in in_train or labels.get(number) not in order:
            raise ValueError(f"image {number} of images.txt has no class of classes.txt, or no split")
        if (in_train[number] == "1") == (split == "train"):
            layout.add_listed(os.path.join(folder, "images"), name, order[labels[number]])
    return layout


def _numbered(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line, text in enumerate(_lines(path), 1):
        number, _, rest = text.partition(" ")
        if not number.isdecimal() or not rest or number in found:
            raise ValueError(f"line {line} of {os.path.basename(path)} is {text[:80]!r}, wanted a new number and text")
        found[number] = rest.strip()
    return found


def _lines(path: str) -> list[str]:
    return [line.strip() for line in read_text(path, os.path.basename(path)).split("\n") if line.strip()]


def read_resisc45(folder: str, split: str) -> Layout:
    """NWPU-RESISC45 by the lists that torchgeo uses; without them there is no split, and all images are given."""
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
    beside = os.path.dirname(os.path.abspath(folder))
    lists = {
        name: path for place in (folder, beside) for name in SPLITS
        if os.path.isfile(path := os.path.join(place, f"resisc45-{name}.txt"))
    }  # fmt: skip
    if not lists or split == ALL:
        return ALL, None
    if split not in lists:
        there = ", ".join(map(os.path.basename, lists.values()))
        raise NoSuchSplit(f"NWPU-RESISC45 has no resisc45-{split}.txt in {display_name(beside)!r}; it has {there}")
    return f"torchgeo {split}", [line.rpartition("/")[2] for line in _lines(lists[split])]
