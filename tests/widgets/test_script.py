"""A script, without a notebook: one plain line per epoch, and nothing else on either stream."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
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


def test_a_script_prints_one_plain_line_per_epoch_run_in_either_way(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    begins = 2 * ["before training  accuracy ", *(f"{i} of 3 epochs  pseudo label accuracy " for i in (1, 2, 3))]
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins
    assert done.stdout.isascii()
    assert "\r" not in done.stdout
