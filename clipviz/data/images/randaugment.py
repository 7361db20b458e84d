"""RandAugment "rand-m9-mstd0.5-inc1" with random numbers of its own.

The pixel operations are timm's. Only the drawing is ours: timm draws from the global generators of `random`
and numpy, which a notebook's other cells use while a live run goes on in its thread; each would disturb the
other. A test compares every operation with timm's own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

MAGNITUDE = 9.0
MAGNITUDE_STD = 0.5
MAX_MAGNITUDE = 10.0
OPS_PER_IMAGE = 2
OP_PROBABILITY = 0.5

Color = tuple[int, int, int]
Arguments = Callable[[float, float], tuple[float, ...]]


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
    "ShearX": _up_to(0.3),  # shear factor
    "ShearY": _up_to(0.3),
    "TranslateXRel": _up_to(0.45),  # share of the side
    "TranslateYRel": _up_to(0.45),
}
"""timm's name of an operation -> what it is called with, by a level in [0, 1] and a sign."""


def apply_op(name: str, image: Image.Image, magnitude: float, sign: float, fill: Color) -> Image.Image:
    """Apply one of `INCREASING_OPS` to an RGB image: magnitude in [0, 10], sign 1 or -1; `fill` as in `ViewConfig`."""
    arguments = INCREASING_OPS[name](magnitude / MAX_MAGNITUDE, sign)
    if name == "PosterizeIncreasing" and arguments == (0,):  # Pillow >= 13 refuses to keep no bit; before: black
        return Image.new(image.mode, image.size)
    op: Any = NAME_TO_OP[name]
    return op(image, *arguments, fillcolor=tuple(fill), resample=Image.Resampling.BICUBIC)


def rand_augment(image: Image.Image, rng: np.random.Generator, fill: Color) -> Image.Image:
    """Apply two operations, drawn with replacement, each with probability 1/2 and magnitude ~ N(9, 0.5)."""
    names = list(INCREASING_OPS)
    for op_index in rng.integers(len(names), size=OPS_PER_IMAGE):
        if rng.random() < OP_PROBABILITY:
            magnitude = min(MAX_MAGNITUDE, max(0.0, rng.normal(MAGNITUDE, MAGNITUDE_STD)))
            sign = -1.0 if rng.random() < 0.5 else 1.0
            image = apply_op(names[op_index], image, magnitude, sign, fill)
    return image
