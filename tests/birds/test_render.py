"""Drawing birds: the part masks say where what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from clipviz.birds.render import (
    ATTRIBUTE_PARTS,
    COLORS,
    IMAGE_SIDE,
    PART_ID,
    PART_NAMES,
    Pose,
    draw_bird,
    sample_pose,
)
from clipviz.birds.shapes import Canvas, both, capsule, either, ellipse, polygon
from clipviz.birds.world import ATTRIBUTES, SPECIES, encode

PLAIN = Pose((0.5, 0.5), 0.48, 0.0, False, np.ones(4), np.ones(3), 0.0)  # no tint, no light: pure colors


def draw(values, pose=PLAIN, background=(1.0, 0.0, 1.0)):
    """Image and parts of a bird on a background of one color, which no bird has."""
    rgb = np.tile(np.array(background, np.float32), (IMAGE_SIDE, IMAGE_SIDE, 1))
    parts = draw_bird(rgb, encode(values), pose)
    return rgb, parts


def values_of(plan, **changes):
    full = {name: options[-1] for name, options in ATTRIBUTES.items()}
    return {**full, "plan": plan, **changes}


@pytest.mark.parametrize("plan", ATTRIBUTES["plan"])
def test_masks_cover_exactly_what_was_painted(plan):
    rgb, parts = draw(values_of(plan))
    untouched = (rgb == np.array([1.0, 0.0, 1.0], np.float32)).all(-1)
    assert not untouched[parts > 0].any()
    edge = ~untouched & (parts == 0)  # pixels covered by less than half
    assert edge.sum() < 0.35 * (parts > 0).sum()
    blended = np.abs(rgb[edge] - [1.0, 0.0, 1.0]).max(-1)
    assert (blended < 1.0).all()
    assert (parts > 0).mean() > 0.04


@pytest.mark.parametrize("plan", ATTRIBUTES["plan"])
@pytest.mark.parametrize(
    ("attribute", "part"),
    [("body", "body"), ("wing", "wing"), ("cap", "cap"), ("throat", "throat"), ("wing_bars", "wing_bars"),
     ("eye_ring", "eye_ring"), ("tail_tip", "tail_tip"), ("legs", "legs"), ("beak_color", "beak")],
)  # fmt: skip
def test_a_part_has_the_color_that_its_attribute_says(plan, attribute, part):
    for value in ATTRIBUTES[attribute]:
        rgb, parts = draw(values_of(plan, **{attribute: value}))
        mask = parts == PART_ID[part]
        if value == "no":
            assert not mask.any()
            continue
        assert mask.sum() >= 3, (plan, part)
        median = np.median(rgb[mask], axis=0)
        assert np.abs(median - COLORS[value]).max() < 0.06, (plan, part, value)


@pytest.mark.parametrize("plan", ATTRIBUTES["plan"])
def test_every_attribute_changes_pixels_of_its_own_parts_only(plan):
    base = values_of(plan)
    rgb, parts = draw(base)
    for attribute, names in ATTRIBUTE_PARTS.items():
        other = next(value for value in reversed(ATTRIBUTES[attribute]) if value not in (base[attribute], "no"))
        changed_rgb, changed_parts = draw({**base, attribute: other})
        different = np.abs(rgb - changed_rgb).max(-1) > 0.02
        assert different.any(), attribute
        own = np.isin(parts, [PART_ID[name] for name in names])
        own |= np.isin(changed_parts, [PART_ID[name] for name in names])
        if attribute == "body":  # head, neck, tail and breast are shades of it
            own |= np.isin(parts, [PART_ID[name] for name in ("head", "tail", "breast")])
        # edges blend neighbouring parts, and a thin tip that covers less than half of a pixel is in no mask
        elsewhere = different & ~_grown(own, 3) & ~_edges(parts) & ~_edges(changed_parts)
        assert not elsewhere.any(), attribute


def _grown(mask, pixels):
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, pixels), (2 * pixels + 1,) * 2)
    return windows.any((2, 3))


def _edges(parts):
    """Pixels with another part among their eight neighbours."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(parts, 1, mode="edge"), (3, 3))
    return windows.min((2, 3)) != windows.max((2, 3))


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: species.name)
def test_what_tells_a_species_from_its_lookalikes_can_be_seen(species):
    visible = np.zeros(len(PART_NAMES), int)
    for seed in range(6):
        pose = sample_pose(np.random.default_rng(seed))
        _, parts = draw(species.values, pose)
        visible += np.bincount(parts.ravel(), minlength=len(PART_NAMES)) > 0
    for attribute in species.discriminative:
        shown = [visible[PART_ID[name]] for name in ATTRIBUTE_PARTS[attribute]]
        assert max(shown) >= 5, attribute


def test_every_part_is_visible_somewhere():
    seen = set()
    for plan in ATTRIBUTES["plan"]:
        seen |= set(np.unique(draw(values_of(plan))[1]).tolist())
    assert seen == set(range(len(PART_NAMES)))


def test_drawing_is_deterministic_and_poses_are_seeded():
    values = SPECIES[0].values
    one, same, other = (draw(values, sample_pose(np.random.default_rng(seed))) for seed in (0, 0, 1))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one[1] != other[1]).any()


def test_a_mirrored_bird_is_the_mirror_image():
    left, right = (draw(SPECIES[3].values, PLAIN._replace(mirror=mirror)) for mirror in (True, False))
    assert (left[1][:, ::-1] == right[1]).mean() > 0.99
    np.testing.assert_allclose(left[0][:, ::-1], right[0], atol=0.2)
    assert (left[1] != right[1]).any()


def test_size_scales_the_bird():
    areas = [(draw(SPECIES[0].values, PLAIN._replace(size=size))[1] > 0).sum() for size in (0.2, 0.4)]
    assert areas[1] / areas[0] == pytest.approx(4.0, rel=0.08)


# ------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        (ellipse(1.0, 2.0, 2.0, 1.0), (2.8, 2.0), (1.0, 3.2)),
        (ellipse(0.0, 0.0, 2.0, 0.5, np.pi / 2), (0.0, 1.8), (1.8, 0.0)),
        (capsule(0.0, 0.0, 4.0, 0.0, 0.5), (4.3, 0.0), (2.0, 0.6)),
        (capsule(0.0, 0.0, 4.0, 0.0, 0.5, 0.1), (0.0, 0.45), (4.0, 0.3)),
        (polygon((0.0, 0.0), (2.0, 0.0), (0.0, 2.0)), (0.5, 0.5), (1.5, 1.5)),
        (both(ellipse(0, 0, 1, 1), ellipse(1, 0, 1, 1)), (0.5, 0.0), (-0.5, 0.0)),
        (either(ellipse(0, 0, 1, 1), ellipse(3, 0, 1, 1)), (3.0, 0.5), (1.5, 0.0)),
    ],
)
def test_a_distance_is_negative_inside_and_positive_outside_its_shape_and_box(shape, inside, outside):
    assert shape.distance(*map(np.array, inside)) < 0 < shape.distance(*map(np.array, outside))
    x0, y0, x1, y1 = shape.box
    grid = np.linspace(-6, 6, 121)
    x, y = np.meshgrid(grid, grid)
    beyond = (x < x0) | (x > x1) | (y < y0) | (y > y1)
    assert (shape.distance(x, y)[beyond] >= -1e-6).all()


def test_a_canvas_paints_a_disk_of_the_right_area_and_mask():
    canvas = Canvas(np.zeros((64, 64, 3), np.float32), center=(32.0, 32.0), scale=10.0)
    canvas.paint(ellipse(0.0, 0.0, 2.0, 2.0), np.array([1.0, 0.5, 0.0]), 3)
    area = np.pi * 20**2
    assert (canvas.parts == 3).sum() == pytest.approx(area, rel=0.02)
    assert canvas.rgb[..., 0].sum() == pytest.approx(area, rel=0.02)
    assert canvas.rgb[32, 32].tolist() == [1.0, 0.5, 0.0]
    thin = lambda x, y: np.full_like(x, 0.25)  # noqa: E731
    canvas.paint(ellipse(0.0, 0.0, 1.0, 1.0), np.ones(3), 7, ink=thin)
    assert (canvas.parts != 7).all()  # see-through paint hides nothing
    assert canvas.rgb[32, 32].tolist() == [1.0, 0.625, 0.25]
