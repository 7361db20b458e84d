"""Files are whole or not there, and those who may read the folder may read them."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from clipviz.files import replacing


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="no umask there")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_that_the_umask_gives(tmp_path, umask, mask, mode):
    umask(mask)
    path = tmp_path / "weights.safetensors"
    for _ in range(2):  # new, then replaced
        with replacing(path) as place:
            save_file({"x": torch.zeros(2)}, place)  # by itself it is 0600 always
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_fails_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write_half():
        with replacing(path) as place:
            place.write_text("ha")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
