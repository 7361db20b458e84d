"""Pixels for the browser and for static pictures: JPEG bytes, sheets of thumbnails, color tables."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from clipviz.figures.static import encoded, pixels, small_jpeg
from clipviz.figures.style import CHANGE_COLORS, SALIENCY_COLORS, color_table

MOST_BYTES = 60_000
"""Of a static picture: a notebook with every view stays well below a megabyte."""

_TRIES = ((1.0, 85), (1.0, 75), (1.0, 60), (0.85, 60), (0.7, 50), (0.5, 40))


def jpeg(values: np.ndarray, quality: int = 85) -> bytes:
    """Pixels (H, W, 3) uint8 as JPEG."""
    return encoded(Image.fromarray(values), "JPEG", quality=quality)


def figure_jpeg(figure: Figure, note: str) -> bytes:
    """A matplotlib figure, and a note in a strip of its own below it, as JPEG of at most `MOST_BYTES`."""
    drawn = pixels(figure)
    strip = Figure((drawn.width / figure.dpi, 0.15), figure.dpi)
    strip.text(1, 0.5, f"{note} ", fontsize=6.5, color="#555", ha="right", va="center")
    both = ImageOps.expand(drawn, (0, 0, 0, (below := pixels(strip)).height), "white")
    both.paste(below, (0, drawn.height))
    return small_jpeg(both, MOST_BYTES, _TRIES)


def thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """The whole image (H, W, 3) uint8 fitted into a gray square (side, side, 3)."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # A few pixels shown large keep their edges: blur would invent detail.
    how = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    square = Image.new("RGB", (side, side), (225, 225, 225))
    square.paste(image.resize(size, how), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def sheet(images: Sequence[np.ndarray], side: int, columns: int) -> np.ndarray:
    """Thumbnails in rows of `columns`: (rows * side, columns * side, 3) uint8; one gray cell without images."""
    rows = max(1, -(-len(images) // columns))
    pixels = np.full((rows * side, columns * side, 3), 225, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * side, i % columns * side
        pixels[top : top + side, left : left + side] = thumbnail(image, side)
    return pixels


def to_bytes(maps: np.ndarray) -> bytes:
    """Maps in [0, 1] as one byte per number."""
    return (np.clip(np.nan_to_num(maps), 0, 1) * 255 + 0.5).astype(np.uint8).tobytes()


def laid_over(
    image: np.ndarray, saliency: np.ndarray, side: int, is_mask: bool, opacity: float = 0.7, contour: bool = False,
    is_change: bool = False,
) -> np.ndarray:  # fmt: skip
    """A map (h, w) in [0, 1] over a gray copy of an image (H, W, 3), as the browser draws it: (side, side, 3) uint8.

    The patches of a mask stay sharp; a contour is a white line where the map crosses one half; of a change, one half
    is none and is not drawn.
    """
    how = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
    values = np.asarray(Image.fromarray(np.nan_to_num(saliency).astype(np.float32)).resize((side, side), how))
    values = np.clip(values, 0, 1)
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side)), np.float32)
    gray = 64 + 0.75 * (resized @ np.array([0.299, 0.587, 0.114], np.float32))
    table = np.frombuffer(color_table(CHANGE_COLORS if is_change else SALIENCY_COLORS), np.uint8).reshape(256, 3)
    colors = table[(values * 255 + 0.5).astype(int)]
    share = (opacity * (np.abs(2 * values - 1) ** 0.5 if is_change else 0.25 + 0.75 * values))[..., None]
    pixels = (gray[..., None] * (1 - share) + colors * share).astype(np.uint8)
    if contour and not is_change:
        inside = np.pad(values >= 0.5, ((0, 1), (0, 1)), mode="edge")
        edge = (inside[:-1, :-1] != inside[:-1, 1:]) | (inside[:-1, :-1] != inside[1:, :-1])
        pixels[np.roll(edge, 1, 1)] = 0
        pixels[edge] = 255
    return pixels
