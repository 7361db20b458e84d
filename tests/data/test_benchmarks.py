"""Benchmarks by name, on miniature folders in the layouts that torchvision writes."""

import json
import pickle
import struct
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torchvision

import clipviz.data.sources.benchmarks as module
from clipviz.data import load_dataset
from clipviz.data.sources.benchmarks import benchmarks, find_benchmark
from clipviz.data.sources.layout import NoSuchSplit
from clipviz.prompts import ClassPrompts


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def dtd(root, save):
    for name in ("banded/banded_1", "banded/banded_2", "polka-dotted/polka-dotted_1"):
        save(f"dtd/dtd/images/{name}.jpg")
    lines = "banded/banded_1.jpg\npolka-dotted/polka-dotted_1.jpg\n"
    for split in ("train", "val"):
        text(root / f"dtd/dtd/labels/{split}1.txt", lines)
    text(root / "dtd/dtd/labels/test1.txt", lines.replace("banded_1", "banded_2"))


def eurosat(root, save):
    for name in ("AnnualCrop/AnnualCrop_1", "SeaLake/SeaLake_1", "Forest/Forest_1"):
        save(f"eurosat/2750/{name}.jpg")


def food101(root, save):
    names = {"train": ["apple_pie/1", "baklava/2"], "test": ["apple_pie/3", "baklava/4"]}
    for split, listed in names.items():
        for name in listed:
            save(f"food-101/images/{name}.jpg")
        by_class = {name.split("/")[0]: [name] for name in listed}
        text(root / f"food-101/meta/{split}.json", json.dumps(by_class))


def pets(root, save):
    rows = {
        "trainval": "Abyssinian_1 1 1 1\nbasset_hound_2 2 2 1\n",
        "test": "Abyssinian_3 1 1 1\nbasset_hound_4 2 2 1\n",
    }
    for split, lines in rows.items():
        for line in lines.splitlines():
            save(f"oxford-iiit-pet/images/{line.split()[0]}.jpg")
        text(root / f"oxford-iiit-pet/annotations/{split}.txt", lines)


def aircraft(root, save):
    data = root / "fgvc-aircraft-2013b" / "data"
    text(data / "variants.txt", "707-320\nF/A-18\n")
    for i, split in enumerate(("train", "val", "test")):
        save(f"fgvc-aircraft-2013b/data/images/000{i}.jpg")
        text(data / f"images_variant_{split}.txt", f"000{i} F/A-18\n")


def cars(root, save):
    scipy_io = pytest.importorskip("scipy.io")
    for name in ("cars_train/1", "cars_test/1"):
        save(f"stanford_cars/{name}.jpg")
    devkit = root / "stanford_cars" / "devkit"
    devkit.mkdir()
    names = np.array(["Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    scipy_io.savemat(devkit / "cars_meta.mat", {"class_names": names})
    rows = np.zeros((1, 2), dtype=[("class", object), ("fname", object)])
    rows[0, 0], rows[0, 1] = (2, "1.jpg"), (1, "missing.jpg")
    scipy_io.savemat(devkit / "cars_train_annos.mat", {"annotations": rows})
    scipy_io.savemat(root / "stanford_cars" / "cars_test_annos_withlabels.mat", {"annotations": rows})


def flowers(root, save):
    scipy_io = pytest.importorskip("scipy.io")
    for i in range(1, 5):
        save(f"flowers-102/jpg/image_{i:05}.jpg")
    folder = root / "flowers-102"
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 102, 1]])})
    scipy_io.savemat(folder / "setid.mat", {"trnid": [[1, 3]], "valid": [[2, 4]], "tstid": [[4, 2]]})


def sun(root, save):
    for name in ("a/abbey/sun_a1", "a/abbey/sun_a2", "a/apartment_building/outdoor/sun_b1"):
        save(f"SUN397/{name}.jpg")
    text(root / "SUN397/ClassName.txt", "/a/abbey\n/a/apartment_building/outdoor\n")


def caltech(root, save):
    for name in ("BACKGROUND_Google", "Faces", "airplanes", "wild_cat"):
        save(f"caltech101/101_ObjectCategories/{name}/image_0001.jpg")


def gtsrb(root, save):
    for name in ("Training/00001/a", "Training/00014/b", "Final_Test/Images/00000"):
        save(f"gtsrb/GTSRB/{name}.ppm")
    text(root / "gtsrb/GT-final_test.csv", "Filename;Width;ClassId\n00000.ppm;12;42\n")


def fashion(root, save):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 3), ("t10k", 2)):
        pixels = np.full((n, 28, 28), 200, np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + pixels.tobytes())
        labels = bytes([0, 9, 1][:n])
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels)


def cub(root, save):
    names = ["001.Black_footed_Albatross/b_1.jpg", "001.Black_footed_Albatross/b_2.jpg", "002.Laysan_Albatross/l_1.jpg"]
    for name in names:
        save(f"CUB_200_2011/images/{name}")
    folder = root / "CUB_200_2011"
    text(folder / "classes.txt", "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    text(folder / "images.txt", "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    text(folder / "image_class_labels.txt", "1 1\n2 1\n3 2\n")
    text(folder / "train_test_split.txt", "1 0\n2 1\n3 0\n")


def resisc(root, save):
    for name in ("airplane/airplane_001", "airplane/airplane_002", "golf_course/golf_course_001"):
        save(f"NWPU-RESISC45/{name}.jpg")
    text(root / "resisc45-train.txt", "golf_course_001.jpg\nairplane_002.jpg\n")
    for split in ("val", "test"):
        text(root / f"resisc45-{split}.txt", "airplane_001.jpg\n")


def cifar(folder, key, names):
    def build(root, save):
        base = root / folder
        base.mkdir(parents=True)
        for name, labels in names.items():
            rows = np.arange(len(labels), dtype=np.uint8).repeat(3072).reshape(-1, 3072) * 100
            (base / name).write_bytes(pickle.dumps({"data": rows, key: labels}))
        meta, label_key = ("batches.meta", "label_names") if key == "labels" else ("meta", "fine_label_names")
        (base / meta).write_bytes(pickle.dumps({label_key: ["airplane", "aquarium_fish", "bird"]}))

    return build


BATCHES = {f"data_batch_{i}": [0, 2] for i in range(1, 6)} | {"test_batch": [2, 1, 0]}
# name -> how to build it, (split, its name, targets, some class names), one for each split
CASES = {
    "dtd": (dtd, [("train", "official train", [0, 1]), ("val", "official val", [0, 1]),
                  ("test", "official test", [0, 1])], ("banded", "polka-dotted")),
    "eurosat": (eurosat, [("train", "all", [0, 1, 2]), ("test", "all", [0, 1, 2])],
                ("annual crop land", "forest", "sea or lake")),
    "food101": (food101, [("train", "official train", [0, 1]), ("test", "official test", [0, 1])],
                ("apple pie", "baklava")),
    "oxford_iiit_pet": (pets, [("train", "official trainval", [0, 1]), ("test", "official test", [0, 1])],
                        ("Abyssinian", "Basset Hound")),
    "fgvc_aircraft": (aircraft, [("train", "official train", [1]), ("val", "official val", [1]),
                                 ("test", "official test", [1])], ("707-320", "F/A-18")),
    "stanford_cars": (cars, [("train", "official train", [1]), ("test", "official test", [1])],
                      ("Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012")),
    "flowers102": (flowers, [("train", "official train", [0, 101]), ("val", "official val", [1, 0]),
                             ("test", "official test", [0, 1])], ("pink primrose",)),
    "sun397": (sun, [("train", "all", [0, 0, 1]), ("test", "all", [0, 0, 1])], ("abbey", "outdoor apartment building")),
    "caltech101": (caltech, [("train", "all", [0, 1, 2])], ("off-center face", "airplane", "wild cat")),
    "gtsrb": (gtsrb, [("train", "official train", [1, 14]), ("test", "official test", [42])],
              ("red and white circle 20 kph speed limit",)),
    "fashion_mnist": (fashion, [("train", "official train", [0, 9, 1]), ("test", "official test", [0, 9])],
                      ("t-shirt or top", "trouser")),
    "cub200": (cub, [("train", "official train", [0]), ("test", "official test", [0, 1])],
               ("Black footed Albatross", "Laysan Albatross")),
    "resisc45": (resisc, [("train", "torchgeo train", [0, 1]), ("val", "torchgeo val", [0]),
                          ("test", "torchgeo test", [0])], ("airplane", "golf course")),
    "cifar10": (cifar("cifar-10-batches-py", "labels", BATCHES),
                [("train", "official train", [0, 2] * 5), ("test", "official test", [2, 1, 0])], ("airplane",)),
    "cifar100": (cifar("cifar-100-python", "fine_labels", {"train": [1, 0], "test": [2]}),
                 [("train", "official train", [1, 0]), ("test", "official test", [2])], ("airplane", "aquarium fish")),
}  # fmt: skip


@pytest.fixture
def build(tmp_path, save_image, monkeypatch):
    """Make a miniature of a benchmark; torchvision's checksums are set to those of what was made."""

    def make(name):
        CASES[name][0](tmp_path, save_image)
        for kind in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
            base = tmp_path / kind.base_folder
            if base.exists():
                for attribute in ("train_list", "test_list"):
                    listed = [
                        [file, md5((base / file).read_bytes()).hexdigest()] for file, _ in getattr(kind, attribute)
                    ]
                    monkeypatch.setattr(kind, attribute, listed)
                meta = base / kind.meta["filename"]
                monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta.read_bytes()).hexdigest()})
        monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
        return tmp_path

    return make


def test_every_benchmark_is_tried():
    assert {name for name, facts in benchmarks().items() if facts.reader != "split file"} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_miniature_gives_its_official_splits(build, name):
    root = build(name)
    _, splits, class_names = CASES[name]
    for split, called, targets in splits:
        dataset = load_dataset(name, split, root=root)
        assert (dataset.name, dataset.split) == (name, called)
        assert dataset.targets.tolist() == targets
        assert dataset.class_names[: len(class_names)] == class_names
        assert dataset.prompts.templates == benchmarks()[name].templates
        assert [dataset.image(i).mode for i in range(len(dataset))] == ["RGB"] * len(targets)
        assert len(set(dataset.names)) == len(dataset)


@pytest.mark.parametrize("name", CASES)
def test_a_missing_benchmark_says_where_to_put_it_and_nothing_is_made_or_loaded(tmp_path, monkeypatch, name):
    def no_network(*args, **options):
        raise AssertionError("this would have been a download")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    root = tmp_path / "absent"
    with pytest.raises(ValueError, match=r"needs .* exists, but it does not; give the folder that has it") as error:
        load_dataset(name, root=root)
    message = str(error.value)
    assert str(root / benchmarks()[name].files) in message
    assert ("--download" in message) == (name not in ("stanford_cars", "cub200", "resisc45"))
    assert "\n" not in message
    assert not root.exists()


def test_the_root_may_come_from_the_environment(build, monkeypatch):
    monkeypatch.setenv("CLIPVIZ_DATA", str(build("dtd")))
    assert len(load_dataset("dtd")) == 2


def test_a_download_is_torchvisions_and_only_on_demand(tmp_path, save_image, monkeypatch):
    asked = []

    def download(self):
        asked.append(self.root)
        dtd(Path(self.root), save_image)

    monkeypatch.setattr(torchvision.datasets.DTD, "_download", download)
    assert len(load_dataset("dtd", root=tmp_path, download=True)) == 2
    assert asked == [str(tmp_path)]
    load_dataset("dtd", root=tmp_path, download=True)  # it is there now
    assert len(asked) == 1


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(torchvision.datasets.DTD, "_download", fail)
    with pytest.raises(ValueError, match="DTD could not be downloaded: <urlopen error"):
        load_dataset("dtd", root=tmp_path, download=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "dtd/dtd/labels/train1.txt").unlink(), "is incomplete or damaged .*FileNotFoundError"),
        (lambda root: text(root / "dtd/dtd/labels/train1.txt", "no slash here\n"), "is incomplete or damaged"),
        (lambda root: text(root / "dtd/dtd/labels/train1.txt", ""), "there is no image of its official train split in"),
        (lambda root: text(root / "dtd/dtd/labels/train1.txt", "gone/1.jpg\n"), "no readable image in DTD in"),
    ],
)
def test_a_damaged_benchmark_is_one_line(build, damage, message):
    root = build("dtd")
    damage(root)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("dtd", root=root)
    assert "\n" not in str(error.value)


def test_cifar_is_unpickled_only_with_the_published_checksum(build, tmp_path):
    """The files are pickles. One that is not the published one is never opened."""
    root = build("cifar10")
    batch = root / "cifar-10-batches-py" / "data_batch_1"
    proof = tmp_path / "opened"
    batch.write_bytes(b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR.")
    with pytest.raises(ValueError, match=r"CIFAR-10 in .* is incomplete or damaged"):
        load_dataset("cifar10", root=root)
    assert not proof.exists()


def test_split_names_tell_which_split_of_which_kind(build):
    root = build("sun397")
    text(root / "SUN397/Training_01.txt", "/a/abbey/sun_a1.jpg\n")
    text(root / "SUN397/Testing_01.txt", "/a/abbey/sun_a2.jpg\n/a/apartment_building/outdoor/sun_b1.jpg\n")
    train, test = load_dataset("sun397", "train", root=root), load_dataset("sun397", "test", root=root)
    assert (train.split, test.split) == ("official train (partition 1)", "official test (partition 1)")
    assert (train.targets.tolist(), test.targets.tolist()) == ([0], [0, 1])
    with pytest.raises(NoSuchSplit, match="no official 'val' split"):
        load_dataset("sun397", "val", root=root)


def test_resisc45_without_lists_is_all_images(build):
    root = build("resisc45")
    (root / "resisc45-val.txt").unlink()
    with pytest.raises(NoSuchSplit, match=r"no resisc45-val\.txt .*it has resisc45-train\.txt, resisc45-test\.txt"):
        load_dataset("resisc45", "val", root=root)
    for split in ("train", "test"):  # beside the folder or in it
        (root / f"resisc45-{split}.txt").rename(root / "NWPU-RESISC45" / f"resisc45-{split}.txt")
    assert load_dataset("resisc45", "train", root=root).split == "torchgeo train"
    for split in ("train", "test"):
        (root / "NWPU-RESISC45" / f"resisc45-{split}.txt").unlink()
    dataset = load_dataset("resisc45", root=root)
    assert (dataset.split, dataset.targets.tolist()) == ("all", [0, 0, 1])


def test_images_of_a_list_that_are_not_there_or_not_below_it_are_skipped(build):
    root = build("resisc45")
    text(root / "resisc45-train.txt", "airplane_002.jpg\nairplane_700.jpg\n")
    dataset = load_dataset("resisc45", root=root)
    assert len(dataset) == 1
    assert [(s.path, s.reason) for s in dataset.skipped] == [("airplane_700.jpg", "in the list, but not in the folder")]
    build("cub200")
    text(root / "CUB_200_2011/images.txt", "1 ../../secret.jpg\n2 001.Black_footed_Albatross/b_2.jpg\n3 gone/l_1.jpg\n")
    with pytest.raises(ValueError, match="no readable image in CUB-200-2011"):
        load_dataset("cub200", "test", root=root)
    assert load_dataset("cub200", "train", root=root).skipped == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", None, r"damaged \(images\.txt: cannot be read"),
        ("images.txt", "one two\n", r"line 1 of images\.txt is 'one two', wanted a new number and text"),
        ("images.txt", "1 a\n1 b\n", r"line 2 of images\.txt"),
        ("images.txt", "", "there is no image of its official test split in"),
        ("classes.txt", "1 001.Black_footed_Albatross\n", r"image 3 of images\.txt has no class"),
        ("train_test_split.txt", "1 0\n", r"image 2 of images\.txt has no class of classes\.txt, or no split"),
        ("image_class_labels.txt", b"\xff", r"image_class_labels\.txt: is not UTF-8 text"),
    ],
)
def test_a_damaged_list_of_cub_is_one_line(build, file, content, message):
    path = build("cub200") / "CUB_200_2011" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("cub200", "test", root=path.parents[1])
    assert "\n" not in str(error.value)
    assert "it needs the folder CUB_200_2011" in str(error.value)


def test_a_split_that_a_benchmark_lacks_is_named(build):
    with pytest.raises(NoSuchSplit, match="Food-101 has no official 'val' split; it has train, test"):
        load_dataset("food101", "val", root=build("food101"))


def test_a_part_of_the_images_is_drawn_by_seed(build):
    root = build("cifar10")
    draws = [load_dataset("cifar10", root=root, n=4, seed=seed) for seed in (0, 0, 1)]
    assert draws[0].names == draws[1].names != draws[2].names
    assert len(draws[0]) == 4
    for i in range(4):
        assert draws[0].image(i).getpixel((0, 0))[0] == 100 * (draws[0].targets[i] // 2)


@pytest.mark.parametrize(
    ("spec", "name"),
    [("DTD", "dtd"), ("Flowers102", "flowers102"), ("pets", "oxford_iiit_pet"), ("oxford-iiit-pet", "oxford_iiit_pet"),
     ("OxfordIIITPet", "oxford_iiit_pet"), ("CIFAR-10", "cifar10"), ("aircraft", "fgvc_aircraft"), ("SUN397", "sun397"),
     ("CUB-200-2011", "cub200"), ("cub", "cub200"), ("NWPU-RESISC45", "resisc45"), ("resisc45", "resisc45"),
     ("./dtd", None), ("dtd/", None), ("dtd.npz", None), ("photos", None)],
)  # fmt: skip
def test_usual_spellings_are_understood(spec, name):
    found = find_benchmark(spec)
    assert (found.name if found else None) == name


def test_a_folder_of_yours_goes_before_a_benchmark(tmp_path, save_image, monkeypatch):
    save_image("pets/rex/1.png")
    monkeypatch.chdir(tmp_path)
    assert load_dataset("pets").class_names == ("rex",)
    with pytest.raises(ValueError, match="Oxford-IIIT Pet needs"):
        load_dataset("pets", root="elsewhere")


def test_a_nearly_right_name_is_recognized():
    with pytest.raises(ValueError, match="did you mean 'eurosat'"):
        load_dataset("eurosta")
    with pytest.raises(ValueError, match=r"give the path of split_zhou_UCF101\.json"):
        load_dataset("ucf101")


def test_benchmarks_bring_their_classes(build):
    with pytest.raises(ValueError, match="DTD brings its own class names"):
        load_dataset("dtd", root=build("dtd"), classes=["a", "b"])


def test_the_table_of_benchmarks_is_sound():
    for name, facts in benchmarks().items():
        prompts = ClassPrompts(facts.names or ("thing",), facts.templates)
        assert len(prompts.templates) == len(set(prompts.templates)), name
        assert facts.names == () or len(facts.names) == 43
        assert not {value for value in facts.class_names.values() if "_" in value}, name
    assert len(benchmarks()["caltech101"].templates) == 34
    assert len(benchmarks()["cifar10"].templates) == 18


def test_a_package_that_is_not_there_is_named(build, monkeypatch):
    root = build("flowers102")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", absent)
    with pytest.raises(ValueError, match="Flowers-102 needs the package scipy to read its lists: pip install scipy"):
        load_dataset("flowers102", root=root)
