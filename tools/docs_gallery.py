"""A page of pictures from one run: every figure as a PNG with what to look for, in Markdown that reads on a code host.

    python -m tools.docs_gallery RUN_DIR --out docs/gallery

Charts are photographed in a headless Chromium (playwright, from the `test` extra). Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import plotly.graph_objects as go
from matplotlib.figure import Figure
from PIL import Image

from clipviz import figures
from clipviz.figures.static import pixels
from clipviz.files import prepare_folder, write_text
from clipviz.report.summary import check_comparable
from clipviz.report.views import VIEWS
from clipviz.trace import Trace

#: Width of a picture in pixels, that of a notebook's output.
WIDTH = 900
# Of single images, which a report has to explore.
_WHY = (
    "The most confident mistakes or, without true labels, the least confident images, in detail. Did the model look at "
    "the right place? Was one branch right? Do the examples show a wrong idea of a class? When did the label change?"
)
_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser")
_BOXES = """names => names.map(name => {
    const { left, top, right, bottom } = document.getElementById(name).getBoundingClientRect();
    return [left, top, right, bottom];
})"""
_COLORS = 128  # of a palette: charts look the same and weigh a third


def write_gallery(traces: Sequence[Trace], folder: str | os.PathLike[str]) -> Path:
    """Write `index.md` and a PNG for each figure.

    Args:
        traces: Runs on the same data; the first has its figures drawn, all of them are compared in accuracy.
        folder: Where to; pictures of the same names are replaced.

    Returns:
        The page.

    Raises:
        ValueError: Runs on different data, a folder that cannot be written to, or no Chromium.
    """
    check_comparable(traces)
    out = prepare_folder(folder)
    label, data = figures.trace_labels(traces)[0], traces[0].meta.get("data", "unnamed images")
    lines = [f"# Figures of a run: {_plain(label)} on {_plain(data)}", ""]
    lines += [
        "All are drawn from the stored trace alone; `clipviz report RUN --out FILE.html` makes them interactive.",
        "",
    ]
    charts: dict[str, go.Figure] = {}
    for title, look_for, pictures in _chapters(traces):
        lines += [f"## {title}", "", look_for, ""]
        for name, figure in pictures.items():
            lines += [f"![{title}]({name}.png)", ""]
            if isinstance(figure, Figure):
                _save(pixels(figure), out / f"{name}.png")
            else:
                charts[name] = figure
    # In a thread of its own, because playwright refuses one that runs an event loop, as a notebook's does.
    with ThreadPoolExecutor(1) as pool:
        photographs = pool.submit(_photographs, charts).result()
    for name, photograph in photographs.items():
        _save(photograph, out / f"{name}.png")
    write_text(out / "index.md", "\n".join(lines))
    return out / "index.md"


def _chapters(traces: Sequence[Trace]) -> Iterator[tuple[str, str, Mapping[str, go.Figure | Figure]]]:
    """Title, what to look for, and the figures by file name."""
    compared = {"accuracy_over_epochs": figures.accuracy_over_epochs(traces)}
    yield "Accuracy over epochs", "Accuracy of each method and of its pseudo-labels.", compared
    for view in VIEWS:
        if (drawn := view.draw(traces[0])) is not None:
            yield view.title, view.look_for, {view.figure: drawn}
    if n := min(3, len(traces[0].highlights.images)):
        pages = {f"why_wrong_{i}": figures.why_wrong(traces[0], i) for i in range(n)}
        yield "Why is this one wrong?", _WHY, pages


def _plain(text: object) -> str:
    """Text without Markdown's or HTML's signs."""
    return "".join(" " if letter in "<>[]()`*_\\|&\n" else letter for letter in str(text))


def _save(image: Image.Image, path: Path) -> None:
    # Not by the median cut, which gives rare colors away: the few marks that tell right from wrong.
    image.quantize(_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def _photographs(charts: Mapping[str, go.Figure]) -> dict[str, Image.Image]:
    """Every chart as a browser draws it, cut out of one photograph of all: one for each would take far longer."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise ValueError('the gallery needs playwright: pip install "clipviz[test]"') from error
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, div_id=name)
        for i, (name, figure) in enumerate(charts.items())
    ]
    installed = next(filter(None, map(shutil.which, _BROWSERS)), None)  # else playwright's own
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "charts.html"
        path.write_text(f"<!DOCTYPE html><body style='margin: 0 32px'>{''.join(parts)}", encoding="utf-8")
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except Error as error:
            raise ValueError(
                "the gallery needs a Chromium: install one, or run `playwright install chromium`"
            ) from error
        tab = browser.new_page(viewport={"width": WIDTH + 64, "height": 800})
        tab.goto(path.as_uri())
        tab.add_style_tag(content=".modebar { display: none !important }")
        for name in charts:
            tab.wait_for_selector(f"#{name} .main-svg")
        boxes = tab.evaluate(_BOXES, [*charts])
        sheet = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
        browser.close()
    return {name: sheet.crop(box) for name, box in zip(charts, boxes, strict=True)}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs_gallery", description="Pictures of a run.")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="the run to draw, then others to compare with")
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    try:
        written = write_gallery([Trace.load(run) for run in args.runs], args.out)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
