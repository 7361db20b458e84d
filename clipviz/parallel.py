"""Several processes, one run: who makes which rows of a batch, and how all of them get the whole batch.

Every process holds the whole method and walks through the whole run. What is divided is the costly part: of each batch,
process r reads, cuts and encodes the images of its share alone. The rows that come out (embeddings, (B, E): small) are
gathered, and whatever follows is computed from the rows of the whole batch, in every process alike: pseudo-labels,
banks, running means, the loss. So there is no formula for several processes, and nothing to correct in a method.

Gradients. Let L_r be the loss in process r of R, z_r the rows of its share, theta the parameters. The objective is the
mean over r of L_r; all L_r are the same number L, so its gradient is that of L:

    d/dtheta mean_r L_r = mean_r (R dL/dz_r dz_r/dtheta  +  dL/dtheta behind the gathering)

Each process has the bracket of its own r by plain autograd if `gather` hands back R times the gradient of its rows;
`average_gradients` takes the mean. What lies before the gathering is thereby summed over the shares, what lies behind
it is a mean of equal numbers, and no parameter has to be told which of the two it is.
"""

import atexit
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from clipviz.errors import one_line

T = TypeVar("T")
Rows = TypeVar("Rows", Tensor, NDArray[np.int64])

PATIENCE = timedelta(hours=2)
"""Processes wait so long for each other: one of them alone writes checkpoints, and reads or pauses at leisure."""

_TEXT_BYTES, _STARTER = 2048, "CLIPVIZ_STARTED_BY"


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; made by `launch`. The default is a run in one process."""

    rank: int = 0  # of this process, from 0
    size: int = 1  # R, how many there are
    device: torch.device | None = None  # where this one computes; None: wherever the model is

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that records, writes and speaks."""
        return self.rank == 0

    def share(self, rows: Rows) -> Rows:
        """The rows of a batch that are this process's to make: ceil(n / R) of them, one after the other.

        All shares are equally long, so the last ones repeat the last row where n is no multiple of R; `gather` drops
        what is repeated. One process has them all.
        """
        if self.size == 1:
            return rows
        n = len(rows)
        each = -(-n // self.size)
        return rows[np.minimum(np.arange(self.rank * each, (self.rank + 1) * each), n - 1)]

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """Rows of this share -> rows of the whole batch, the same in every process; differentiable, see above.

        From (ceil(n / R), ...), made from `share`, to (n, ...) in the order of the batch.
        """
        if self.size == 1:
            return rows
        with _connected(self):
            parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
            dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows.view_as(rows)
        if parts[self.rank].requires_grad:  # once for each of the R losses that the rows are in
            parts[self.rank].register_hook(lambda gradient: self.size * gradient)
        return torch.cat(parts)[:n]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, in one exchange."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _connected(self):
            dist.all_reduce(flat)
        for gradient, mean in zip(gradients, (flat / self.size).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process: random weights, for one, are another's in each."""
        if self.size > 1:
            with torch.no_grad(), _connected(self):
                for tensor in tensors:
                    values = tensor.detach().flatten()
                    dist.broadcast(values.view(torch.uint8), 0)  # bytes: not every type can be sent
                    tensor.copy_(values.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        if self.size == 1:
            return flag
        said = torch.tensor([flag], dtype=torch.int32, device=self.device)
        with _connected(self):
            dist.all_reduce(said)
        return bool(said.item())

    def texts(self, text: str) -> list[str]:
        """What each process says, by rank; only the first two thousand bytes of it."""
        if self.size == 1:
            return [text]
        data = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
        rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)[None]
        said = self.gather(rows, self.size).cpu().numpy()
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in said]

    def together(self, work: Callable[[], T]) -> T:
        """Do something that may be refused in every process; if one refuses, none goes on.

        The first process raises the ValueError of whoever refused; the others, with nothing to add, a SystemExit.
        """
        if self.size == 1:
            return work()
        refusal: Exception | None = None
        said = ""
        try:
            result = work()
        except (ValueError, OSError) as error:
            refusal, said = error, str(error) or repr(error)
        reasons = [reason for reason in self.texts(said) if reason]
        if not reasons:
            return result
        if self.is_first:
            raise ValueError(said or reasons[0]) from refusal
        raise SystemExit(0)  # the first one's status counts


ONE = Ranks()
"""A run in one process."""


@contextmanager
def _connected(ranks: Ranks) -> Iterator[None]:
    """Turn the many errors of a broken exchange into one line, of a kind that the command line prints as such."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"process {ranks.rank} of {ranks.size} lost the others ({one_line(error)}); "
            "see the error of the process that ended first"
        ) from error


def launch(devices: int | None = None, num_nodes: int | None = None, device: str | None = None) -> Ranks:
    """Start the processes of a run, or join those that torchrun has started.

    The caller's program is started again for every further process of this machine, with the same arguments, and comes
    to this line as well. On several machines start it on each, with torchrun.

    Args:
        devices: processes on this machine, each with a GPU of its own, or with its part of the CPU; None: one, or as
            many as torchrun has started.
        num_nodes: machines; None: one, or as many as torchrun has started.
        device: "cuda" or "cpu"; None: cuda if there is one.

    Raises:
        ValueError: if there are not so many devices, torchrun says something else, or lightning-fabric is missing.
    """
    torchrun = dist.is_torchelastic_launched()
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else 1
    started = here, int(os.environ["WORLD_SIZE"]) // here if torchrun else 1
    for what, wanted, found in zip(("--devices", "--num-nodes"), (devices, num_nodes), started, strict=True):
        if torchrun and wanted not in (None, found):
            raise ValueError(f"torchrun has set {what} to {found}, but here it is {wanted}; leave it out here")
    devices, num_nodes = devices or started[0], num_nodes or started[1]
    if devices * num_nodes == 1:
        return ONE
    if num_nodes > 1 and not torchrun and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise ValueError(f"--num-nodes {num_nodes} needs torchrun, or MASTER_ADDR on each machine: see docs/scaling.md")
    kind = _kind(device, devices)
    if importlib.util.find_spec("lightning_fabric") is None:
        raise ValueError(
            f"{devices * num_nodes} processes need lightning-fabric, which is not installed; "
            'pip install "clipviz[multi]", or use one device'
        )
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # otherwise a banner
    starter, have_met = os.environ.pop(_STARTER, None), threading.Event()
    if starter is None:
        os.environ[_STARTER] = str(os.getpid())  # for those that it starts
    else:
        threading.Thread(target=_end_with, args=(int(starter), have_met), daemon=True).start()
    # It waits for the others in C++, where Python would not hear of a signal: meanwhile each ends the process at once.
    heard = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        strategy = DDPStrategy(timeout=PATIENCE)
        fabric = Fabric(accelerator=kind, strategy=strategy, devices=devices, num_nodes=num_nodes)
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # in a notebook; a port in use; SLURM that says something else
        raise ValueError(f"cannot start {devices * num_nodes} processes here: {one_line(error)}") from error
    finally:
        have_met.set()
        os.environ.pop(_STARTER, None)
        for number, handler in heard.items():
            signal.signal(number, handler)
    # gloo's threads are joined before the interpreter goes: one that still runs then ends the process with a complaint
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device)


def _end_with(starter: int, have_met: threading.Event) -> None:
    """End this process if the one that started it is gone before they have met: it would be waited for for hours."""
    while not have_met.wait(0.5):
        if os.getppid() != starter:
            os.kill(os.getpid(), signal.SIGTERM)


def _kind(device: str | None, devices: int) -> str:  # "cuda" or "cpu"
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"several processes need --device cuda or --device cpu, got {kind!r}; leave the number out")
    there_are = torch.cuda.device_count() if kind == "cuda" else os.cpu_count() or 1
    if devices > there_are:
        what = "GPUs" if kind == "cuda" else "CPU cores and no GPU in use"
        raise ValueError(f"--devices {devices} is more than there are: {there_are} {what}; ask for at most that many")
    return kind
