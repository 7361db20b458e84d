"""The runs of test_parallel.py, for one process or two: `main` is called in both of them.

The first of them writes a folder for each run, as any run does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tiny import ToyDataset, make_tiny_backbone

from clipviz.backbone import Backbone
from clipviz.events import StepFinished
from clipviz.methods.base import AdaptConfig, Method
from clipviz.methods.dpa import DPA, DPAConfig
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.methods.wca import WCA, WCAConfig
from clipviz.parallel import ONE, Ranks, launch
from clipviz.trace import Trace
from clipviz.training.run import Run

PROMPTS = ToyDataset(3).prompts


class Case(NamedTuple):
    """A run: what of how many images; batches of 8 leave the last one uneven."""

    build: Callable[[Backbone], Method]
    n: int
    epochs: int = 2
    stop_at: int | None = None  # step after which it ends: the checkpoint of a whole run has no moments
    lr: float = 1e-3


def ntua(backbone: Backbone) -> NtUA:
    teacher = make_tiny_backbone(seed=7, name="teacher", embed_dim=16)
    return NtUA(backbone, PROMPTS, NtUAConfig(shots=3, views=2), teacher=teacher)


CASES = {
    "microclip": Case(lambda backbone: MicroCLIP(backbone, PROMPTS, MicroCLIPConfig(crops=2)), 21),
    "microclip_frozen": Case(
        lambda backbone: MicroCLIP(backbone, PROMPTS, MicroCLIPConfig(crops=2, crop_teacher="frozen")), 21
    ),
    "microclip_step": Case(lambda backbone: MicroCLIP(backbone, PROMPTS, MicroCLIPConfig(crops=2)), 5, stop_at=0),
    "dpa": Case(lambda backbone: DPA(backbone, PROMPTS, DPAConfig(window=3)), 17),  # the last batch is one image
    "dpa_step": Case(lambda backbone: DPA(backbone, PROMPTS), 5, stop_at=0),
    "ntua": Case(ntua, 21, epochs=3),
    "wca": Case(lambda backbone: WCA(backbone, PROMPTS, WCAConfig(crops=2)), 21),
}
STOP_AT = 3
STOPPED = ("microclip", "dpa")
"""These are also stopped in the first epoch but one step, and resumed by another number of processes."""


def prepared(name: str, folder: Path, ranks: Ranks = ONE, seed: int = 0) -> Run:
    case = CASES[name]
    backbone = make_tiny_backbone(seed)
    config = AdaptConfig(case.epochs, 8, case.lr)
    test = ToyDataset(9, seed=1, split="test")
    probe = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Run(
        case.build(backbone), ToyDataset(case.n), config, eval_dataset=test, probe=probe, folder=folder, ranks=ranks
    )


def stop_on_the_way(run: Run, step: int | None = STOP_AT) -> None:
    """Do a part of a run, or without a step all of it; of several processes the last one stops it."""
    last = run.ranks.rank == run.ranks.size - 1
    run.listeners.append(
        lambda event: run.stop() if last and isinstance(event, StepFinished) and event.step == step else None
    )
    run.fit()


def read_meanwhile(run: Run) -> None:
    """Have the process that does not write read the trace of the run that goes on."""

    def read(event: object) -> None:
        if isinstance(event, StepFinished) and event.epoch == 1 and not run.ranks.is_first:
            trace = Trace.load(run.folder)
            assert (trace.meta["status"], trace.final_epoch) == ("running", 0)

    run.listeners.append(read)


def main(out: Path) -> None:
    ranks = launch(2, 1, "cpu")
    for name in CASES:
        run = prepared(name, out / name, ranks, seed=ranks.rank)  # as random weights are: others in every process
        read_meanwhile(run)
        stop_on_the_way(run, CASES[name].stop_at)
    for name in STOPPED:
        stop_on_the_way(prepared(name, out / f"{name}_stopped", ranks))
        resumed = prepared(name, out / f"{name}_begun", ranks)  # by the test, in one process
        assert resumed.restore()
        resumed.fit()
    assert ranks.texts(f"process {ranks.rank}") == ["process 0", "process 1"]
    assert ranks.any(ranks.rank == 1)
    assert not ranks.any(False)
