"""One self-contained HTML page from one or more traces: it opens from disk, without a network, and prints.

`summary` holds the numbers, `views` the figures, `sections` and `explored` what the templates and scripts are given,
`page` the frame. Words and markup are in `templates/`, what moves in `static/`.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipviz.figures import method_style
from clipviz.figures.style import check_traces
from clipviz.files import write_text
from clipviz.report.page import page
from clipviz.report.sections import contents
from clipviz.report.summary import REFERENCES, check_comparable
from clipviz.trace import Trace

__all__ = ["write_report"]


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
    traces = list(traces) if isinstance(traces, Iterable) and not isinstance(traces, str) else [traces]
    check_traces("a report", traces)
    check_comparable(traces)
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"the report is a file, but {path} is a folder; try {path / 'report.html'}")
    named = [trace for trace in traces if trace.method not in REFERENCES] or traces
    names = dict.fromkeys(str(trace.meta.get("label") or method_style(trace.method).name) for trace in named)
    title = title or f"{', '.join(names)} on {traces[0].meta.get('data', 'unnamed images')}"
    write_text(path, page(title, **contents(traces)))
    return path
