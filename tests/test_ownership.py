"""One owner of a model at a time: threads that look at once, at any model, get the maps of a single thread."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny import ToyDataset, assert_same_bits, differences, make_tiny_backbone, method_state, microclip

from clipviz.backbone.ownership import _LOCKS, lock_of
from clipviz.events import StepFinished
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.saliency import KINDS, available_kinds, capture_attention, saliency_maps
from clipviz.saliency.perturbation import deletion_auc, map_infidelity, map_sensitivity, sanity_check
from clipviz.training.run import Run

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
STILL = AdaptConfig(epochs=40, batch_size=4, lr=1e-12, min_lr=0.0)
"""A run whose steps are real but move no weight by more than rounding, so that its maps are known while it is live."""

Question = Callable[[], Any]


@pytest.fixture(autouse=True)
def _threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def questions(model: Any, sentences: dict[str, str] | None = None) -> list[Question]:
    """One question for each kind of map, and the measures that look at a model in other ways."""
    asked = sentences or {}
    found: list[Question] = [
        lambda kind=kind: saliency_maps(model, IMAGES, kind, **(asked if KINDS[kind].asks else {})).raw
        for kind in KINDS
    ]
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(6))
    contrast = {"target": "a bird", "contrast": "a fish"} if asked else {}
    found += [
        lambda: map_sensitivity(model, IMAGES, "layer_gradcam", samples=2, **asked),
        lambda: map_infidelity(model, IMAGES, maps, samples=4, **asked),
        lambda: deletion_auc(model, IMAGES, maps, steps=4, **contrast),
        lambda: torch.tensor(sanity_check(model, IMAGES[:1], "cls_attention")["correlation"].to_numpy()),
        lambda: getattr(model, "backbone", model).tokens(IMAGES).patches,
        lambda: torch.tensor([kind in available_kinds(model) for kind in KINDS]),
    ]
    return found


def wrong_answers(groups: list[list[Question]], n_threads: int, calls: int, expected: list[list[Any]]) -> list[str]:
    """Ask in several threads at once, in any order; what differs from the answers that one thread gets."""
    jobs = [(group, i) for group, questions in enumerate(groups) for i in range(len(questions))]
    found: list[str] = []

    def work(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(calls // n_threads):
            group, i = order.choice(jobs)
            try:
                torch.testing.assert_close(groups[group][i](), expected[group][i], atol=1e-5, rtol=1e-4)
            except Exception as error:
                found.append(f"question {i} of group {group}: {type(error).__name__}: {str(error)[:80]}")

    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(work, range(n_threads)))
    return found


def make_run(backbone: Any, config: AdaptConfig = STILL) -> Run:
    data = ToyDataset(16)
    return Run(microclip(backbone), data, config, eval_dataset=data, seed=1)


def looks(run: Run) -> list[Question]:
    """Through `Run.ask` and the model_probe, as the views do."""
    pixels = run.model_probe.pixels("eval", 2)
    return [
        *(lambda kind=kind: torch.from_numpy(run.model_probe.saliency(pixels, kind)) for kind in KINDS),
        lambda: torch.from_numpy(run.model_probe.probs(pixels)),
        lambda: run.ask(lambda method: method.logits(IMAGES)).result(30),
    ]


def stress(world: str, calls: int) -> list[str]:
    """What goes wrong in so many calls by two threads, and as many by four."""
    backbone, run = make_tiny_backbone(), None
    if world == "bare backbone":
        groups = [questions(backbone, {"target": "a bird"})]
    elif world == "two methods of one tower":
        names = "zero_shot", "descriptions"
        groups = [questions(METHODS[name](backbone, ToyDataset(3).prompts).eval()) for name in names]
    else:
        run = make_run(backbone)
        if world == "finished run":
            run.adaptation.n_epochs = 1
            run.fit()
        groups = [questions(run.method), looks(run)]
    expected = [[question() for question in questions] for questions in groups]
    if world == "live run":
        run.start()
    found = [wrong for n_threads in (2, 4) for wrong in wrong_answers(groups, n_threads, calls, expected)]
    if world == "live run":
        assert run.is_live, "the run ended too early to be looked at"
        run.stop()
        run.wait(60)
    return found


@pytest.mark.parametrize("world", ["bare backbone", "two methods of one tower", "finished run", "live run"])
def test_threads_that_look_at_once_get_the_maps_of_one_thread(world):
    assert stress(world, calls=24) == []


def test_a_forward_pass_of_another_thread_is_none_of_a_capture() -> None:
    """Not even one made with open_clip itself, which knows of no lock."""
    backbone = make_tiny_backbone()
    plain = backbone.model.encode_image(IMAGES)
    with ThreadPoolExecutor(1) as other, capture_attention(backbone) as attention:
        backbone.embed(IMAGES[:1])
        seen = {layer: weights.clone() for layer, weights in attention.items()}
        assert torch.equal(other.submit(backbone.model.encode_image, IMAGES).result(20), plain)
        assert all(torch.equal(attention[layer], weights) for layer, weights in seen.items())
        assert all(len(weights) == 1 for weights in attention.values())


def test_the_lock_is_that_of_the_tower_and_is_neither_copied_nor_kept() -> None:
    backbone = make_tiny_backbone()
    own = lock_of(backbone)
    shared = METHODS["zero_shot"](backbone, ToyDataset(3).prompts)
    assert lock_of(shared) is lock_of(backbone.model) is lock_of(backbone.visual) is own
    trained = microclip(backbone)
    assert lock_of(trained) is not own
    with own:
        copies = copy.deepcopy(backbone.visual), pickle.loads(pickle.dumps(backbone.visual))
        assert all(lock_of(tower) is not own for tower in copies)
    towers = [weakref.ref(backbone.visual), *map(weakref.ref, copies), weakref.ref(trained.backbone.visual)]
    del backbone, shared, trained, copies
    gc.collect()
    assert [tower() for tower in towers] == [None] * 4
    assert not any(tower in towers for tower in _LOCKS.keyrefs())


def test_a_run_that_is_looked_at_past_its_queue_is_the_run_alone_to_the_bit() -> None:
    backbone = make_tiny_backbone()
    config = AdaptConfig(epochs=3, batch_size=4, lr=1e-3)
    alone, run = make_run(backbone, config), make_run(backbone, config)
    expected = alone.fit()

    def stare(kind: str) -> int:
        looks = 0
        while run.status != "finished" and run.error is None:
            saliency_maps(run.method, IMAGES, kind)
            looks += 1
        return looks

    with ThreadPoolExecutor(2) as threads:
        looks = list(threads.map(stare, ("relevance", "cls_attention"), timeout=60)) if run.start() else []
    assert min(looks) > 0
    assert differences(run.wait(60), expected) == []
    assert_same_bits(method_state(run.method), method_state(alone.method))


# ------------------------------------------------------------------------------------------------- asking a run


def test_a_question_is_answered_between_two_steps_whoever_asks() -> None:
    """From a listener, from beside a `fit`, and from whoever holds the model while the run waits for it."""
    run = make_run(make_tiny_backbone())
    asked, answers = threading.Event(), []

    def listen(event: Any) -> None:
        if isinstance(event, StepFinished) and not asked.is_set():
            answers.append(run.ask(lambda method: method.training).result(20))  # it would wait for itself
            asked.set()

    def beside() -> None:
        asked.wait(20)
        answers.append(run.ask(lambda method: threading.current_thread() is threading.main_thread()).result(20))
        with capture_attention(run.method):
            answers.append(run.ask(lambda method: method.name).result(20))
        run.stop()

    run.listeners.append(listen)
    with ThreadPoolExecutor(1) as other:
        done = other.submit(beside)
        run.fit()
        done.result(20)
    assert answers == [False, True, "microclip"]


def test_a_question_that_nobody_waits_for_any_more_harms_nothing() -> None:
    run = make_run(make_tiny_backbone())
    run.pause()
    run.start()
    while run.status != "paused":
        time.sleep(0.001)
    busy = threading.Event()
    first = run.ask(lambda method: busy.wait(20))
    given_up = run.ask(lambda method: pytest.fail("asked in vain"))
    assert given_up.cancel()
    busy.set()
    assert first.result(20)
    assert run.ask(lambda method: method.name).result(20) == "microclip"
    run.stop()
    assert run.wait(20).meta["status"] == "stopped"


def test_a_question_after_the_last_look_at_the_queue_is_answered(monkeypatch) -> None:
    """The run's thread is still there, but will look no more."""
    data, answers = ToyDataset(4), []
    run = Run(METHODS["zero_shot"](make_tiny_backbone(), data.prompts), data)
    last_look = run._drain

    def drain() -> None:
        last_look()
        if run.status == "finished" and threading.current_thread() is run._thread:
            answers.append(other.submit(lambda: run.ask(lambda method: method.name).result(5)).result(10))

    monkeypatch.setattr(run, "_drain", drain)
    with ThreadPoolExecutor(1) as other:
        run.start().wait(20)
    assert answers == ["zero_shot"]
