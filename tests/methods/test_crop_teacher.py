"""The frozen crop teacher: what is in its bank, what a step sees, and that a run with it resumes."""

import pytest
import torch
from tiny import ToyDataset, assert_same_bits, method_state, microclip

from clipviz import Run
from clipviz.data.base import Views
from clipviz.events import StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.training.loop import Adaptation

CONFIG = AdaptConfig(epochs=2, batch_size=8, lr=1e-2)


def frozen(backbone):
    return microclip(backbone, crop_teacher="frozen")


def test_the_bank_holds_what_the_untrained_model_says_of_the_first_crops(tiny_backbone, toy):
    method = frozen(tiny_backbone)
    run = Adaptation(method, toy, CONFIG)
    list(run)
    bank = method.crop_teacher.bank
    assert (bank.dtype, bank.shape) == (torch.float16, (len(toy), 2, 32))
    for batch in run.loader.epoch(0):
        with torch.no_grad():
            expected = torch.stack([tiny_backbone.embed(batch.views.crops[:, k]) for k in range(2)], 1)
        torch.testing.assert_close(bank[batch.index].float(), expected, atol=1e-3, rtol=0)


def test_before_training_both_teachers_say_the_same(tiny_backbone, toy):
    student, other = microclip(tiny_backbone), frozen(tiny_backbone)
    loader = Adaptation(student, toy, CONFIG).loader
    batch = next(loader.epoch(0))
    with torch.no_grad():
        other.prepare(loader.epoch(0))
        expected = student.pseudo_label(batch.views, batch.index)
        found = other.pseudo_label(Views(batch.views.weak, batch.views.strong), batch.index)  # without any crops
    torch.testing.assert_close(found.probs, expected.probs, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.crop_logits.gram, expected.crop_logits.gram, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("kind", "crops"), [("student", (8, 2, 3, 32, 32)), ("frozen", None)])
def test_training_makes_crops_for_the_student_only(tiny_backbone, toy, monkeypatch, kind, crops):
    method, seen = microclip(tiny_backbone, crop_teacher=kind), []
    guess = method.pseudo_label
    monkeypatch.setattr(method, "pseudo_label", lambda views, index: (seen.append(views.crops), guess(views, index))[1])
    list(Adaptation(method, toy, CONFIG))
    assert {None if views is None else tuple(views.shape) for views in seen} == {crops}


def test_its_votes_stay_while_the_models_move(tiny_backbone, toy):
    method, votes = frozen(tiny_backbone), []
    for event in Adaptation(method, toy, AdaptConfig(epochs=2, batch_size=24, lr=1e-2)):
        if isinstance(event, StepFinished):
            order = event.index.argsort()
            votes.append((event.pseudo.crop_logits.logits[order], event.pseudo.sources["dynamic"][order]))
    assert torch.equal(votes[0][0], votes[1][0])
    assert not torch.equal(votes[0][1], votes[1][1])


def test_stopped_and_resumed_is_undisturbed_to_the_bit(tiny_backbone, tmp_path):
    def run(folder):
        return Run(frozen(tiny_backbone), ToyDataset(), CONFIG, folder=folder)

    whole = run(tmp_path / "whole")
    whole.fit()
    first = run(tmp_path / "cut")
    first.listeners.append(lambda e: first.stop() if isinstance(e, StepFinished) and e.step == 1 else None)
    first.fit()
    second = run(tmp_path / "cut")
    assert second.restore()
    second.fit()
    assert_same_bits(method_state(second.method), method_state(whole.method))


def test_without_images_and_with_an_unknown_teacher(tiny_backbone):
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"call prepare\(batches\) first"):
        frozen(tiny_backbone).pseudo_label(Views(images, images), torch.arange(2))
    with pytest.raises(ValueError, match="'student', 'frozen'"):
        MicroCLIPConfig(crop_teacher="teacher")  # type: ignore[arg-type]


def test_no_preset_departs_from_the_published_method():
    assert {config.crop_teacher for config in MicroCLIP.all_presets().values()} == {"student"}
