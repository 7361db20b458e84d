"""What the trace keeps so that a mistake can be explained: votes of the branches, surest examples, spread of crops."""

from __future__ import annotations

import math

import numpy as np
import torch

from clipviz.evaluate import surest_examples
from clipviz.events import Gallery, Predictions, Probe, PseudoLabels, RunFinished, RunStarted, StepFinished
from clipviz.recorder import Recorder


def test_the_surest_other_image_of_each_class_in_question():
    probs = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.8, 0.2], [0.4, 0.6, 0.0], [0.5, 0.3, 0.2], [0.7, 0.2, 0.1]])
    predictions = Predictions(torch.arange(5), probs, torch.tensor([2, 1, 1, 0, -1]))
    # Image 0 is called 1, then 0, and is a 2: the surest others are 1 (for class 1) and 4 (for class 0), none for 2.
    assert sorted(surest_examples(predictions, np.array([0]))) == [1, 4]
    assert surest_examples(predictions, np.arange(5)).tolist() == []


def test_recorder_keeps_the_spread_of_crops_the_branches_and_the_examples():
    recorder = Recorder()
    recorder(RunStarted("microclip", {}, ("a", "b"), 2, 1, 1, None))
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    pseudo = PseudoLabels(torch.tensor([0, 0]), probs, torch.ones(2), {}, weights)
    recorder(StepFinished(0, 0, torch.arange(2), torch.tensor([0, 1]), pseudo, {}))
    image = torch.full((1, 3, 4, 4), 0.5)
    probe = Probe(image, torch.tensor([1]), torch.tensor([1]))
    gallery = Gallery(probe, probs[:1], {}, {"cls": probs[1:]}, image[:, :, :2, :2], torch.tensor([0]))
    recorder(RunFinished("finished", 1.0, gallery))
    trace = recorder.trace()
    assert trace.meta["n_crops"] == 4
    np.testing.assert_allclose(trace.samples["crop_weight_max"], [0.25, 1.0])
    np.testing.assert_allclose(trace.samples["crop_effective"], [4.0, 1.0], rtol=1e-6)
    assert trace.arrays["gallery/branch/cls"].tolist() == [[0.5, 0.5]]
    assert trace.arrays["examples/images"].shape == (1, 2, 2, 3)
    assert trace.arrays["examples/label"].tolist() == [0]


def test_effective_number_is_the_exponential_of_the_entropy():
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    expected = math.exp(-sum(w * math.log(w) for w in (0.5, 0.3, 0.2)))
    recorder = Recorder()
    recorder(RunStarted("microclip", {}, ("a", "b"), 1, 1, 1, None))
    pseudo = PseudoLabels(torch.tensor([0]), torch.tensor([[0.75, 0.25]]), torch.ones(1), {}, weights)
    recorder(StepFinished(0, 0, torch.arange(1), torch.tensor([0]), pseudo, {}))
    np.testing.assert_allclose(recorder.trace().samples["crop_effective"], [expected], rtol=1e-6)
