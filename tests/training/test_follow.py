"""A run followed from another process, and told what to do; a killed one is dead and not slow."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from forked import start
from tiny import ToyDataset, make_tiny_backbone, microclip

from clipviz import AdaptConfig, LiveMonitor, Run
from clipviz.cli import main as cli
from clipviz.events import EpochFinished, RunFinished, RunStarted, StepFinished
from clipviz.trace import Trace
from clipviz.training import follow
from clipviz.training.follow import FollowedRun

PATIENCE = 120


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    look_often(monkeypatch.setattr)


def look_often(patch=setattr) -> None:
    """Runs look for orders, and say how they are, more often than every half second."""
    patch(follow, "_INTERVAL", 0.05)


def command_line(*arguments: str) -> int:
    look_often()
    return cli.main(list(arguments))


def until(run: FollowedRun, is_so, what: str) -> None:
    """Poll until something is so."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)
        run.poll()


def answer(run: FollowedRun, future) -> str:
    until(run, future.done, "no answer")
    return future.result()


def toy_run(folder, epochs=2, n=20, **options) -> Run:
    config = AdaptConfig(epochs, 8, 1e-3)
    test = ToyDataset(9, seed=1, split="test")
    return Run(microclip(make_tiny_backbone()), ToyDataset(n), config, eval_dataset=test, folder=folder, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = toy_run(tmp_path_factory.mktemp("finished") / "run")
    run.fit()
    return run


def test_a_run_of_the_command_line_is_followed_paused_resumed_changed_and_stopped(tmp_path, capsys):
    """In two processes, as its users have it."""
    out = tmp_path / "run"
    data = ToyDataset(24)
    for i in range(24):
        folder = tmp_path / "photos" / data.class_names[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f"{i}.png")
    options = ["--epochs", "10000", "--batch-size", "8", "--set", "crops=2", "--out", str(out)]
    process = start(
        command_line, "adapt", "microclip", "--model", "birds", "--data", str(tmp_path / "photos"), *options
    )
    try:
        end = time.monotonic() + PATIENCE
        while not (out / "live.json").exists():
            assert time.monotonic() < end
            assert process.is_alive()
            time.sleep(0.05)
        events = []
        run = FollowedRun(out, events.append)
        until(run, lambda: run.steps_done > 2, "no step came")
        assert run.status == "running"
        assert [type(event) for event in events[:2]] == [RunStarted, EpochFinished]
        assert answer(run, run.pause()) == "done"
        until(run, lambda: run.status == "paused", "did not pause")
        rests_at = run.steps_done
        time.sleep(0.3)  # several steps, and looks of the run
        run.poll()
        assert (run.steps_done, run.status) == (rests_at, "paused")
        assert cli.main(["watch", str(out), "--step", "2"]) == 0
        until(run, lambda: run.steps_done == rests_at + 2, "did not do two steps")
        change = run.set(gamma=0.25)
        assert answer(run, change) == f"gamma = 0.25 from step {rests_at + 2} on"
        assert answer(run, run.set(gamma=7)).startswith("refused: gamma must be in [0, 1], got 7")
        assert answer(run, run.set(crops=3)).startswith("refused: microclip cannot change 'crops' while it runs")
        assert run.gamma == 0.25
        assert cli.main(["watch", str(out), "--resume"]) == 0
        until(run, lambda: run.steps_done > rests_at + 3, "did not go on")
        assert cli.main(["watch", str(out), "--stop"]) == 0
        process.join(PATIENCE)
        assert process.exitcode == 0
        until(run, lambda: run.status == "stopped", "not seen to stop")
        assert isinstance(events[-1], RunFinished)
        assert "done" in capsys.readouterr().out
    finally:
        process.kill()
        process.join()
    assert Trace.load(out).meta["changes"] == [{"step": rests_at + 2, "gamma": 0.25}]
    assert not (out / "live.json").exists()
    assert not (out / "commands").exists()


def many_epochs(folder) -> None:
    look_often()
    toy_run(folder, epochs=10_000).fit()


def test_a_killed_run_is_dead_and_not_slow(tmp_path, capsys):
    process = start(many_epochs, tmp_path / "run")
    try:
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "run" / "live.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        run = FollowedRun(tmp_path / "run")
        until(run, lambda: EpochFinished in run.newest and run.steps_done, "no epoch came")
        os.kill(process.pid, signal.SIGSTOP)  # slow, but alive
        run.poll()
        assert run.status == "running"
        other = FollowedRun(tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / "moved")
        other.poll()
        assert re.fullmatch(r"the folder .*run is gone; open the run again where it is now", str(other.error))
        (tmp_path / "moved").rename(tmp_path / "run")
    finally:
        process.kill()
        process.join()
    run.poll()
    assert run.status == "interrupted"
    with pytest.raises(ValueError, match=r"is interrupted, so it takes no commands$"):
        run.pause()
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", str(tmp_path / "run")])
    assert stop.value.code == 1
    assert "interrupted: its process is gone; --resume continues" in capsys.readouterr().out


def test_a_process_of_another_machine_is_alive_while_its_heart_beats(finished, tmp_path, monkeypatch):
    """Where the lock is not seen."""
    now = [0.0]
    folder = tmp_path / "run"
    finished.trace.save(folder / "trace")
    meta = dict(finished.trace.meta, status="running")
    Trace(finished.trace.steps, finished.trace.samples, finished.trace.epochs, meta=meta).save(folder / "trace")
    live = {"format": 1, "beat": 1, "host": "elsewhere", "status": "running"}
    (folder / "live.json").write_text(json.dumps(live))
    run = FollowedRun(folder, clock=lambda: now[0])
    assert run.status == "running"
    now[0] += 15
    (folder / "live.json").write_text(json.dumps(live | {"beat": 2, "status": "paused"}))
    run.poll()
    now[0] += 15
    run.poll()
    assert run.status == "paused"
    now[0] += 10
    run.poll()
    assert run.status == "interrupted"


def test_the_last_state_is_what_a_listener_in_the_process_saw(finished):
    events = []
    run = FollowedRun(finished.folder, events.append)
    assert (run.status, run.name) == ("finished", "microclip on toy")
    assert [type(e).__name__ for e in events] == ["RunStarted", *["EpochFinished"] * 3, "RunFinished"]
    own = finished.newest[EpochFinished]
    assert events[3].metrics == own.metrics
    assert run.trace.equals(finished.trace)
    assert (run.n_steps, run.n_epochs, run.gamma) == (6, 2, 0.5)


def test_a_folder_says_why_its_run_failed_and_how_far_it_came(tmp_path, capsys):
    def broken(event):
        if isinstance(event, StepFinished) and event.step == 1:
            raise ArithmeticError("listener\nbroke")

    with pytest.raises(ArithmeticError):
        toy_run(tmp_path / "run", listeners=[broken]).fit()
    view = LiveMonitor(tmp_path / "run")
    assert view.canvas.frame["headline"].startswith("failed · step 2 of 6 · 0 of 2 epochs done")
    assert view.canvas.frame["progress"] == pytest.approx(2 / 6)
    assert view.canvas.frame["problem"] == "ArithmeticError: listener broke"
    with pytest.raises(SystemExit):
        cli.main(["watch", str(tmp_path / "run")])
    assert "microclip on toy: failed: ArithmeticError: listener broke\n" in capsys.readouterr().out
    again = toy_run(tmp_path / "run")
    assert again.restore()
    again.fit()
    assert not FollowedRun(tmp_path / "run").error
    assert not again.trace.meta.get("error")


def test_a_followed_batch_is_the_batch(tmp_path):
    run = toy_run(tmp_path / "run", epochs=1)
    seen: list[tuple[dict, StepFinished]] = []
    run.listeners.append(
        lambda event: seen.append((follow._batch(event), event)) if isinstance(event, StepFinished) else None
    )
    run.fit()
    batch, event = seen[0]
    assert batch["index"] == event.index.tolist()
    assert batch["losses"] == {name: float(value) for name, value in event.losses.items()}
    assert batch["sources"]["static"] == event.pseudo.sources["static"].argmax(-1).tolist()
    followed = FollowedRun(tmp_path / "run")
    followed._live = {"batch": json.loads(json.dumps(batch)), "step": 0, "epoch": 0}
    told = followed._newest_step()
    assert np.allclose(told.pseudo.probs.max(-1), event.pseudo.probs.amax(-1), atol=1e-4)
    assert (told.pseudo.sources["dynamic"].argmax(-1) == event.pseudo.sources["dynamic"].argmax(-1).numpy()).all()


def test_the_live_view_shows_a_folder_and_drives_it(tmp_path):
    """In one process here: what passes between them is in the folder alone."""
    run = toy_run(tmp_path / "run", epochs=500, n=40).start()
    view = LiveMonitor(tmp_path / "run")
    followed = view.run
    until(followed, lambda: RunStarted in followed.newest, "not started")
    view.pause.click()
    until(followed, lambda: followed.status == "paused", "not paused")
    view.refresh()
    assert repr(view) == "LiveMonitor(microclip on toy)"
    assert view.canvas.frame["headline"].startswith("paused · step ")
    rests_at = followed.steps_done
    view.step.click()
    until(followed, lambda: followed.steps_done > rests_at, "no step")
    view.refresh()
    assert "This batch: median confidence" in view.canvas.frame["now"][0]
    view.gamma.value = 0.2
    view.apply.click()
    until(followed, lambda: followed.changes, "no change")
    assert followed.changes[-1]["gamma"] == 0.2
    view.start.click()
    until(followed, lambda: followed.status == "running", "did not go on")
    view.stop.click()
    run.wait(PATIENCE)
    until(followed, lambda: followed.status == "stopped", "not seen to stop")
    view.refresh()
    assert view.canvas.frame["headline"].startswith("stopped · ")
    assert view.draw() is not None
    view.close()


def test_looking_from_outside_changes_nothing_of_a_run(finished, tmp_path):
    """Polled all the time, and paused and resumed on the way."""
    run = toy_run(tmp_path / "run").start()
    followed = FollowedRun(tmp_path / "run")
    followed.pause()
    until(followed, lambda: followed.status in ("paused", "finished"), "no answer")
    if followed.status == "paused":
        followed.resume()
    run.wait(PATIENCE)
    assert run.trace.steps.equals(finished.trace.steps)
    assert run.trace.samples.equals(finished.trace.samples)


# ------------------------------------------------------------------------------------------------- bad folders


def refusal(folder) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        FollowedRun(folder)
    return str(caught.value)


def test_folders_that_hold_no_run_are_refused_in_one_sentence(finished, tmp_path, capsys):
    assert "there is no such folder" in refusal(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "neither it nor its trace/ holds manifest.json" in refusal(tmp_path / "empty")
    assert cli.main(["watch", str(tmp_path / "empty")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    folder = tmp_path / "run"
    finished.trace.save(folder / "trace")
    table = folder / "trace" / "samples.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    assert "is not what was saved" in refusal(folder)
    manifest = folder / "trace" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert "format 2 is newer than this clipviz reads" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "was not written by a run of clipviz"),
        ('{"format": 2}', r"is from a newer clipviz \(format 2\)"),
        ('{"format": 1}', "was altered: KeyError 'beat'"),
        ('{"format": 1, "beat": 1, "step": "x"}', "was altered: TypeError"),
        ('{"format": 1, "beat": 1, "step": 3, "batch": {"index": 7}}', "was altered: KeyError"),
        ('{"format": 1, "beat": 1, "changes": 5}', "was altered: TypeError"),
        ("[" * 10_000, "cannot be read: it is nested too deeply"),
    ],
)
def test_what_was_altered_is_refused_in_one_sentence(finished, tmp_path, text, said):
    folder = tmp_path / "run"
    Trace(finished.trace.steps, meta=dict(finished.trace.meta, status="running")).save(folder / "trace")
    (folder / "live.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        FollowedRun(folder)


def test_orders_are_for_the_user_of_the_folder(tmp_path, monkeypatch):
    run = toy_run(tmp_path / "run", epochs=50).start()
    try:
        followed = FollowedRun(tmp_path / "run")
        monkeypatch.setattr(follow.os, "geteuid", lambda: 12345)
        with pytest.raises(ValueError, match=r"^the run in .* can be commanded by its user only; you can watch it.*$"):
            followed.stop()
        monkeypatch.undo()
        monkeypatch.setattr(follow.os, "access", lambda path, mode: False)
        with pytest.raises(ValueError, match="can be commanded by its user only"):
            followed.stop()
        assert not (tmp_path / "run" / "commands").exists()
    finally:
        run.stop()
        run.wait(PATIENCE)


def test_what_windows_lacks_stops_neither_a_run_nor_orders(tmp_path, monkeypatch):
    """No locks, no owners, files without a name or of folders; only what may be written is brought to the disk."""
    really_open = os.open

    def open_no_folder(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return really_open(path, *arguments, **options)

    def fsync_what_is_written(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    for name in ("O_TMPFILE", "O_NONBLOCK", "O_NOFOLLOW", "geteuid"):
        monkeypatch.delattr(os, name)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "open", open_no_folder)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # with which Linux opens folders to delete them
    monkeypatch.setattr(follow, "_HEARTBEAT", 0.1)
    monkeypatch.setattr(follow, "_DEAD_AFTER", 2.0)
    monkeypatch.setattr(os, "fsync", fsync_what_is_written)
    run = toy_run(tmp_path / "run", epochs=500).start()
    try:
        followed = FollowedRun(tmp_path / "run")
        assert answer(followed, followed.stop()) in ("done", "the run is stopped")
    finally:
        run.stop()
        run.wait(PATIENCE)
    assert toy_run(tmp_path / "run", epochs=500).restore()
    assert Trace.load(tmp_path / "run").meta["status"] == "stopped"


def test_an_order_is_not_lost_that_comes_before_the_run_looks_for_any(tmp_path, monkeypatch):
    began, look = threading.Event(), follow.Beacon.run
    monkeypatch.setattr(follow.Beacon, "run", lambda beacon: began.wait(PATIENCE) and look(beacon))  # a busy machine
    run = toy_run(tmp_path / "run", epochs=500).start()
    try:
        followed = FollowedRun(tmp_path / "run")
        stopped = followed.stop()
        began.set()
        assert answer(followed, stopped) in ("done", "the run is stopped")
    finally:
        run.stop()
        run.wait(PATIENCE)


def test_orders_that_are_none_are_answered_and_harm_nothing(tmp_path):
    commands = tmp_path / "run" / "commands"
    run = toy_run(tmp_path / "run", epochs=500).start()
    try:
        followed = FollowedRun(tmp_path / "run")
        for order in ({"do": "explode"}, {"do": "ask"}, {"do": "step", "n": -1}, {"do": "set", "constants": 3}, {}):
            assert answer(followed, followed._send(**order)).startswith("refused: ")
        commands.mkdir(exist_ok=True)
        strange = {f"{i}-0000000{i}.json": content for i, content in enumerate((b"{", b"[1]", b"\xff" * 5000, b""))}
        for name, content in strange.items():
            (commands / name).write_bytes(content)
        (commands / "4-00000004.json").symlink_to(Path("/dev/zero"))
        os.mkfifo(commands / "5-00000005.json")
        (commands / "mine.txt").write_text("left alone")
        until(followed, lambda: len(list(commands.iterdir())) == 1, "strange orders were not cleared away")
        until(followed, lambda: len(followed._live.get("answers", {})) == 11, "not all were answered")
        assert all(text.startswith("refused: ") for text in followed._live["answers"].values())
        assert followed.status == "running"
        assert answer(followed, followed.set(gamma=np.float32(0.25))).startswith("gamma = 0.25 from step ")
        assert answer(followed, followed.step(np.int64(2))) == "done"
        for wrong in (float("nan"), 10**400, np.ones(2)):
            with pytest.raises(ValueError, match=r"gamma must be a (finite )?number, got "):
                followed.set(gamma=wrong)
    finally:
        run.stop()
        run.wait(PATIENCE)
    assert (commands / "mine.txt").exists()
    assert run.status == "stopped"
