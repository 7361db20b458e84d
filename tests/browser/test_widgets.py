"""The views in a real JupyterLab, worked with mouse and keyboard."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

SETUP = """
import time
import numpy as np
from tiny import ToyDataset, make_tiny_backbone
from clipviz import Run
from clipviz.evaluate import spread_probe
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.events import StepFinished
from clipviz.widgets import *

data = ToyDataset(32)
method = METHODS["microclip"](make_tiny_backbone(), data.prompts)
config = AdaptConfig(epochs=EPOCHS, batch_size=4, lr=1e-3)
run = Run(method, data, config, eval_dataset=data, probe=spread_probe(data, 32, 6))
run.listeners.append(lambda event: time.sleep(PAUSE) if isinstance(event, StepFinished) else None)
"""


def setup(epochs: int = 2, pause: float = 0.0) -> str:
    return SETUP.replace("EPOCHS", str(epochs)).replace("PAUSE", str(pause))


def steps_done(page: Page) -> int:
    found = re.search(r"step (\d+) of", page.locator(".clipviz-headline").inner_text())
    assert found
    return int(found[1])


def button_named(page: Page, name: str) -> Locator:
    # The icon in front of the text is a letter of its own.
    return page.locator(".jp-OutputArea").get_by_role("button", name=re.compile(rf"^\W*{name}$"))


def press(page: Page, name: str) -> None:
    button = button_named(page, name)
    expect(button).to_be_enabled()
    button.click()


def test_live_monitor_obeys_its_buttons(lab, page, run_all):
    run_all(lab.write("live.ipynb", setup(epochs=50, pause=0.05), "monitor = LiveMonitor(run)\nmonitor"))
    headline = page.locator(".clipviz-headline")
    expect(headline).to_contain_text("ready")
    press(page, "Start")
    expect(headline).to_contain_text(re.compile(r"running · step [1-9]"))
    press(page, "Pause")
    expect(headline).to_contain_text("paused")
    before = steps_done(page)
    page.wait_for_timeout(600)
    assert steps_done(page) == before
    press(page, "Step")
    expect(headline).to_contain_text(f"paused · step {before + 1} of 400")
    press(page, "Resume")
    expect(headline).to_contain_text("running")
    expect(headline).to_contain_text(re.compile(r"[2-9] of 50 epochs done"))
    expect(page.locator(".clipviz-chart > svg")).to_have_count(4)
    expect(page.locator(".clipviz-probe canvas")).to_have_count(12)
    slider = page.get_by_role("slider", name="gamma")
    what_if = page.get_by_text(re.compile("instead of 0.50"))
    slider.focus()
    for _ in range(5):
        page.keyboard.press("PageDown")
    expect(what_if).to_contain_text("pseudo-labels differ")
    press(page, "Apply")
    press(page, "Stop")
    expect(headline).to_contain_text("stopped")
    expect(button_named(page, "Stop")).to_be_disabled()
