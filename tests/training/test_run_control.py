"""A run in a thread: commands are obeyed at step boundaries, and looking changes nothing."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny import ToyDataset

from clipviz.events import RunFinished, StepFinished
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.trace import Trace
from clipviz.training.run import Run, end_idle_workers
from clipviz.training.run_folder import RunFolder

CONFIG = AdaptConfig(epochs=3, batch_size=4, lr=1e-3)


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


@pytest.fixture
def make_run(tiny_backbone):
    def make(**kwargs):
        data = ToyDataset(16)
        method = METHODS["microclip"](tiny_backbone, data.prompts)
        return Run(method, data, CONFIG, eval_dataset=data, seed=1, **kwargs)

    return make


def at_step(step, act):
    return lambda event: act() if isinstance(event, StepFinished) and event.step == step else None


def weights(run):
    return {name: tensor.clone() for name, tensor in run.method.trainable_state().items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_caller_that_starts_a_run_keeps_no_workers():
    def n_threads():
        return len(os.listdir("/proc/self/task"))

    def caller():
        torch.set_num_threads(2)
        torch.ones(1_000_000).exp()
        with_workers = n_threads()
        end_idle_workers()
        without = n_threads()
        torch.ones(1_000_000).exp()
        return with_workers, without, n_threads()

    try:
        with ThreadPoolExecutor(1) as executor:
            with_workers, without, again = executor.submit(caller).result()
    finally:
        torch.set_num_threads(1)
    assert without == with_workers - 1 == again - 1


def test_a_thread_ends_with_the_bits_of_the_caller(make_run, monkeypatch):
    in_caller, in_thread = make_run(), make_run()
    in_caller.fit()
    ended = []
    monkeypatch.setattr("clipviz.training.run.end_idle_workers", lambda: ended.append(threading.current_thread()))
    trace = in_thread.start().wait()
    assert ended == [threading.current_thread()]
    assert_same_bits(weights(in_caller), weights(in_thread))
    assert trace.meta["status"] == in_thread.status == "finished"
    assert in_thread.steps_done == 12


def test_pause_step_resume_are_obeyed_and_change_nothing(make_run):
    undisturbed, run = make_run(), make_run()
    undisturbed.fit()
    run.pause()
    run.start()
    wait_for(lambda: run.status == "paused")
    assert run.steps_done == 0
    run.step()
    wait_for(lambda: run.steps_done == 1 and run.status == "paused")
    run.step(3)
    wait_for(lambda: run.steps_done == 4 and run.status == "paused")
    time.sleep(0.05)
    assert run.steps_done == 4
    run.resume()
    run.wait(60)
    assert_same_bits(weights(undisturbed), weights(run))


def test_stop_ends_at_the_next_step_with_the_model_of_that_step(make_run):
    run, reference = make_run(), make_run()
    events = []
    run.listeners.append(events.append)
    run.pause()
    run.start()
    run.step(5)
    wait_for(lambda: run.steps_done == 5 and run.status == "paused")
    run.stop()
    trace = run.wait(20)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == trace.meta["status"] == run.status == "stopped"
    assert len(trace.samples) == 5 * 4
    done = 0
    for event in reference.adaptation:
        done += isinstance(event, StepFinished)
        if done == 5:
            break
    assert_same_bits(weights(run), weights(reference))


def test_a_run_that_goes_on_is_not_started_again_and_one_that_is_over_refuses(make_run, capsys):
    run = make_run()
    run.pause()
    assert run.start() is run
    wait_for(lambda: run.status == "paused")
    assert capsys.readouterr().out == ""
    assert run.start() is run  # the button first, then the cell
    assert capsys.readouterr().out == "this run is paused already; resume() continues it\n"
    run.listeners.append(lambda event: run.start() if isinstance(event, StepFinished) and event.step == 3 else None)
    run.resume()
    run.wait(60)
    assert capsys.readouterr().out == "this run is running already\n"
    assert run.steps_done == 12
    for begin in (run.start, run.fit):
        with pytest.raises(RuntimeError, match="this run is finished; a Run runs only once; make a new one"):
            begin()


def test_wait_for_what_never_began(make_run):
    with pytest.raises(RuntimeError, match="not started"):
        make_run().wait()


def test_wait_gives_up_in_time_and_the_run_goes_on(make_run):
    run = make_run()
    run.pause()
    run.start()
    with pytest.raises(TimeoutError, match="it continues"):
        run.wait(0.05)
    run.stop()
    run.wait(20)


def test_a_run_that_has_begun_is_not_restored(make_run, tmp_path):
    run = make_run(folder=tmp_path)
    run.start()
    with pytest.raises(RuntimeError, match=r"this run is \w+; restore\(\) goes before fit\(\) and start\(\)"):
        run.restore()
    run.wait(60)
    with pytest.raises(RuntimeError, match=r"this run is finished; restore\(\) goes before"):
        run.restore()


def test_an_error_in_the_thread_reaches_whoever_waits(make_run):
    def broken(event):
        if isinstance(event, StepFinished):
            raise ArithmeticError("listener broke")

    run = make_run(listeners=[broken])
    run.start()
    with pytest.raises(ArithmeticError, match="listener broke"):
        run.wait(60)
    assert run.status == "failed"
    assert run.trace.meta["status"] == "failed"


def test_await_leaves_the_event_loop_free(make_run):
    async def cell():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        trace = await make_run().start()
        ticking.cancel()
        return trace, ticks

    with ThreadPoolExecutor(1) as executor:  # a browser test before this one may have left a loop running in ours
        trace, ticks = executor.submit(asyncio.run, cell()).result(60)
    assert trace.meta["status"] == "finished"
    assert ticks > 3


def test_set_is_applied_between_steps_and_recorded(make_run):
    run = make_run()
    run.pause()
    run.start()
    run.step(2)
    wait_for(lambda: run.steps_done == 2 and run.status == "paused")
    change = run.set(gamma=0.25)
    assert change.result(20) == 2
    assert repr(change) == "gamma = 0.25 from step 2 on"
    run.step()
    wait_for(lambda: run.steps_done == 3 and run.status == "paused")
    assert run.method.config.gamma == 0.25
    run.stop()
    assert run.wait(20).meta["changes"] == run.changes == [{"step": 2, "gamma": 0.25}]


def test_a_change_waits_visibly_and_one_that_comes_too_late_says_so(make_run):
    run, late = make_run(), []
    change = run.set(gamma=0.25)
    assert run.changes == [{"step": None, "gamma": 0.25}]
    assert repr(change) == "gamma = 0.25 from the next step on"
    run.listeners.append(lambda event: late.append(run.set(gamma=0.5)) if isinstance(event, RunFinished) else None)
    run.fit()
    assert change.result(0) == 0
    assert run.changes == run.trace.meta["changes"] == [{"step": 0, "gamma": 0.25}]
    assert repr(late[0]) == "gamma = 0.5: the run was finished before it"
    assert run.method.config.gamma == 0.25
    with pytest.raises(ValueError, match=r"this run is finished, so no step of it can take gamma = 0.75"):
        run.set(gamma=0.75)


def test_numbers_of_numpy_and_torch_are_plain_ones_before_the_run_has_them(make_run, tmp_path):
    run = make_run(folder=tmp_path)
    run.set(gamma=torch.tensor(0.25), rho=np.float32(0.5))
    trace = run.fit()
    assert trace.meta["changes"] == [{"step": 0, "gamma": 0.25, "rho": 0.5}]
    assert all(type(value) in (int, float) for value in trace.meta["changes"][0].values())
    assert Trace.load(tmp_path).meta["changes"] == trace.meta["changes"]


@pytest.mark.parametrize("n", [1.5, 1.0, "2", None, True, np.bool_(True), 0, -1, np.int64(0)])
def test_steps_are_whole_numbers(make_run, n):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, got"):
        make_run().step(n)


def test_a_whole_number_of_numpy_is_one(make_run):
    run = make_run()
    run.step(np.int64(3))
    run.start()
    wait_for(lambda: run.status == "paused" and run.steps_done == 3)
    run.stop()
    run.wait(20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 0.3}, "it can change: gamma"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\]"),
        ({"x": 1}, "'x'"),
        ({"gamma": torch.ones(2)}, "gamma must be a number, got tensor"),
        ({"gamma": "0.3"}, "must be a number"),
        ({"gamma": True}, "must be a number"),
        ({"gamma": None}, "must be a number"),
        ({"gamma": np.nan}, "gamma"),
    ],
)
def test_set_refuses_at_once(make_run, changes, message):
    with pytest.raises(ValueError, match=message):
        make_run().set(**changes)


def test_ask_answers_from_the_owner_and_changes_nothing(make_run):
    undisturbed, run = make_run(), make_run()
    undisturbed.fit()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run.pause()
    run.start()
    run.step(2)
    answers = [run.ask(lambda method: (method.logits(images), threading.current_thread().name)) for _ in range(2)]
    logits, thread = answers[0].result(20)
    assert logits.shape == (2, len(run.method.class_names))
    assert not logits.requires_grad
    assert thread.startswith("clipviz ")
    refused = run.ask(lambda method: method.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        refused.result(20)
    run.resume()
    run.wait(60)
    assert_same_bits(weights(undisturbed), weights(run))
    assert run.ask(lambda method: method.name).result(5) == "microclip"


SIGNALS = [
    (signal.SIGINT, KeyboardInterrupt, ()),
    (signal.SIGTERM, SystemExit, (143,)),
    (signal.SIGHUP, SystemExit, (129,)),
]


@pytest.mark.parametrize(("signum", "raised", "code"), SIGNALS)
def test_a_signal_stops_at_a_boundary_and_saves(make_run, tmp_path, signum, raised, code):
    run = make_run(folder=tmp_path, listeners=[at_step(5, lambda: signal.raise_signal(signum))])
    before = signal.getsignal(signum)
    with pytest.raises(raised) as stop:
        run.fit()
    assert stop.value.args == code
    assert signal.getsignal(signum) is before
    assert run.status == Trace.load(tmp_path).meta["status"] == "stopped"
    assert run.steps_done == 6
    assert len(run.trace.samples) == 6 * 4


def test_a_signal_that_is_ignored_stays_ignored_and_a_handler_of_the_script_is_called(make_run):
    came = []
    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: came.append(1))]
    try:
        run = make_run(listeners=[at_step(2, lambda: signal.raise_signal(signal.SIGHUP))])  # as under nohup
        assert run.fit().meta["status"] == "finished"
        run = make_run(listeners=[at_step(2, lambda: signal.raise_signal(signal.SIGTERM))])
        with pytest.raises(SystemExit):
            run.fit()
        assert (run.status, came) == ("stopped", [1])
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("signum", "raised", "code"), SIGNALS)
def test_a_signal_while_waiting_returns_when_the_thread_is_done(make_run, tmp_path, signum, raised, code, times):
    """`Thread.join` of Python 3.11 lets go of a thread that works on when Ctrl-C comes."""

    def interrupt():
        for _ in range(times):
            os.kill(os.getpid(), signum)  # to the main thread, which waits
        time.sleep(0.1)  # in the middle of a step

    run = make_run(folder=tmp_path, listeners=[at_step(3, interrupt)])
    run.start()
    with pytest.raises(raised):
        run.wait()
    assert (run.status, run.is_live, run.steps_done) == ("stopped", False, 4)
    assert Trace.load(tmp_path).meta["status"] == "stopped"
    RunFolder(tmp_path).lock()


def test_a_task_that_awaits_a_run_is_cancelled_and_the_run_is_over(make_run):
    async def cell():
        run = make_run(listeners=[at_step(3, lambda: loop.call_soon_threadsafe(task.cancel))])
        loop = asyncio.get_running_loop()

        async def awaited():
            return await run.start()

        task = asyncio.create_task(awaited())
        with pytest.raises(asyncio.CancelledError):
            await task
        return run

    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(asyncio.run, cell()).result(60)
    assert (run.status, run.is_live) == ("stopped", False)
    assert 4 <= run.steps_done < 12


def test_an_interrupt_before_the_first_step_does_not_wait_for_the_whole_set(tiny_backbone, tmp_path):
    data, seen = ToyDataset(24), []

    class Slow(METHODS["dpa"]):
        def prepare(self, batches):
            for batch in batches:
                seen.append(batch)
                signal.raise_signal(signal.SIGINT)

    run = Run(Slow(tiny_backbone, data.prompts), data, AdaptConfig(epochs=1, batch_size=6), folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert (len(seen), run.status, run.steps_done) == (1, "stopped", 0)
    assert not list((tmp_path / "run").iterdir())  # an empty trace would have the same command refused
    again = Run(METHODS["dpa"](tiny_backbone, data.prompts), data, AdaptConfig(epochs=1), folder=tmp_path / "run")
    assert not again.restore()  # from the beginning
    assert len(again.fit().steps)


def test_repr_is_the_same_everywhere(make_run):
    assert repr(make_run()) == "Run(microclip on toy, ready)"
