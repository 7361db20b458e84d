"""Files are whole or not there, and those who may read the folder may read them."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from synthetic import synthetic_trace

from clipviz.files import CannotWrite, prepare_folder, replacing, write_text, writing
from clipviz.trace import Trace


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


def killed_in(block):
    """Run a block in a child that is killed in it."""
    child = os.fork()
    if child == 0:
        try:
            block()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")

    def block():
        with writing(path) as file:
            file.write(b"x" * 100_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(block)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "before"


def test_what_was_killed_at_a_name_is_cleared_away_by_the_next_writer_once_it_is_old(tmp_path):
    path = tmp_path / "a.safetensors"

    def block():
        with replacing(path) as place:
            place.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(block)
    (left,) = tmp_path.iterdir()
    (tmp_path / ".a.safetensors.mine").touch()
    with replacing(path) as place:
        place.write_bytes(b"whole")
    assert left.exists()  # of a process that may be at it still
    os.utime(left, (0, 0))
    with replacing(path) as place:
        place.write_bytes(b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.safetensors.mine", "a.safetensors"]


def test_what_was_killed_between_its_two_names_is_cleared_away_by_the_next_writer_once_it_is_old(tmp_path, monkeypatch):
    """A file is given a hidden name, and from that its own, in two steps."""
    path = tmp_path / "report.html"

    def block():
        monkeypatch.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_text(path, "half")

    killed_in(block)
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    write_text(path, "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_where_files_cannot_be_nameless_they_are_whole_all_the_same(tmp_path, monkeypatch, umask):
    monkeypatch.delattr(os, "O_TMPFILE")  # as on NFS, or outside Linux
    write_text(tmp_path / "deep" / "a.txt", "all \udc80 of it")
    assert (tmp_path / "deep" / "a.txt").read_text() == "all ? of it"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert stat.S_IMODE((tmp_path / "deep" / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed_to_the_file_they_mean(tmp_path, there):
    target = tmp_path / "real" / "page.html"
    if there:
        target.parent.mkdir()
        target.write_text("before")
    link = tmp_path / "link.html"
    link.symlink_to("real/page.html")
    write_text(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
    with replacing(link) as place:
        save_file({"x": torch.zeros(2)}, place)
    assert link.is_symlink()
    assert target.stat().st_size > 50


def test_a_link_to_the_folder_of_a_trace_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "trace").symlink_to("disk/trace")
    trace = synthetic_trace(n_classes=3, n_images=6, epochs=1)
    for _ in range(2):  # new, then replaced
        trace.save(tmp_path / "trace")
    assert (tmp_path / "trace").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["trace"]
    assert Trace.load(tmp_path).equals(trace)


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("appends", [True, False])
def test_what_a_shell_redirected_is_written_to_where_it_is(tmp_path, appends):
    """A file in the place of the shell's would lose what is printed after it."""
    code = "from clipviz.files import write_text; write_text('/dev/stdout', 'page '); print('and more')"
    out = tmp_path / "out.txt"
    out.write_text("before ")
    with out.open("a" if appends else "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, timeout=60)
    assert out.read_text() == ("before " if appends else "") + "page and more\n"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_home_is_where_a_tilde_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_text("~/a.txt", "text")
    assert prepare_folder("~/b") == tmp_path / "b"
    synthetic_trace(n_classes=3, n_images=6, epochs=1).save("~/c")
    assert len(Trace.load("~/c").samples)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b", "c"]


WRITERS = {
    "safetensors": lambda place: save_file({"x": torch.zeros(100_000)}, place),
    "numpy": lambda place: np.save(place.open("wb"), np.zeros(100_000)),
    "bytes": lambda place: place.write_bytes(bytes(400_000)),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("room", [0, 1, 4096, 399_999])
def test_a_full_disk_is_one_line_whoever_writes_and_whenever_it_fills(tmp_path, kind, room):
    """A limit on the size of a file stands in for the disk."""
    path = tmp_path / "x"
    path.write_bytes(b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with replacing(path) as place:
                WRITERS[kind](place)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(CannotWrite, match=rf"^cannot write {path}: .*; make room, or choose another place$"):
        write()
    assert os.listdir(tmp_path) == ["x"]


def test_what_is_no_fault_of_the_disk_keeps_its_name(tmp_path):
    def write(error):
        with writing(tmp_path / "x"):
            raise error

    with pytest.raises(KeyError):
        write(KeyError("x"))
    with pytest.raises(CannotWrite, match=r"cannot write .*/x: No space left on device; make room"):
        write(RuntimeError("I/O error: No space left on device (os error 28)"))
