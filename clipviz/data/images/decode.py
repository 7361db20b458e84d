"""One file -> one upright 8-bit RGB image, or one line that says why not."""

from __future__ import annotations

import functools
import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow knows dozens more. Naming these keeps a file called .jpg from being run as PostScript, say.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_NEEDS_PLUGIN = (".heic", ".heif")
_LONGEST_REASON = 200
_BOMB = "(PIL.Image.MAX_IMAGE_PIXELS): a decompression bomb?"


class UnreadableImage(ValueError):
    """A file that is no readable image; the text is the reason, one line, without the path."""


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a file completely.

    Animations give their first frame, EXIF orientation is applied, transparency is laid over white, 16-bit
    and floating-point values are scaled to 8 bits.

    Returns:
        RGB, upright, at the original resolution.

    Raises:
        UnreadableImage: Whatever is wrong with the file.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe would block for ever, /dev/zero never ends
            raise UnreadableImage("not a regular file")
        if found.st_size == 0:
            raise UnreadableImage("empty file (0 bytes)")
        with open(path, "rb") as file, Image.open(file, formats=_formats()) as image:
            _check_size(image)
            image.load()
            _turn_upright(image)
            return _to_rgb(image)
    except UnreadableImage:
        raise
    # Damaged files make Pillow raise nearly anything (OSError, SyntaxError, struct.error, KeyError, ...)
    except Exception as error:
        raise UnreadableImage(_reason(path, error)) from error


@functools.cache
def _formats() -> list[str]:
    """Return those of our formats that this build of Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_size(image: Image.Image) -> None:
    """Refuse before decoding what would fill the memory; Pillow itself only warns up to twice its limit."""
    if not image.width or not image.height:
        raise UnreadableImage("has no pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnreadableImage(f"{image.width} x {image.height} pixels are more than the limit of {limit} {_BOMB}")


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF of any kind is no reason to lose a good picture
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale (H, W) numbers to 0..255.

    uint16 has a known full scale. The other types do not say theirs, so it is the smallest of 1 (floats
    only), 255 and 65535 that covers the values; beyond, the range of the values is stretched.
    """
    wide = values.astype(np.float64 if values.dtype.kind == "f" else np.float32)
    finite = np.nan_to_num(wide, posinf=0.0, neginf=0.0)
    low, high = finite.min(), finite.max()
    scales = (65535.0,) if values.dtype.kind == "u" else (255.0, 65535.0)
    if values.dtype.kind == "f":
        scales = (1.0, *scales)
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if full is None:
        finite, full = finite - low, (high - low) or 1.0
    return np.rint(finite * (255 / full)).astype(np.uint8)


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        if os.fsdecode(path).lower().endswith(_NEEDS_PLUGIN):
            return "HEIC is not supported: convert it to JPEG or PNG"
        return "not an image, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own, at twice the limit
        return f"more pixels than twice the limit of {Image.MAX_IMAGE_PIXELS} {_BOMB}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).encode(errors="backslashreplace").decode().split())
    kind = "" if isinstance(error, OSError) and text else f"{type(error).__name__}: "
    return f"{kind}{text}"[:_LONGEST_REASON]
