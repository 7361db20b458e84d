"""Two processes do what one does: the same pseudo-labels, prototypes, weights, traces and folders."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forked import as_module, start, start_two
from safetensors.torch import load_file
from shared_runs import CASES, STOP_AT, STOPPED, prepared, stop_on_the_way
from shared_runs import main as all_runs
from tiny import ToyDataset, clusters, make_tiny_backbone, microclip
from torch import nn

from clipviz.cli import main as cli
from clipviz.methods.base import AdaptConfig
from clipviz.methods.dpa import DPA
from clipviz.methods.zero_shot import ZeroShot
from clipviz.parallel import ONE, Ranks, launch
from clipviz.trace import TABLES, Trace
from clipviz.training.interrupts import StoppedBySignal, on_signal, raise_for
from clipviz.training.loop import Adaptation, adapt
from clipviz.training.run import CHECKPOINT, Run

ROOT = Path(__file__).parents[2]
TWO = Ranks(0, 2)
"""One of two processes, the other of which does not exist: for what is refused before they talk."""

needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="processes want a core each")


# ------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 5, 7, 12])
def test_shares_are_equally_long_and_hold_each_row_once_in_order(n, size):
    rows = np.arange(10, 10 + n)
    shares = [Ranks(rank, size).share(rows) for rank in range(size)]
    assert {len(share) for share in shares} == {-(-n // size)}
    assert np.concatenate(shares)[:n].tolist() == rows.tolist()
    assert [share.tolist() for share in shares] == [
        Ranks(rank, size).share(torch.from_numpy(rows)).tolist() for rank in range(size)
    ]


def test_one_process_has_everything_and_changes_nothing():
    rows = torch.rand(3, 2, requires_grad=True)
    assert ONE.share(rows) is rows
    assert ONE.gather(rows, 3) is rows
    assert ONE.texts("a") == ["a"]
    assert [ONE.any(flag) for flag in (False, True)] == [False, True]


# ------------------------------------------------------------------------------------------------- two are as one


def in_two(command, *arguments, said):
    """The exit statuses of two processes, and what both wrote on stderr."""
    processes = start_two(command, *arguments, said=said)
    for process in processes:
        process.join(250)
    return [process.exitcode for process in processes], "".join((said / rank).read_text() for rank in "01")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where one process, and where two, have done all runs."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for name in STOPPED:
        stop_on_the_way(prepared(name, two / f"{name}_begun"))
    statuses, said = in_two(all_runs, two, said=tmp_path_factory.mktemp("both") / "said")
    assert statuses == [0, 0], said
    for name in CASES:
        stop_on_the_way(prepared(name, one / name), CASES[name].stop_at)
    return one, two


def assert_same_tensors(one: Path, two: Path) -> None:
    """Weights, buffers (banks, prototypes, running means, the cache), AdamW's moments and the totals, to 1e-5."""
    expected, found = load_file(one / CHECKPOINT), load_file(two / CHECKPOINT)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_traces(one: Path, two: Path) -> None:
    """Rows of all images, each once, in the same order with the same guesses; numbers to 1e-5."""
    expected, found = Trace.load(one), Trace.load(two)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0, obj=name)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        scale = 20.0 if array.dtype == np.float16 else 1.0  # where rounding to 11 bits makes more of a difference
        np.testing.assert_allclose(found.arrays[name], array, atol=scale * 1e-5, err_msg=name)


@needs_two_cores
@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_where_one_does(folders, name):
    one, two = (folder / name for folder in folders)
    assert_same_tensors(one, two)
    assert_same_traces(one, two)
    trace = Trace.load(two)
    status = "finished" if CASES[name].stop_at is None else "stopped"
    assert (trace.meta["status"], trace.meta["processes"]) == (status, 2)
    if CASES[name].n > 8 and name != "ntua":
        epoch = trace.samples[trace.samples["epoch"] == 0]
        assert sorted(epoch["index"]) == list(range(CASES[name].n))


@needs_two_cores
@pytest.mark.parametrize("name", ["microclip_step", "dpa_step"])
def test_gradients_are_those_of_the_whole_batch(folders, name):
    """After one step AdamW's first moment is a tenth of the gradient; weights would hide a wrong factor."""
    expected, found = (load_file(folder / name / CHECKPOINT) for folder in folders)
    gradients = {name: 10 * tensor for name, tensor in expected.items() if "/exp_avg/" in name}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert largest > 1e-2
    for name, gradient in gradients.items():
        torch.testing.assert_close(10 * found[name], gradient, atol=1e-6 + 1e-5 * largest, rtol=0)


@needs_two_cores
@pytest.mark.parametrize("name", STOPPED)
def test_any_process_stops_all_and_another_number_of_them_goes_on(folders, name):
    one, two = folders
    stopped = Trace.load(two / f"{name}_stopped")
    assert stopped.meta["status"] == "stopped"
    assert stopped.steps["step"].max() == STOP_AT
    resumed = prepared(name, two / f"{name}_stopped")
    assert resumed.restore()
    resumed.fit()
    for folder in (f"{name}_stopped", f"{name}_begun"):  # begun by two, ended by one; and the other way round
        assert_same_tensors(one / name, two / folder)
        assert_same_traces(one / name, two / folder)


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def photos(tmp_path):
    """Three classes of five images."""
    data = ToyDataset(15)
    for i in range(15):
        folder = tmp_path / "photos" / data.class_names[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        data.image(i).save(folder / f"{i}.png")
    return tmp_path / "photos"


def in_shell(folder, module, *arguments):
    """`python -m module arguments`, whose further processes are started by itself: its status, stdout and stderr."""
    told, said = folder / "told", folder / "said"
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = start(as_module, module, *map(str, arguments), said=said, told=told, more=more, daemon=False)
    process.join(250)
    return process.exitcode, told.read_text(), said.read_text()


@needs_two_cores
def test_a_command_starts_its_processes_and_one_of_them_speaks(photos, tmp_path, capfd):
    run, again = tmp_path / "run", tmp_path / "again"
    common = ["adapt", "dpa", "--model", "birds", "--data", photos, "--device", "cpu", "--epochs", 1, "--batch-size", 7]
    status, told, said = in_shell(tmp_path, "clipviz", *common, "--out", run, "--devices", 2)
    assert status == 0
    assert re.fullmatch(r"dpa: 1 of 1 epochs, loss [\d.]+, accuracy [\d.]+, 00:0\d left\n", said)
    assert cli.main([*map(str, common), "--out", str(again)]) == 0
    assert len(told.splitlines()) == len(capfd.readouterr().out.splitlines())
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (run, again))
    rounded = {name: pytest.approx(expected[name], abs=1e-6) for name in ("ece", "ece_before")}  # means of confidences
    assert results == {**expected, **rounded, "seconds": results["seconds"]}
    assert_same_traces(again, run)
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 100_000


@needs_two_cores
def test_torchrun_starts_them_as_well(photos, tmp_path):
    torchrun = ["torch.distributed.run", "--nproc-per-node", 2, "--standalone", "-m", "clipviz"]
    out = tmp_path / "photos.npz"
    embed = ["embed", "--model", "birds", "--data", photos, "--device", "cpu", "--out", out]
    status, told, said = in_shell(tmp_path, *torchrun, *embed)
    assert status == 0, said
    assert told.count("15 embeddings") == 1
    assert cli.main(["embed", "--model", "birds", "--data", str(photos), "--out", str(tmp_path / "one.npz")]) == 0
    with np.load(out) as two, np.load(tmp_path / "one.npz") as one:
        np.testing.assert_allclose(two["embeddings"], one["embeddings"], atol=1e-6)
        assert two["labels"].tolist() == one["labels"].tolist()


@needs_two_cores
def test_a_mistake_that_all_processes_find_is_one_line(tmp_path):
    arguments = ["adapt", "dpa", "--model", "birds", "--data", tmp_path / "nowhere", "--out", tmp_path / "run"]
    status, _, said = in_shell(tmp_path, "clipviz", *arguments, "--devices", 2, "--device", "cpu")
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "nowhere" in said


def test_what_waits_for_others_ends_at_a_signal(monkeypatch):
    """It waits in C++, where no handler of Python's is called: Ctrl-C was not heard for two hours."""
    heard = {}

    def wait(fabric):
        heard.update({number: signal.getsignal(number) for number in before})
        raise RuntimeError("nobody came")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr("lightning_fabric.Fabric.launch", wait)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="cannot start 2 processes here: nobody came"):
        launch(num_nodes=2, device="cpu")
    assert heard == dict.fromkeys(before, signal.SIG_DFL)
    assert {number: signal.getsignal(number) for number in before} == before


def test_what_waits_for_the_process_that_started_it_ends_with_that(monkeypatch):
    """The first process ended at SIGTERM while they met; the second waited for its connection for two hours."""
    ended, told = threading.Event(), []

    def kill(process, number):
        told.append((process, number))
        ended.set()

    def wait(fabric):
        told.append(os.environ.get("CLIPVIZ_STARTED_BY"))
        raise RuntimeError("it is gone" if ended.wait(5 if first else 0) else "nobody came")

    monkeypatch.setattr("lightning_fabric.Fabric.launch", wait)
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for first in ("", str(os.getppid() + 1)):  # the first itself, then one that another has started
        if first:
            monkeypatch.setenv("CLIPVIZ_STARTED_BY", first)
        with pytest.raises(ValueError, match="it is gone" if first else "nobody came"):
            launch(2, device="cpu")
        assert "CLIPVIZ_STARTED_BY" not in os.environ
    assert told == [str(os.getpid()), None, (os.getpid(), signal.SIGTERM)]


# ------------------------------------------------------------------------------------------------- what is refused


def refusal(capsys, tmp_path, *extra):
    """What the command line says on stderr."""
    arguments = ["adapt", "dpa", "--model", "birds", "--data", "birds/fog", "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, *map(str, extra)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_more_devices_than_there_are(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    line = refusal(capsys, tmp_path, "--devices", 3, "--device", "cpu")
    assert "--devices 3 is more than there are: 2 CPU cores" in line
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "--devices 5 is more than there are: 4 GPUs" in refusal(capsys, tmp_path, "--devices", 5, "--device", "cuda")


def test_a_device_of_a_certain_number(capsys, tmp_path):
    assert "--device cuda or --device cpu, got 'cuda:1'" in refusal(
        capsys, tmp_path, "--devices", 2, "--device", "cuda:1"
    )


def test_without_the_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    line = refusal(capsys, tmp_path, "--devices", 2, "--device", "cpu")
    assert 'pip install "clipviz[multi]"' in line


def test_machines_that_nothing_says_where_to_find(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    line = refusal(capsys, tmp_path, "--num-nodes", 2, "--device", "cpu")
    assert "--num-nodes 2 needs torchrun, or MASTER_ADDR on each machine: see docs/scaling.md" in line


def test_a_number_that_torchrun_contradicts(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    for name, value in {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launch() is ONE
    with pytest.raises(ValueError, match="torchrun has set --devices to 1, but here it is 4"):
        launch(4)


def test_embeddings(tiny_backbone):
    data = clusters()
    with pytest.raises(ValueError, match=r"clusters holds embeddings, and 2 processes .* use one device"):
        Adaptation(DPA(data.backbone(), data.prompts), data, ranks=TWO)


def test_a_batch_smaller_than_the_processes_are_many(tiny_backbone, toy):
    with pytest.raises(ValueError, match="a batch of 1 images cannot be shared by 2 processes"):
        Adaptation(microclip(tiny_backbone), toy, AdaptConfig(batch_size=1), ranks=TWO)


def test_towers_that_learn_statistics_of_a_batch(toy):
    backbone = make_tiny_backbone()
    backbone.model.visual.bn = nn.BatchNorm2d(3)
    Adaptation(ZeroShot(backbone, toy.prompts), toy, ranks=TWO)  # it only looks
    with pytest.raises(ValueError, match="tiny has BatchNorms"):
        Adaptation(DPA(backbone, toy.prompts), toy, ranks=TWO)


def test_a_method_that_guesses_its_share_only(tiny_backbone, toy):
    class Half(ZeroShot):
        def pseudo_label(self, views, index):
            return super().pseudo_label(type(views)(views.weak[::2]), index)

    with pytest.raises(ValueError, match=r"zero_shot labels 12 of the 24 images of a batch.*views.gather"):
        list(adapt(Half(tiny_backbone, toy.prompts), toy))


def test_constants_do_not_change_while_processes_share_a_run(tiny_backbone, toy):
    with pytest.raises(ValueError, match="while 2 processes share a run"):
        Run(microclip(tiny_backbone), toy, ranks=TWO).set(gamma=0.3)


def test_a_signal_to_one_process_is_told_to_all_before_the_handler_of_the_script_ends_this_one(tiny_backbone, toy):
    told = []

    class First(Ranks):
        def texts(self, text):
            return told.append(text) or [text, "0"]

    run = Run(microclip(tiny_backbone), toy, ranks=First(0, 2))
    run._drive = lambda: signal.raise_signal(signal.SIGTERM)
    with on_signal(raise_for), pytest.raises(StoppedBySignal):
        run.fit()
    assert told == ["15"]


def test_machines_that_do_not_share_the_folder(tiny_backbone, toy, tmp_path):
    class Elsewhere(Ranks):
        def texts(self, text):
            return [text, "epoch 3, step 0"]

        def together(self, work):
            return work()

    run = Run(microclip(tiny_backbone), toy, folder=tmp_path, ranks=Elsewhere(0, 2))
    with pytest.raises(ValueError, match=r"different checkpoints .*epoch 0, step 0; epoch 3, step 0.* share"):
        run.restore()
