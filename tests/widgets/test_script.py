"""A script, without a notebook: one plain line per epoch, and nothing else on either stream."""

from __future__ import annotations

import runpy

from forked import start

SCRIPT = """
from tiny import ToyDataset, make_tiny_backbone
import clipviz

data = ToyDataset(16)
config = clipviz.AdaptConfig(epochs=3, batch_size=4, lr=1e-3)
for finish in (lambda run: run.fit(), lambda run: run.start().wait()):
    method = clipviz.METHODS["microclip"](make_tiny_backbone(), data.prompts)
    run = clipviz.Run(method, data, config, eval_dataset=data, probe=clipviz.spread_probe(data, 32, 4))
    state = clipviz.ViewState()
    monitor = clipviz.LiveMonitor(run, state=state)
    trace = finish(run)
    views = [clipviz.SaliencyExplorer(trace, run, state=state), clipviz.PrototypeExplorer(trace, run, state=state)]
    views.append(clipviz.DKAPlayground(trace, run, state=state))
    assert all(len(view.picture()) > 3000 for view in views)
"""


def script(path: str) -> None:
    runpy.run_path(path, run_name="__main__")


def test_a_script_prints_one_plain_line_per_epoch_run_in_either_way(tmp_path):
    path, told, said = (tmp_path / name for name in ("script.py", "stdout", "stderr"))
    path.write_text(SCRIPT)
    process = start(script, str(path), told=told, said=said)
    process.join(250)
    assert (process.exitcode, said.read_text()) == (0, "")
    lines = told.read_text().splitlines()
    begins = 2 * ["before training  accuracy ", *(f"{i} of 3 epochs  pseudo label accuracy " for i in (1, 2, 3))]
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins
    assert told.read_text().isascii()
    assert b"\r" not in told.read_bytes()
