"""Batches of views for training, and of centered views for evaluation.

Pixels stay uint8 until a batch is complete (and on its device); then they become float32 in [0, 1].
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from clipviz.data.base import Batch, ImageDataset, ViewConfig, Views
from clipviz.data.images.views import crop_views, eval_view, make_views
from clipviz.parallel import ONE, Ranks

Device = torch.device | str
_PixelBatch = Sequence[torch.Tensor | None]
"""Weak, strong and crops on their way out of a worker: (B, ..., S, S, 3) uint8, None where not asked for."""


class ViewLoader:
    """Shuffled batches of training views, the same for any number of workers; the last of an epoch may be smaller.

    The order depends on (seed, epoch), a view on (seed, epoch, index); no global random state is read or changed. Views
    are made by worker processes, or by this one, for the images of its share of a batch, see `Views`.
    """

    def __init__(
        self, dataset: ImageDataset, config: ViewConfig, batch_size: int, seed: int, workers: int = 0,
        device: torch.device | str = "cpu", ranks: Ranks = ONE,
    ) -> None:  # fmt: skip
        if batch_size < 1 or seed < 0 or workers < 0:
            got = f"got batch_size={batch_size}, seed={seed}, workers={workers}"
            raise ValueError(f"a loader needs batch_size >= 1, seed >= 0 and workers >= 0, {got}")
        if len(dataset) == 0:
            raise ValueError(f"data set {dataset.name!r} has no images in split {dataset.split!r}")
        self.dataset, self.config = dataset, config
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.device, self.ranks = torch.device(device), ranks

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (0-based) from a step on, for a run that goes on in the middle of one."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset)).astype(np.int64)
        steps = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)][first_step:]
        for indices, views in zip(steps, self._views(epoch, steps), strict=True):
            yield Batch(
                views, index=torch.from_numpy(indices).to(self.device),
                target=torch.from_numpy(self.dataset.targets[indices]).to(self.device),
            )  # fmt: skip

    def _views(self, epoch: int, steps: Sequence[NDArray[np.int64]]) -> Iterator[Views]:
        """The views of each step's images, or of this process's share of them."""
        requests = [(epoch, self.ranks.share(indices)) for indices in steps]
        batches: Iterable[_PixelBatch] = map(self._pixels, requests)
        if workers := min(self.workers, len(requests)):
            batches = DataLoader(
                cast(Any, requests),
                batch_size=None,  # an item is a whole batch
                collate_fn=self._pixels,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # otherwise it draws a seed from the global generator
                multiprocessing_context="fork" if sys.platform == "linux" else None,  # these share the decoded images
            )
        for indices, pixels in zip(steps, batches, strict=True):
            weak, strong, crops = (None if p is None else as_images(p, self.device) for p in pixels)
            yield Views(cast(torch.Tensor, weak), strong, crops, partial(self.ranks.gather, n=len(indices)))

    def _pixels(self, request: Any) -> _PixelBatch:
        """Make the views of a whole batch, (epoch, positions), in a worker if there are any."""
        epoch, indices = request
        views = [make_views(self.dataset.checked_image(i), self.config, self.seed, epoch, i) for i in map(int, indices)]
        return [None if kind[0] is None else torch.from_numpy(np.stack(kind)) for kind in zip(*views, strict=True)]


def eval_batches(
    dataset: ImageDataset, size: int, batch_size: int, index: Sequence[int] | None = None, device: Device = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The evaluation views of all images, or of those at `index`: (B, 3, S, S) in [0, 1], and their positions (B,)."""
    positions = torch.arange(len(dataset)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    for chunk in positions.split(batch_size):
        if len(chunk):
            pixels = np.stack([eval_view(dataset.checked_image(i), size) for i in chunk.tolist()])
            yield as_images(torch.from_numpy(pixels), torch.device(device)), chunk.to(device)


def eval_views(
    dataset: ImageDataset, config: ViewConfig, batch_size: int, device: Device = "cpu", ranks: Ranks = ONE
) -> Iterator[Views]:
    """The evaluation view of every image, in order, with `config.crops` crops, which depend on its position alone.

    Each of several processes gets `batch_size` views at a time, its share of so many times more images.
    """
    for chunk in torch.arange(len(dataset)).split(batch_size * ranks.size):
        for images, index in eval_batches(dataset, config.size, batch_size, ranks.share(chunk).tolist(), device):
            crops = None
            if config.crops:
                rows = (crop_views(dataset.checked_image(i), config, np.random.default_rng(i)) for i in index.tolist())
                crops = as_images(torch.from_numpy(np.stack(list(rows))), torch.device(device))
            yield Views(images, crops=crops, gather=partial(ranks.gather, n=len(chunk)))


def as_images(pixels: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Turn uint8 pixels (..., H, W, 3) into float32 images (..., 3, H, W) in [0, 1] on a device."""
    moved = pixels.to(device, non_blocking=True)
    return moved.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
