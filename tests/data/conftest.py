import numpy as np
import pytest
from pictures import smooth_pixels
from PIL import Image

from clipviz.data import ImageDataset


class ArrayDataset(ImageDataset):
    """Images of different shapes in memory."""

    def __init__(self, n):
        self.name, self.split = "arrays", "train"
        self.class_names, self.skipped = ("a", "b"), []
        self.targets = np.arange(n, dtype=np.int64) % 3 - 1
        self.names = [str(i) for i in range(n)]
        self.pixels = [smooth_pixels(20 + i % 7, 24 - i % 5, i) for i in range(n)]

    def image(self, index):
        return Image.fromarray(self.pixels[index])


@pytest.fixture(scope="session")
def array_dataset():
    return ArrayDataset(13)


@pytest.fixture
def save_image(tmp_path):
    """Save a small image below tmp_path, of the given color if any, and return its path."""

    def save(name, color=None, size=(12, 10), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, color) if color else Image.fromarray(smooth_pixels(*size))
        image.save(path, **options)
        return path

    return save
