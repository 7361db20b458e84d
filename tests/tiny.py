"""Tiny worlds that every test can afford: a random CLIP of 1.7 M parameters, a set of colored squares, short runs.

Not in conftest.py, of which there are several: tests import from here by name.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.data.batches.features import FeatureDataset
from clipviz.methods.base import Method
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.ops import normalize
from clipviz.prompts import ClassPrompts
from clipviz.trace import TABLES, Trace

GOLDEN = Path(__file__).parent / "golden"
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}


@cache
def _clip(seed: int, embed_dim: int, image_size: int) -> open_clip.CLIP:
    config = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
    config["embed_dim"], config["vision_cfg"]["image_size"] = embed_dim, image_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**config)


def make_tiny_backbone(seed: int = 0, name: str = "tiny", embed_dim: int = 32, image_size: int = 32) -> Backbone:
    model = deepcopy(_clip(seed, embed_dim, image_size))  # in a quarter of the time that a new one takes
    tokenizer = open_clip.factory.SimpleTokenizer(context_length=24)
    backbone = Backbone(model, tokenizer, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), name)
    return backbone.requires_grad_(False).eval()


def clusters(n: int = 120, n_classes: int = 6, width: int = 16, noise: float = 0.25, seed: int = 0) -> FeatureDataset:
    """Embeddings around class centers, and a classifier that is a bit off."""
    generator = torch.Generator().manual_seed(seed)
    centers = normalize(torch.randn(n_classes, width, generator=generator))
    targets = torch.arange(n) % n_classes
    embeddings = normalize(centers[targets] + noise * torch.randn(n, width, generator=generator))
    classifier = normalize(centers + 0.2 * torch.randn(n_classes, width, generator=generator))
    return FeatureDataset(embeddings, name="clusters", targets=targets, classifier=classifier, logit_scale=20.0)


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


def microclip(backbone: Backbone, crops: int = 2, **constants: Any) -> MicroCLIP:
    """The method of most tests: it trains, has buffers, crops, two sources and maps."""
    return MicroCLIP(backbone, ToyDataset(3).prompts, MicroCLIPConfig(crops=crops, **constants))


def method_state(method: Method) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.trainable_state().items()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def differences(one: Trace, other: Trace) -> list[str]:
    """What of two traces is not the same; the wall clock does not count."""
    found = [name for name in TABLES if not getattr(one, name).equals(getattr(other, name))]
    found += [f"array {name}" for name in one.arrays.keys() ^ other.arrays.keys()]
    for name in one.arrays.keys() & other.arrays.keys():
        a, b = one.arrays[name], other.arrays[name]
        if a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            found.append(f"array {name}")
    keys = (one.meta.keys() | other.meta.keys()) - {"seconds", "format_version"}
    return found + [f"meta {key}" for key in keys if one.meta.get(key) != other.meta.get(key)]
