"""One file -> one upright 8-bit RGB image, or one line that says why not."""

import contextlib
import functools
import math
import os
import stat
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from clipviz.errors import one_line

# Pillow knows dozens more. Naming these keeps a file called .jpg from being run as PostScript, say.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_NEEDS_PLUGIN = (".heic", ".heif")
# by the type of numbers; only uint16 says its own
_FULL_SCALES = {"u": (65535.0,), "i": (255.0, 65535.0), "f": (1.0, 255.0, 65535.0)}
LARGE = 2**24
"""Images of more pixels (4096 x 4096) are decoded one at a time in a process, whatever its threads."""
LARGEST = 2**25
"""Images of more pixels (8192 x 4096) come with their sides divided by 2, or more, so that no more are left."""
_BOMB = "(PIL.Image.MAX_IMAGE_PIXELS): a decompression bomb?"

_large = [threading.Lock()]  # in a list, so that a forked process gets one that nobody holds
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _large.__setitem__(0, threading.Lock()))


class UnreadableImage(ValueError):
    """A file that is no readable image; the text is the reason, one line, without the path."""


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a file: RGB, upright, at the original resolution; those larger than `LARGEST` come smaller.

    Animations give their first frame, transparency is laid over white, wider numbers are scaled to 8 bits.
    Whatever is wrong with the file is an UnreadableImage; memory that does not suffice is another ValueError.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe would block for ever, /dev/zero never ends
            raise UnreadableImage("not a regular file")
        if found.st_size == 0:
            raise UnreadableImage("empty file (0 bytes)")
        with open(path, "rb") as file, Image.open(file, formats=_formats()) as image:
            _check_size(image)
            with _large[0] if image.width * image.height > LARGE else contextlib.nullcontext():
                if (divisor := _divisor(image)) > 1:
                    image.draft(None, (image.width // divisor, image.height // divisor))  # JPEG decodes fewer pixels
                image.load()
                _turn_upright(image)
                return _to_rgb(image) if (divisor := _divisor(image)) == 1 else _reduced_rgb(image, divisor)
    except UnreadableImage:
        raise
    # Damaged files make Pillow raise nearly anything (OSError, SyntaxError, struct.error, KeyError, ...)
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):  # how Pillow's decoders say it
            name = os.fsencode(path).decode(errors="backslashreplace")
            raise ValueError(f"not enough memory to decode {name!r}; free some, or shrink such images") from error
        raise UnreadableImage(_reason(path, error)) from error


def _divisor(image: Image.Image) -> int:
    return math.ceil(math.sqrt(image.width * image.height / LARGEST))


@functools.cache
def _formats() -> list[str]:  # that this build of Pillow has
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
    except Exception as error:  # damaged EXIF of any kind is no reason to lose a good image
        if isinstance(error, MemoryError):
            raise


def _reduced_rgb(image: Image.Image, divisor: int) -> Image.Image:
    """The means of divisor x divisor pixels, made in strips; of numbers whose scale all of them decide, one of each."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_rgb(Image.fromarray(np.ascontiguousarray(np.asarray(image)[::divisor, ::divisor])))
    width, height = image.size
    small = Image.new("RGB", (-(-width // divisor), -(-height // divisor)))
    rows = divisor * max(1, 2**20 // width)
    for top in range(0, height, rows):
        strip = _to_rgb(image.crop((0, top, width, min(top + rows, height))))
        small.paste(strip.reduce(divisor), (0, top // divisor))
    return small


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale (H, W) numbers to 0..255, from the least full scale that covers them; beyond, their range is stretched."""
    kind = values.dtype.kind
    finite = np.nan_to_num(values.astype(np.float64 if kind == "f" else np.float32), posinf=0.0, neginf=0.0)
    low, high = finite.min(), finite.max()
    full = next((scale for scale in _FULL_SCALES[kind] if low >= 0 and high <= scale), None)
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
    text = str(error).encode(errors="backslashreplace").decode()
    return one_line(text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}")
