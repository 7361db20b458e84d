"""One self-contained HTML page from one or more traces: it opens from disk, without a network, and prints.

`page` holds the bricks, `summary` the numbers, `sections` the chapters; `write_report` puts them together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipviz.figures import is_trained, method_style, trace_labels
from clipviz.files import write_text
from clipviz.report import sections
from clipviz.report.page import Html, element, page
from clipviz.report.summary import check_comparable, summarize
from clipviz.trace import Trace

__all__ = ["write_report"]

# The page should weigh 6 MB at most, of which plotly.js takes 1.9 and the charts of a run up to 0.2. What is
# left is shared by the pictures, six for each run: with many runs they get coarser.
_PICTURES_AND_CHARTS, _CHARTS_OF_A_RUN = 3_000_000, 200_000
_PICTURES_OF_A_RUN, _LEAST_PICTURE = 6, 36_000


def write_report(traces: Trace | Sequence[Trace], path: str | os.PathLike[str], title: str | None = None) -> Path:
    """Write one HTML page about runs on the same data.

    Args:
        traces: The runs, or one, in the order of the table. All were measured on the same images and classes.
        path: The file to write; its folder is made. An older file is replaced when the new one is whole.
        title: Headline of the page; by default the methods and the data.

    Returns:
        The file.

    Raises:
        ValueError: No trace, traces that cannot share a table, or a place that cannot be written.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    if strange := [trace for trace in traces if not isinstance(trace, Trace)]:
        raise ValueError(f"a report wants traces, got {strange[0]!r}; Trace.load reads that of a run folder")
    check_comparable(traces)
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"the report is a file, but {path} is a folder; try {path / 'report.html'}")
    title = title or _default_title(traces)
    write_text(path, page(title, _body(title, traces)))
    return path


def _default_title(traces: Sequence[Trace]) -> str:
    data = traces[0].meta.get("data", "unnamed images")
    trained = [trace for trace in traces if is_trained(trace)]
    names = (trace.meta.get("label") or method_style(trace.method).name for trace in trained or traces)
    return f"{', '.join(dict.fromkeys(map(str, names)))} on {data}"


def _body(title: str, traces: Sequence[Trace]) -> Iterator[Html]:
    labels = trace_labels(traces)
    runs = [(f"run-{i}", label, trace) for i, (label, trace) in enumerate(zip(labels, traces, strict=True))]
    trained = [run for run in runs if is_trained(run[2])]
    yield element("h1", title)
    yield from sections.introduction(traces, summarize(traces))
    settings = ("settings", "Settings, versions and how to repeat it")
    chapters = [("results", "Results"), *((name, label) for name, label, _ in trained), settings]
    has_skipped = any(len(trace.skipped) for trace in traces)
    yield sections.contents(chapters + [("skipped", "Skipped files")] * has_skipped)
    yield sections.heading("results", "Results", flows=True)
    yield from sections.comparison(traces)
    for number, (name, label, trace) in enumerate(trained):
        yield sections.heading(name, label)
        yield from sections.method_views(label, trace, number, _most_picture_bytes(len(trained)))
    yield sections.heading(*settings)
    yield from sections.settings(labels, traces)
    yield from sections.skipped(traces)
    yield element("footer", "Written by clipviz. This page needs no network and sends nothing.")


def _most_picture_bytes(n_runs: int) -> int:
    share = _PICTURES_AND_CHARTS // max(n_runs, 1) - _CHARTS_OF_A_RUN
    return max(share // _PICTURES_OF_A_RUN, _LEAST_PICTURE)
