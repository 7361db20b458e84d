"""Images in a folder, labelled by sub-folder or not at all."""

from __future__ import annotations

import os
import warnings
from typing import Unpack

from clipviz.data.sources.image_files import Classes, FileOptions, ImageFileDataset, check_count, given_classes
from clipviz.data.sources.layout import read_layout
from clipviz.data.sources.scan import data_name, display_name


class ImageFolderDataset(ImageFileDataset):
    """A folder of images. Layouts: see `read_layout`.

    Args:
        folder: With class folders, or images, or either inside train/, val/ and test/.
        classes: Class names, or a text file with one on each line. The default takes the class folders, else
            classes.txt in the folder, else the keys of `descriptions`, else no class is known.
        options: As for `ImageFileDataset`: descriptions, templates, n, seed, cache_bytes, disk_cache, progress.

    Raises:
        ValueError: If the folder, its split or its classes cannot be used, or no image can be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "train",
        *,
        classes: Classes | None = None,
        **options: Unpack[FileOptions],
    ) -> None:
        check_count(options.get("n"))  # before the folder is looked through
        root = os.fsdecode(folder)
        name = data_name(root)
        layout = read_layout(root, split, given_classes(classes))
        super().__init__(layout, root, name=name, place=f"the folder {name!r}", **options)
        folders = {os.path.dirname(path) for path in self._paths}
        if classes is None and len(self.class_names) == 1 < len(folders):  # an archive wraps its data set in a folder
            above = display_name(os.path.dirname(min(folders, key=len)))
            warnings.warn(
                f"{name!r} has one class, {self.class_names[0]!r}, so every guess is right; if the folders in it "
                f"are the classes, give {above!r}",
                stacklevel=2,
            )
