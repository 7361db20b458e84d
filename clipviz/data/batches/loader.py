"""Batches of views for training, and of centered views for evaluation.

Pixels stay uint8 until a batch is complete (and on its device); then they become float32 in [0, 1].
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from clipviz.data.base import Batch, ImageDataset, ViewConfig, Views
from clipviz.data.images.views import crop_views, eval_view, make_views
from clipviz.parallel import ONE, Ranks


class _PixelBatch(NamedTuple):
    """A batch on its way out of a worker: pixels (B, ..., S, S, 3) uint8."""

    weak: torch.Tensor
    strong: torch.Tensor | None
    crops: torch.Tensor | None


def _stacked(pixels: Sequence[NDArray[np.uint8] | None]) -> torch.Tensor | None:
    made = [p for p in pixels if p is not None]
    return torch.from_numpy(np.stack(made)) if made else None


class _BatchMaker(Dataset[_PixelBatch]):
    """Makes whole batches in a worker: `maker[epoch, indices]`."""

    def __init__(self, dataset: ImageDataset, config: ViewConfig, seed: int) -> None:
        self.dataset, self.config, self.seed = dataset, config, seed

    def __getitem__(self, request: tuple[int, NDArray[np.int64]]) -> _PixelBatch:
        epoch, indices = request
        views = [make_views(self.dataset.image(i), self.config, self.seed, epoch, i) for i in map(int, indices)]
        weak, strong, crops = zip(*views, strict=True)
        return _PixelBatch(torch.from_numpy(np.stack(weak)), _stacked(strong), _stacked(crops))


class ViewLoader:
    """Shuffled batches of training views, the same for any number of workers.

    The order depends on (seed, epoch), a view on (seed, epoch, index); no global random state is read or
    changed. The last batch of an epoch may be smaller.

    Args:
        dataset: The images.
        config: The views to make of each.
        batch_size: B, at least 1.
        seed: Of the run, not negative.
        workers: Processes that make views; 0 makes them in this one.
        device: Where the batch ends up; to a GPU the pixels travel as uint8.
        ranks: The processes that share each batch: this one makes the views of its share, see `Views`.

    Raises:
        ValueError: If the data set is empty, or a number is out of its range.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        config: ViewConfig,
        batch_size: int,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
        ranks: Ranks = ONE,
    ) -> None:
        if batch_size < 1 or seed < 0 or workers < 0:
            raise ValueError(
                "a loader wants batch_size >= 1, seed >= 0 and workers >= 0, "
                f"got batch_size={batch_size}, seed={seed}, workers={workers}"
            )
        if len(dataset) == 0:
            raise ValueError(f"data set {dataset.name!r} has no images in split {dataset.split!r}")
        self.dataset, self.config = dataset, config
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.device, self.ranks = torch.device(device), ranks

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: 0-based.
            first_step: Start at this step of the epoch, for a run that goes on in the middle of one.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset)).astype(np.int64)
        steps = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        steps = steps[first_step:]
        shares = [self.ranks.share(indices) for indices in steps]
        for indices, pixels in zip(steps, self._pixel_batches(epoch, shares), strict=True):
            yield Batch(
                views=self._views(pixels, len(indices)),
                index=torch.from_numpy(indices).to(self.device),
                target=torch.from_numpy(self.dataset.targets[indices]).to(self.device),
            )

    def _views(self, pixels: _PixelBatch, n: int) -> Views:
        strong, crops = (None if p is None else as_images(p, self.device) for p in pixels[1:])
        return Views(as_images(pixels.weak, self.device), strong, crops, partial(self.ranks.gather, n=n))

    def _pixel_batches(self, epoch: int, steps: list[NDArray[np.int64]]) -> Iterator[_PixelBatch]:
        maker = _BatchMaker(self.dataset, self.config, self.seed)
        requests = [(epoch, indices) for indices in steps]
        if self.workers == 0:
            yield from map(maker.__getitem__, requests)
            return
        yield from DataLoader(
            maker,
            sampler=requests,
            batch_size=None,  # an item is a whole batch
            num_workers=min(self.workers, len(requests)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise it draws a seed from the global generator
            multiprocessing_context=_start_method(),
        )


def _start_method() -> str | None:
    """Prefer fork: workers then share the decoded images of the parent instead of receiving copies."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def eval_batches(
    dataset: ImageDataset,
    size: int,
    batch_size: int,
    index: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the evaluation view of every image, in order.

    Args:
        dataset: The images.
        size: Side of a view in pixels.
        batch_size: Of all batches but the last, which may be smaller.
        index: Only these positions, in this order; None for all.
        device: Where the tensors end up.

    Yields:
        images (B, 3, S, S) float32 in [0, 1], and their index (B,) int64.
    """
    positions = torch.arange(len(dataset)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    for chunk in positions.split(batch_size):
        if len(chunk):
            pixels = np.stack([eval_view(dataset.image(i), size) for i in chunk.tolist()])
            yield as_images(torch.from_numpy(pixels), torch.device(device)), chunk.to(device)


def eval_views(
    dataset: ImageDataset,
    config: ViewConfig,
    batch_size: int,
    device: torch.device | str = "cpu",
    ranks: Ranks = ONE,
) -> Iterator[Views]:
    """Yield the evaluation view of every image, in order, with `config.crops` crops where a method wants them.

    The crops of an image are random, and the same at every call: they depend on its position alone. Each of several
    processes gets `batch_size` views at a time, its share of so many times more images.
    """
    for chunk in torch.arange(len(dataset)).split(batch_size * ranks.size):
        for images, index in eval_batches(dataset, config.size, batch_size, ranks.share(chunk).tolist(), device):
            crops = None
            if config.crops:
                rows = (crop_views(dataset.image(i), config, np.random.default_rng(i)) for i in index.tolist())
                crops = as_images(torch.from_numpy(np.stack(list(rows))), torch.device(device))
            yield Views(images, crops=crops, gather=partial(ranks.gather, n=len(chunk)))


def as_images(pixels: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Turn uint8 pixels (..., H, W, 3) into float32 images (..., 3, H, W) in [0, 1] on a device."""
    moved = pixels.to(device, non_blocking=True)
    return moved.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
