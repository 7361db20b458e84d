"""A step does not wait for the device: what methods and the loop read of tensors on the host, counted.

There is no GPU here, so reads are caught by name: values that become Python's (`item`, `float`, `if tensor`), arrays,
copies to the host, and shapes that depend on values. The loop may read once a step: whether the loss is finite.
"""

from collections import Counter
from itertools import chain

import pytest
import torch
from tiny import ToyDataset, make_tiny_backbone
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clipviz.events import StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import DPA
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.training.loop import Adaptation, adapt
from clipviz.training.recorder import Recorder

READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"}
COPIES = {"cpu", "numpy", "tolist", "__array__"}


class Dispatched(TorchDispatchMode):
    """Counts the operators that need values on the host, whoever calls them."""

    def __init__(self):
        super().__init__()
        self.reads = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in READS or by_mask:
            self.reads[name] += 1
        return function(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """Counts copies to the host, which are no operators where the tensors are on the host already."""

    def __init__(self):
        super().__init__()
        self.reads = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in COPIES or (name == "to" and "cpu" in map(str, chain(args[1:], (kwargs or {}).values()))):
            self.reads[name] += 1
        return function(*args, **(kwargs or {}))


def reads_of(work) -> Counter:
    with Dispatched() as dispatched, Called() as called:
        work()
    return dispatched.reads + called.reads


class Made(list):
    """Batches that were made before: what makes them copies to the device, which is no reading."""

    def epoch(self, epoch, first_step=0):
        return iter(self[first_step:])


METHODS = {
    "microclip": lambda b, p: MicroCLIP(b, p, MicroCLIPConfig(crops=2)),
    "microclip frozen": lambda b, p: MicroCLIP(b, p, MicroCLIPConfig(crops=2, crop_teacher="frozen")),
    "dpa": DPA,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_one_number_off_the_device(name):
    data = ToyDataset(24)
    run = Adaptation(METHODS[name](make_tiny_backbone(), data.prompts), data, AdaptConfig(1, batch_size=8))
    made = Made(run.loader.epoch(0))
    run.method.training_batches = lambda batch_size, seed: made
    run.optimizer.step = lambda: None  # AdamW counts its steps on the host
    events = iter(run)
    while not isinstance(next(events), StepFinished):
        pass
    found = reads_of(lambda: next(events))
    assert found == {"_local_scalar_dense": 1}  # isfinite(loss)


@pytest.mark.parametrize("name", METHODS)
def test_the_recorder_reads_nothing_until_the_epoch_ends(name):
    data = ToyDataset(24)
    method, recorder = METHODS[name](make_tiny_backbone(), data.prompts), Recorder()
    for event in adapt(method, data, AdaptConfig(1, batch_size=8)):
        found = reads_of(lambda event=event: recorder(event))
        assert not (found and isinstance(event, StepFinished))
    trace = recorder.trace()
    assert sorted(trace.samples["index"]) == list(range(24))
    assert trace.steps["step"].max() == 2


def test_what_is_read_is_noticed():
    x = torch.ones(3)
    for read in (
        lambda: x[0].item(), lambda: float(x[0]), lambda: bool(x[0]), lambda: x[x > 0], lambda: x.nonzero(),
        lambda: x.cpu(), lambda: x.numpy(), lambda: x.to("cpu"), lambda: x.tolist(), lambda: x.unique(),
    ):  # fmt: skip
        assert reads_of(read), read
    assert not reads_of(lambda: x[torch.tensor([0])] + torch.where(x > 0, x, 0))
