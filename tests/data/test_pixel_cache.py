"""The cache of decoded images on disk: the same pixels whatever happens to it, and never more than its size."""

import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipviz.data.images.pixel_cache as module
from clipviz.cli import main as cli
from clipviz.data import DiskCache, ViewConfig, ViewLoader, load_dataset
from clipviz.data.images.decode import UnreadableImage, read_image
from clipviz.data.images.pixel_cache import shrunk

SIDE = 16
BYTES = 3 * SIDE * 24 + 20  # of an entry: 48 x 32 pixels with a short side of 16, and its header


@pytest.fixture
def photos(tmp_path):
    """Eight noisy pictures of two classes."""
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "photos" / ("owl", "wren")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 48, 3)).astype(np.uint8)).save(path)
    return tmp_path / "photos"


def entries(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def pixels(dataset):
    return [np.asarray(dataset.image(i)) for i in range(len(dataset))]


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, one after the other."""
    paths = []

    def read(path):
        paths.append(path)
        return read_image(path)

    monkeypatch.setattr(module, "read_image", read)
    return paths


def opened(photos, folder, **options):
    """The data set with nothing kept in memory."""
    from clipviz.data.sources.image_files import ImageFolderDataset

    cache = DiskCache(folder, **{"side": SIDE, **options})
    return ImageFolderDataset(photos, cache_bytes=0, disk_cache=cache), cache


def test_every_file_is_decoded_once_for_all_runs(photos, tmp_path, decoded):
    expected = [np.asarray(shrunk(read_image(path), SIDE)) for path in sorted(photos.rglob("*.png"))]
    for _ in range(2):
        dataset, cache = opened(photos, tmp_path / "cache")
        for _ in range(2):
            np.testing.assert_array_equal(pixels(dataset), expected)
        assert len(decoded) == 8
        assert cache.trouble is None
    assert expected[0].shape == (16, 24, 3)
    assert [path.stat().st_size for path in entries(tmp_path / "cache")] == [BYTES] * 8


def test_views_do_not_depend_on_what_is_stored(photos, tmp_path):
    full, _ = opened(photos, tmp_path / "full")
    none, cache = opened(photos, tmp_path / "none", gigabytes=1e-9)
    assert "is full" in cache.trouble
    assert entries(tmp_path / "none") == []
    config = ViewConfig(8, strong=True, crops=2)
    for one, other in zip(
        ViewLoader(full, config, 4, 0).epoch(0), ViewLoader(none, config, 4, 0).epoch(0), strict=True
    ):
        for kind in ("weak", "strong", "crops"):
            assert getattr(one.views, kind).equal(getattr(other.views, kind))


def test_workers_read_it_too(photos, tmp_path):
    dataset, _ = opened(photos, tmp_path / "cache")
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns))  # the access time is no part of the key
    config = ViewConfig(8)
    here = [batch.views.weak for batch in ViewLoader(dataset, config, 4, 0).epoch(0)]
    there = [batch.views.weak for batch in ViewLoader(dataset, config, 4, 0, workers=2).epoch(0)]
    assert all(one.equal(other) for one, other in zip(here, there, strict=True))
    copy = pickle.loads(pickle.dumps(dataset))  # as it travels where processes are not forked
    np.testing.assert_array_equal(pixels(copy), pixels(dataset))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: content + b"more",
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        lambda content: bytes(len(content)),
        lambda content: pickle.dumps(["not", "pixels"]),
    ],
    ids=["cut", "header cut", "empty", "longer", "a bit", "zeros", "a pickle"],
)
def test_a_damaged_entry_is_made_again(photos, tmp_path, decoded, damage):
    dataset, _ = opened(photos, tmp_path / "cache")
    expected = pixels(dataset)
    for path in entries(tmp_path / "cache"):
        path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(pixels(dataset), expected)
    assert len(decoded) == 16
    np.testing.assert_array_equal(pixels(dataset), expected)
    assert len(decoded) == 16


@pytest.mark.parametrize("change", ["content", "time", "side", "Pillow"])
def test_what_makes_other_pixels_makes_another_entry(photos, tmp_path, monkeypatch, change):
    cache = DiskCache(tmp_path / "cache", side=SIDE)
    path = str(photos / "owl" / "0.png")
    before = cache.read(path)
    assert cache.read(str(photos / "owl" / ".." / "owl" / "0.png")).tobytes() == before.tobytes()
    assert len(entries(tmp_path / "cache")) == 1
    if change == "content":
        Image.new("RGB", (48, 32), "red").save(path)
        os.utime(path, ns=(0, 0))
        assert cache.read(path).getpixel((0, 0)) == (255, 0, 0)
    elif change == "time":
        os.utime(path, ns=(0, 10**9))
        cache.read(path)
    elif change == "side":
        assert DiskCache(tmp_path / "cache", side=8).read(path).size == (12, 8)
    else:
        monkeypatch.setattr("PIL.__version__", "0.0.0")
        cache.read(path)
    assert len(entries(tmp_path / "cache")) == 2


def test_it_stays_within_its_size_and_the_oldest_give_way(photos, tmp_path, decoded):
    folder = tmp_path / "cache"
    size = 5.5 * BYTES
    _, cache = opened(photos, folder, gigabytes=size / 1e9)
    assert "is full" in cache.trouble
    stored = entries(folder)
    assert len(stored) == 5  # those in use stay: the others are decoded at each use
    old = time.time() - 1000
    for path in stored:
        os.utime(path, (old, old))
    os.utime(stored[2], (old - 1000, old - 1000))
    later = DiskCache(folder, size / 1e9, SIDE)
    Image.new("RGB", (48, 32), "red").save(tmp_path / "new.png")
    later.read(str(tmp_path / "new.png"))
    assert sorted({*stored} - {*entries(folder)}) == [stored[2]]
    assert sum(path.stat().st_size for path in entries(folder)) <= size
    assert later.trouble is None


def test_entries_in_use_do_not_give_way(photos, tmp_path, decoded):
    opened(photos, tmp_path / "cache")
    old = time.time() - 1000
    for path in entries(tmp_path / "cache"):
        os.utime(path, (old, old))
    dataset, cache = opened(photos, tmp_path / "cache", gigabytes=8 * BYTES / 1e9)  # reads all eight
    Image.new("RGB", (48, 32), "red").save(tmp_path / "new.png")
    cache.read(str(tmp_path / "new.png"))
    assert len(entries(tmp_path / "cache")) == 8
    decoded.clear()
    pixels(dataset)
    assert decoded == []


def test_other_files_in_its_folder_are_not_touched(photos, tmp_path):
    folder = tmp_path / "cache"
    mine = [folder / "notes.pixels", folder / "ab" / "letter.txt", folder / "letters" / "x.pixels"]
    left = folder / "ab" / ".0123.pixels.0123abcd"  # of a process that was killed long ago
    for path in (*mine, left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5000)
        os.utime(path, (0, 0))
    opened(photos, folder, gigabytes=2 * BYTES / 1e9)
    assert all(path.exists() for path in mine)
    assert not left.exists()


def test_room_is_granted_once_even_while_nothing_is_written_yet(tmp_path):
    cache = DiskCache(tmp_path / "cache", 5.5 * BYTES / 1e9, SIDE)
    granted = [cache._reserve(tmp_path / str(i), BYTES) for i in range(8)]  # as by threads that are about to write
    assert granted == [True] * 5 + [False] * 3


def test_an_entry_that_another_thread_has_just_written_counts_once(tmp_path):
    cache = DiskCache(tmp_path / "cache", 5.5 * BYTES / 1e9, SIDE)
    path = cache.folder / "0a" / f"0a{'0' * 38}.pixels"
    assert cache._reserve(path, BYTES)
    path.parent.mkdir()
    path.write_bytes(b"x" * BYTES)  # and it has not said so yet
    granted = [cache._reserve(tmp_path / str(i), BYTES) for i in range(6)]
    assert granted == [True] * 4 + [False] * 2


def test_a_full_disk_stops_the_cache_and_not_the_run(photos, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    dataset, cache = opened(photos, tmp_path / "cache")
    assert cache.trouble.endswith("No space left on device")
    assert len(pixels(dataset)) == 8
    assert entries(tmp_path / "cache") == []


def _read_all(arguments):
    photos, folder = arguments
    cache = DiskCache(folder, 1.0, SIDE)
    return [cache.read(path).tobytes() for path in photos * 3]


def test_two_processes_may_use_it_at_once(photos, tmp_path):
    paths = [str(path) for path in sorted(photos.rglob("*.png"))]
    jobs = [(paths, str(tmp_path / "cache")), (paths[::-1], str(tmp_path / "cache"))]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        one, other = pool.map(_read_all, jobs)
    expected = [shrunk(read_image(path), SIDE).tobytes() for path in paths]
    assert one == expected * 3
    assert other == expected[::-1] * 3
    assert [path.stat().st_size for path in entries(tmp_path / "cache")] == [BYTES] * 8


def test_a_bad_file_is_bad_with_a_cache_too(photos, tmp_path):
    (photos / "owl" / "bad.jpg").write_bytes(b"\xff\xd8 no more")
    for _ in range(2):
        dataset, cache = opened(photos, tmp_path / "cache")
        assert [s.path for s in dataset.skipped] == ["owl/bad.jpg"]
    with pytest.raises(UnreadableImage, match="No such file"):
        cache.read(str(photos / "gone.png"))


@pytest.mark.parametrize("place", ["photos", "~/photos", "~/photos/cache"])
def test_no_cache_is_made_of_or_in_the_folder_of_images(photos, monkeypatch, place):
    """Its folders would be taken for classes from then on."""
    monkeypatch.setenv("HOME", str(photos.parent))
    monkeypatch.chdir(photos.parent)
    before = sorted(photos.iterdir())
    assert photos.name == "photos"
    with pytest.raises(ValueError, match=f"the cache .*{place[1:]}' lies among the images; choose another place"):
        load_dataset("~/photos", disk_cache=place)
    assert sorted(photos.iterdir()) == before


def test_what_cannot_be_is_one_line(photos, tmp_path):
    with pytest.raises(ValueError, match="lies among the images; choose another place"):
        load_dataset(photos, disk_cache=DiskCache(photos / "cache"))
    (photos / "cache").rmdir()
    with pytest.raises(ValueError, match="lies among the images; choose another place"):
        load_dataset(photos, disk_cache=photos / "cache")
    assert not (photos / "cache").exists()  # or it would be a class from now on
    with pytest.raises(ValueError, match="cannot write to folder"):
        DiskCache(photos / "owl" / "0.png")
    for options in ({"gigabytes": 0}, {"gigabytes": float("nan")}, {"side": 0}):
        with pytest.raises(ValueError, match="a cache needs gigabytes > 0 and side >= 1"):
            DiskCache(tmp_path / "cache", **options)


def test_small_pictures_are_kept_as_they_are_and_long_ones_stay_long():
    assert shrunk(image := Image.new("RGB", (9, 20)), 10) is image
    assert shrunk(Image.new("RGB", (2000, 20)), 10).size == (1000, 10)
    assert shrunk(Image.new("RGB", (1, 7)), 1).size == (1, 7)


def test_the_command_line_has_it(photos, tmp_path, capfd):
    folder = tmp_path / "cache"
    command = ["adapt", "zero_shot", "--model", "birds", "--data", str(photos), "--cache-dir", str(folder)]
    assert cli.main([*command, "--cache-side", str(SIDE), "--out", str(tmp_path / "run")]) == 0
    assert len(entries(folder)) == 8
    assert capfd.readouterr().err == ""
    assert cli.main([*command, "--cache-gb", "1e-9", "--cache-side", "8", "--out", str(tmp_path / "tiny")]) == 0
    assert capfd.readouterr().err == f"{folder} is full (1e-09 GB); further images are decoded at each use\n"
    for wrong in ("0", "-1", "much", "nan", "inf"):
        with pytest.raises(SystemExit):
            cli.main([*command, f"--cache-gb={wrong}", "--out", "x"])
        assert f"wanted a number of gigabytes above 0, got {wrong!r}" in capfd.readouterr().err


def test_a_folder_will_do_as_a_cache(photos, tmp_path):
    data = load_dataset(photos, disk_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.pixels"))) == len(data)
