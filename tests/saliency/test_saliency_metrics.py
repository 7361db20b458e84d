"""Mask metrics on hand-made cases: an 8 x 8 image on a 4 x 4 grid, two pixels to a cell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipviz.birds.dataset import BirdsDataset
from clipviz.birds.render import PART_ID
from clipviz.birds.world import SPECIES
from clipviz.saliency import bird_regions, part_mass, part_rank, pointing_game
from clipviz.saliency.metrics import coverage
from clipviz.training.evaluate import spread_probe


def region(*boxes: tuple[slice, slice]) -> Tensor:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    for rows, columns in boxes:
        mask[0, rows, columns] = True
    return mask


def grid(**cells: float) -> Tensor:
    """A (1, 4, 4) map; `r1c2=3.0` sets row 1, column 2."""
    maps = torch.zeros(1, 4, 4)
    for name, value in cells.items():
        maps[0, int(name[1]), int(name[3])] = value
    return maps


TOP_RIGHT = region((slice(0, 2), slice(6, 8)))  # exactly cell (0, 3)


def test_coverage_counts_pixels_row_by_row() -> None:
    covered = coverage(region((slice(0, 3), slice(7, 8))), (4, 4))
    expected = torch.zeros(1, 4, 4)
    expected[0, 0, 3], expected[0, 1, 3] = 0.5, 0.25
    torch.testing.assert_close(covered, expected)


def test_pointing_game() -> None:
    assert pointing_game(grid(r0c3=1.0), TOP_RIGHT) == 1
    assert pointing_game(grid(r3c0=1.0), TOP_RIGHT) == 0  # upside down and mirrored
    assert pointing_game(grid(r0c3=1.0, r3c3=1.1), TOP_RIGHT) == 0
    assert pointing_game(grid(r0c3=-1.0) - 2, TOP_RIGHT) == 0  # only the maximum counts, signs do not
    one_pixel = region((slice(1, 2), slice(6, 7)))
    assert pointing_game(grid(r0c3=1.0), one_pixel) == 1


def test_ties_count_by_their_share_so_a_constant_map_is_chance() -> None:
    assert pointing_game(grid(r0c3=1.0, r0c0=1.0, r1c1=1.0, r2c2=1.0), TOP_RIGHT) == 0.25
    assert pointing_game(torch.ones(1, 4, 4), TOP_RIGHT) == 1 / 16
    assert part_mass(torch.ones(1, 4, 4), TOP_RIGHT) == 1 / 16
    parts = TOP_RIGHT.long()
    assert part_rank(torch.full((1, 4, 4), 0.3), TOP_RIGHT, parts) == 0.5


def test_part_mass() -> None:
    maps = grid(r0c3=3.0, r1c3=1.0, r3c0=-5.0)
    assert part_mass(maps, TOP_RIGHT) == 0.75
    half = region((slice(0, 2), slice(7, 8)))  # half of cell (0, 3)
    assert part_mass(maps, half) == 0.375
    torch.testing.assert_close(part_mass(maps * 7, half), torch.tensor([0.375]))
    assert part_mass(torch.zeros(1, 4, 4), half) == 0
    assert part_mass(-torch.ones(1, 4, 4), half) == 0


def test_part_rank() -> None:
    parts = torch.zeros(1, 8, 8, dtype=torch.long)
    parts[0, :2, 6:] = 1  # the region, cell (0, 3)
    parts[0, 2:4, :2] = 2  # cell (1, 0)
    parts[0, 6:, 6:] = 3  # cell (3, 3)
    wanted = parts == 1
    assert part_rank(grid(r0c3=2.0, r1c0=1.0, r3c3=-1.0), wanted, parts) == 1
    assert part_rank(grid(r0c3=2.0, r1c0=3.0, r3c3=-1.0) + 9, wanted, parts) == pytest.approx(2 / 3)
    assert part_rank(grid(r0c3=-2.0, r1c0=3.0), wanted, parts) == 0
    assert part_rank(grid(r0c3=1.0, r1c0=1.0), wanted, parts) == pytest.approx(2.5 / 3)
    both = (parts == 1) | (parts == 2)  # against background and part 3
    assert part_rank(grid(r0c3=2.0, r3c3=0.5), both, parts) == 1


def test_part_rank_over_a_batch_with_different_parts() -> None:
    parts = torch.zeros(2, 8, 8, dtype=torch.uint8)
    parts[:, :2, 6:] = 1
    parts[1, 6:, 6:] = 3
    maps = torch.cat([grid(r0c3=1.0, r3c3=2.0), grid(r0c3=1.0, r3c3=2.0)])
    torch.testing.assert_close(part_rank(maps, parts == 1, parts), torch.tensor([1.0, 0.5]))


def test_invisible_regions_are_nan() -> None:
    empty = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert pointing_game(grid(r0c3=1.0), empty).isnan()
    assert part_mass(grid(r0c3=1.0), empty).isnan()
    assert part_rank(grid(r0c3=1.0), empty, empty.long()).isnan()
    everything = ~empty
    assert part_rank(grid(r0c3=1.0), everything, everything.long()).isnan()


def test_regions_of_birds_are_where_the_bird_is() -> None:
    dataset = BirdsDataset("source", "test", n=24)
    probe = spread_probe(dataset, 64, 24)
    assert probe.parts is not None
    regions = bird_regions(probe.parts, probe.target)
    assert torch.equal(regions["object"], probe.parts > 0)
    assert not (regions["discriminative"] & ~regions["object"]).any()
    # the four of the first group differ in cap (shown on the head where there is none) and wing bars
    assert set(probe.parts[0][regions["discriminative"][0]].tolist()) <= {
        PART_ID[name] for name in ("cap", "head", "wing_bars", "wing")
    }
    other = next(
        i
        for i, species in enumerate(SPECIES)
        if species.group == 0 and sum(species.values[k] != SPECIES[0].values[k] for k in species.values) == 1
    )
    against = bird_regions(probe.parts[:1], probe.target[:1], torch.tensor([other]))["discriminative"]
    assert against.any()
    assert against.sum() < regions["discriminative"][:1].sum()


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 4, 4\) and \(2, 8, 8\)"):
        pointing_game(grid(), torch.zeros(2, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="of bool"):
        part_mass(grid(), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="parts must have the region's shape"):
        part_rank(grid(), TOP_RIGHT, torch.zeros(1, 4, 4))
