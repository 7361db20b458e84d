import numpy as np
import pytest
from pictures import smooth_pixels
from PIL import Image
from torchvision.transforms import functional as torchvision_ops

from clipviz.data import ViewConfig, eval_parts, eval_view, make_views
from clipviz.data.images.views import _random_box, crop_views, strong_view, weak_view

SHAPES = [(40, 30), (30, 40), (31, 31), (97, 13), (8, 8), (16, 16), (1, 1), (2_000, 3)]
BICUBIC = torchvision_ops.InterpolationMode.BICUBIC
EVERYTHING = ViewConfig(16, strong=True, crops=3)


def picture(width, height):
    return Image.fromarray(smooth_pixels(width, height))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_evaluation_view_is_torchvisions_resize_and_center_crop(shape):
    image = picture(*shape)
    reference = torchvision_ops.center_crop(torchvision_ops.resize(image, 16, BICUBIC), [16, 16])
    # rounding of coordinates may shift a gray value
    assert np.abs(eval_view(image, 16).astype(int) - np.asarray(reference)).max() <= 1


def test_the_weak_view_is_some_square_of_the_resized_image():
    image = picture(60, 20)
    resized = np.asarray(torchvision_ops.resize(image, 16, BICUBIC)).astype(int)
    rng = np.random.default_rng(0)
    offsets = set()
    for _ in range(60):
        view = weak_view(image, 16, rng)
        differences = [np.abs(resized[:, x : x + 16] - view).max() for x in range(48 - 16 + 1)]
        offsets.add(int(np.argmin(differences)))
        assert min(differences) <= 1
    assert {min(offsets), max(offsets)} <= {0, 1, 31, 32}
    assert len(offsets) > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_every_view_of_every_shape_has_the_size_asked_for(shape):
    views = make_views(picture(*shape), EVERYTHING, seed=0, epoch=0, index=0)
    assert views.weak.shape == views.strong.shape == (16, 16, 3)
    assert views.crops.shape == (3, 16, 16, 3)
    assert {views.weak.dtype, views.strong.dtype, views.crops.dtype} == {np.dtype(np.uint8)}


def test_views_that_were_not_asked_for_are_none():
    views = make_views(picture(9, 9), ViewConfig(8), seed=0, epoch=0, index=0)
    assert views.strong is None
    assert views.crops is None


def test_crops_are_squares_of_the_original_within_the_scale():
    # red and green are the coordinates, so a crop tells where it came from
    width, height = 200, 100
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    crops = crop_views(image, ViewConfig(32, crops=200), np.random.default_rng(0)).astype(int)
    sides = crops[:, 16, -1, 0] - crops[:, 16, 0, 0]
    assert np.abs(sides - (crops[:, -1, 16, 1] - crops[:, 0, 16, 1])).max() <= 3
    assert sides.min() >= 45
    assert sides.max() <= 92
    assert sides.max() - sides.min() > 30
    assert crops[..., 0].min() < 5
    assert crops[..., 0].max() > 195


def test_random_boxes_follow_the_scale_and_the_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([_random_box((120, 100), rng) for _ in range(500)])
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= (120, 100)).all()
    assert (w / h).min() >= 0.73
    assert (w / h).max() <= 1.36
    share = w * h / 12_000
    assert share.min() >= 0.29
    assert share.max() > 0.9


def test_an_image_too_narrow_for_any_box_gives_the_middle():
    left, top, right, bottom = _random_box((1000, 9), np.random.default_rng(0))
    assert (right - left, bottom - top) == (12, 9)
    assert (left, top) == (494, 0)


def test_the_strong_view_is_flipped_half_of_the_time():
    ramp = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2) * 4)
    plain = [
        view
        for seed in range(300)
        if (view := strong_view(ramp, ViewConfig(16), np.random.default_rng(seed)))[8].std() > 5
    ]
    falling = np.mean([view[8, 0, 0] > view[8, -1, 0] for view in plain])
    assert 0.4 < falling < 0.6


def test_a_view_depends_on_seed_epoch_and_index_only():
    image = picture(40, 30)
    base = make_views(image, EVERYTHING, seed=1, epoch=2, index=3)
    again = make_views(image, EVERYTHING, seed=1, epoch=2, index=3)
    assert all(np.array_equal(a, b) for a, b in zip(base, again, strict=True))
    for key in ({"seed": 9}, {"epoch": 9}, {"index": 9}):
        other = make_views(image, EVERYTHING, **{"seed": 1, "epoch": 2, "index": 3, **key})
        assert not np.array_equal(base.crops, other.crops)


def test_asking_for_more_views_leaves_the_others_alone():
    image = picture(40, 30)
    few = make_views(image, ViewConfig(16, crops=2), seed=0, epoch=0, index=0)
    many = make_views(image, ViewConfig(16, strong=True, crops=4), seed=0, epoch=0, index=0)
    assert np.array_equal(few.weak, many.weak)
    assert np.array_equal(few.crops, many.crops[:2])


def test_global_random_numbers_are_neither_used_nor_changed():
    import random

    image = picture(40, 30)
    random.seed(0)
    np.random.seed(0)
    expected = make_views(image, EVERYTHING, seed=0, epoch=0, index=5)
    after = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    assert after == (random.random(), np.random.rand())
    random.seed(77)
    assert np.array_equal(make_views(image, EVERYTHING, seed=0, epoch=0, index=5).strong, expected.strong)


def test_parts_are_cut_like_the_image_and_stay_ids():
    parts = np.zeros((60, 100), np.uint8)
    parts[20:40, 40:60] = 7
    cut = eval_parts(parts, 30)
    image = eval_view(Image.fromarray(np.repeat((parts > 0)[..., None] * np.uint8(255), 3, 2)), 30)
    assert set(np.unique(cut)) == {0, 7}
    assert np.mean((cut == 7) == (image[..., 0] > 127)) > 0.99


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 0},
        {"size": 8, "crops": -1},
        {"size": 8, "crop_scale": (0.9, 0.5)},
        {"size": 8, "crop_scale": (0.5, 1.2)},
    ],
)
def test_a_config_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match=r"want|needs"):
        ViewConfig(**arguments)
