"""Views of one image: weak, strong and crops for training, one centered view for evaluation.

Everything here takes a PIL RGB image and returns uint8 pixels, (S, S, 3), at the resolution of the backbone.
Random numbers come from a generator that depends on (seed, epoch, index) and on nothing else.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipviz.data.base import ViewConfig
from clipviz.data.images.randaugment import rand_augment

STRONG_SCALE = (0.3, 1.0)  # share of the image's area
STRONG_RATIO = (3 / 4, 4 / 3)  # width / height
_BICUBIC = Image.Resampling.BICUBIC


class PixelViews(NamedTuple):
    """The views of one image as uint8 pixels."""

    weak: NDArray[np.uint8]  # (S, S, 3)
    strong: NDArray[np.uint8] | None  # (S, S, 3)
    crops: NDArray[np.uint8] | None  # (K, S, S, 3)


def make_views(image: Image.Image, config: ViewConfig, seed: int, epoch: int, index: int) -> PixelViews:
    """Make the views of a training image: RGB, any size from 1 x 1, at position `index` of the data set.

    Each kind has its own generator, so that asking for one more kind, or for more crops, leaves the others as they are.
    """
    weak_rng, strong_rng, crops_rng = (np.random.default_rng((seed, epoch, index, kind)) for kind in range(3))
    return PixelViews(
        eval_view(image, config.size) if config.centered else weak_view(image, config.size, weak_rng),
        strong_view(image, config, strong_rng) if config.strong else None,
        crop_views(image, config, crops_rng) if config.crops else None,
    )


def weak_view(image: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Resize the short side to `size` and cut a random square; no flip. Returns (S, S, 3)."""
    left, top = _random_corner(_resized(image.size, size), (size, size), rng)
    return np.asarray(_resize_and_cut(image, size, left, top, _BICUBIC))


def eval_view(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the short side to `size` and cut the square in the middle. Returns (S, S, 3)."""
    return np.asarray(_resize_and_cut(image, size, *_center(image.size, size), _BICUBIC))


def eval_parts(parts: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut part ids exactly as `eval_view` cuts the image: (H, W) -> (S, S), nearest neighbor."""
    mask = Image.fromarray(parts)
    return np.asarray(_resize_and_cut(mask, size, *_center(mask.size, size), Image.Resampling.NEAREST))


def strong_view(image: Image.Image, config: ViewConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random resized crop, flip with probability 1/2, RandAugment. Returns (S, S, 3)."""
    view = image.crop(_random_box(image.size, rng)).resize((config.size, config.size), _BICUBIC)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(rand_augment(view, rng, config.fill))


def crop_views(image: Image.Image, config: ViewConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut K random squares from the original and resize them, (K, S, S, 3): they show what the weak view lost."""
    crops = np.empty((config.crops, config.size, config.size, 3), np.uint8)
    for crop in crops:
        side = max(1, int(rng.uniform(*config.crop_scale) * min(image.size)))
        left, top = _random_corner(image.size, (side, side), rng)
        square = image.crop((left, top, left + side, top + side))
        crop[:] = np.asarray(square.resize((config.size, config.size), _BICUBIC))
    return crops


def _resized(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the (width, height) with a short side of `size`; the long one rounds down, as in torchvision."""
    width, height = image_size
    return (size, size * height // width) if width <= height else (size * width // height, size)


def _center(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    width, height = _resized(image_size, size)
    return round((width - size) / 2), round((height - size) / 2)


def _resize_and_cut(image: Image.Image, size: int, left: int, top: int, resample: Image.Resampling) -> Image.Image:
    """Resize the short side to `size`, then cut the square at (left, top), computing no other pixels.

    The filter still reads beyond the square, as if the whole were resized: 2,000 squares at 20,000 x 10 pixels.
    """
    width, height = _resized(image.size, size)
    x_scale, y_scale = image.width / width, image.height / height
    # a box may not end beyond the image, not even by a rounding error
    right, bottom = min((left + size) * x_scale, image.width), min((top + size) * y_scale, image.height)
    return image.resize((size, size), resample, box=(left * x_scale, top * y_scale, right, bottom))


def _random_corner(outer: tuple[int, int], inner: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Draw (left, top) of a box of `inner` (width, height) that lies within `outer`."""
    left = rng.integers(outer[0] - inner[0], endpoint=True)
    return int(left), int(rng.integers(outer[1] - inner[1], endpoint=True))


def _random_box(image_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop; after ten that do not fit, take the largest in the middle."""
    width, height = image_size
    narrow, wide = map(math.log, STRONG_RATIO)
    for _ in range(10):
        area = width * height * rng.uniform(*STRONG_SCALE)
        ratio = math.exp(rng.uniform(narrow, wide))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = _random_corner(image_size, (w, h), rng)
            break
    else:
        w = min(width, max(1, round(height * STRONG_RATIO[1])))
        h = min(height, max(1, round(width / STRONG_RATIO[0])))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
