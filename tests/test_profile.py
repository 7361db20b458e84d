"""`python -m benchmarks.profile`: the parts that it times are those of a step."""

from __future__ import annotations

import pytest
import torch

from benchmarks.profile import PARTS, profile


def test_every_part_of_a_step_is_timed_and_they_add_up_to_it():
    n_threads = torch.get_num_threads()
    found = profile("birds", 8, 1, {})
    torch.set_num_threads(n_threads)
    assert found.keys() == {"views and the loop", "all"} | {part for _, _, part in PARTS}
    assert all(took > 0 for steps in found.values() for took in steps)
    (whole,) = found.pop("all")
    assert sum(step for (step,) in found.values()) == pytest.approx(whole)
