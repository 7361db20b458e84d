"""A folder of everything that lies in real folders of images: readable in spite of its looks, or not an image at all.

`GOOD` and `BAD` map a file name to a function that writes it; the class folders have hostile names as well.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, PngImagePlugin

CLASS_FOLDERS = (
    "<img src=x onerror=alert(1)>",
    "{0.__class__} %s {}",
    "a \"quoted\" 'class'\nwith a line",
    "naïve 日本語",
)

Writer = Callable[[Path], None]


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """A smooth color ramp."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), np.full(x.shape, 90.0)], -1)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture(*size, mode).save(buffer, form, **options)
    return buffer.getvalue()


def save(form: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> Writer:
    return lambda path: path.write_bytes(encoded(form, mode, size, **options)) and None


def content(data: bytes) -> Writer:
    return lambda path: path.write_bytes(data) and None


def image_of(pixels: np.ndarray) -> Writer:
    """Pixels as a file by its suffix."""
    return lambda path: Image.fromarray(pixels).save(path)


def animation(form: str) -> Writer:
    frames = [picture(), Image.new("RGB", (40, 30), "blue")]
    return lambda path: frames[0].save(path, form, save_all=True, append_images=frames[1:])


def rotated(orientation: int) -> Writer:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save("JPEG", exif=exif.tobytes())


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and that holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def png_with_text(size: int) -> bytes:
    """A good PNG with a long compressed comment, which Pillow refuses to unpack."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * size, zip=True)
    return encoded("PNG", pnginfo=info)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


GOOD: dict[str, Writer] = {
    "plain.jpg": save("JPEG"),
    "plain.png": save("PNG"),
    "plain.webp": save("WEBP"),
    "plain.bmp": save("BMP"),
    "plain.gif": save("GIF", "P"),
    "plain.tif": save("TIFF"),
    "plain.ppm": save("PPM"),
    "UPPER.JPEG": save("JPEG"),
    "progressive.jpg": save("JPEG", progressive=True),
    "cmyk.jpg": save("JPEG", "CMYK"),
    "gray.jpg": save("JPEG", "L"),
    "gray-alpha.png": save("PNG", "LA"),
    "alpha.png": save("PNG", "RGBA"),
    "palette.png": save("PNG", "P"),
    "palette-clear.png": save("PNG", "P", transparency=0),
    "bilevel.png": save("PNG", "1"),
    "lab.tif": save("TIFF", "LAB"),
    "ycbcr.tif": save("TIFF", "YCbCr", compression="jpeg"),  # as scanners write them
    "16-bit.png": image_of(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)),
    "16-bit.tif": image_of(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)),
    "float.tif": image_of(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)),
    "nan.tif": image_of(np.full((20, 30), np.nan, np.float32)),
    "int32.tif": image_of(np.arange(600, dtype=np.int32).reshape(20, 30) - 300),
    "animated.gif": animation("GIF"),
    "animated.webp": animation("WEBP"),
    "animated.png": animation("PNG"),
    **{f"exif-{orientation}.jpg": rotated(orientation) for orientation in (1, 3, 6, 8)},
    "exif-bad.jpg": save("JPEG", exif=b"Exif\0\0garbage"),
    "1x1.png": save("PNG", size=(1, 1)),
    "1x200.png": save("PNG", size=(1, 200)),
    "20000x10.png": save("PNG", size=(20000, 10)),
    "10x20000.png": save("PNG", size=(10, 20000)),
    "a jpeg called.png": save("JPEG"),
    "trailing.jpg": content(encoded("JPEG") + b"<script>alert(2)</script>" * 10),
    "icc.jpg": save("JPEG", icc_profile=b"no profile"),
    "<script>alert(3)<.png": save("PNG"),
    'it\'s "quoted" {} %s.png': save("PNG"),
    "new\nline.png": save("PNG"),
    "日本語 é́.png": save("PNG"),
    " leading space.png": save("PNG"),
    "$(touch hacked);.png": save("PNG"),
    "-rf.png": save("PNG"),
    "x" * 240 + ".png": save("PNG"),
    "\udcff\udcfe.png": save("PNG"),  # bytes that are no UTF-8
}

BAD: dict[str, Writer] = {
    "empty.png": content(b""),
    "text.jpg": content(b"this is no image"),
    "page.png": content(b"<html><script>alert(4)</script></html>"),
    "vector.png": content(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(5)'/>"),
    "postscript.jpg": content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"),
    "document.jpg": content(b"%PDF-1.7\n"),
    "pickle.png": content(pickle.dumps({"a": 1})),
    "archive.png": content(b"PK\x03\x04" + bytes(200)),
    "zeros.png": content(bytes(5000)),
    "noise.jpg": content(np.random.default_rng(0).bytes(5000)),
    "phone.heic": content(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "cut.jpg": content(encoded("JPEG", size=(200, 150))[:800]),
    "cut.png": content(encoded("PNG", size=(200, 150))[:300]),
    "cut.webp": content(encoded("WEBP", size=(200, 150))[:60]),
    "cut.gif": content(encoded("GIF", "P", size=(200, 150))[:300]),
    "cut.tif": content(encoded("TIFF", size=(200, 150))[:300]),
    "cut.bmp": content(encoded("BMP", size=(200, 150))[:300]),
    "head only.jpg": content(b"\xff\xd8\xff"),
    "head only.png": content(b"\x89PNG\r\n\x1a\n"),
    "crc.png": content(flipped(encoded("PNG"), 20)),
    "bomb.png": content(png_claiming(60_000, 60_000)),
    "no width.png": content(png_claiming(0, 10)),
    "few pixels.png": content(png_claiming(50, 50)),
    "long text.png": content(png_with_text(5_000_000)),
    "a folder.png": lambda path: path.mkdir(),
    "broken link.png": lambda path: path.symlink_to("nowhere"),
    "loop.png": lambda path: path.symlink_to(path.name),
    "pipe.png": lambda path: os.mkfifo(path),
    "device.png": lambda path: path.symlink_to("/dev/zero"),
}


# Pillow reads this one from version 13 on; before, it is skipped with the reason.
(GOOD if int(PIL.__version__.partition(".")[0]) >= 13 else BAD)["raw ycbcr.tif"] = save("TIFF", "YCbCr")


def make_folder(root: Path, kinds: dict[str, Writer]) -> Path:
    """Write files into class folders with hostile names, one after the other."""
    for i, (name, write) in enumerate(kinds.items()):
        folder = root / CLASS_FOLDERS[i % len(CLASS_FOLDERS)]
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name)
    return root
