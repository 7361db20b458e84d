"""Pictures of the six views for docs/: `python tests/browser/screenshots.py [--out FOLDER] [--theme dark]`.

A short microCLIP run on birds in a real JupyterLab at 1000 pixels; each view is photographed as a reader meets it.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from server import browsing, open_and_run, serving

DOCS = Path(__file__).parent.parent.parent / "docs" / "widgets"
MOST_BYTES = 60_000
SETUP = """
import clipviz
backbone = clipviz.load_backbone("birds")
data = clipviz.load_dataset("birds/fog", split="train", n=160)
test = clipviz.load_dataset("birds/fog", split="test", n=160)
def make(**options):
    method = clipviz.METHODS["microclip"](backbone, data.prompts)
    config = clipviz.AdaptConfig(epochs=4, batch_size=16, lr=1e-3)
    probe = clipviz.spread_probe(test, method.backbone.image_size, 6)
    return clipviz.Run(method, data, config, eval_dataset=test, probe=probe, **options)
state = clipviz.ViewState(epoch=3, selected=("eval/7",))
trace = (run := make()).fit()
(other := make(seed=1)).fit()
live = make()
live.step(25)
"""
CELLS = (
    SETUP,
    "clipviz.LiveMonitor(live.start())",
    "clipviz.SaliencyExplorer(trace, run, state=state)",
    "comparison = clipviz.CompareExplorer([run, other])\ncomparison.split.value = 'train'\n"
    "comparison.cells['only a right'].value = True\ncomparison.state.selected = (comparison.shown[0],)\ncomparison",
    "prototypes = clipviz.PrototypeExplorer(trace, run, state=state)\nprototypes",
    "playground = clipviz.DKAPlayground(trace, run)\nplayground.gamma.value = 0.8\nplayground",
    "birds = clipviz.load_dataset('birds', split='test', n=240)\n"
    "method = clipviz.METHODS['descriptions'](backbone, birds.prompts)\n"
    "guesses = clipviz.record(clipviz.adapt(method, birds, eval_dataset=birds))\n"
    "words = clipviz.DescriptionPlayground(guesses, clipviz.ModelProbe(method, birds, birds))\n"
    "words.chosen.value = birds.class_names.index('plain swallow')\n"
    "words.words.value = 'A swallow with a plain tail.'\nwords",
)
NAMES = ("live_monitor", "saliency_explorer", "compare_explorer", "prototype_explorer", "dka_playground",
         "description_playground")  # fmt: skip


def photograph(page: Any, url: str, out: Path, theme: str) -> None:
    """Run the notebook and save one picture for each view."""
    if theme == "dark":
        page.goto(url)
        page.wait_for_function("window.jupyterapp?.commands?.hasCommand('apputils:change-theme')")
        page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    open_and_run(page, url)
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    page.get_by_text(re.compile(r"paused · step 25 of")).wait_for()
    page.locator(".clipviz-overlay canvas").nth(11).wait_for()  # of the last view: nothing moves any more
    views = page.locator(".jp-OutputArea-output .widget-vbox:not(.widget-vbox .widget-vbox)").all()
    assert len(views) == len(NAMES), f"{len(views)} views instead of {len(NAMES)}"
    draw_around(page, (200, 275), (300, 360))
    for name, view in zip(NAMES, views, strict=True):
        view.scroll_into_view_if_needed()
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        picture = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
        save(picture, out / f"{name}{'_dark' if theme == 'dark' else ''}.webp")


def draw_around(page: Any, first: tuple[int, int], last: tuple[int, int]) -> None:
    """A lasso in the plane, from one corner to the other."""
    plane = page.locator(".clipviz-scatter canvas")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    (left, top), (right, bottom) = first, last
    page.mouse.move(box["x"] + left, box["y"] + top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 1)):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
    page.mouse.up()
    page.get_by_text(re.compile(r"^[1-9]\d* images chosen")).wait_for()
    page.mouse.move(0, 0)


def save(picture: Image.Image, path: Path) -> None:
    """As WebP of at most `MOST_BYTES`, as finely as that allows."""
    for quality in range(90, 20, -5):
        buffer = io.BytesIO()
        picture.save(buffer, "webp", quality=quality, method=6)
        if len(buffer.getvalue()) <= MOST_BYTES:
            break
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {picture.width} x {picture.height}, {len(buffer.getvalue()) / 1000:.0f} kB, quality {quality}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="default: %(default)s")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as lab, browsing() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        page.set_default_timeout(120_000)
        photograph(page, lab.write("views.ipynb", *CELLS), args.out, args.theme)


if __name__ == "__main__":
    main()
