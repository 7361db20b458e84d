import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import smooth_pixels
from PIL import Image, ImageFile

from clipviz.data import load_dataset
from clipviz.data.images import decode
from clipviz.data.images.decode import UnreadableImage, read_image

RED = (255, 0, 0)


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(smooth_pixels(24, 20)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = "image.jpg" if mode in ("CMYK", "YCbCr") else "image.png"
    image = read_image(saved(tmp_path, Image.new("RGB", (6, 4), "white").convert(mode), name))
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert min(pixel(image)) > 250


def test_cmyk_keeps_its_colors(tmp_path):
    image = read_image(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "red.jpg"))
    assert np.allclose(pixel(image), RED, atol=8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    transparent = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert pixel(read_image(saved(tmp_path, transparent))) == (255, 255, 255)


def test_a_palette_with_a_transparent_color_is_laid_over_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    decoded = read_image(saved(tmp_path, image, transparency=0))
    assert pixel(decoded) == (255, 255, 255)
    assert pixel(decoded, 1) == RED


def test_half_transparent_red_is_pink(tmp_path):
    image = read_image(saved(tmp_path, Image.new("RGBA", (2, 2), (*RED, 128))))
    assert np.allclose(pixel(image), (255, 127, 127), atol=1)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values), name))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-5.0, 0.0, 5.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[-9, -9, -9]], np.int32), [0, 0, 0]),
    ],
)
def test_numbers_without_a_full_scale_are_scaled_sensibly(tmp_path, values, expected):
    image = read_image(saved(tmp_path, Image.fromarray(values), "numbers.tif"))
    assert np.asarray(image)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_an_animation_gives_its_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert pixel(read_image(path)) == RED


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.tif"])
def test_exif_orientation_is_applied(tmp_path, name):
    stored = Image.new("RGB", (32, 16), "blue")
    stored.paste("red", (0, 0, 16, 16))  # left half; orientation 6 turns it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(saved(tmp_path, stored, name, exif=exif))
    assert image.size == (16, 32)
    assert np.allclose(pixel(image, 8, 4), RED, atol=8)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(tmp_path, Image.new("RGB", (8, 8)), "image.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert read_image(path).size == (8, 8)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (1, 5_000)])
def test_extreme_shapes_are_read(tmp_path, size):
    assert read_image(saved(tmp_path, Image.new("RGB", size))).size == size


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")


# above Pillow's limit, where it only warns, and above twice its limit, where it raises by itself
@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 10_000)])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(
            UnreadableImage, match=r"limit of \d+ \(PIL.Image.MAX_IMAGE_PIXELS\): a decompression bomb\?"
        ):
            read_image(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused(tmp_path, form):
    data = encoded(form)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UnreadableImage):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jpg", b"", r"empty file \(0 bytes\)"),
        ("text.jpg", b"I am not an image.", "not an image"),
        ("page.png", b"<html><script>alert(1)</script>", "not an image"),
        ("phone.HEIC", b"\0\0\0\x18ftypheic", "HEIC is not supported"),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path, name, data, reason):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=reason):
        read_image(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "absent.png")


ENCODED = {form: encoded(form) for form in ("GIF", "JPEG", "PNG", "TIFF", "WEBP")}


def image_or_reason(path):
    try:
        return read_image(path)
    except UnreadableImage as error:
        return str(error)


@settings(deadline=None, max_examples=300)
@given(
    form=st.sampled_from(sorted(ENCODED)),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.none() | st.integers(0, 10_000),
)
def test_damaged_bytes_are_read_or_refused_but_never_raise_anything_else(tmp_path_factory, form, changes, cut):
    data = bytearray(ENCODED[form])
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(data) if cut is None else bytes(data)[: cut % len(data)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = image_or_reason(path)
    if isinstance(outcome, str):
        assert outcome
        assert "\n" not in outcome
    else:
        assert outcome.mode == "RGB"
        assert min(outcome.size) >= 1


def test_pillow_is_not_told_to_accept_truncated_files():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("raised", [MemoryError(), OSError("out of memory error when reading image file")])
def test_too_little_memory_is_no_fault_of_the_image(tmp_path, monkeypatch, raised):
    path = saved(tmp_path, Image.new("RGB", (6, 4)))

    def load(image):
        raise raised

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for read in (read_image, lambda _: load_dataset(tmp_path)):
        with pytest.raises(ValueError, match=r"^not enough memory to decode .*image.png'; free some") as error:
            read(path)
        assert not isinstance(error.value, UnreadableImage)  # which would be skipped


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_image_above_the_limit_comes_as_the_means_of_its_pixels(tmp_path, monkeypatch, mode):
    image = Image.fromarray(smooth_pixels(51, 40)).convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    path = saved(tmp_path, image, "image.tif" if mode == "CMYK" else "image.png")
    whole = read_image(path)
    monkeypatch.setattr(decode, "LARGEST", 51 * 40)
    assert read_image(path).tobytes() == whole.tobytes()  # up to the limit, every bit is as it was
    monkeypatch.setattr(decode, "LARGEST", 51 * 40 - 1)
    assert read_image(path).tobytes() == whole.reduce(2).tobytes()
    monkeypatch.setattr(decode, "LARGEST", 51 * 40 // 8)
    assert read_image(path).tobytes() == whole.reduce(3).tobytes()


@pytest.mark.parametrize(("name", "dtype"), [("deep.png", np.uint16), ("float.tif", np.float32)])
def test_numbers_above_the_limit_keep_their_scale(tmp_path, monkeypatch, name, dtype):
    values = np.linspace(0, 65535, 24).reshape(4, 6).astype(dtype)
    path = saved(tmp_path, Image.fromarray(values), name)
    whole = np.asarray(read_image(path))
    monkeypatch.setattr(decode, "LARGEST", 6)
    assert np.allclose(np.asarray(read_image(path)), whole[::2, ::2], atol=20)


def test_a_jpeg_above_the_limit_is_decoded_small_and_upright(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(smooth_pixels(64, 32)), "x.jpg", exif=exif)
    sizes, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (sizes.append(image.size), load(image))[1])
    monkeypatch.setattr(decode, "LARGEST", 32 * 16)
    whole = Image.fromarray(smooth_pixels(64, 32)).reduce(2).transpose(Image.Transpose.ROTATE_270)
    small = read_image(path)
    assert sizes[0] == (32, 16)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 6


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    path, held = saved(tmp_path, Image.new("RGB", (6, 4))), []
    monkeypatch.setattr(decode, "_turn_upright", lambda image: held.append(decode._large[0].locked()))
    for large in (24, 23):
        monkeypatch.setattr(decode, "LARGE", large)
        read_image(path)
    assert held == [False, True]
    with decode._large[0]:  # a process that is forked at this moment must not wait for ever
        child = os.fork()
        if child == 0:
            os._exit(decode._large[0].locked())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
