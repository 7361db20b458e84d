"""RandAugment "rand-m9-mstd0.5-inc1" with random numbers of its own.

The pixel operations are timm's. Only the drawing is ours: timm draws from the global generators of `random`
and numpy, which a notebook's other cells use while a live run goes on in its thread; each would disturb the
other. A test compares every operation with timm's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm_ops

MAGNITUDE = 9.0
MAGNITUDE_STD = 0.5
MAX_MAGNITUDE = 10.0
OPS_PER_IMAGE = 2
OP_PROBABILITY = 0.5

Color = tuple[int, int, int]
Op = Callable[[Image.Image, float, float, dict[str, Any]], Image.Image]


def _unleveled(image: Image.Image, level: float, sign: float, geometry: dict[str, Any], *, op: Any) -> Image.Image:
    return op(image)


def _geometric(
    image: Image.Image, level: float, sign: float, geometry: dict[str, Any], *, op: Any, most: float
) -> Image.Image:
    return op(image, sign * level * most, **geometry)


def _enhanced(image: Image.Image, level: float, sign: float, geometry: dict[str, Any], *, op: Any) -> Image.Image:
    # 1 changes nothing; 0.1 and 1.9 are the strongest settings
    return op(image, max(0.1, 1.0 + sign * 0.9 * level))


def _posterized(image: Image.Image, level: float, sign: float, geometry: dict[str, Any]) -> Image.Image:
    bits_kept = 4 - int(4 * level)
    # Pillow >= 13 refuses to keep no bit, which is what level 1 asks for; before, that gave black
    return timm_ops.posterize(image, bits_kept) if bits_kept else Image.new(image.mode, image.size)


def _solarized(image: Image.Image, level: float, sign: float, geometry: dict[str, Any]) -> Image.Image:
    return timm_ops.solarize(image, 256 - min(256, int(256 * level)))  # values from here on are inverted


def _solarize_added(image: Image.Image, level: float, sign: float, geometry: dict[str, Any]) -> Image.Image:
    return timm_ops.solarize_add(image, min(128, int(110 * level)))


# Each op takes the image, a level in [0, 1], a sign and the keyword arguments of geometric operations.
# "most" is the geometric amount at level 1: degrees, shear factor, share of the side.
INCREASING_OPS: dict[str, Op] = {
    "AutoContrast": partial(_unleveled, op=timm_ops.auto_contrast),
    "Equalize": partial(_unleveled, op=timm_ops.equalize),
    "Invert": partial(_unleveled, op=timm_ops.invert),
    "Rotate": partial(_geometric, op=timm_ops.rotate, most=30.0),
    "PosterizeIncreasing": _posterized,
    "SolarizeIncreasing": _solarized,
    "SolarizeAdd": _solarize_added,
    "ColorIncreasing": partial(_enhanced, op=timm_ops.color),
    "ContrastIncreasing": partial(_enhanced, op=timm_ops.contrast),
    "BrightnessIncreasing": partial(_enhanced, op=timm_ops.brightness),
    "SharpnessIncreasing": partial(_enhanced, op=timm_ops.sharpness),
    "ShearX": partial(_geometric, op=timm_ops.shear_x, most=0.3),
    "ShearY": partial(_geometric, op=timm_ops.shear_y, most=0.3),
    "TranslateXRel": partial(_geometric, op=timm_ops.translate_x_rel, most=0.45),
    "TranslateYRel": partial(_geometric, op=timm_ops.translate_y_rel, most=0.45),
}
_OP_LIST = tuple(INCREASING_OPS.values())


def apply_op(name: str, image: Image.Image, magnitude: float, sign: float, fill: Color) -> Image.Image:
    """Apply one operation.

    Args:
        name: A key of `INCREASING_OPS`.
        image: RGB.
        magnitude: In [0, 10].
        sign: 1 or -1: the direction, for operations that have two.
        fill: RGB in 0..255 of uncovered pixels.
    """
    return INCREASING_OPS[name](image, magnitude / MAX_MAGNITUDE, sign, _geometry(fill))


def rand_augment(image: Image.Image, rng: np.random.Generator, fill: Color) -> Image.Image:
    """Apply two operations, drawn with replacement, each with probability 1/2 and magnitude ~ N(9, 0.5).

    Args:
        image: RGB.
        rng: All random numbers come from it.
        fill: RGB in 0..255 of what geometric operations uncover.
    """
    geometry = _geometry(fill)
    for op_index in rng.integers(len(_OP_LIST), size=OPS_PER_IMAGE):
        if rng.random() < OP_PROBABILITY:
            magnitude = min(MAX_MAGNITUDE, max(0.0, rng.normal(MAGNITUDE, MAGNITUDE_STD)))
            sign = -1.0 if rng.random() < 0.5 else 1.0
            image = _OP_LIST[op_index](image, magnitude / MAX_MAGNITUDE, sign, geometry)
    return image


def _geometry(fill: Color) -> dict[str, Any]:
    return {"fillcolor": tuple(fill), "resample": Image.Resampling.BICUBIC}
