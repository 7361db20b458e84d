import random

import numpy as np
import pytest
from pictures import smooth_pixels
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, AugmentOp

from clipviz.data.images.views import INCREASING_OPS, apply_op, rand_augment

FILL = (10, 200, 30)
IMAGE = Image.fromarray(smooth_pixels(32, 32))


def test_the_operations_are_timms_increasing_set():
    assert list(INCREASING_OPS) == _RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("magnitude", [0.0, 4.3, 8.2, 9.9])
@pytest.mark.parametrize("name", list(INCREASING_OPS))
def test_an_operation_does_what_timm_does(name, magnitude):
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    theirs = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
    state = random.getstate()
    try:
        either_sign = {bytes(np.asarray(theirs(IMAGE))) for _ in range(24)}
    finally:
        random.setstate(state)
    ours = {bytes(np.asarray(apply_op(name, IMAGE, magnitude, sign, FILL))) for sign in (-1.0, 1.0)}
    assert ours == either_sign


@pytest.mark.parametrize("name", list(INCREASING_OPS))
def test_the_largest_magnitude_is_allowed(name):
    assert apply_op(name, IMAGE, 10.0, 1.0, FILL).size == IMAGE.size


def test_posterize_at_the_largest_magnitude_keeps_no_bit():
    assert not np.asarray(apply_op("PosterizeIncreasing", IMAGE, 10.0, 1.0, FILL)).any()


def test_uncovered_pixels_get_the_fill_color():
    moved = apply_op("TranslateXRel", IMAGE, 9.0, 1.0, FILL)
    assert moved.getpixel((31, 5)) == FILL


def test_each_of_two_operations_is_applied_half_of_the_time():
    rng = np.random.default_rng(0)
    unchanged = np.mean([bytes(np.asarray(rand_augment(IMAGE, rng, FILL))) == IMAGE.tobytes() for _ in range(800)])
    assert unchanged == pytest.approx(0.25, abs=0.06)  # and a little more: some operations may change nothing


def test_the_generator_alone_decides():
    first, again, other = (np.asarray(rand_augment(IMAGE, np.random.default_rng(seed), FILL)) for seed in (4, 4, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
