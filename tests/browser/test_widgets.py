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


def slider(page: Page, name: str) -> Locator:
    return page.locator(".widget-hslider", has_text=name).locator(".noUi-handle")


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
    what_if = page.get_by_text(re.compile("instead of 0.50"))
    slider(page, "gamma").focus()
    for _ in range(5):
        page.keyboard.press("PageDown")
    expect(what_if).to_contain_text("pseudo-labels differ")
    press(page, "Apply")
    press(page, "Stop")
    expect(headline).to_contain_text("stopped")
    expect(button_named(page, "Stop")).to_be_disabled()


def test_saliency_explorer_from_a_confusion_to_a_map(lab, page, run_all):
    cells = [setup(), "trace = run.fit()", "explorer = SaliencyExplorer(trace, run)\nexplorer"]
    run_all(lab.write("explorer.ipynb", *cells))
    matrix = page.locator(".clipviz-matrix canvas")
    thumbs = page.locator(".clipviz-thumb")
    expect(thumbs).to_have_count(32)
    expect(page.locator(".clipviz-panels canvas")).to_have_count(2)
    # The tiny model calls nearly everything by one name, so a true class that is not it fills a cell.
    wrong = page.get_by_role("option", name=re.compile("^✗ ")).first.get_attribute("aria-label")
    found = re.match(r"✗ (.+) \d\.\d\d, is (.+)", wrong)
    names = ["red square", "green square", "blue square"]
    row, column = names.index(found[2]), names.index(found[1])
    side = (420 - 118 - 4) / 3
    matrix.click(position={"x": 118 + (column + 0.5) * side, "y": 118 + (row + 0.5) * side})
    expect(page.locator(".clipviz-readout")).to_contain_text(f"“{found[2]}” are called “{found[1]}”")
    expect(thumbs).not_to_have_count(32)
    expect(thumbs.first).to_have_attribute("aria-label", re.compile(f"✗ {found[1]} .*, is {found[2]}"))
    thumbs.nth(1).click()
    expect(thumbs.nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".clipviz-overlay .clipviz-caption")).to_contain_text(f"✗ {found[1]}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(thumbs.nth(2)).to_have_attribute("aria-selected", "true")
    button_named(page, "relevance").click()
    expect(page.locator(".clipviz-panels canvas")).to_have_count(3)
    expect(page.locator(".clipviz-panels figcaption").nth(2)).to_have_text("relevance, now")
    before = canvas_bytes(page, 1)
    slider(page, "opacity").focus()
    page.keyboard.press("End")
    wait_for_another(page, 1, before)
    before = canvas_bytes(page, 1)
    slider(page, "epoch").focus()
    page.keyboard.press("Home")
    expect(page.locator(".clipviz-overlay .clipviz-caption")).to_contain_text("before training")
    wait_for_another(page, 1, before)


def wait_for_another(page: Page, i: int, before: str) -> None:
    changed = "([i, before]) => document.querySelectorAll('.clipviz-panels canvas')[i].toDataURL() !== before"
    page.wait_for_function(changed, arg=[i, before])


def canvas_bytes(page: Page, i: int) -> str:
    return page.locator(".clipviz-panels canvas").nth(i).evaluate("canvas => canvas.toDataURL()")
