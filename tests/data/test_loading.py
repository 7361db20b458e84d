import numpy as np
import pytest

from clipviz.birds.dataset import BirdsDataset
from clipviz.data import ImageFolderDataset, load_dataset


@pytest.mark.parametrize(("spec", "domain"), [("birds", "source"), ("birds/fog", "fog"), ("birds/", "source")])
def test_birds_are_loaded_by_domain(spec, domain):
    texts = {"descriptions": None, "templates": "one {}"}
    loaded = load_dataset(spec, "test", seed=3, n=5, severity=0.5, **texts)
    expected = BirdsDataset(domain, "test", seed=3, n=5, severity=0.5, **texts)
    assert (loaded.name, loaded.split, len(loaded)) == (expected.name, "test", 5)
    assert loaded.prompts == expected.prompts
    np.testing.assert_array_equal(loaded.image(4), expected.image(4))


def test_birds_bring_their_own_classes():
    with pytest.raises(ValueError, match="leave the class list out"):
        load_dataset("birds", classes=["owl"])


def test_a_folder_is_loaded(tmp_path, save_image, monkeypatch):
    save_image("birds/a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("./birds", "~/birds", str(tmp_path / "birds"), tmp_path / "birds"):
        dataset = load_dataset(spec, classes=["owl", "wren"])
        assert isinstance(dataset, ImageFolderDataset)
        assert dataset.class_names == ("owl", "wren")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("birsd", "unknown data set or folder 'birsd'; did you mean 'birds'?"),
        ("birsd/clutter", "did you mean 'birds/clutter'?"),
        ("no/such/folder", "or give the path of an existing folder of images"),
        (
            "/no/such/folder",
            "no such folder: '/no/such/folder'; give an existing folder of images, or 'birds'",
        ),
        ("", "unknown data set or folder ''"),
        ("nul\0byte", "unknown data set or folder"),
        ("features.npz", "no such file of embeddings"),
        ("features.safetensors", "no such file of embeddings"),
        ("photo.png", "'photo.png' is a file; give the folder that holds the images"),
        ("broken", "'broken' is a broken symbolic link"),
    ],
)
def test_what_cannot_be_loaded_gets_one_helpful_line(tmp_path, save_image, monkeypatch, spec, message):
    save_image("photo.png")
    (tmp_path / "broken").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data set|feature|folder") as error:
        load_dataset(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_folder_is_recognized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    with pytest.raises(ValueError, match="'phtoos'; did you mean 'photos'"):
        load_dataset("phtoos")
    with pytest.raises(ValueError, match="did you mean 'photos/2024'"):
        load_dataset("photos/2042")
    with pytest.raises(ValueError, match="unknown data set or folder 'nowhere/2024'"):
        load_dataset("nowhere/2024")
