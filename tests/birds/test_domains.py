"""Domains: severity 0 is the source, more of it is further away, and masks follow what is hidden."""

from __future__ import annotations

import numpy as np
import pytest

from clipviz.birds.dataset import DOMAINS, SHIFTS, VALIDATION_DOMAIN, render_image
from clipviz.birds.world import SPECIES

ALL = (*DOMAINS, VALIDATION_DOMAIN)


def render(domain, seed=0, severity=1.0, species=0):
    return render_image(SPECIES[species].code, domain, np.random.default_rng(seed), severity)


@pytest.mark.parametrize("domain", [name for name in ALL if name != "mix"])
def test_severity_zero_is_the_source(domain):
    image, parts = render(domain, severity=0.0)
    source_image, source_parts = render("source")
    np.testing.assert_array_equal(image, source_image)
    np.testing.assert_array_equal(parts, source_parts)


def test_a_mix_of_severity_zero_is_some_image_of_the_source():
    """It has spent random numbers on the choice of its two shifts, so it is another picture of the same domain."""
    rng = np.random.default_rng(0)
    rng.choice(SHIFTS, 2, replace=False)
    expected, _ = render_image(SPECIES[0].code, "source", rng)
    np.testing.assert_array_equal(render("mix", severity=0.0)[0], expected)


@pytest.mark.parametrize("domain", ["night", "fog", "blur", "dusk"])
def test_the_shift_grows_with_severity(domain):
    severities = (0.0, 0.25, 0.5, 1.0, 2.0)
    distances = np.zeros(len(severities))
    for seed in range(5):
        source = render("source", seed)[0].astype(float)
        distances += [np.abs(render(domain, seed, severity)[0] - source).mean() for severity in severities]
    assert distances[0] == 0
    assert (np.diff(distances) > 0).all()


def test_clutter_grows_with_severity_and_hides_parts():
    visible, texture = [], []
    for severity in (0.0, 0.5, 1.0, 2.0):
        pairs = [render("clutter", seed, severity) for seed in range(60)]
        visible.append(np.mean([(parts > 0).mean() for _, parts in pairs]))
        texture.append(np.mean([np.abs(np.diff(image.astype(float), axis=1)).mean() for image, _ in pairs]))
    assert (np.diff(texture) > 0).all()
    assert visible[3] < visible[0]


def test_a_bird_gets_smaller_with_severity():
    areas = [np.mean([(render("small", seed, s)[1] > 0).mean() for seed in range(10)]) for s in (0.0, 0.5, 1.0, 2.0)]
    assert (np.diff(areas) < 0).all()
    assert areas[2] / areas[0] == pytest.approx(1 / 1.6**2, rel=0.1)


def test_night_is_dark_fog_is_pale_and_blur_is_smooth():
    def mean(domain, statistic):
        return np.mean([statistic(render(domain, seed)[0].astype(float)) for seed in range(8)])

    def edges(image):
        return np.abs(np.diff(image, axis=0)).mean()

    assert mean("night", np.mean) < 0.6 * mean("source", np.mean)
    assert mean("fog", np.std) < 0.7 * mean("source", np.std)
    assert mean("blur", edges) < 0.75 * mean("source", edges)


@pytest.mark.parametrize("domain", ALL)
def test_pixels_are_seeded_and_in_range(domain):
    image, parts = render(domain, 3)
    again, parts_again = render(domain, 3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(parts, parts_again)
    assert (render(domain, 4)[0] != image).any()
    assert image.shape == (160, 160, 3)
    assert (image.dtype, parts.dtype) == (np.uint8, np.uint8)
    assert (parts > 0).any()


@pytest.mark.parametrize("domain", ALL)
def test_no_domain_wraps_around_at_its_cruelest(domain):
    """A value beyond 255 that wrapped would be a black speck in a pale picture, or the reverse."""
    image = render(domain, 5, severity=3.0)[0].astype(float)
    from scipy.ndimage import median_filter

    specks = np.abs(image - median_filter(image, size=(3, 3, 1))) > 200
    assert specks.mean() < 1e-3


def test_an_unknown_domain_gets_the_nearest_and_a_negative_severity_is_refused():
    with pytest.raises(ValueError, match=r"unknown domain 'cluter'; did you mean 'clutter'\? Choose from 'source'"):
        render("cluter")
    with pytest.raises(ValueError, match="severity must be at least 0, got -1"):
        render("fog", severity=-1)
