"""The images of pretraining: birds rendered once, and batches of views of them with what each patch shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipviz.birds.dataset import SHIFTS, render_image
from clipviz.birds.render import IMAGE_SIDE, PART_NAMES
from clipviz.birds.world import ATTRIBUTE_NAMES
from tools.pretraining_data import FROM_AFAR, attribute_prompts, background_prompt, caption, sample_attributes
from tools.recipe import PretrainConfig

ZOOM = (0.4, 0.7)
"""Side of the region that `zoom` looks at, as a share of that of the view."""


class Pool(NamedTuple):
    """The training birds: images (n, S, S, 3) and part ids (n, S, S), both uint8, attribute codes (n, A) int64."""

    images: np.ndarray
    parts: np.ndarray
    codes: np.ndarray


def _render_one(index: int, codes: np.ndarray, config: PretrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """The image (S, S, 3) and the parts that are visible in it (S, S), both uint8."""
    rng = np.random.default_rng([config.seed, 1, index])
    shifted = rng.random() < config.shifted
    domain = str(rng.choice(SHIFTS)) if shifted else "source"
    severity = rng.uniform(0.0, config.max_severity) if shifted else 0.0
    return render_image(codes[index], domain, rng, severity)


def _open_pool(folder: Path, codes: np.ndarray, mode: Literal["r", "r+", "w+"]) -> Pool:
    images = np.memmap(folder / "pool.u8", np.uint8, mode, shape=(len(codes), IMAGE_SIDE, IMAGE_SIDE, 3))
    parts = np.memmap(folder / "parts.u8", np.uint8, mode, shape=(len(codes), IMAGE_SIDE, IMAGE_SIDE))
    return Pool(images, parts, codes)


def _render_chunk(bounds: tuple[int, int], codes: np.ndarray, config: PretrainConfig, folder: Path) -> None:
    pool = _open_pool(folder, codes, "r+")
    for index in range(*bounds):
        pool.images[index], pool.parts[index] = _render_one(index, codes, config)


def render_pool(config: PretrainConfig, folder: Path, workers: int = 2) -> Pool:
    """Render the training birds once, into memory-mapped files that a resumed run, or another of them, finds again."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = sample_attributes(config.pool, np.random.default_rng([config.seed, 0]))
    done = folder / "pool.json"
    of_config = {name: getattr(config, name) for name in ("pool", "seed", "shifted", "max_severity")}
    stamp = json.dumps({**of_config, "side": IMAGE_SIDE, "parts": len(PART_NAMES)})
    if not done.is_file() or done.read_text() != stamp:
        done.unlink(missing_ok=True)  # else a pool that was left half rendered would pass for the former one
        _open_pool(folder, codes, "w+")
        chunks = [(i, min(i + 500, config.pool)) for i in range(0, config.pool, 500)]
        with ProcessPoolExecutor(workers) as executor:
            list(executor.map(partial(_render_chunk, codes=codes, config=config, folder=folder), chunks))
        done.write_text(stamp)
    return _open_pool(folder, codes, "r")


# ------------------------------------------------------------------------------------------------- views


class TrainBatch(NamedTuple):
    """One batch.

    Attributes:
        images: (B, 3, S, S) in [0, 1].
        parts: (B, N, P) in [0, 1], share of each patch that shows each part; part 0 is all that is not the bird.
        captions: B sentences.
        coarse: image -> another caption of it, for CLS, that leaves the details out.
        codes: (B, A) attribute indices.
        prompts: for every attribute one prompt per value; the last entry is one prompt for the background.
        zoomed: (B, 3, S, S), a region of each view enlarged, or None where it is not asked for.
        region: (B, N) in [0, 1], share of each patch that lies in that region, or None.
    """

    images: Tensor
    parts: Tensor
    captions: list[str]
    coarse: dict[int, str]
    codes: Tensor
    prompts: list[list[str]]
    zoomed: Tensor | None
    region: Tensor | None

    @property
    def cover(self) -> Tensor:
        """(B, N), share of each patch that the bird covers."""
        return 1.0 - self.parts[..., 0]


Box = tuple[float, float, float, float]


def _view_box(side: int, rng: np.random.Generator, whole: float) -> Box:
    """All of a picture, or a square of 0.5 to 0.95 of its side."""
    if rng.random() < whole:
        return (0.0, 0.0, float(side), float(side))
    return _square((0.0, 0.0, float(side), float(side)), rng, 0.5, 0.95)


def _square(box: Box, rng: np.random.Generator, low: float, high: float) -> Box:
    """A square somewhere in a square, with a share of its side."""
    side = box[2] - box[0]
    edge = side * rng.uniform(low, high)
    x, y = rng.uniform(0, side - edge, 2)
    return (box[0] + x, box[1] + y, box[0] + x + edge, box[1] + y + edge)


def part_shares(parts: np.ndarray, grid: int) -> np.ndarray:
    """Part ids (S, S) -> how much of each patch shows each part, (grid * grid, P) float32."""
    cell = len(parts) // grid
    patch = np.arange(len(parts)) // cell
    where = (patch[:, None] * grid + patch[None]) * len(PART_NAMES) + parts
    counts = np.bincount(where.ravel(), minlength=grid * grid * len(PART_NAMES))
    return (counts.reshape(grid * grid, -1) / cell**2).astype(np.float32)


def _cut(image: np.ndarray, parts: np.ndarray, box: Box, size: int, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """A box of an image and of its parts, `size` pixels wide, mirrored or not."""
    view = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
    shown = np.asarray(Image.fromarray(parts).resize((size, size), Image.Resampling.NEAREST, box=box))
    return (view[:, ::-1], shown[:, ::-1]) if mirror else (view, shown)


def _region_share(box: Box, region: Box, grid: int, mirror: bool) -> np.ndarray:
    """Share of each patch of the view `box` that lies in `region`, (grid * grid,) float32."""
    edges = np.linspace(0.0, 1.0, grid + 1)
    side = box[2] - box[0]
    spans = []
    for start, end, origin in ((region[0], region[2], box[0]), (region[1], region[3], box[1])):
        low, high = (start - origin) / side, (end - origin) / side
        spans.append(np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0, None) * grid)
    across = spans[0][::-1] if mirror else spans[0]
    return np.outer(spans[1], across).ravel().astype(np.float32)


def add_strangers(
    image: np.ndarray, parts: np.ndarray, pool: Pool, rng: np.random.Generator, most: int = 4
) -> np.ndarray:
    """The image with pieces of one to `most` other birds wherever its own bird is not; what is pasted is background.

    A piece is a random choice of another bird's visible parts, moved and perhaps mirrored: it has the colors and the
    details that captions speak of, but not those of this image's caption.
    """
    out = image.copy()
    for _ in range(rng.integers(1, most + 1)):
        other = int(rng.integers(len(pool.images)))
        shown = pool.parts[other]
        chosen = rng.random(len(PART_NAMES)) < 0.4
        chosen[0] = False
        step = -1 if rng.random() < 0.5 else 1
        dy, dx = rng.integers(-len(image) // 2, len(image) // 2 + 1, 2)
        piece = np.roll(chosen[shown][:, ::step], (dy, dx), (0, 1)) & (parts == 0)
        out[piece] = np.roll(pool.images[other][:, ::step], (dy, dx), (0, 1))[piece]
    return out


def _jitter(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Weak photometric jitter: gain per channel, brightness, contrast."""
    n = len(images)
    gain = torch.from_numpy(rng.normal(1.0, 0.05, (n, 3, 1, 1)) * rng.normal(1.0, 0.12, (n, 1, 1, 1))).float()
    contrast = torch.from_numpy(rng.uniform(0.75, 1.2, (n, 1, 1, 1))).float()
    mean = images.mean((1, 2, 3), keepdim=True)
    return (((images - mean) * contrast + mean) * gain).clamp(0, 1)


def _pixels(views: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255.0


def make_batch(step: int, pool: Pool, config: PretrainConfig, vision: dict[str, Any]) -> TrainBatch:
    """The batch of a step; it depends on nothing but the step and the seed, so a resumed run sees the same."""
    rng = np.random.default_rng([config.seed, 2, step])
    index = rng.integers(0, len(pool.images), config.batch_size)
    size, grid = vision["image_size"], vision["image_size"] // vision["patch_size"]
    views, shares, zoomed, regions = [], [], [], []
    for i in index:
        image, parts = pool.images[i], pool.parts[i]
        if rng.random() < config.strangers:
            image = add_strangers(image, parts, pool, rng)
        box, mirror = _view_box(IMAGE_SIDE, rng, config.whole), bool(rng.random() < 0.5)
        view, shown = _cut(image, parts, box, size, mirror)
        views.append(view)
        shares.append(part_shares(shown, grid))
        if config.weights.zoom:
            region = _square(box, rng, *ZOOM)
            zoomed.append(_cut(image, parts, region, size, mirror)[0])
            regions.append(_region_share(box, region, grid, mirror))
    captions = [caption(pool.codes[i], rng) for i in index]
    is_coarse = np.flatnonzero(rng.random(len(index)) < config.coarse)
    coarse = {int(i): caption(pool.codes[index[i]], rng, FROM_AFAR) for i in is_coarse}
    prompts = [attribute_prompts(name, rng) for name in ATTRIBUTE_NAMES] + [[background_prompt(rng)]]
    return TrainBatch(
        _jitter(_pixels(views), rng),
        torch.from_numpy(np.stack(shares)),
        captions,
        coarse,
        torch.from_numpy(pool.codes[index]),
        prompts,
        _pixels(zoomed) if zoomed else None,
        torch.from_numpy(np.stack(regions)) if regions else None,
    )


def batches(first: int, pool: Pool, config: PretrainConfig, vision: dict[str, Any]) -> Iterator[tuple[int, TrainBatch]]:
    """Batches from step `first` on, prepared one ahead in a thread."""
    with ThreadPoolExecutor(1) as executor:
        pending = executor.submit(make_batch, first, pool, config, vision)
        for step in range(first, config.steps):
            batch = pending.result()
            if step + 1 < config.steps:
                pending = executor.submit(make_batch, step + 1, pool, config, vision)
            yield step, batch
