"""One owner of a model at a time.

A training step changes weights in place, and a look swaps `forward`s, hangs hooks and switches modes: two threads that
touch one model at once get each other's numbers. So every model has one lock, found from its image tower: methods that
share a tower share its lock, and a copy of the tower has its own. Whoever holds it may take it again.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

# Beside the models and not in them, so that no copy, pickle or state dict knows of it; an entry goes with its model.
_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def image_tower(model: nn.Module) -> nn.Module:
    """The image tower of a method, a `Backbone` or an open_clip model; a bare tower is taken as it is."""
    for inner in ("backbone", "model", "visual"):
        model = getattr(model, inner, model)
    return model


def lock_of(model: nn.Module) -> Any:
    """The reentrant lock of a model, to be held while anything of it is computed, replaced or changed."""
    return _LOCKS.setdefault(image_tower(model), threading.RLock())


@contextmanager
def preserved_state(model: Any, *, gradients: bool = False) -> Iterator[None]:
    """Look at a method or a backbone without changing its course, with nobody else at it meanwhile.

    Eval mode and, unless asked for, no gradient; modes and random state are restored.
    """
    device = getattr(model, "backbone", model).device
    devices = [device] if device.type == "cuda" else []
    with lock_of(model), torch.random.fork_rng(devices), torch.inference_mode(False), torch.set_grad_enabled(gradients):
        modes = [(module, module.training) for module in model.modules()]
        if any(training for _, training in modes):
            model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                if module.training != training:  # to assign an attribute of a module takes ten times as long
                    module.training = training
