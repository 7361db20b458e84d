"""Manifests and CoOp's split files: what they list, and what they may not do."""

import json

import pandas as pd
import pytest

from clipviz.data import Skipped, load_dataset


@pytest.fixture
def write(tmp_path):
    def write_manifest(text, name="set/manifest.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_manifest


@pytest.fixture
def pictures(save_image):
    for name, color in (("a.png", "red"), ("b.png", "blue"), ("deep/c.png", "lime")):
        save_image(f"set/{name}", color)
    save_image("outside.png", "white")


MANIFEST = "path,label,size\na.png,red cat,1\ndeep/c.png,wren,2\nb.png,,3\n"


def test_a_csv_gives_images_labels_and_names(write, pictures):
    dataset = load_dataset(write(MANIFEST))
    assert dataset.class_names == ("red cat", "wren")
    assert dataset.targets.tolist() == [0, 1, -1]
    assert dataset.names == ["a.png", "deep/c.png", "b.png"]
    assert dataset.split == "all"
    assert dataset.image(1).getpixel((0, 0)) == (0, 255, 0)


def test_a_parquet_file_says_the_same(write, pictures, tmp_path):
    from_csv = load_dataset(write(MANIFEST))
    table = pd.DataFrame({"Path": ["a.png", "deep/c.png", "b.png"], "Label": ["red cat", "wren", None]})
    table.to_parquet(tmp_path / "set" / "m.parquet")
    dataset = load_dataset(tmp_path / "set" / "m.parquet")
    assert (dataset.names, dataset.class_names) == (from_csv.names, from_csv.class_names)
    assert dataset.targets.tolist() == from_csv.targets.tolist()


def test_paths_alone_make_an_unlabelled_set(write, pictures):
    dataset = load_dataset(write("path\nb.png\na.png\n"), classes=["cat", "dog"])
    assert dataset.targets.tolist() == [-1, -1]
    assert dataset.class_names == ("cat", "dog")


def test_the_splits_share_their_classes(write, pictures):
    path = write("path,label,split\na.png,wren,train\nb.png,owl,TRAIN\ndeep/c.png,wren,valid\n")
    train, test = load_dataset(path, "train"), load_dataset(path, "test")
    assert (train.split, train.names, train.targets.tolist()) == ("train", ["a.png", "b.png"], [1, 0])
    assert (test.split, test.names, test.targets.tolist()) == ("val", ["deep/c.png"], [1])
    assert train.class_names == test.class_names == ("owl", "wren")
    path = write("path,split\na.png,train\n")
    with pytest.raises(ValueError, match="has no split 'test'; it has train; leave the column out to use all rows"):
        load_dataset(path, "test")


def test_labels_are_matched_to_a_class_list_by_name_or_number(write, pictures):
    by_name = load_dataset(write("path,label\na.png,Red_Cat\nb.png,owl\n"), classes=["owl", "red cat"])
    assert by_name.targets.tolist() == [1, 0]
    by_number = load_dataset(write("path,label\na.png,1\nb.png,0\n"), classes=["owl", "red cat"])
    assert by_number.targets.tolist() == [1, 0]
    digits = load_dataset(write("path,label\na.png,1\nb.png,7\n"), classes=["7", "1"])
    assert digits.targets.tolist() == [1, 0]  # a name goes before a number


def test_numbers_in_a_parquet_file_stay_whole(write, pictures, tmp_path):
    write("")
    for values in ([1, 0], [1.0, 0.0]):
        pd.DataFrame({"path": ["a.png", "b.png"], "label": values}).to_parquet(tmp_path / "set" / "m.parquet")
        dataset = load_dataset(tmp_path / "set" / "m.parquet", classes=["x", "y"])
        assert dataset.targets.tolist() == [1, 0]


def test_numbers_with_a_point_and_the_number_of_the_unlabeled_are_numbers(write, pictures):
    floats = "path,label\na.png,1.0\nb.png,0.0\ndeep/c.png,-1\n"  # as pandas writes whole numbers with gaps
    with pytest.raises(ValueError, match=r"its labels are numbers \(0, 1, ...\)"):
        load_dataset(write(floats))
    assert load_dataset(write(floats), classes=["owl", "wren"]).targets.tolist() == [1, 0, -1]
    with pytest.raises(ValueError, match="not in the class list: '2'; its names are number 0 to 1"):
        load_dataset(write("path,label\na.png,1\nb.png,2\n"), classes=["owl", "wren"])


def test_names_that_differ_in_case_only_are_told_apart(write, pictures):
    found = load_dataset(write("path,label\na.png,Crane\nb.png,crane\ndeep/c.png,CRANE\n"), classes=["Crane", "crane"])
    assert found.targets[:2].tolist() == [0, 1]


def test_text_that_pandas_takes_for_missing_is_a_name(write, pictures):
    assert load_dataset(write("path,label\na.png,NA\nb.png,null\n")).class_names == ("NA", "null")


def test_what_cannot_be_used_is_skipped_with_the_reason(write, pictures, tmp_path):
    (tmp_path / "set" / "bad.png").write_bytes(b"no image")
    path = write('path,label\na.png,x\nmissing.png,x\nbad.png,x\n./a.png,x\n,x\n"deep",x\n')
    dataset = load_dataset(path)
    assert dataset.names == ["a.png"]
    assert {skipped.path: skipped.reason for skipped in dataset.skipped} == {
        "./a.png": "listed more than once",
        "''": "the manifest names no file here",
        "missing.png": "No such file or directory",
        "bad.png": "not an image, or its header is damaged",
        "deep": "not a regular file",
    }
    with pytest.raises(ValueError, match=r"no readable image in the manifest .*: all 1 were skipped"):
        load_dataset(write("path\nmissing.png\n"))


@pytest.mark.parametrize("path", ["../outside.png", "deep/../../outside.png", "{root}/outside.png", "link/outside.png"])
def test_images_outside_are_refused_unless_allowed(write, pictures, tmp_path, path):
    manifest = write(f"path\na.png\n{path.format(root=tmp_path)}\n")
    (tmp_path / "set" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"1 of its images lie outside its folder, for example .*--allow-outside"):
        load_dataset(manifest)
    dataset = load_dataset(manifest, allow_outside=True)
    assert len(dataset) == 2
    assert dataset.image(1).getpixel((0, 0)) == (255, 255, 255)


def test_a_link_that_leaves_the_folder_is_outside_and_one_that_stays_is_not(write, pictures, tmp_path):
    (tmp_path / "set" / "out.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "set" / "in.png").symlink_to("a.png")
    assert load_dataset(write("path\nin.png\n")).names == ["in.png"]
    with pytest.raises(ValueError, match=r"for example 'out\.png'"):
        load_dataset(write("path\nout.png\n"))


def test_a_manifest_cannot_reach_devices(write, pictures):
    manifest = write("path\n/dev/zero\n/dev/stdin\na.png\n")
    dataset = load_dataset(manifest, allow_outside=True)
    assert dataset.names == ["a.png"]
    assert [skipped.reason for skipped in dataset.skipped] == ["not a regular file"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", r"\(if known\) label, found 'file', 'label'; call the one with the file names path"),
        ("path;label\na.png;x\n", "found 'path;label'; separate the columns with commas"),
        ("a.png,x\nb.png,y\n", "found 'a.png', 'x'; put the line path,label before the first image"),
        ("path,label\n", "lists no image; it has its header only"),
        ("", "is empty; wanted a line path,label"),
        ('path,label\n"a.png\n', "is not a table"),
        ("path,label\na.png,3\n", r"its labels are numbers \(3, \.\.\.\)"),
        ("Path,path\na.png,b.png\n", "has the column 'path' twice"),
        ("path,split\na.png,holdout\n", "the column split needs train, val or test, got 'holdout'"),
        ("path,label\na.png,x\na.png,y,z,w\n", "is not a table"),
        ("path,label\na.png,x,\nb.png,y,\n", "has rows with more cells than its first line; put names with a comma in"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_line(write, pictures, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(write(text))
    assert "\n" not in str(error.value)


def test_labels_that_the_class_list_lacks_are_all_named(write, pictures):
    with pytest.raises(ValueError, match="not in the class list: 'owl', 'wren'"):
        load_dataset(write("path,label\na.png,wren\nb.png,owl\n"), classes=["cat"])


def test_labels_that_are_neither_text_nor_numbers_are_refused(write, pictures, tmp_path):
    write("")
    for value in ([["x"]], [1.5], [b"x"]):
        pd.DataFrame({"path": ["a.png"], "label": value}).to_parquet(tmp_path / "set" / "m.parquet")
        with pytest.raises(ValueError, match="row 1 has the label"):
            load_dataset(tmp_path / "set" / "m.parquet")


def test_files_that_are_no_tables_are_refused(write, tmp_path):
    write("")
    for name, content in (("m.parquet", b"PAR1 but no more"), ("m.csv", b"\xff\xfe\x00"), ("n.csv", b"path\n\xff\n")):
        (tmp_path / "set" / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=r"is not a table|wanted the columns|is not UTF-8 text \(byte \d\); save it again"
        ):
            load_dataset(tmp_path / "set" / name)
    with pytest.raises(ValueError, match=r"no such file: .*give an existing manifest"):
        load_dataset(tmp_path / "absent.csv")


# ------------------------------------------------------------------------------------------------- CoOp


@pytest.fixture
def coop(tmp_path, save_image):
    """EuroSAT as CoOp has it: images in 2750, the split file beside."""
    for name in ("Forest/1.png", "Forest/2.png", "SeaLake/1.png", "SeaLake/2.png"):
        save_image(f"eurosat/2750/{name}")
    split = {
        "train": [["Forest/1.png", 1, "Forest"], ["SeaLake/1.png", 0, "Sea or Lake"]],
        "val": [["Forest/2.png", 1, "Forest"]],
        "test": [
            ["SeaLake/2.png", 0, "Sea or Lake"],
            ["../2750/Forest/2.png", 1, "Forest"],
            ["../../x.png", 1, "Forest"],
        ],
    }
    path = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    path.write_text(json.dumps(split))
    return path


def test_a_coop_split_says_so_and_brings_names_and_templates(coop):
    train, test = load_dataset(coop, "train"), load_dataset(coop, "test")
    assert (train.split, test.split) == ("CoOp train", "CoOp test")
    assert train.names == ["Forest/1.png", "SeaLake/1.png"]
    assert train.class_names == test.class_names == ("Sea or Lake", "forest")
    assert train.targets.tolist() == [1, 0]
    assert train.prompts.template_sentences("forest")[0] == "a centered satellite photo of forest."
    assert load_dataset(coop, templates="a {}.").prompts.templates == ("a {}.",)


def test_a_coop_file_may_have_an_empty_split(coop):
    content = json.loads(coop.read_text())
    coop.write_text(json.dumps({**content, "val": []}))
    assert len(load_dataset(coop, "train")) == 2
    with pytest.raises(ValueError, match="has no split 'val'; it has train, test"):
        load_dataset(coop, "val")


def test_a_coop_file_cannot_leave_its_images(coop):
    test = load_dataset(coop, "test")
    assert test.names == ["SeaLake/2.png", "Forest/2.png"]
    assert test.skipped == [Skipped("../../x.png", "lies outside the folder of images")]


def test_the_images_of_a_coop_file_may_lie_elsewhere(coop, tmp_path):
    (tmp_path / "eurosat" / "2750").rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"none of its images, such as 'Forest/1\.png', is in .*; put the images there, or give"
    ):
        load_dataset(coop)
    assert len(load_dataset(coop, root=tmp_path / "moved")) == 2
    (tmp_path / "moved" / "Forest" / "1.png").unlink()  # the first one that the file lists
    assert load_dataset(coop, root=tmp_path / "moved").names == ["SeaLake/1.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "wanted {'train'"),
        ('{"train": []}', "wanted {'train'"),
        ('{"train": [["a.png", "x", 0]]}', "item 0 of 'train' is"),
        ('{"train": [["a.png", -1, "x"]]}', "item 0 of 'train' is"),
        ('{"train": [["a.png", 0, "x"], ["b.png", 0, "y"]]}', "label 0 has two names, 'x' and 'y'"),
        ('{"train": [["a.png", 1, "x"]]}', r"its labels should be 0\.\.0, but 0 does not occur"),
        ('{"train": [["a.png", 0, "x"], ["b.png", 1, "x"]]}', "'x' occurs twice"),
        ('{"test": [["a.png", 0, "x"]]}', "has no split 'train'; it has test"),
    ],
)
def test_a_split_file_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "split_zhou_Mine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_dataset(path)


def test_a_split_file_brings_its_classes(coop):
    with pytest.raises(ValueError, match="leave the class list out"):
        load_dataset(coop, classes=["a"])
