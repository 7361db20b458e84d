"""A researcher's day, driven and photographed: `python tests/browser/researcher.py [--out FOLDER]`.

In a real JupyterLab, on run folders that the command line wrote: reopen a run, follow and pause one of another process,
compare two, look at a fixed image before and after, export. Every step is one line of Python and some clicks; both are
counted, and `docs/researcher.md` has the numbers. The pictures are for that page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # where a script finds what the tests share
from forked import start
from screenshots import save
from server import ERRORS, READY, Lab, browsing, serving

DOCS = Path(__file__).parent.parent.parent / "docs" / "researcher"
N_IMAGES, EPOCHS = 240, 5
RUN = """i => {
    window.jupyterapp.shell.currentWidget.content.activeCellIndex = i; // a click into an output makes its cell active
    return window.jupyterapp.commands.execute('notebook:run-cell');
}"""


class Hand:
    """What a reader does in a page; clicks are counted, and what they lead to is waited for."""

    def __init__(self, page: Any, cell: str) -> None:
        self.page, self.cell, self.clicks = page, cell, 0

    def press(self, name: str) -> None:
        """A button of the newest view that has it; the icon in front of its text is a letter of its own."""
        self.clicks += 1
        self.page.get_by_role("button", name=re.compile(rf"^\W*{name}")).last.click()

    def choose(self, control: str, option: str) -> None:
        """An entry of a list."""
        self.clicks += 1
        self.page.get_by_label(control, exact=True).locator("visible=true").last.select_option(option)

    def see(self, text: str) -> None:
        """Wait for a text that matches."""
        self.page.get_by_text(re.compile(text)).locator("visible=true").last.wait_for()


class Step(NamedTuple):
    """What is wanted, the line for it ("" none), and what is done in the page and then seen there."""

    wish: str
    line: str
    act: Callable[[Hand], None]


def reopen(hand: Hand) -> None:
    hand.see(r"^microCLIP, epoch \d: ")


def pause(hand: Hand) -> None:
    hand.see("^running · step")
    hand.press("Pause$")
    hand.see("^paused · step")


def compare(hand: Hand) -> None:
    hand.choose("of the", "training images")
    hand.press(hand.cell)
    hand.see(r"^microCLIP, gamma 0.7, epoch \d: [✓✗] ")


def before_and_after(hand: Hand) -> None:
    hand.press("before . after$")
    hand.see("^SOAP attention: more .* than before$")


def export(hand: Hand) -> None:
    hand.see(r"^.*Path\('fixed\.pdf'\)$")


STEPS = {
    "reopen": Step("reopen a finished run", 'clipviz.explore("runs/gamma03")', reopen),
    "follow": Step("follow a run of another process, and pause it", 'clipviz.LiveMonitor("runs/long")', pause),
    "compare": Step(
        "which images did gamma 0.7 fix, when did the label flip, and which source decided it",
        'clipviz.CompareExplorer(["runs/gamma03", "runs/gamma07"])',
        compare,
    ),
    "before_after": Step("one of these images before and after training", "", before_and_after),
    "export": Step("export the view as PDF", 'clipviz.save(_, "fixed.pdf")', export),
}


DAY, LINES = "day.ipynb", ["import clipviz", *(step.line for step in STEPS.values() if step.line)]


def walk(page: Any, cell: str = "only b: [1-9]") -> Iterator[tuple[str, str]]:
    """Do the steps in the notebook of these lines; yields the name of each and its row, with lines and clicks."""
    page.wait_for_function(READY, arg=DAY, timeout=180_000)
    page.evaluate(RUN, place := 0)
    for name, step in STEPS.items():
        hand = Hand(page, cell)
        if step.line:
            page.evaluate(RUN, place := place + 1)
            assert page.evaluate(ERRORS) == []
        step.act(hand)
        yield (
            name,
            f"| {step.wish} | {f'`{step.line}`' if step.line else ''} | {int(bool(step.line))} | {hand.clicks} |",
        )


@contextlib.contextmanager
def run_folders(root: Path, n_images: int, epochs: int, *options: str) -> Iterator[None]:
    """Photos, the two runs on them, and a long one that goes on in a process of its own."""
    import clipviz
    from clipviz.cli.main import main as main_of_clipviz

    for split in ("train", "test"):
        data = clipviz.load_dataset("birds/fog", split=split, n=n_images)
        for i, label in enumerate(data.targets):
            path = root / "photos" / split / data.class_names[int(label)] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.image(i).save(path)

    def adapt(name: str, gamma: float, epochs: int) -> list[str]:
        chosen = f"--model birds --data photos --set gamma={gamma} --epochs {epochs} --out runs/{name}".split()
        return ["adapt", "microclip", *chosen, *options]

    for name, gamma in (("gamma03", 0.3), ("gamma07", 0.7)):
        with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()):
            assert main_of_clipviz(adapt(name, gamma, epochs)) == 0
    other = start(main_of_clipviz, adapt("long", 0.5, 10_000), folder=root)
    try:
        while not (root / "runs" / "long" / "live.json").exists():
            assert other.is_alive()
            time.sleep(0.2)
        yield
    finally:
        other.kill()
        other.join()


def photograph(lab: Lab, page: Any, out: Path) -> None:
    """A picture of each step: the line and what it shows; of the last one the file, as JupyterLab shows it."""
    place = 0
    page.goto(lab.write(DAY, *LINES))
    for name, row in walk(page):
        print(row)
        place += bool(STEPS[name].line)
        page.evaluate("window.jupyterapp.shell.collapseLeft()")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        shown = page.locator(".jp-CodeCell").nth(place)
        if name == "export":
            page.goto(f"{lab.url}/lab/tree/fixed.pdf?reset")
            page.set_viewport_size({"width": 1300, "height": 760})
            page.wait_for_timeout(6000)
            shown = page
        save(Image.open(io.BytesIO(shown.screenshot())).convert("RGB"), out / f"{name}.webp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="default: %(default)s")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as lab, browsing() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 5000})
        page.set_default_timeout(120_000)
        with run_folders(lab.root, N_IMAGES, EPOCHS):
            photograph(lab, page, args.out)


if __name__ == "__main__":
    main()
