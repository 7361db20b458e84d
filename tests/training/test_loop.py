"""The loop: order of events, the schedule, and what may not change a run: time, listeners, targets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.transformer import PatchDropout
from PIL import Image
from timm.layers import DropPath
from tiny import ToyDataset, assert_same_bits, make_tiny_backbone, method_state, microclip
from torch import nn

from clipviz.backbone import load_backbone
from clipviz.backbone.ownership import preserved_state
from clipviz.birds.dataset import BirdsDataset
from clipviz.data.base import Batch
from clipviz.events import EpochFinished, RunFinished, RunStarted, StepFinished
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig, Method
from clipviz.methods.dpa import DPA
from clipviz.methods.microclip import MicroCLIP, MicroCLIPConfig
from clipviz.methods.zero_shot import ZeroShot
from clipviz.training.evaluate import spread_probe
from clipviz.training.loop import Adaptation, adapt, cosine_lr
from clipviz.training.recorder import record
from clipviz.training.run import Run

CONFIG = AdaptConfig(epochs=2, batch_size=8, lr=1e-3)


def run_to_end(method, data, config=CONFIG, **options):
    return list(adapt(method, data, config, **options))


def test_labels_of_other_classes_are_refused_before_any_work(tiny_backbone, toy_test):
    method, other = microclip(tiny_backbone), ToyDataset(8)
    other.class_names = tuple(reversed(other.class_names))
    for data, evaluation in ((other, None), (toy_test, other)):
        with pytest.raises(ValueError, match="label 0 of toy is 'blue square', which is class 2 of the prompts"):
            adapt(method, data, CONFIG, eval_dataset=evaluation)
    other.class_names = tuple(f"a {name}" for name in method.class_names)
    adapt(method, other, CONFIG, eval_dataset=toy_test)  # better names of the same classes
    other.targets = np.arange(8)
    with pytest.raises(
        ValueError, match="toy has labels up to 7, but the prompts that microclip was built with are of 3"
    ):
        adapt(method, other, CONFIG)
    other.targets = np.full(8, -1)
    adapt(method, other, CONFIG, eval_dataset=toy_test)  # without labels their names do not matter


def test_a_data_set_in_the_place_of_its_prompts_is_told(tiny_backbone, toy_test):
    with pytest.raises(ValueError, match=r"needs the prompts of a data set \(data\.prompts\), got ToyDataset"):
        ZeroShot(tiny_backbone, toy_test)


def test_what_is_no_model_and_what_are_no_constants_of_the_method_are_told(tiny_backbone, toy):
    with pytest.raises(ValueError, match=r"dpa needs a model \(load_backbone\), got ClassPrompts"):
        METHODS["dpa"](toy.prompts, tiny_backbone)
    for wrong in (AdaptConfig(), {"a": 0.3}, "official"):
        with pytest.raises(ValueError, match=f"dpa needs its constants as a DPAConfig, got {type(wrong).__name__}"):
            METHODS["dpa"](tiny_backbone, toy.prompts, wrong)


@pytest.mark.parametrize("wrong", ["birds", [1], torch.utils.data.DataLoader([1])])
def test_what_is_no_data_set_is_told(tiny_backbone, toy, wrong):
    method = ZeroShot(tiny_backbone, toy.prompts)
    for options in ({"dataset": wrong}, {"dataset": toy, "eval_dataset": wrong}):
        with pytest.raises(ValueError, match=f"wanted a data set .*, got {type(wrong).__name__}"):
            adapt(method, **options)


@pytest.mark.parametrize(
    "targets",
    [np.zeros(24, np.int32), np.zeros(24), [0] * 24, torch.zeros(24, dtype=torch.int64), np.zeros(5, np.int64),
     np.full(24, -2)],
)  # fmt: skip
def test_targets_that_would_fail_after_the_training_are_refused_before(tiny_backbone, targets):
    data = ToyDataset(24)
    data.targets = targets
    with pytest.raises(ValueError, match=r"targets of toy must be an int64 array .* for each of its 24 names, got"):
        adapt(ZeroShot(tiny_backbone, ToyDataset(3).prompts), data)


@pytest.mark.parametrize("wrong", [Image.new("L", (9, 9)), np.zeros((9, 9, 3), np.uint8), Image.new("RGB", (0, 0))])
def test_images_of_another_kind_are_refused_at_once(tiny_backbone, toy, wrong):
    class Mine(ToyDataset):
        def image(self, index):
            return wrong

    with pytest.raises(ValueError, match="image 0 of toy must be an RGB image of PIL, got"):
        adapt(ZeroShot(tiny_backbone, toy.prompts), Mine())


@pytest.mark.parametrize(("given", "said"), [(torch.zeros(9, 2), r"got \(9, 2\)"), (None, "got NoneType")])
def test_logits_of_other_classes_are_refused_at_the_first_measurement(tiny_backbone, toy, toy_test, given, said):
    class Mine(ZeroShot):
        def logits(self, images):
            return given

    with pytest.raises(ValueError, match=f"^logits of zero_shot must be .*, {said}$"):
        list(adapt(Mine(tiny_backbone, toy.prompts), toy, eval_dataset=toy_test))


def test_diagnostics_may_be_tensors_of_one_number_and_maps_masks(tiny_backbone, toy, toy_test, tmp_path):
    class Mine(ZeroShot):
        def diagnostics(self):
            return {"mine": torch.tensor(0.5)}

        def explain(self, images):
            return {"mask": images.mean(1) > 0.5}

    probe = spread_probe(toy, 32, 3)
    trace = record(adapt(Mine(tiny_backbone, toy.prompts), toy, eval_dataset=toy_test, probe=probe))
    trace.save(tmp_path / "trace")
    assert trace.metric("mine").tolist() == [0.5, 0.5]
    assert set(np.unique(trace.probe.maps["mask"])) <= {0.0, 1.0}
    assert set(np.unique(trace.exploration.maps["after"]["mask"])) <= {0, 255}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", None])
@pytest.mark.parametrize("part", ["dataset", "eval_dataset"])
def test_a_later_image_of_another_kind_is_named_when_it_comes(tiny_backbone, toy, mode, part):
    class Mine(ToyDataset):
        def image(self, index):
            image = super().image(index)
            return image if index != 5 else image.convert(mode) if mode else None

    data = {"dataset": toy, "eval_dataset": None, part: Mine(24)}
    with pytest.raises(ValueError, match=r"^image 5 of toy must be an RGB image of PIL, got"):
        list(adapt(ZeroShot(tiny_backbone, toy.prompts), **data))


def test_names_that_are_no_texts_are_refused_at_once(tiny_backbone, toy):
    data = ToyDataset(24)
    data.names = list(range(24))
    with pytest.raises(ValueError, match=r"names of toy must be texts, got 0; convert each with str\(\)"):
        adapt(ZeroShot(tiny_backbone, toy.prompts), data)


def test_part_masks_of_another_type_of_whole_numbers_are_taken(toy):
    class Mine(ToyDataset):
        def parts(self, index):
            return super().parts(index).astype(np.int64)

    assert torch.equal(spread_probe(Mine(24), 32, 3).parts, spread_probe(toy, 32, 3).parts)


@pytest.mark.parametrize("name", ["zero_shot", "dpa"])
@pytest.mark.parametrize("kind", ["half", "bfloat16"])
def test_a_method_in_half_precision_is_refused_at_once(toy, name, kind):
    method = getattr(METHODS[name](make_tiny_backbone(), toy.prompts), kind)()
    with pytest.raises(ValueError, match=rf"{name} has weights in half precision \(model\..*\); use load_backbone\("):
        adapt(method, toy)


@pytest.mark.parametrize("name", ["zero_shot", "tda", "oga", "stata", "ntua", "wca", "dpa", "microclip"])
@pytest.mark.parametrize("converted", ["the model", "the method"])
def test_a_run_in_double_precision_is_measured_and_explored(toy, toy_test, name, converted):
    backbone = make_tiny_backbone()
    if converted == "the model":
        backbone.model.double()
    method = METHODS[name](backbone, toy.prompts)
    trace = record(adapt(method if converted == "the model" else method.double(), toy, CONFIG, eval_dataset=toy_test))
    assert len(trace.metric("accuracy")) > 1
    assert {weights.dtype for weights in method.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["zero_shot", "dpa"])
def test_a_model_that_is_made_double_after_its_method_is_refused_at_once(toy, name):
    method = METHODS[name](make_tiny_backbone(), toy.prompts)
    method.backbone.model.double()
    with pytest.raises(
        ValueError, match=rf"{name} was built before its model was made .double\(\); use method.double\("
    ):
        adapt(method, toy)
    assert list(adapt(method.double(), toy, CONFIG))


@pytest.mark.parametrize("block", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_run_within_a_block_that_changes_what_torch_computes_is_refused(tiny_backbone, toy, block):
    events = adapt(ZeroShot(tiny_backbone, toy.prompts), toy)
    with block(), pytest.raises(ValueError, match=r"within torch\.inference_mode\(\) or torch\.autocast\(\); leave"):
        next(events)


def test_a_method_that_was_built_within_inference_mode_is_refused_at_once(tiny_backbone, toy):
    with torch.inference_mode():
        method = METHODS["dpa"](tiny_backbone, toy.prompts)
    with pytest.raises(
        ValueError, match=r"dpa was built within torch\.inference_mode\(\) and cannot change; build it outs"
    ):
        adapt(method, toy)


def test_predictions_and_pseudo_labels_that_are_not_finite_end_the_run(tiny_backbone, toy, toy_test):
    scales = {"image_scale": 1e39}  # infinite in single precision
    method = METHODS["wca"](tiny_backbone, toy.prompts, replace(METHODS["wca"].presets["default"], **scales))
    said = (
        r"the predictions are not finite: a constant is too large or too small, .*; see --set \(image_scale=1e\+39\), "
    )
    with pytest.raises(ValueError, match=said):
        list(adapt(method, toy, CONFIG, eval_dataset=toy_test))
    with pytest.raises(ValueError, match="the pseudo-labels of step 0 are not finite: a constant is too large or too"):
        list(adapt(method, toy, CONFIG))  # it does not train, so no loss would tell
    with pytest.raises(FloatingPointError, match="the pseudo-labels are not finite at step 0") as caught:
        list(adapt(microclip(tiny_backbone, crop_temperature=1e-300), toy, CONFIG))
    assert "a constant is too large or too small" in str(caught.value), "nothing was learned yet, at whatever rate"
    assert "(crops=2, crop_temperature=1e-300)" in str(caught.value)
    with pytest.raises(FloatingPointError, match=r"at step 1 .*; try a smaller learning rate.*soap_lr_scale=1e\+38\)"):
        list(adapt(microclip(tiny_backbone, soap_lr_scale=1e38), toy, CONFIG))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"labels must be a tensor \(n\), got NoneType"),
        ({"weights": torch.ones(4, 1)}, r"weights must be \(n\) with n = 4, got \(4, 1\)"),
        ({"probs": torch.ones(3, 3) / 3}, r"probs must be \(n, C\) with n = 4, got \(3, 3\)"),
        ({"sources": {"mine": torch.ones(4, 1)}}, r"source 'mine' must be \(n, C\) with n = 4, C = 3, got \(4, 1\)"),
        ({"metrics": {"mine": 1.0}}, r"metric 'mine' must be a tensor \(n\), got float"),
        ({"metrics": None}, "metrics must be a dictionary, name -> tensor, got None"),
        ({"sources": None}, "sources must be a dictionary, name -> tensor, got None"),
        ({"sources": [torch.ones(4, 3)]}, r"sources must be a dictionary, name -> tensor, got \[tensor.*"),
        ({"sources": {0: torch.ones(4, 3)}}, r"sources must be a dictionary, name -> tensor, got \{0: tensor.*"),
    ],
)
def test_pseudo_labels_of_other_shapes_are_refused_at_the_step_that_gives_them(tiny_backbone, toy, changes, message):
    class Mine(ZeroShot):
        def pseudo_label(self, views, index):
            return replace(super().pseudo_label(views, index), **changes)

    with pytest.raises(ValueError, match=f"^pseudo_label of zero_shot: {message}$"):
        list(adapt(Mine(tiny_backbone, toy.prompts), toy, AdaptConfig(batch_size=4)))


@pytest.mark.parametrize("given", [None, torch.tensor([0, 1]), (torch.tensor([0, 1]), torch.ones(2, 3))])
def test_what_are_no_pseudo_labels_is_told(tiny_backbone, toy, given):
    class Mine(ZeroShot):
        def pseudo_label(self, views, index):
            return given

    with pytest.raises(ValueError, match=f"zero_shot must return PseudoLabels, got {type(given).__name__}"):
        list(adapt(Mine(tiny_backbone, toy.prompts), toy))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: None,
        lambda x: x.mean(),
        lambda x: [x.mean()],
        lambda x: {},
        lambda x: {0: x.mean()},
        lambda x: {"a": x.mean(), "b": 1.0},
        lambda x: {"a": x},
        lambda x: {"a": x.mean().detach()},
    ],
)
def test_a_loss_that_is_no_dictionary_of_terms_is_refused_at_the_first_step(tiny_backbone, toy, loss):
    class Mine(DPA):
        def loss(self, views, pseudo):
            return loss(self.logits(views.weak))

    with pytest.raises(ValueError, match=r"^loss of dpa must return a dictionary, name -> .*, got .*$"):
        list(adapt(Mine(tiny_backbone, toy.prompts), toy))


@pytest.mark.parametrize("hook", ["snapshot", "diagnostics", "explain", "branches", "baselines"])
@pytest.mark.parametrize("given", [None, [torch.ones(3, 2)], {0: torch.ones(3, 2)}, {"a": np.ones((3, 2))}])
def test_what_a_method_of_ones_own_gives_before_training_must_be_a_dictionary(
    tiny_backbone, toy, toy_test, hook, given
):
    class Mine(ZeroShot):
        pass

    setattr(Mine, hook, lambda self, *images: given)
    with pytest.raises(
        ValueError, match=rf"^{hook} of zero_shot must return a dictionary, name -> .*, got .*$"
    ) as told:
        list(adapt(Mine(tiny_backbone, toy.prompts), toy, eval_dataset=toy_test))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("hook", "given", "message"),
    [
        ("begin_epoch", 3, "begin_epoch of zero_shot must be a function, got 3"),
        ("branches", {}, r"branches of zero_shot must be a function, got \{\}"),
        ("view_logits", 3, "view_logits of zero_shot must be a function, got 3"),
        ("measured", 3, "measured of zero_shot must be a function, got 3"),
        ("measured", lambda self, views: None, "measured of zero_shot must return logits and branches, got None"),
        ("measured", lambda self, views: self.logits(views.weak), "measured .* logits and branches, got tensor.*"),
        ("measured", lambda self, views: (self.logits(views.weak), None), "measured .* branches, got .tensor.*"),
        (
            "explain",
            lambda self, x: {"a": torch.ones(len(x), 4)},
            r"explain .* 'a' must be \(B, h, w\).*, got \(\d+, 4\)",
        ),
        ("explain", lambda self, x: {"a": torch.ones(1, 4, 4)}, r"explain .* with B = \d+, got \(1, 4, 4\)"),
        ("branches", lambda self, x: {"a": 1.0}, r"branch 'a' of zero_shot must be a tensor \(B, C\), got float"),
        ("explain", lambda self, x: {"a": 1.0}, r"explain of zero_shot: 'a' must be a tensor \(B, h, w\), got float"),
    ],
)
def test_an_optional_hook_that_is_none_or_gives_something_else_is_named(
    tiny_backbone, toy, toy_test, hook, given, message
):
    class Mine(ZeroShot):
        pass

    setattr(Mine, hook, given)
    with pytest.raises(ValueError, match=f"^{message}$") as told:
        list(adapt(Mine(tiny_backbone, toy.prompts), toy, eval_dataset=toy_test, probe=torch.rand(2, 3, 32, 32)))
    assert "\n" not in str(told.value)


# ------------------------------------------------------------------------------------------------- events


def test_events_come_in_order_and_number(tiny_backbone, toy_test):
    data = ToyDataset(20)
    probe = torch.rand(2, 3, 32, 32)
    events = run_to_end(microclip(tiny_backbone), data, eval_dataset=toy_test, probe=probe)
    kinds = [type(event) for event in events]
    epoch = [StepFinished] * 3 + [EpochFinished]
    assert kinds == [RunStarted, EpochFinished, *epoch, *epoch, RunFinished]
    started, finished = events[0], events[-1]
    assert (started.n_images, started.n_epochs, started.n_steps) == (20, 2, 6)
    assert started.class_names == data.class_names
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [-1, 0, 1]
    assert [(e.epoch, e.step) for e in events if isinstance(e, StepFinished)] == [
        (0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5),
    ]  # fmt: skip
    assert finished.status == "finished"
    assert finished.seconds > 0


def test_every_epoch_sees_every_image_once_and_keeps_the_short_batch(tiny_backbone):
    steps = [e for e in run_to_end(microclip(tiny_backbone), ToyDataset(20)) if isinstance(e, StepFinished)]
    assert [len(e.index) for e in steps] == [8, 8, 4, 8, 8, 4]
    for epoch in (0, 1):
        seen = torch.cat([e.index for e in steps if e.epoch == epoch])
        assert sorted(seen.tolist()) == list(range(20))
        target = torch.cat([e.target for e in steps if e.epoch == epoch])
        assert torch.equal(target, seen % 3)  # the true class of toy image i
    assert steps[0].index.tolist() != steps[3].index.tolist()  # reshuffled


def test_epoch_events_carry_measurements(tiny_backbone, toy_test):
    method = microclip(tiny_backbone)
    events = run_to_end(method, ToyDataset(20), eval_dataset=toy_test, probe=torch.rand(2, 3, 32, 32))
    before, *after = [e for e in events if isinstance(e, EpochFinished)]
    assert "pseudo_label_accuracy" not in before.metrics
    steps = [e for e in events if isinstance(e, StepFinished) and e.epoch == 1]
    guesses, target = (torch.cat([get(e) for e in steps]) for get in (lambda e: e.pseudo.labels, lambda e: e.target))
    last = after[-1]
    assert last.metrics["pseudo_label_accuracy"] == pytest.approx((guesses == target).float().mean().item())
    density = torch.cat([e.pseudo.metrics["edge_density"] for e in steps])
    assert last.metrics["edge_density"] == pytest.approx(density.mean().item(), abs=1e-6)
    right = last.predictions.probs.argmax(-1) == torch.from_numpy(toy_test.targets)
    assert last.metrics["accuracy"] == pytest.approx(right.float().mean().item())
    assert {"accuracy_cls", "accuracy_fg"} <= last.metrics.keys()
    assert last.explanation["soap"].shape == (2, 4, 4)
    assert last.snapshot["learned_classifier"].shape == (3, 32)
    # snapshots are copies: training went on after the first ones were taken
    assert not torch.equal(before.snapshot["learned_classifier"], last.snapshot["learned_classifier"])
    assert torch.equal(before.snapshot["static_classifier"], last.snapshot["static_classifier"])


def test_metrics_of_any_name_leave_the_accuracy_of_pseudo_labels_alone(tiny_backbone, toy):
    class Mine(ZeroShot):
        def pseudo_label(self, views, index):
            names = ("labels", "targets", "pseudo_label_accuracy")
            return replace(super().pseudo_label(views, index), metrics=dict.fromkeys(names, torch.zeros(len(index))))

    own, plain = (record(adapt(kind(tiny_backbone, toy.prompts), toy)) for kind in (Mine, ZeroShot))
    assert own.metric("pseudo_label_accuracy").tolist() == plain.metric("pseudo_label_accuracy").tolist() != [0.0]


def test_without_labels_there_is_no_accuracy(tiny_backbone):
    data = ToyDataset(10, labelled=False)
    events = run_to_end(microclip(tiny_backbone), data, eval_dataset=data)
    for event in events:
        if isinstance(event, EpochFinished):
            assert not [name for name in event.metrics if "accuracy" in name]
            assert event.predictions is not None


def test_partly_labelled_data_count_the_labelled_images_only(tiny_backbone):
    data = ToyDataset(12)
    data.targets[4:] = -1
    last = run_to_end(ZeroShot(tiny_backbone, data.prompts), data, eval_dataset=data)[-2]
    right = last.predictions.probs[:4].argmax(-1) == torch.from_numpy(data.targets[:4])
    assert last.metrics["accuracy"] == pytest.approx(right.float().mean().item())


def test_a_method_that_only_guesses_makes_one_pass_without_losses(tiny_backbone, toy):
    events = run_to_end(ZeroShot(tiny_backbone, toy.prompts), toy, AdaptConfig(epochs=5, batch_size=10))
    steps = [e for e in events if isinstance(e, StepFinished)]
    assert len(steps) == 3
    assert all(e.losses == {} for e in steps)
    assert events[0].meta["epochs"] == 0


def test_metadata_say_what_was_done(tiny_backbone, toy, toy_test):
    started = next(adapt(microclip(tiny_backbone, gamma=0.25), toy, CONFIG, eval_dataset=toy_test, seed=7))
    meta = started.meta
    assert (meta["method"], meta["model"], meta["data"], meta["split"]) == ("microclip", "tiny", "toy", "train")
    assert (meta["eval_data"], meta["eval_split"], meta["accuracy_is"]) == ("toy", "test", "test")
    assert (meta["seed"], meta["epochs"], meta["gamma"]) == (7, 2, 0.25)
    assert meta["settings"]["schedule"]["lr"] == 1e-3
    assert meta["versions"].keys() >= {"python", "torch", "open_clip_torch", "clipviz"}
    transductive = next(adapt(microclip(tiny_backbone), toy, CONFIG, eval_dataset=toy))
    assert transductive.meta["accuracy_is"] == "transductive"


def test_accuracy_is_transductive_where_the_images_are_the_same_whatever_their_names(tiny_backbone):
    toy, renamed, other = ToyDataset(12), ToyDataset(12), ToyDataset(12, seed=1)
    renamed.name, renamed.split = "./toy", "all"
    method = ZeroShot(tiny_backbone, toy.prompts)
    said = [next(adapt(method, toy, eval_dataset=each)).meta["accuracy_is"] for each in (renamed, other, None)]
    assert said == ["transductive", "test", None]


def test_the_first_birds_of_those_that_were_learned_are_not_unseen():
    backbone = load_backbone("birds")
    data, other = (BirdsDataset("source", "train", n=48, seed=seed) for seed in (0, 1))
    some, more = (BirdsDataset("source", "train", n=n) for n in (24, 72))
    method = ZeroShot(backbone, data.prompts)
    said = [next(adapt(method, data, eval_dataset=each)).meta["accuracy_is"] for each in (data, some, more, other)]
    assert said == ["transductive", "transductive", "test", "test"]


def test_nothing_happens_before_the_first_event(tiny_backbone, toy):
    method = microclip(tiny_backbone)
    before = method_state(method)
    adapt(method, toy, CONFIG)
    assert_same_bits(before, method_state(method))


# ------------------------------------------------------------------------------------------------- schedule


def test_cosine_known_answers():
    config = AdaptConfig(lr=1e-3, min_lr=1e-4)
    assert cosine_lr(0, 100, config) == pytest.approx(1e-3)
    assert cosine_lr(50, 100, config) == pytest.approx(5.5e-4)
    assert cosine_lr(25, 100, config) == pytest.approx(1e-4 + 4.5e-4 * (1 + math.sqrt(0.5)))
    assert cosine_lr(100, 100, config) == pytest.approx(1e-4)


def test_a_rate_below_the_floor_never_rises():
    # the official code decays from 1e-6 "down" to 2e-6
    config = AdaptConfig(lr=1e-6, min_lr=2e-6)
    assert [cosine_lr(step, 10, config) for step in (0, 5, 9)] == pytest.approx([1e-6] * 3)


def test_a_rate_below_the_floor_is_told_where_it_matters(tiny_backbone, toy):
    low = AdaptConfig(lr=1e-6)
    with pytest.warns(UserWarning, match="learning rate 1e-06 is below the schedule's floor 2e-06"):
        adapt(microclip(tiny_backbone), toy, low)
    adapt(ZeroShot(tiny_backbone, toy.prompts), toy, low)  # a warning would be an error here: it trains nothing


def test_the_optimizer_follows_the_schedule(tiny_backbone, toy):
    run = Adaptation(microclip(tiny_backbone), toy, CONFIG)
    rates = [run.optimizer.param_groups[0]["lr"] for event in run if isinstance(event, StepFinished)]
    assert rates == pytest.approx([cosine_lr(step, 6, CONFIG) for step in range(6)])
    assert rates[0] == pytest.approx(1e-3)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_one_step_is_one_step_of_adamw(tiny_backbone, scale):
    """The first step against AdamW written out: betas (0.9, 0.999), eps 1e-8, decay 0.1 on everything."""
    data = ToyDataset(8)
    method, twin = (microclip(tiny_backbone, soap_lr_scale=scale) for _ in range(2))
    assert len(method.parameter_groups(0.1)) == 1 + (scale != 1.0)  # the authors have one
    run = Adaptation(method, data, AdaptConfig(epochs=1, batch_size=8, lr=1e-2))
    batch = next(run.loader.epoch(0))
    with torch.no_grad():
        pseudo = twin.pseudo_label(batch.views, batch.index)
    sum(twin.loss(batch.views, pseudo).values()).backward()
    list(run)
    moved = dict(method.named_parameters())
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            lr = 1e-2 * (scale if name in ("w_query", "w_key", "w_value") else 1.0)
            expected = parameter.detach() * (1 - lr * 0.1) - lr * gradient / (gradient.abs() + 1e-8)
            settled = gradient.abs() > 1e-5  # elsewhere rounding decides the sign
            torch.testing.assert_close(moved[name][settled], expected[settled], atol=1e-5, rtol=1e-3)
            assert settled.any(), name


# ------------------------------------------------------------------------------------------------- what changes nothing


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny_backbone):
    def final(seed):
        torch.manual_seed(seed + 100)  # global random numbers play no part
        method = microclip(tiny_backbone)
        run_to_end(method, ToyDataset(20), seed=seed)
        return method_state(method)

    first = final(3)
    torch.rand(5)
    assert_same_bits(first, final(3))
    other = final(4)
    assert not torch.equal(first["learned_classifier"], other["learned_classifier"])


def test_global_random_numbers_are_neither_used_nor_changed(tiny_backbone, toy_test):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    run_to_end(
        microclip(tiny_backbone),
        ToyDataset(10),
        eval_dataset=toy_test,
        probe=torch.rand(1, 3, 32, 32, generator=torch.Generator()),
    )
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("name", ["dpa", "microclip"])
def test_what_a_tower_would_drop_at_random_stays(name):
    """Patch dropout and the stochastic depth of open_clip's ConvNeXt and ViTamin towers draw global random numbers."""
    states = []
    for seed in range(2):
        backbone, data = make_tiny_backbone(), ToyDataset(8)
        backbone.visual.patch_dropout = PatchDropout(0.5)
        for block in backbone.visual.transformer.resblocks:
            block.mlp.add_module("drop", DropPath(0.5))
        method = METHODS[name](backbone.eval(), data.prompts)
        torch.manual_seed(seed)
        run_to_end(method, data, AdaptConfig(epochs=1, batch_size=8, lr=1e-3))
        states.append(method_state(method))
    assert_same_bits(*states)


def test_looking_changes_no_bit(tiny_backbone, toy_test):
    """Evaluation, probe and listeners that look hard, against nobody looking at all."""
    unseen, seen = microclip(tiny_backbone), microclip(tiny_backbone)
    run_to_end(unseen, ToyDataset(20))
    images = torch.rand(2, 3, 32, 32)

    def stare(event):
        with preserved_state(seen):
            seen.logits(images)
            torch.rand(3)
        seen.eval()
        seen.explain(images)
        torch.rand(3)

    record(adapt(seen, ToyDataset(20), CONFIG, eval_dataset=toy_test, probe=images), stare, stare)
    assert_same_bits(method_state(unseen), method_state(seen))


def test_a_consumer_without_gradients_changes_no_bit(tiny_backbone):
    plain, inside = microclip(tiny_backbone), microclip(tiny_backbone)
    run_to_end(plain, ToyDataset(16))
    with torch.no_grad():
        run_to_end(inside, ToyDataset(16))
    assert torch.is_grad_enabled()
    assert_same_bits(method_state(plain), method_state(inside))


@pytest.mark.parametrize("method_class", [microclip, lambda backbone: ZeroShot(backbone, ToyDataset(3).prompts)])
def test_targets_never_reach_the_method(tiny_backbone, method_class):
    def final(permute):
        data = ToyDataset(20)
        if permute:
            data.targets = np.random.default_rng(0).permutation(data.targets)
        method = method_class(tiny_backbone)
        events = run_to_end(method, data, eval_dataset=data)
        guesses = torch.cat([e.pseudo.probs for e in events if isinstance(e, StepFinished)])
        return method_state(method), guesses, events[-2].metrics["accuracy"]

    state, guesses, accuracy = final(False)
    permuted_state, permuted_guesses, permuted_accuracy = final(True)
    assert_same_bits(state, permuted_state)
    assert torch.equal(guesses, permuted_guesses)
    # the permutation was there: the same predictions measure differently, or one could not tell
    assert (ToyDataset(20).targets != np.random.default_rng(0).permutation(ToyDataset(20).targets)).any()
    assert accuracy != permuted_accuracy or len(set(guesses.argmax(-1).tolist())) == 1


def test_prepare_sees_every_image_and_no_target(tiny_backbone):
    seen: list[Batch] = []

    class Curious(ZeroShot):
        def prepare(self, batches):
            seen.extend(batches)

    data = ToyDataset(20)
    run_to_end(Curious(tiny_backbone, data.prompts), data)
    assert sorted(torch.cat([batch.index for batch in seen]).tolist()) == list(range(20))
    assert (torch.cat([batch.target for batch in seen]) == -1).all()


def test_a_frozen_tower_is_never_put_in_training_mode(toy):
    """BatchNorm of a ResNet would otherwise drift with every batch that is only looked at."""
    backbone = make_tiny_backbone()
    backbone.model.visual.bn = nn.BatchNorm2d(3)
    backbone.eval()
    inner = backbone.model.encode_image
    backbone.model.encode_image = lambda x, **kw: inner(backbone.model.visual.bn(x), **kw)
    before = backbone.model.visual.bn.running_mean.clone()
    run_to_end(ZeroShot(backbone, toy.prompts), toy, eval_dataset=toy)
    assert torch.equal(backbone.model.visual.bn.running_mean, before)
    assert not any(module.training for module in backbone.modules())


def test_leaving_the_loop_leaves_the_method_usable(tiny_backbone, toy):
    method = microclip(tiny_backbone)
    for event in adapt(method, toy, CONFIG):
        if isinstance(event, StepFinished):
            break
    assert torch.is_grad_enabled()
    assert method.logits(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    assert not torch.equal(method.learned_classifier, microclip(tiny_backbone).learned_classifier)


# ------------------------------------------------------------------------------------------------- numbers that explode


class Exploding(ZeroShot):
    """Trains one number; its loss, or its gradient, is broken at a chosen step."""

    trains = True

    def __init__(self, backbone, prompts, at, where):
        super().__init__(backbone, prompts)
        self.x = nn.Parameter(torch.ones(()))
        self.at, self.where, self.calls = at, where, 0

    def loss(self, views, pseudo):
        self.calls += 1
        broken = self.calls - 1 == self.at
        loss = {"fine": self.x**2, "bad": self.x * (float("nan") if broken and self.where == "loss" else 1.0)}
        if broken and self.where == "gradient":
            loss["bad"] = (self.x - self.x).abs().sqrt()  # 0, with an infinite slope
        return loss


def test_a_loss_that_is_not_finite_stops_with_step_and_terms(tiny_backbone, toy, tmp_path):
    method = Exploding(tiny_backbone, toy.prompts, at=4, where="loss")
    run = Run(method, toy, CONFIG, folder=tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 4 \(epoch 1\): fine = .*, bad = nan.*smaller learning rate"):
        run.fit()
    assert torch.isfinite(method.x)  # the step was not taken
    healthy = Exploding(tiny_backbone, toy.prompts, at=-1, where="")
    resumed = Run(healthy, toy, CONFIG, folder=tmp_path)
    assert resumed.restore()
    assert resumed.adaptation.epoch == 1  # the checkpoint of the last good epoch
    resumed.fit()


def test_weights_that_turn_nan_in_the_last_step_are_not_checkpointed(tiny_backbone, toy, tmp_path):
    method = Exploding(tiny_backbone, toy.prompts, at=5, where="gradient")
    run = Run(method, toy, CONFIG, folder=tmp_path)
    with pytest.raises(FloatingPointError, match=r"not finite after epoch 1 .*'x'"):
        run.fit()
    assert run.trace.meta["status"] == "failed"
    resumed = Run(Exploding(tiny_backbone, toy.prompts, at=-1, where=""), toy, CONFIG, folder=tmp_path)
    resumed.restore()
    assert resumed.adaptation.epoch == 1
    assert torch.isfinite(resumed.method.x)


# ------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs must be at least 1"), ({"batch_size": 0}, "batch_size"), ({"workers": -1}, "workers"),
     ({"lr": 0.0}, "lr must be positive"), ({"lr": float("nan")}, "lr must be positive"),
     ({"lr": math.inf}, "lr must be positive and finite"), ({"min_lr": -1.0}, "min_lr must be at least 0"),
     ({"weight_decay": math.nan}, "weight_decay must be at least 0")],
)  # fmt: skip
def test_schedules_that_cannot_be_run_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**options)


def test_a_probe_of_bytes_is_refused_at_once(tiny_backbone, toy):
    pixels = np.stack([np.asarray(toy.image(i).resize((32, 32))) for i in range(3)])
    probe = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with pytest.raises(ValueError, match=r"in \[0, 1\], B >= 1, got uint8"):
        adapt(microclip(tiny_backbone), toy, CONFIG, probe=probe)
    assert len(list(adapt(microclip(tiny_backbone), toy, CONFIG, probe=probe / 255))) > 3


def test_what_is_no_method_or_no_schedule_is_refused_at_once(tiny_backbone, toy):
    for method in ("dpa", MicroCLIP, tiny_backbone):  # the text of a model has a line for each of its layers
        with pytest.raises(ValueError, match=r"\Aadapt needs a method that was built, got .*; for example .*\Z"):
            adapt(method, toy)
    with pytest.raises(ValueError, match=r"\Aadapt needs an AdaptConfig, got Backbone.*; a method's constants .*\Z"):
        adapt(microclip(tiny_backbone), toy, tiny_backbone)
    with pytest.raises(ValueError, match="adapt needs an AdaptConfig, got MicroCLIPConfig"):
        adapt(microclip(tiny_backbone), toy, MicroCLIPConfig())


def test_the_default_schedule_is_the_methods_own(tiny_backbone, toy):
    method: Method = microclip(tiny_backbone)
    assert Adaptation(method, toy).config == method.schedule


@pytest.mark.parametrize("name", METHODS)
def test_a_run_leaves_the_callers_model_as_it_was_so_a_second_one_gives_the_same_bits(name, tiny_backbone, toy):
    teacher = make_tiny_backbone(seed=1) if name == "ntua" else None
    states = []
    for _ in range(2):
        method = METHODS[name](tiny_backbone, toy.prompts, **({"teacher": teacher} if teacher else {}))
        for event in adapt(method, toy, AdaptConfig(epochs=1, batch_size=16), eval_dataset=toy):
            if isinstance(event, StepFinished) and teacher:
                assert not any(module.training for module in teacher.modules())
        states.append({key: value.clone() for key, value in method.trainable_state().items()})
        assert not any(module.training for module in tiny_backbone.modules())
    assert states[0].keys() == states[1].keys()
    assert [key for key, value in states[0].items() if not torch.equal(value, states[1][key])] == []
