"""Tiny worlds that every test can afford: a random CLIP of 1.7 M parameters and a set of colored squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.prompts import ClassPrompts

torch.set_num_threads(2)

GOLDEN = Path(__file__).parent / "golden"
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}


def make_tiny_backbone(seed: int = 0, name: str = "tiny") -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**{key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()})
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    backbone = Backbone(model, tokenizer, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), name)
    return backbone.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    """Random weights; methods train on copies of its image tower, so it can be shared."""
    return make_tiny_backbone()


class ToyDataset(ImageDataset):
    """Squares in one of three colors on gray noise, 40 x 40 pixels, with a mask of the square."""

    colors = ((220, 40, 40), (40, 200, 60), (50, 70, 230))

    def __init__(self, n: int = 24, seed: int = 0, labelled: bool = True, split: str = "train") -> None:
        rng = np.random.default_rng(seed)
        self.name, self.split = "toy", split
        self.class_names = ("red square", "green square", "blue square")
        self.prompts = ClassPrompts(self.class_names, ("a photo of a {}.", "a {}."), {})
        classes = np.arange(n, dtype=np.int64) % 3
        self.targets = classes if labelled else np.full(n, -1, dtype=np.int64)
        self.names = [f"{split}-{i}.png" for i in range(n)]
        self.skipped = []
        self.part_names = ("background", "square")
        self._images = rng.integers(90, 160, (n, 40, 40, 3)).astype(np.uint8)
        self._parts = np.zeros((n, 40, 40), np.uint8)
        for i, target in enumerate(classes):
            y, x = rng.integers(0, 24, 2)
            self._images[i, y : y + 16, x : x + 16] = self.colors[target]
            self._parts[i, y : y + 16, x : x + 16] = 1

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def parts(self, index: int) -> np.ndarray:
        return self._parts[index]


@pytest.fixture
def toy() -> ToyDataset:
    return ToyDataset()


@pytest.fixture
def toy_test() -> ToyDataset:
    return ToyDataset(n=9, seed=1, split="test")
