"""Five views on a run that goes on, worked all the while, against the same run alone."""

from __future__ import annotations

import json

import comm
import pytest
from comm.base_comm import BaseComm
from tiny import assert_same_bits, differences, method_state

from clipviz.widgets import (
    DescriptionPlayground,
    DKAPlayground,
    LiveMonitor,
    PrototypeExplorer,
    SaliencyExplorer,
    ViewState,
)


@pytest.fixture
def sent(monkeypatch):
    """Sizes of the messages to a browser that is not there; they are packed as a kernel packs them."""
    sizes = []

    class Wire(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            sizes.append(len(json.dumps([msg_type, data, metadata])) + sum(len(bytes(b)) for b in buffers or ()))

    monkeypatch.setattr(comm, "create_comm", Wire)
    return sizes


def test_views_at_work_leave_the_run_as_it_is_to_the_bit(make_run, sent):
    alone, run = make_run(epochs=12), make_run(epochs=12)
    expected = alone.fit()
    state = ViewState()
    monitor = LiveMonitor(run, state=state, rate=100)
    run.step(4)
    monitor.start.click()
    while run.steps_done < 4 or run.status != "paused":
        pass
    explorer = SaliencyExplorer(run.trace, run, state=state)
    prototypes = PrototypeExplorer(run.trace, run, state=state)
    playground = DKAPlayground(run.trace, run, state=state)
    words = DescriptionPlayground(run.trace, run, state=state)
    monitor.start.click()  # goes on
    before, turns = len(sent), 0
    kinds = list(explorer.inspector.kinds.values())[:4]
    while run.is_live:
        explorer.gallery.selected = [explorer.gallery.ids[turns % 16]]  # asks the run for maps of the current model
        kinds[turns % 4].value = not kinds[turns % 4].value
        prototypes.scatter.chosen = [turns % len(prototypes.scene.index)]
        playground.gamma.value = turns % 100 / 100
        words.words.value = f"a photo of {turns}"
        monitor.gamma.value = turns % 100 / 100
        state.epoch = turns % 2 - 1
        turns += 1
    trace = run.wait(60)
    assert turns > 1
    assert len(sent) - before > 10 * turns
    assert_same_bits(method_state(run.method), method_state(alone.method))
    assert differences(trace, expected) == []
