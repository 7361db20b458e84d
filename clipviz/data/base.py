"""What a data set is, and what one batch of it looks like on the way to a method.

Free of torch at import time: tensors are named in annotations only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from clipviz.errors import one_line
from clipviz.events import UNLABELLED
from clipviz.prompts import short_hash

MAX_FILE_NAMES = 100_000
"""Of so many files at most, results name each one."""

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from clipviz.prompts import ClassPrompts


@dataclass(frozen=True)
class Skipped:
    """A file that is not part of the data set, and why."""

    path: str  # the file as it may be shown: relative to the data set's folder, valid Unicode
    reason: str  # one line


class ImageDataset(ABC):
    """Images that can be read again and again, with class names, prompts and, diagnostic only, targets.

    A method never sees `targets`: they travel with the data set to evaluation and the recorder.
    """

    name: str  # the spec the data set was loaded by, such as "birds/clutter" or a folder
    split: str  # "train", "val", "test"; "all" of data without splits, so that measuring on them is transductive
    class_names: tuple[str, ...]  # the position is the class index; empty if the classes are unknown
    prompts: ClassPrompts  # what the text tower reads for `class_names`
    targets: NDArray[np.int64]  # (n,) int64 true class indices, -1 where unlabeled
    names: Sequence[str]  # n display names, valid Unicode
    skipped: list[Skipped]  # files that could not be used
    part_names: tuple[str, ...] | None = None  # of the ids in `parts`, position = id (0 = background)
    has_pixels: bool = True  # or embeddings stand in for images, and `image` refuses
    are_files: bool = False  # whether `names` are those of files, by which a user finds an image again
    origin: Mapping[str, Any] | None = None  # the arguments of `load_dataset` that gave it, if it did

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def file_names(self) -> list[str]:
        """The files, relative to the data set's folder; empty if there are none or more than `MAX_FILE_NAMES`."""
        return list(self.names) if self.are_files and len(self) <= MAX_FILE_NAMES else []

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"{type(self).__name__}({self.name!r}, split {self.split!r}: {len(self)} images, "
            f"{len(self.class_names)} classes{skipped})"
        )

    @property
    def has_targets(self) -> bool:
        """Whether any image is labeled."""
        return bool((self.targets != UNLABELLED).any())

    @cached_property
    def identity(self) -> dict[str, object]:
        """What a run must find again to go on, wherever its files lie; for checkpoints, no method sees it."""
        return {
            "name": None if self.are_files or not self.has_pixels else self.name, "split": self.split,
            "number of images": len(self), "class names": short_hash(self.class_names),
            "image names": short_hash(self.names), "labels": short_hash([self.targets.tobytes()]),
            "contents": self._contents_hash(),
        }  # fmt: skip

    def _contents_hash(self) -> str:
        """A short hash of what the images show; here of 16 of them, evenly spread, as making all may take long."""
        images = map(self.checked_image, sorted({len(self) * i // 16 for i in range(16 if len(self) else 0)}))
        return short_hash(part for one in images for part in (str(one.size), one.tobytes()))

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Return image `index` as RGB, upright, at its original resolution; the caller may change it."""

    def checked_image(self, index: int) -> Image.Image:
        """Image `index`; a ValueError where `image` gives something else than it should."""
        image = self.image(index)
        if getattr(image, "mode", "") != "RGB" or 0 in image.size:
            got = one_line(repr(image), 60)
            raise ValueError(f"image {index} of {self.name} must be an RGB image of PIL, got {got}")
        return image

    def parts(self, index: int) -> NDArray[np.uint8] | None:
        """Return the (H, W) part ids of image `index` at its original resolution; None without masks."""
        return None


@dataclass(frozen=True)
class ViewConfig:
    """Which views are made of an image besides the weak one; a method says what it needs, the loop how large."""

    size: int = 1  # side of every view in pixels: the input resolution of the backbone
    strong: bool = False  # whether to make the strong view
    crops: int = 0  # K, the number of square crops; 0 for none
    crop_scale: tuple[float, float] = (0.5, 0.9)  # range of a crop's side as a share of the image's short side
    # RGB in 0..255 of what geometric operations of the strong view uncover: CLIP's mean color (DPA); microCLIP: black
    fill: tuple[int, int, int] = (123, 117, 104)
    centered: bool = False  # whether the weak view is cut in the middle, as for inference, and not at random

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if self.size < 1 or self.crops < 0:
            raise ValueError(f"views want size >= 1 and crops >= 0, got size={self.size}, crops={self.crops}")
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale needs 0 < low <= high <= 1, got {self.crop_scale}")


@dataclass(frozen=True)
class Views:
    """Augmentations of B images, float32 in [0, 1], not normalized (the backbone does that).

    Where several processes share a batch (`clipviz.parallel`), these are views of one process's share of its images.
    """

    weak: torch.Tensor  # (B, 3, H, W)
    strong: torch.Tensor | None = None  # (B, 3, H, W), or None if not asked for
    crops: torch.Tensor | None = None  # (B, K, 3, H, W), or None if not asked for
    # rows computed from these views -> rows of the whole batch, in the order of its `index`; differentiable
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows


@dataclass(frozen=True)
class Batch:
    """One step's images. Only the loop and events read `target`."""

    views: Views
    index: torch.Tensor  # (B,) int64 positions in the data set
    target: torch.Tensor  # (B,) int64 true class indices, -1 where unlabeled

    def __len__(self) -> int:
        return len(self.index)
