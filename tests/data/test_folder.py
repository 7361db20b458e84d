import gc
import json
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from clipviz.data import ImageFolderDataset, Skipped
from clipviz.data.sources.image_files import CACHE_BYTES


def reasons(dataset):
    return {skipped.path: skipped.reason for skipped in dataset.skipped}


@pytest.fixture
def two_classes(tmp_path, save_image):
    for name, color in (("cat/1.png", "red"), ("cat/2.jpg", "red"), ("dog/1.png", "blue")):
        save_image(name, color)
    return tmp_path


def test_class_folders_give_names_and_targets(two_classes):
    dataset = ImageFolderDataset(two_classes)
    assert dataset.class_names == dataset.prompts.names == ("cat", "dog")
    assert dataset.targets.tolist() == [0, 0, 1]
    assert dataset.targets.dtype == np.int64
    assert dataset.names == ["cat/1.png", "cat/2.jpg", "dog/1.png"]
    assert (dataset.split, dataset.skipped, len(dataset)) == ("all", [], 3)
    assert dataset.has_targets
    assert dataset.image(2).getpixel((0, 0)) == (0, 0, 255)
    assert dataset.parts(0) is None


def test_a_data_set_says_in_one_line_what_it_is(two_classes, monkeypatch):
    monkeypatch.chdir(two_classes.parent)
    (two_classes / "cat" / "bad.png").write_bytes(b"")
    said = repr(ImageFolderDataset(two_classes.name))
    assert said == f"ImageFolderDataset({two_classes.name!r}, split 'all': 3 images, 2 classes, 1 skipped)"


def test_without_splits_every_split_gives_all_images_and_says_so(two_classes):
    assert {ImageFolderDataset(two_classes, split).split for split in ("train", "val", "test")} == {"all"}


def test_a_flat_folder_is_unlabelled(tmp_path, save_image):
    save_image("a.png")
    save_image("b.png")
    dataset = ImageFolderDataset(tmp_path)
    assert dataset.targets.tolist() == [-1, -1]
    assert dataset.class_names == ()
    assert not dataset.has_targets


def test_a_flat_folder_takes_its_classes_from_where_they_are_given(tmp_path, save_image):
    save_image("a.png")
    described = tmp_path / "d.json"
    described.write_text(json.dumps({"Lynx": ["It has tufts."], "boar": ["It digs."]}))
    assert ImageFolderDataset(tmp_path, descriptions=described).class_names == ("Lynx", "boar")
    (tmp_path / "classes.txt").write_text("lynx\n\nboar\n")
    dataset = ImageFolderDataset(tmp_path, descriptions=described)
    assert dataset.class_names == ("lynx", "boar")
    assert dataset.prompts.description_sentences("lynx") == ("It has tufts.",)
    listed = tmp_path / "mine.txt"
    listed.write_text("fox\nhare\n")
    assert ImageFolderDataset(tmp_path, classes=listed).class_names == ("fox", "hare")
    prompts = ImageFolderDataset(tmp_path, classes=["owl"], templates="an {}.").prompts
    assert prompts.template_sentences("owl") == ("an owl.",)


def test_split_folders_are_picked_by_name(tmp_path, save_image):
    save_image("train/cat/1.png")
    save_image("train/dog/1.png")
    save_image("Test/dog/2.png")
    train, test = ImageFolderDataset(tmp_path, "train"), ImageFolderDataset(tmp_path, "test")
    assert (train.split, train.names) == ("train", ["train/cat/1.png", "train/dog/1.png"])
    assert (test.split, test.names) == ("test", ["Test/dog/2.png"])
    assert test.class_names == train.class_names  # so that the class indices agree
    assert test.targets.tolist() == [1]
    with pytest.raises(ValueError, match=r"no split 'val' in .*; it has 'Test', 'train'; ask for .* give .*Test'\)"):
        ImageFolderDataset(tmp_path, "val")


def test_val_stands_in_for_a_missing_test(tmp_path, save_image):
    save_image("train/cat/1.png")
    save_image("valid/cat/2.png")
    assert ImageFolderDataset(tmp_path, "test").split == "val"


def test_an_unlabelled_train_folder_takes_the_class_names_of_its_sibling(tmp_path, save_image):
    save_image("train/1.png")
    save_image("test/cat/1.png")
    save_image("test/dog/1.png")
    dataset = ImageFolderDataset(tmp_path, "train")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.targets.tolist() == [-1]


def test_other_folders_beside_the_splits_are_passed_over(tmp_path, save_image):
    for name in ("train/cat/1.png", "test/cat/2.png", "docs/logo.png"):
        save_image(name)
    assert ImageFolderDataset(tmp_path).class_names == ("cat",)


def test_a_class_may_be_called_train(tmp_path, save_image):
    save_image("train/1.png")
    save_image("bus/1.png")
    assert ImageFolderDataset(tmp_path).class_names == ("bus", "train")


def test_an_unknown_split_is_refused(two_classes):
    with pytest.raises(ValueError, match="unknown split 'tets'; did you mean 'test'"):
        ImageFolderDataset(two_classes, "tets")


def test_nested_folders_belong_to_their_class(tmp_path, save_image):
    save_image("cat/1.png")
    save_image("cat/more/even more/2.png")
    save_image("dog/1.png")
    dataset = ImageFolderDataset(tmp_path)
    assert dataset.names == ["cat/1.png", "cat/more/even more/2.png", "dog/1.png"]
    assert dataset.targets.tolist() == [0, 0, 1]


def test_one_class_and_a_class_without_images(tmp_path, save_image):
    save_image("cat/1.png")
    (tmp_path / "dog").mkdir()
    dataset = ImageFolderDataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.targets.tolist() == [0]


def test_a_class_list_sets_the_order_and_is_matched_by_name(two_classes):
    dataset = ImageFolderDataset(two_classes, classes=["Dog", "ant", "CAT"])
    assert dataset.class_names == ("Dog", "ant", "CAT")
    assert dataset.targets.tolist() == [2, 2, 0]
    with pytest.raises(ValueError, match="not in the class list: 'dog'"):
        ImageFolderDataset(two_classes, classes=["cat"])
    for wrong in (["cat", 1], ["cat", None]):
        with pytest.raises(ValueError, match=f"class names: every class needs a name, got {wrong[1]}"):
            ImageFolderDataset(two_classes, classes=wrong)


def test_hidden_and_other_files_are_passed_over_in_silence(two_classes, save_image):
    save_image(".hidden.png")
    save_image("cat/._1.png")
    save_image("__MACOSX/1.png")
    (two_classes / "readme.txt").write_text("hello")
    (two_classes / "cat" / "labels.csv").write_text("1,2")
    dataset = ImageFolderDataset(two_classes)
    assert len(dataset) == 3
    assert dataset.skipped == []


def test_images_outside_the_class_folders_are_listed(two_classes, save_image):
    save_image("stray.png")
    assert ImageFolderDataset(two_classes).skipped == [Skipped("stray.png", "lies outside the class folders")]


def test_bad_files_among_good_ones_are_skipped_with_the_reason(tmp_path, save_image):
    save_image("good.png", "red")
    whole = save_image("cut.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    dataset = ImageFolderDataset(tmp_path)
    assert dataset.names == ["good.png"]
    skipped = reasons(dataset)
    assert "truncated" in skipped.pop("cut.jpg")
    assert skipped == {
        "empty.png": "empty file (0 bytes)",
        "text.jpg": "not an image, or its header is damaged",
        "folder.jpg": "a folder, not an image",
        "broken.png": "broken symbolic link",
        "loop.png": "broken symbolic link",
        "pipe.png": "not a regular file",
    }


def test_linked_folders_are_followed_and_loops_are_not(tmp_path, save_image):
    save_image("elsewhere/1.png")
    save_image("set/cat/1.png")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "loop").symlink_to(tmp_path / "set" / "cat")
    dataset = ImageFolderDataset(tmp_path / "set")
    assert dataset.names == ["cat/1.png", "dog/1.png"]
    assert reasons(dataset) == {"cat/loop": "a link to a folder that was already read"}


def test_a_link_to_another_class_or_to_all_of_them_adds_nothing(two_classes):
    (two_classes / "cat" / "all").symlink_to("..")
    (two_classes / "cat" / "other").symlink_to(two_classes / "dog")
    dataset = ImageFolderDataset(two_classes)
    assert dataset.names == ["cat/1.png", "cat/2.jpg", "dog/1.png"]
    assert set(reasons(dataset)) == {"cat/all", "cat/other"}


def test_a_folder_has_one_name_however_it_is_written(two_classes, monkeypatch):
    monkeypatch.chdir(two_classes.parent)
    spellings = (
        two_classes.name,
        f"{two_classes.name}/",
        f"./{two_classes.name}",
        f"{two_classes.name}/../{two_classes.name}",
    )
    assert {ImageFolderDataset(spelling).name for spelling in spellings} == {two_classes.name}
    two_classes.rename("birds")
    assert ImageFolderDataset("./birds/").name == "./birds"  # "birds" would be the drawn ones


@contextmanager
def no_warning() -> Iterator[None]:
    """Nothing that is done here warns; what older tests left open, and would be told of when collected, waits."""
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        gc.enable()
    assert [str(warning.message) for warning in caught] == []


def test_one_class_that_holds_folders_is_told(tmp_path, save_image):
    save_image("set/photos/cat/1.png")
    save_image("set/photos/dog/1.png")
    with pytest.warns(UserWarning, match=r"one class, 'photos', so every prediction is right; .* give '.*set/photos'"):
        ImageFolderDataset(tmp_path / "set")
    with no_warning():
        assert len(ImageFolderDataset(tmp_path / "set" / "photos")) == 2
        assert len(ImageFolderDataset(tmp_path / "set", classes=["photos"])) == 2  # who lists one class means one


ODD_NAMES = [
    "<script>.png",
    'it\'s "quoted" {}.png',
    "new\nline.png",
    "日本語 é.png",
    " .png",
    "%s.png",
    "a.b.PNG",
]


def test_odd_file_and_class_names(tmp_path, save_image):
    source = save_image("class_{}\n<b>/plain.png")
    for name in ODD_NAMES:
        source.with_name(name).write_bytes(source.read_bytes())
    raw = os.path.join(os.fsencode(source.parent), b"caf\xe9.png")
    with open(raw, "wb") as file:
        file.write(source.read_bytes())
    dataset = ImageFolderDataset(tmp_path)
    assert len(dataset) == len(ODD_NAMES) + 2
    assert {os.path.basename(name) for name in dataset.names} == {*ODD_NAMES, "plain.png", "caf\\xe9.png"}
    for name in dataset.names:
        name.encode()
    assert [dataset.image(i).size for i in range(len(dataset))] == [(12, 10)] * len(dataset)
    (class_name,) = dataset.class_names
    assert dataset.prompts.template_sentences(class_name)[0] == "a photo of a class {} <b>."


def test_what_may_not_be_read_is_skipped(two_classes):
    (two_classes / "cat" / "1.png").chmod(0)
    if os.access(two_classes / "cat" / "1.png", os.R_OK):
        pytest.skip("this user may read everything")
    (two_classes / "dog").chmod(0)
    try:
        skipped = reasons(ImageFolderDataset(two_classes))
    finally:
        (two_classes / "dog").chmod(0o700)
    assert skipped == {"cat/1.png": "Permission denied", "dog": "cannot read this folder: Permission denied"}


def test_a_folder_without_images_is_refused_with_what_is_wrong(tmp_path, save_image):
    with pytest.raises(ValueError, match="it is empty; put images into it"):
        ImageFolderDataset(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the folder .*absent.*: No such file"):
        ImageFolderDataset(tmp_path / "absent")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "table.csv").touch()
    with pytest.raises(ValueError, match=r"only other files \(\.csv\); images end in"):
        ImageFolderDataset(tmp_path)
    (tmp_path / "broken.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"'broken\.png': broken symbolic link"):
        ImageFolderDataset(tmp_path)
    (tmp_path / "bad.png").touch()
    with pytest.raises(ValueError, match=r"no readable image .* all 1 were skipped, for example 'bad\.png': empty"):
        ImageFolderDataset(tmp_path)


def test_a_class_list_that_cannot_be_used_is_refused(tmp_path, save_image):
    save_image("a.png")
    with pytest.raises(ValueError, match="give a list, or a text file"):
        ImageFolderDataset(tmp_path, classes="cat,dog")
    with pytest.raises(ValueError, match="'cat' occurs twice"):
        ImageFolderDataset(tmp_path, classes=["cat", "cat"])
    for content, message in (
        (b"cat\ncat\n", "'cat' occurs twice"),
        (b"\n", "names no class"),
        (b"cat, dog\n", "names one class only, 'cat, dog'; put one name on each line"),
        (b"\xff", "not UTF-8"),
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ImageFolderDataset(tmp_path)


def test_descriptions_must_fit_the_class_folders(two_classes):
    with pytest.raises(ValueError, match="no entry for 'dog'; entries for no class: 'cow'"):
        ImageFolderDataset(two_classes, descriptions={"cat": ["It purrs."], "cow": ["It moos."]})


def test_a_part_of_the_images_is_drawn_by_seed(tmp_path, save_image):
    for i in range(20):
        save_image(f"{i:02}.png")
    for i in range(10):
        (tmp_path / f"bad{i}.png").touch()
    draws = [ImageFolderDataset(tmp_path, n=6, seed=seed).names for seed in (0, 0, 1)]
    assert [len(names) for names in draws] == [6, 6, 6]
    assert draws[0] == draws[1] == sorted(draws[0])
    assert draws[0] != draws[2]
    assert len(ImageFolderDataset(tmp_path, n=500)) == 20
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ImageFolderDataset(tmp_path, n=0)


@pytest.mark.parametrize("cache_bytes", [0, 3 * 12 * 10, CACHE_BYTES])
def test_the_cache_changes_nothing_but_speed(two_classes, cache_bytes):
    dataset = ImageFolderDataset(two_classes, cache_bytes=cache_bytes)
    for i, color in enumerate([(255, 0, 0), (254, 0, 0), (0, 0, 255)]):
        assert np.asarray(dataset.image(i)).reshape(-1, 3).mean(0).tolist() == list(color)


def test_changing_an_image_does_not_change_the_data_set(two_classes):
    dataset = ImageFolderDataset(two_classes)
    dataset.image(0).paste("lime", (0, 0, 5, 5))
    assert dataset.image(0).getpixel((0, 0)) == (255, 0, 0)


def test_the_pixels_stay_behind_when_a_data_set_is_pickled(two_classes):
    dataset = ImageFolderDataset(two_classes)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.image(2).getpixel((0, 0)) == (0, 0, 255)
    assert len(pickle.dumps(dataset)) < 2_000


def test_a_file_that_vanished_is_an_error_that_names_it(two_classes):
    dataset = ImageFolderDataset(two_classes, cache_bytes=0)
    (two_classes / "dog" / "1.png").unlink()
    with pytest.raises(RuntimeError, match=r"'dog/1\.png' was readable when .*: No such file"):
        dataset.image(2)


def test_progress_counts_to_the_end(two_classes):
    calls = []
    ImageFolderDataset(two_classes, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupt_stops_opening_files(tmp_path, save_image):
    for i in range(40):
        save_image(f"{i}.png")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageFolderDataset(tmp_path, progress=interrupt)


def test_odd_but_readable_files_cause_no_warnings(tmp_path):
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))  # of two colors; Pillow cuts off what is more
    with no_warning():
        ImageFolderDataset(tmp_path)
