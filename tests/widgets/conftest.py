"""Runs of a second and traces without a model, for views without a browser."""

from __future__ import annotations

import pytest
from tiny import ToyDataset, microclip

from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.training.evaluate import spread_probe
from clipviz.training.run import Run


@pytest.fixture(scope="session")
def make_run(tiny_backbone):
    def make(labelled=True, n=16, epochs=3, method="microclip", **kwargs):
        data = ToyDataset(n, labelled=labelled)
        built = microclip(tiny_backbone) if method == "microclip" else METHODS[method](tiny_backbone, data.prompts)
        config = AdaptConfig(epochs=epochs, batch_size=4, lr=1e-3)
        return Run(built, data, config, eval_dataset=data, probe=spread_probe(data, 32, 3), seed=1, **kwargs)

    return make


@pytest.fixture(scope="session")
def finished(make_run):
    run = make_run(n=24)
    run.fit()
    return run


@pytest.fixture
def run(finished):
    """A run that has ended, for views: its trace is made anew for whoever asks, and so is its probe for each test."""
    vars(finished).pop("model_probe", None)
    return finished
