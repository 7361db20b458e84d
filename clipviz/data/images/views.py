"""Views of one image: weak, strong and crops for training, one centered view for evaluation.

Everything here takes a PIL RGB image and returns uint8 pixels, (S, S, 3), at the resolution of the backbone.
Random numbers come from a generator that depends on (seed, epoch, index) and on nothing else. The strong view is that
of RandAugment "rand-m9-mstd0.5-inc1": the pixel operations are timm's, the drawing is ours, because timm draws from the
global generators of `random` and numpy, which a notebook's other cells use while a live run goes on in its thread; each
would disturb the other. A test compares every operation with timm's own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

from clipviz.data.base import ViewConfig

MAGNITUDE = 9.0
MAGNITUDE_STD = 0.5
MAX_MAGNITUDE = 10.0
OPS_PER_IMAGE = 2
OP_PROBABILITY = 0.5

Color = tuple[int, int, int]
Arguments = Callable[[float, float], tuple[float, ...]]
Apply = Callable[[str, Image.Image, float, float, Color], Image.Image]


def _up_to(most: float) -> Arguments:
    return lambda level, sign: (sign * level * most,)


def _factor(level: float, sign: float) -> tuple[float]:
    return (max(0.1, 1.0 + sign * 0.9 * level),)  # 1 changes nothing; 0.1 and 1.9 are the strongest settings


INCREASING_OPS: dict[str, Arguments] = {
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), lambda level, sign: ()),
    "Rotate": _up_to(30.0),  # degrees
    "PosterizeIncreasing": lambda level, sign: (4 - int(4 * level),),  # bits that are kept
    "SolarizeIncreasing": lambda level, sign: (256 - min(256, int(256 * level)),),  # values from here on are inverted
    "SolarizeAdd": lambda level, sign: (min(128, int(110 * level)),),
    **dict.fromkeys([f"{what}Increasing" for what in ("Color", "Contrast", "Brightness", "Sharpness")], _factor),
    **dict.fromkeys(("ShearX", "ShearY"), _up_to(0.3)),  # shear factor
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), _up_to(0.45)),  # share of the side
}
"""timm's name of an operation -> what it is called with, by a level in [0, 1] and a sign."""


def apply_op(name: str, image: Image.Image, magnitude: float, sign: float, fill: Color) -> Image.Image:
    """Apply one of `INCREASING_OPS` to an RGB image: magnitude in [0, 10], sign 1 or -1; `fill` as in `ViewConfig`."""
    arguments = INCREASING_OPS[name](magnitude / MAX_MAGNITUDE, sign)
    if name == "PosterizeIncreasing" and arguments == (0,):  # Pillow >= 13 refuses to keep no bit; before: black
        return Image.new(image.mode, image.size)
    op: Any = NAME_TO_OP[name]
    return op(image, *arguments, fillcolor=tuple(fill), resample=Image.Resampling.BICUBIC)


def rand_augment(image: Image.Image, rng: np.random.Generator, fill: Color, apply: Apply = apply_op) -> Image.Image:
    """Apply two operations, drawn with replacement, each with probability 1/2 and magnitude ~ N(9, 0.5)."""
    names = list(INCREASING_OPS)
    for op_index in rng.integers(len(names), size=OPS_PER_IMAGE):
        if rng.random() < OP_PROBABILITY:
            magnitude = min(MAX_MAGNITUDE, max(0.0, rng.normal(MAGNITUDE, MAGNITUDE_STD)))
            sign = -1.0 if rng.random() < 0.5 else 1.0
            image = apply(names[op_index], image, magnitude, sign, fill)
    return image


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
    mask = Image.fromarray(np.asarray(parts, np.uint8))
    return np.asarray(_resize_and_cut(mask, size, *_center(mask.size, size), Image.Resampling.NEAREST))


def strong_view(
    image: Image.Image, config: ViewConfig, rng: np.random.Generator, apply: Apply = apply_op
) -> NDArray[np.uint8]:
    """Random resized crop, flip with probability 1/2, RandAugment. Returns (S, S, 3).

    What is drawn does not depend on the pixels nor on `apply`, so a mask can follow its image.
    """
    view = image.crop(_random_box(image.size, rng)).resize((config.size, config.size), _BICUBIC)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(rand_augment(view, rng, config.fill, apply))


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
