"""LiveMonitor without a browser: buttons, slider, numbers, picture; and a run that does not notice it."""

from __future__ import annotations

import base64
import gc
import io
import time
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image
from tiny import assert_same_bits, clusters, differences
from widget_helpers import HOSTILE, wait_for

from clipviz.events import EpochFinished, Probe, PseudoLabels, RunStarted, StepFinished
from clipviz.methods import METHODS
from clipviz.methods.tda import TDA
from clipviz.trace import Trace
from clipviz.training.recorder import Recorder
from clipviz.training.run import Run
from clipviz.widgets import LiveMonitor, ViewState
from clipviz.widgets.watch import trajectory_chart


def weights(run):
    return {name: tensor.clone() for name, tensor in run.method.trainable_state().items()}


def test_final_weights_are_the_same_bits_with_and_without_a_monitor(make_run):
    bare, watched = make_run(), make_run()
    bare.fit()
    monitor = LiveMonitor(watched, rate=200)
    monitor.picture()
    monitor.start.click()
    watched.wait(60)
    monitor.picture()
    for name, tensor in weights(bare).items():
        assert torch.equal(tensor, weights(watched)[name]), name
    assert bare.trace.samples.equals(watched.trace.samples)


def test_buttons_drive_the_run(make_run):
    run = make_run(epochs=50)
    monitor = LiveMonitor(run, rate=100)
    assert monitor.pause.disabled
    monitor.step.click()
    wait_for(lambda: run.status == "paused" and run.steps_done == 1)
    wait_for(lambda: "paused · step 1 of 200" in monitor.canvas.frame["headline"])
    wait_for(lambda: monitor.start.description == "Resume")
    monitor.step.click()
    wait_for(lambda: "step 2 of 200" in monitor.canvas.frame["headline"])
    monitor.start.click()
    wait_for(lambda: run.steps_done > 6)
    monitor.pause.click()
    wait_for(lambda: run.status == "paused")
    done = run.steps_done
    time.sleep(0.1)
    assert run.steps_done == done
    monitor.stop.click()
    run.wait(20)
    wait_for(lambda: "stopped" in monitor.canvas.frame["headline"])
    assert monitor.start.disabled
    assert monitor.stop.disabled
    assert monitor.apply.disabled


@pytest.mark.parametrize("within", ["the step", "its record"])
def test_stop_pressed_during_an_epoch_ends_with_that_very_step(make_run, monkeypatch, within):
    run, reference = make_run(epochs=50), make_run(epochs=50)
    monitor = LiveMonitor(run)
    loss = run.method.loss

    def pressed_in_the_sixth(views, pseudo):
        if run.steps_done == 5:
            monitor.stop.click()
        return loss(views, pseudo)

    if within == "the step":
        monkeypatch.setattr(run.method, "loss", pressed_in_the_sixth)
    else:
        run.listeners.append(lambda _: monitor.stop.click() if run.steps_done == 6 else None)
    trace = run.start().wait(60)
    assert run.steps_done == 6
    assert trace.meta["status"] == "stopped"
    assert monitor.canvas.frame["headline"].startswith("stopped · step 6 of 200 · 1 of 50 epochs done")
    assert monitor.start.disabled
    done, whole = 0, Recorder()
    for event in reference.adaptation:
        whole(event)
        done += isinstance(event, StepFinished)
        if done == 6:
            break
    whole.meta["status"] = "stopped"
    assert differences(trace, whole.trace()) == []
    assert len(trace.samples) == 6 * 4
    assert sorted(trace.steps["step"].unique()) == list(range(6))
    assert_same_bits(weights(run), weights(reference))


def test_gamma_shows_what_it_would_change_and_is_applied(make_run):
    run = make_run(epochs=30)
    monitor = LiveMonitor(run, rate=100)
    assert "after the first epoch" in set_gamma(monitor, 0.4)
    for _ in range(6):
        monitor.step.click()
    wait_for(lambda: run.status == "paused" and run.steps_done == 6)
    wait_for(lambda: "step 6 of" in monitor.canvas.frame["headline"])
    text = set_gamma(monitor, 1.0)
    trace = run.trace
    static = trace.samples.query("epoch == 0")["static_label"].to_numpy()
    own = trace.samples.query("epoch == 0")["pseudo_label"].to_numpy()
    assert text.startswith(f"instead of 0.50: {(static != own).sum()} of 16 pseudo-labels differ")
    assert "(diagnostic only)" in text
    monitor.apply.click()
    monitor.step.click()
    wait_for(lambda: run.steps_done == 7 and run.status == "paused")
    assert run.method.config.gamma == 1.0
    monitor.stop.click()
    assert run.wait(20).meta["changes"] == [{"step": 6, "gamma": 1.0}]


def set_gamma(monitor, value):
    monitor.gamma.value = value
    return monitor.what_if.value


def test_before_a_run_its_prototypes_are_not_said_to_be_missing(make_run):
    run = make_run()
    monitor = LiveMonitor(run)
    assert monitor.canvas.trajectories["empty"] == "Appears when the run begins."
    run.fit()
    assert monitor.canvas.trajectories["series"]
    assert trajectory_chart(replace(run.trace, arrays={})).empty == "This method has no prototypes."


def test_the_last_frame_is_there_when_wait_returns(make_run):
    run = make_run()
    monitor = LiveMonitor(run, rate=0.5)  # so slow that only the first and the last frame are drawn
    monitor.start.click()
    run.wait(60)
    assert monitor.canvas.frame["headline"].startswith("finished · step 12 of 12 · 3 of 3 epochs done")
    assert monitor.canvas.frame["progress"] == 1.0
    names = [line["name"] for line in monitor.canvas.losses["series"]]
    assert names == ["total loss", "cross_entropy", "fairness"]
    assert monitor.canvas.losses["series"][0]["x"] == list(range(12))
    assert monitor.canvas.shape == [3, 4, 4]
    assert len(monitor.canvas.maps) == 3 * 4 * 4


def test_the_paths_take_a_fiftieth_of_the_time_and_are_whole_at_the_end(make_run, monkeypatch):
    now, drawn = [0.0], []

    def takes_a_second(trace):
        now[0] += 1
        drawn.append(trace.epochs["epoch"].nunique() if len(trace.epochs) else 0)
        return trajectory_chart(trace)

    monkeypatch.setattr("clipviz.widgets.live.trajectory_chart", takes_a_second)
    run = make_run(epochs=6)
    monitor = LiveMonitor(run, clock=lambda: now[0])

    def twenty_seconds_an_epoch(event):
        if isinstance(event, EpochFinished):
            now[0] += 20
            monitor.refresh()

    run.listeners.append(twenty_seconds_an_epoch)
    run.fit()
    assert drawn == [0, 3, 6, 7]


def test_at_most_five_messages_a_second(make_run, monkeypatch):
    run = make_run(epochs=20)
    monitor = LiveMonitor(run)
    sent = []
    monkeypatch.setattr(monitor.canvas, "send_state", lambda key=None: sent.append(time.monotonic()))
    begun = time.monotonic()
    monitor.start.click()
    run.wait(60)
    pumped = sent[:-3]  # the end is drawn at once, whenever it comes
    assert run.steps_done == 80
    assert len(pumped) <= 5 * (time.monotonic() - begun) + 1
    assert len(sent) >= 1


def test_fit_in_the_caller_works_with_the_same_monitor(make_run):
    run = make_run()
    monitor = LiveMonitor(run)
    run.fit()
    assert monitor.canvas.frame["headline"].startswith("finished")


def test_a_run_that_was_not_watched_shows_what_it_recorded(make_run):
    run = make_run()
    run.fit()
    monitor = LiveMonitor(run)
    assert monitor.canvas.losses["series"][0]["x"] == list(range(12))
    assert monitor.canvas.labels["series"]
    assert "finished" in monitor.canvas.frame["headline"]


@pytest.mark.parametrize("begin", ["start", "fit"])
def test_a_failure_is_shown_and_raised(make_run, begin):
    def broken(event):
        if isinstance(event, StepFinished) and event.step == 2:
            raise ArithmeticError("<b>listener</b> broke")

    run = make_run(listeners=[broken])
    monitor = LiveMonitor(run, rate=50)
    if begin == "start":
        monitor.start.click()
    else:
        with pytest.raises(ArithmeticError):
            run.fit()
    with pytest.raises(ArithmeticError):
        run.wait(20)
    wait_for(lambda: monitor.canvas.frame["problem"] == "ArithmeticError: <b>listener</b> broke")
    assert "failed" in monitor.canvas.frame["headline"]


def test_buttons_and_slider_take_further_lines_where_the_window_is_narrow(make_run):
    controls = LiveMonitor(make_run())._controls
    rows = [controls.rows[0], controls.rows[1].children[0]]
    assert [len(row.children) for row in rows] == [4, 2]
    assert {row.layout.flex_flow for row in rows} == {"row wrap"}


def test_a_run_that_fails_while_a_frame_is_drawn_is_not_called_running(make_run, monkeypatch):
    run = make_run()
    monitor = LiveMonitor(run)
    losses = monitor.watch.losses()

    def fails():
        run.status, run.error = "failed", ArithmeticError("broke")
        return losses

    monkeypatch.setattr(monitor.watch, "losses", fails)
    monitor.refresh()
    assert monitor.canvas.frame["problem"] == "ArithmeticError: broke"
    assert monitor.canvas.frame["headline"].startswith("failed")


def test_probe_images_without_maps_have_their_heading(make_run):
    run = make_run(method="dpa", epochs=1)
    monitor = LiveMonitor(run)
    assert monitor.canvas.frame["probe"] == ""
    run.fit()
    monitor.refresh()
    assert (monitor.canvas.frame["probe"], monitor.canvas.shape) == ("Probe images", [0, 0, 0])


def test_scripts_get_one_line_per_epoch(make_run, capsys):
    run = make_run()
    LiveMonitor(run)
    run.fit()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("before training")
    assert lines[3].startswith("3 of 3 epochs")
    assert "(diagnostic only)" in lines[3]


@pytest.mark.parametrize("method", ["zero_shot", "tda"])
def test_the_folder_of_a_run_without_training_promises_no_losses(make_run, tmp_path, method):
    make_run(method=method, folder=tmp_path / "run").fit()
    canvas = LiveMonitor(tmp_path / "run").canvas
    assert not [name for name in ("losses", "decisions") if "Appears" in getattr(canvas, name)["empty"]]
    assert canvas.losses["title"] == "What the method stores"
    assert " of 0" not in canvas.frame["headline"], "steps are not recorded"
    assert canvas.frame["progress"] == 1


def test_without_labels_no_accuracy_is_mentioned(make_run, capsys):
    run = make_run(labelled=False)
    monitor = LiveMonitor(run)
    run.fit()
    monitor.gamma.value = 0.9
    shown = [*monitor.canvas.frame["now"], monitor.what_if.value, monitor.alt, capsys.readouterr().out]
    assert not any("right" in text or "accuracy" in text for text in shown)
    assert [line["name"] for line in monitor.canvas.labels["series"]] == ["median confidence"]
    assert monitor.canvas.captions[0] == "image 0"


def test_bundle_has_a_picture_and_a_text_that_never_changes(make_run):
    run = make_run()
    monitor = LiveMonitor(run)
    before, _ = monitor._repr_mimebundle_()
    run.fit()
    data, metadata = monitor._repr_mimebundle_()
    assert data["text/plain"] == before["text/plain"] == "LiveMonitor(microclip on toy)"
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == monitor.widget.model_id
    picture = base64.b64decode(data["image/jpeg"])
    image = Image.open(io.BytesIO(picture))
    assert 480 <= image.width <= 760
    assert 8_000 < len(picture) <= 60_000
    assert data["image/jpeg"] != before["image/jpeg"]
    assert "finished" in metadata["image/jpeg"]["alt"]
    assert "text/html" not in data


def test_a_method_without_sources_or_gamma(make_run):
    run = make_run(method="zero_shot")
    monitor = LiveMonitor(run)
    run.fit()
    assert monitor.widget.children[1].layout.display == "none"
    assert monitor.canvas.decisions["series"] == []
    assert monitor.canvas.losses["series"] == []
    assert len(monitor.picture()) > 5_000


def test_of_many_prototypes_that_stay_none_moved_most():
    row = np.random.default_rng(0).normal(size=(1, 70, 8))
    trace = Trace(arrays={"snapshot/classifier": np.repeat(row, 3, 0)}, meta={"class_names": [*map(str, range(70))]})
    assert trajectory_chart(trace).title == "Trajectories of the prototypes (60 of 70)"
    trace.arrays["snapshot/classifier"][2] += 0.1
    assert trajectory_chart(trace).title == "Trajectories of the prototypes (60 that moved most)"


def test_hostile_names_and_one_pixel(make_run):
    run = make_run()
    monitor = LiveMonitor(run)
    probe = Probe(torch.zeros(1, 3, 1, 1), torch.tensor([0]), torch.tensor([0]))
    monitor(RunStarted("microclip", {}, (HOSTILE,), 1, 1, 4, probe))
    monitor(EpochFinished(-1, {}, None, {}, {"soap": torch.full((1, 1, 1), torch.nan)}))
    monitor.refresh()
    assert len(monitor.canvas.captions[0]) <= 60
    assert "\n" not in monitor.canvas.captions[0]
    assert len(monitor.picture()) > 5_000
    monitor.close()


def test_pauses_do_not_count_as_slowness(make_run):
    now = [100.0]
    monitor = LiveMonitor(make_run(), clock=lambda: now[0])
    watch = monitor.watch
    watch.take(RunStarted("microclip", {}, ("a",), 4, 1, 10, None))
    labels = torch.zeros(1, dtype=torch.long)
    pseudo = PseudoLabels(labels, torch.ones(1, 1), torch.ones(1), {})
    for step in range(2):
        now[0] += 2.0
        watch.take(StepFinished(0, step, labels, labels, pseudo, {"loss": torch.ones(())}))
    assert watch.seconds_left() == pytest.approx(16.0)
    watch.rest(True)
    now[0] += 1000.0
    assert watch.seconds_left() == pytest.approx(16.0)
    watch.rest(False)
    assert watch.headline("running", 1010.0).endswith("16:50 so far · about 0:16 left")


def test_time_left_is_of_measured_steps_and_measurements(make_run):
    """Preparation and the first step, which warms up, do not come again; measuring does, once an epoch."""
    now = [0.0]
    watch = LiveMonitor(make_run(), clock=lambda: now[0]).watch
    index = torch.zeros(4, dtype=torch.long)
    pseudo = PseudoLabels(index, torch.ones(4, 2), torch.ones(4), {})

    def take(seconds, event):
        now[0] += seconds
        watch.take(event)

    take(0, RunStarted("microclip", {}, ("a", "b"), 10, 3, 9, None))
    take(200, EpochFinished(-1, {}, None, {}, {}))
    take(30, StepFinished(0, 0, index, index, pseudo, {}))
    assert watch.seconds_left() is None, "nothing is known of the pace"
    take(2, StepFinished(0, 1, index, index, pseudo, {}))
    assert watch.seconds_left() == pytest.approx(7 * 2)
    assert "0 of 3 epochs done · epoch 0: 8 of 10 images" in watch.headline("running", 232)
    take(2, StepFinished(0, 2, index, index, pseudo, {}))
    take(5, EpochFinished(0, {}, None, {}, {}))
    assert watch.seconds_left() == pytest.approx(6 * 2 + 2 * 5)
    assert watch.headline("running", 1).endswith("1 of 3 epochs done · 0:01 so far · about 0:22 left")
    watch.rest(True)
    take(1000, StepFinished(1, 3, index, index, pseudo, {}))
    assert watch.seconds_left() == pytest.approx(5 * 2 + 2 * 5)


def test_buttons_and_cells_agree(make_run):
    run = make_run(epochs=50)
    monitor = LiveMonitor(run, rate=100)
    monitor.start.click()
    assert run.start() is run, "the cell after the button"
    wait_for(lambda: run.steps_done > 2)

    def enabled():
        return [name for name in ("start", "pause", "step", "stop", "apply") if not getattr(monitor, name).disabled]

    wait_for(lambda: enabled() == ["pause", "step", "stop", "apply"])
    run.pause()
    wait_for(lambda: enabled() == ["start", "step", "stop", "apply"])
    assert monitor.start.description == "Resume"
    run.resume()
    wait_for(lambda: enabled() == ["pause", "step", "stop", "apply"])
    run.stop()
    run.wait(20)
    wait_for(lambda: enabled() == [])
    assert monitor.canvas.frame["problem"] == ""


def test_what_is_applied_is_acknowledged_and_marked(make_run):
    run = make_run(epochs=30)
    monitor = LiveMonitor(run, rate=100)
    monitor.gamma.value = 0.3
    monitor.apply.click()
    monitor.refresh()
    assert monitor.canvas.frame["now"][-1] == "Applied: gamma 0.3, from the next step on"
    run.step(6)
    run.start()
    wait_for(lambda: run.status == "paused" and run.steps_done == 6)
    monitor.gamma.value = 0.9
    monitor.apply.click()
    wait_for(lambda: monitor.canvas.frame["now"][-1] == "Applied: gamma 0.9, from step 6 on")
    assert monitor.canvas.losses["marks"] == [[0.0, "gamma 0.3"], [6.0, "gamma 0.9"]]
    marks = [[-0.5, "gamma 0.3"], [1.0, "gamma 0.9"]]
    assert monitor.canvas.labels["marks"] == monitor.canvas.decisions["marks"] == marks
    assert monitor.what_if.value.startswith("instead of 0.30: "), "of the epoch whose source logits are mixed again"
    monitor.stop.click()
    run.wait(20)
    wait_for(lambda: "1 of 30 epochs done · epoch 1: 8 of 16 images" in monitor.canvas.frame["headline"])
    wait_for(lambda: [1.0, "1 (8/16)"] in monitor.canvas.labels["ticks"])


def test_memory_stays_flat_over_a_hundred_refreshes(make_run):
    run = make_run()
    monitor = LiveMonitor(run)
    run.fit()

    def use(times):
        for i in range(times):
            monitor.gamma.value = i / 100
            monitor.refresh()
        monitor._repr_mimebundle_()
        gc.collect()

    use(10)
    tracemalloc.start()
    use(10)
    before = tracemalloc.get_traced_memory()[0]
    use(100)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000


@pytest.mark.parametrize("ends", ["finished", "paused", "ready"])
def test_a_closed_monitor_keeps_neither_run_nor_widgets_in_memory(make_run, ends):
    state, before = ViewState(), set(_instances)

    def watched():
        run = make_run()
        monitor = LiveMonitor(run, state=state, rate=200)
        monitor.picture()
        monitor.gamma.value = 0.3
        if ends != "ready":
            (monitor.start if ends == "finished" else monitor.step).click()
            wait_for(lambda: run.status == ends)
        monitor.close()
        if ends == "paused":
            run.stop()
            run.wait(20)
        return [weakref.ref(thing) for thing in (run, run.method, run.recorder, monitor, monitor.canvas)]

    kept = watched()
    wait_for(lambda: gc.collect() >= 0 and not any(reference() for reference in kept), 5)  # a drawing may be under way
    assert set(_instances) == before
    state.kind = "ncut"  # which nobody follows any more


def test_a_monitor_that_no_output_shows_rests_and_knows_the_newest_when_it_is_shown_again(make_run):
    run = make_run(epochs=5)
    monitor = LiveMonitor(run, rate=200)
    monitor.canvas._view_count = 1  # which the browser writes
    monitor.step.click()
    wait_for(lambda: "paused · step 1 of 20" in monitor.canvas.frame["headline"])
    assert monitor.canvas.losses["ticks"] == [[0, "0"]], "no half steps"
    monitor.canvas._view_count = 0  # its cell was run again
    assert run.listeners == []
    wait_for(lambda: not monitor.pump._thread.is_alive())
    run.step(5)
    wait_for(lambda: run.steps_done == 6 and run.status == "paused")
    assert "step 1 of 20" in monitor.canvas.frame["headline"]
    monitor.picture()
    assert "paused · step 6 of 20 · 1 of 5 epochs done" in monitor.alt
    assert run.listeners == []
    monitor.canvas._view_count = 1
    assert run.listeners == [monitor]
    monitor.stop.click()
    run.wait(20)
    wait_for(lambda: "stopped · step 6 of 20" in monitor.canvas.frame["headline"])


def test_a_listener_that_leaves_takes_no_event_from_the_others(make_run):
    run, heard = make_run(), []
    monitor = LiveMonitor(run)
    run.listeners.append(lambda event: monitor.close() if isinstance(event, StepFinished) else None)
    run.listeners.append(heard.append)
    run.fit()
    assert sum(isinstance(event, StepFinished) for event in heard) == 12


def test_state_chooses_the_kind_of_map(make_run):
    run = make_run()
    state = ViewState(kind="ncut")
    monitor = LiveMonitor(run, state=state)
    run.fit()
    assert "NCut mask" in monitor.canvas.frame["probe"]
    assert set(np.frombuffer(monitor.canvas.maps, np.uint8)) <= {0, 255}
    state.kind = "fiedler"
    assert "Fiedler vector" in monitor.canvas.frame["probe"]


def test_a_monitor_that_comes_late_knows_what_happened(make_run):
    run = make_run(epochs=5)
    run.step(6)
    run.start()
    wait_for(lambda: run.status == "paused" and run.steps_done == 6)
    monitor = LiveMonitor(run)
    assert monitor.canvas.frame["headline"].startswith("paused · step 6 of 20 · 1 of 5 epochs done")
    assert monitor.canvas.frame["progress"] == pytest.approx(0.3)
    assert monitor.canvas.captions == ["red square", "green square", "blue square"]
    assert monitor.canvas.shape == [3, 4, 4]
    monitor.stop.click()
    run.wait(20)
    late = LiveMonitor(run)
    assert late.canvas.frame["headline"].startswith("stopped · step 6 of 20")


def test_a_resumed_run_shows_and_counts_its_earlier_sessions(make_run, tmp_path):
    def stop_after_the_first_epoch(event):
        if isinstance(event, StepFinished) and event.step == 5:
            run.stop()

    run = make_run(folder=tmp_path, listeners=[stop_after_the_first_epoch])
    first = run.fit().meta["seconds"]
    assert first > 0
    resumed = make_run(folder=tmp_path)
    assert resumed.restore()
    assert resumed.seconds == first
    monitor = LiveMonitor(resumed)
    started = []

    def pause_at_the_start(event):
        if isinstance(event, RunStarted):
            started.append(event)
            resumed.pause()

    resumed.listeners.append(pause_at_the_start)
    resumed.start()
    wait_for(lambda: resumed.status == "paused")
    assert (started[0].steps_done, started[0].seconds) == (6, first)
    monitor.refresh()
    assert monitor.canvas.frame["headline"].startswith("paused · step 6 of 12 · 1 of 3 epochs done")
    resumed.resume()
    trace = resumed.wait(60)
    assert trace.meta["seconds"] == resumed.seconds > first
    assert monitor.watch.finished.seconds == pytest.approx(trace.meta["seconds"], abs=1e-3)


def test_steps_of_a_method_that_brings_its_own_batches(make_run):
    run = make_run(method="ntua", n=16)
    monitor = LiveMonitor(run)
    run.fit()
    assert monitor.canvas.frame["progress"] == 1.0
    assert f"step {run.steps_done} of {run.steps_done} " in monitor.canvas.frame["headline"]


def test_a_stream_counts_the_steps_it_has_and_shows_its_caches_in_the_place_of_losses():
    data = clusters(n=600)  # 19 batches in ten slices
    run = Run(TDA(data.backbone(), data.prompts), data, eval_dataset=data)
    monitor, steps = LiveMonitor(run), []
    run.listeners.append(lambda event: steps.append(event.step) if isinstance(event, StepFinished) else None)
    run.fit()
    assert steps == list(range(19))
    assert monitor.canvas.frame["headline"].startswith("finished · step 19 of 19 · 10 of 10 epochs done · 0:0")
    assert monitor.canvas.losses["title"] == "What the method stores"
    entries = {series["name"]: series["y"] for series in monitor.canvas.losses["series"]}
    assert entries["positive cache"][0] == 0
    assert entries["positive cache"][-1] == run.trace.metric("positive_entries").iloc[-1] == 18
    monitor.close()
    run = Run(METHODS["zero_shot"](data.backbone(), data.prompts), data)
    monitor = LiveMonitor(run)
    run.fit()
    assert monitor.canvas.losses["empty"] == "This method does not train, so it has no loss."
