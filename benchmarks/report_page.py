"""How fast a report is written and opens: `python -m benchmarks.report_page RUN_DIR [RUN_DIR ...]`.

Opened from disk in a headless Chromium with the network off, five times: until the first figure is on screen (the
ladder of accuracies), until the page is loaded, until the images can be explored, until plotly has started and until
its first chart is drawn. Medians in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser

from benchmarks import command
from clipviz.report import write_report
from clipviz.trace import Trace

sys.path.append(str(Path(__file__).parent.parent / "tests" / "browser"))

TURNS = 5
NAMES = ("first figure", "page loaded", "images to explore", "plotly started", "first chart")
WATCH = """addEventListener('DOMContentLoaded', () => {
    const seen = {'.clipviz-thumb': 0, 'head > script': 0, '.chart .main-svg': 0};
    new MutationObserver(() => {
        for (const what in seen) if (!seen[what] && document.querySelector(what)) seen[what] = performance.now();
    }).observe(document, {subtree: true, childList: true});
    window.seen = seen;
})"""
TIMES = """() => {
    const [{loadEventEnd}] = performance.getEntriesByType('navigation');
    return [performance.getEntriesByName('first-contentful-paint')[0].startTime, loadEventEnd, ...Object.values(seen)];
}"""


def opened(browser: Browser, path: Path) -> list[float]:
    """Milliseconds from the call on, in the order of `NAMES`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    tab = context.new_page()
    tab.add_init_script(WATCH)
    tab.goto(path.as_uri())
    for what in (".clipviz-thumb", ".chart .main-svg"):
        tab.locator(what).first.wait_for()
    times: list[float] = tab.evaluate(TIMES)
    context.close()
    return times


def main() -> None:
    """Write, open, print."""
    from server import browsing

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    traces = [Trace.load(run) for run in parser.parse_args().runs]
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        begun = time.perf_counter()
        path = write_report(traces, Path(folder) / "report.html")
        print(
            f"load {os.getloadavg()[0]:.1f}; {len(traces)} runs written in {time.perf_counter() - begun:.1f} s,",
            end=" ",
        )
        print(f"{path.stat().st_size / 1e6:.2f} MB")
        rows = [opened(browser, path) for _ in range(TURNS)]
    for name, values in zip(NAMES, zip(*rows, strict=True), strict=True):
        print(f"{name:18s} {statistics.median(values):5.0f} ms")


if __name__ == "__main__":
    command(main)
