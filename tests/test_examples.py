"""What the trace keeps so that a mistake can be explained: votes of the branches, surest examples, spread of crops."""

from __future__ import annotations

import math

import numpy as np
import torch
from tiny import ToyDataset

from clipviz.data.images.views import eval_view
from clipviz.events import Highlights, Predictions, Probe, PseudoLabels, RunFinished, RunStarted, StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.ntua import NtUA, NtUAConfig
from clipviz.methods.zero_shot import Descriptions, ZeroShot
from clipviz.training.highlights import classes_in_question, nearest_sentences, surest_examples
from clipviz.training.loop import adapt
from clipviz.training.recorder import Recorder, record


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
    highlights = Highlights(probe, probs[:1], {}, {"cls": probs[1:]}, image[:, :, :2, :2], torch.tensor([0]))
    recorder(RunFinished("finished", 1.0, highlights))
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


def test_the_classes_in_question_are_the_guess_and_the_truth_else_the_runner_up():
    probs = torch.tensor([[0.1, 0.7, 0.2]] * 3)
    assert classes_in_question(probs, torch.tensor([0, 1, -1])) == [[1, 0], [1, 2], [1, 2]]
    assert classes_in_question(torch.ones(1, 1), torch.tensor([0])) == [[0]]


def test_the_nearest_sentences_are_those_of_a_slow_loop(tiny_backbone, toy):
    method = Descriptions(tiny_backbone, toy.prompts)
    images = torch.rand(2, 3, 32, 32)
    found = nearest_sentences(method, images, [[1, 0], [2, 1]], n=2)
    embeddings = tiny_backbone.embed(images)
    expected = []
    for place, labels in enumerate([[1, 0], [2, 1]]):
        for label in labels:
            sentences = toy.prompts.description_sentences(toy.class_names[label])
            rows = [(float(tiny_backbone.embed_text([s])[0] @ embeddings[place]), s) for s in sentences]
            expected += [(place, label, s, v) for v, s in sorted(rows, key=lambda row: -row[0])[:2]]
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    np.testing.assert_allclose([row[3] for row in found], [row[3] for row in expected], atol=1e-5)


def test_a_method_says_which_sentences_its_classifier_is_made_of(tiny_backbone, toy):
    prompts = toy.prompts
    assert ZeroShot(tiny_backbone, prompts).sentences[0] == prompts.template_sentences(prompts.names[0])
    assert Descriptions(tiny_backbone, prompts).sentences[0] == prompts.description_sentences(prompts.names[0])


def test_votes_of_a_cache_reach_the_trace_with_the_images_behind_them(tiny_backbone):
    train, test = ToyDataset(12), ToyDataset(9, seed=1, split="test")
    method = NtUA(tiny_backbone, train.prompts, NtUAConfig(shots=2, views=2))
    trace = record(adapt(method, train, AdaptConfig(epochs=1, lr=1e-3), eval_dataset=test))
    images = torch.from_numpy(trace.arrays["gallery/images"]).permute(0, 3, 1, 2) / 255.0
    affinity = tiny_backbone.embed(images) @ method.keys.detach().T
    alone = method.config.alpha * (-method.config.beta * (1 - affinity)).exp() * method.weights
    heaviest = alone.argsort(descending=True)[:, :5]
    k = heaviest.shape[1]
    np.testing.assert_array_equal(trace.arrays["cache/index"], method.cache_index[heaviest])
    np.testing.assert_array_equal(trace.arrays["cache/labels"], method.labels[heaviest])
    np.testing.assert_allclose(trace.arrays["cache/votes"], alone.gather(1, heaviest).detach(), rtol=1e-4)
    assert trace.arrays["cache/images"].shape == (len(images), k, 64, 64, 3)
    shown, source = trace.arrays["cache/images"][0, 0], train.image(int(trace.arrays["cache/index"][0, 0]))
    np.testing.assert_array_equal(shown, eval_view(source, 64))
    assert {row[0] for row in trace.meta["gallery_sentences"]} == set(range(len(images)))
