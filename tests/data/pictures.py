"""Pictures for the tests of the data part."""

import numpy as np
from PIL import Image


def smooth_pixels(width, height, seed=0):
    """Blurry random pixels, which survive JPEG compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
