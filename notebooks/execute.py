"""Execute the notebooks, or check that executing them gives what is committed.

    python notebooks/execute.py [NAMES]           write fresh outputs into the notebooks
    python notebooks/execute.py --check [NAMES]   change nothing; exit 1 and say which outputs changed
    python notebooks/execute.py --table           execute nothing; write the table of docs/teaching.md

NAMES are beginnings of file names ("01", "06_soap"); none means all. Compared is what a
reader reads: printed text, text forms and errors, but for digits after "about" (sanitize.cfg).
Pictures, explorables and live widgets are not: their pixels and last digits depend on fonts and
processors. A written notebook holds no widget state, no timestamps and no machine's name, so
executing it twice changes nothing but these. Writing also brings the notebook's row of the table in
docs/teaching.md up to date.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbval.plugin import get_sanitize_patterns

FOLDER = Path(__file__).resolve().parent
TIMEOUT = 1800
"""Seconds a cell may take."""

ROW = re.compile(r"/(\w+)\.ipynb\) \| (\d+) \|")
"""A notebook and its seconds, in the table of docs/teaching.md."""

SANITIZE = get_sanitize_patterns((FOLDER / "sanitize.cfg").read_text())
"""Pairs of a pattern and what stands for it where outputs are compared."""

LAST_PICTURES = (
    "import threading; "
    "get_ipython().events.register('post_run_cell', lambda _: "
    "[thread.join(60) for thread in threading.enumerate() if thread.name == 'clipviz view'])"
)
"""Ends no cell before a live view has left the picture of its end: between two cells it would be lost."""

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "nbconvert_exporter": "python"},
}


def notebooks(names: list[str]) -> list[Path]:
    """The notebooks whose file names begin with one of the names, all for none.

    Raises:
        SystemExit: if a name fits no notebook.
    """
    every = sorted(FOLDER.glob("[0-9]*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in every):
            sys.exit(
                f"no notebook begins with {name!r}; there are: {', '.join(path.stem for path in every)}"
            )
    return [path for path in every if not names or path.name.startswith(tuple(names))]


def execute(notebook: NotebookNode, folder: Path = FOLDER) -> NotebookNode:
    """A fresh kernel runs all cells of a copy, top to bottom.

    Raises:
        CellExecutionError: if a cell fails.
    """
    fresh = copy.deepcopy(notebook)
    fresh.metadata = nbformat.from_dict(METADATA)
    client = NotebookClient(
        fresh,
        timeout=TIMEOUT,
        kernel_name="python3",
        extra_arguments=[f"--IPKernelApp.exec_lines={LAST_PICTURES}"],
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    return clean(fresh)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop what another run or machine would write differently; cell ids, sources and tags stay as they are."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in ("jupyter", "tags") if key in cell.metadata}
        )
        for output in cell.get("outputs", ()):
            # a live view is made anew by running the cell; what stays is its picture
            data = output.get("data", {})
            if data.pop("application/vnd.jupyter.widget-view+json", None):
                data.pop("text/html", None)
    return notebook


def readable(cell: NotebookNode) -> list[str]:
    """What a reader reads of a cell's outputs, as lines."""
    lines: list[str] = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            lines += output.text.splitlines()
        elif output.output_type == "error":
            lines += [f"{output.ename}: {output.evalue}"]
        else:
            for kind in sorted(output.data):
                if not kind.startswith("image/") and kind != "text/html":
                    lines += [f"[{kind}]", *str(output.data[kind]).splitlines()]
    return lines


def sanitized(line: str) -> str:
    """A line as it is compared."""
    for pattern, stand_in in SANITIZE:
        line = re.sub(pattern, stand_in, line)
    return line


def differences(old: NotebookNode, new: NotebookNode) -> list[str]:
    """Lines of a diff between the readable outputs of two runs of one notebook."""
    lines: list[str] = []
    for before, after in zip(old.cells, new.cells, strict=True):
        lines += difflib.unified_diff(
            [sanitized(line) for line in readable(before)],
            [sanitized(line) for line in readable(after)],
            f"{before.id} as committed",
            f"{before.id} now",
            lineterm="",
            n=1,
        )
    return lines


def processor_seconds() -> float:
    """Processor time of all kernels that have ended, on all cores together."""
    spent = os.times()
    return spent.children_user + spent.children_system


def with_table(page: str, measured: dict[str, float]) -> str:
    """A page with its table of notebooks made anew; seconds that were not measured now stay.

    Ideas are what a notebook's first cell says that one learns.
    """
    known = {name: float(seconds) for name, seconds in ROW.findall(page)} | measured
    rows = ["| notebook | seconds | MB | ideas | exercises |", "|---|---|---|---|---|"]
    for path in notebooks([]):
        cells = nbformat.read(path, as_version=4).cells
        title = cells[0].source.splitlines()[0].removeprefix("# ")
        ideas = len(re.findall("^- ", cells[0].source, re.M))
        exercises = sum(cell.source.startswith("## Exercise ") for cell in cells)
        seconds = f"{known[path.stem]:.0f}" if path.stem in known else "?"
        size = path.stat().st_size / 1e6
        link = f"[{title}](../notebooks/{path.name})"
        rows.append(f"| {link} | {seconds} | {size:.1f} | {ideas} | {exercises} |")
    table = "\n".join(["<!-- notebooks -->", *rows, "<!-- /notebooks -->"])
    return re.sub("<!-- notebooks -->.*<!-- /notebooks -->", lambda _: table, page, flags=re.DOTALL)


def write_table(measured: dict[str, float]) -> None:
    """Bring the table of the teachers' page up to date, where these notebooks lie beside it."""
    page = FOLDER.parent / "docs" / "teaching.md"
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        page.write_text(with_table(text, measured), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed outputs, write nothing"
    )
    parser.add_argument(
        "--table", action="store_true", help="write the table of docs/teaching.md, execute nothing"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAMES", help="beginnings of file names; default: all"
    )
    args = parser.parse_args(argv)
    failed, measured = False, dict[str, float]()
    for path in notebooks(args.names) if not args.table else ():
        begun, used = time.perf_counter(), processor_seconds()
        committed = nbformat.read(path, as_version=4)
        try:
            fresh = execute(committed)
        except CellExecutionError as error:
            print(f"{path.stem}: a cell failed\n{error}")
            failed = True
            continue
        measured[path.stem] = processor_seconds() - used
        changed = differences(committed, fresh)
        if not args.check:
            nbformat.write(fresh, path)
        word = "same outputs" if not changed else "OUTPUTS CHANGED" if args.check else "new outputs"
        size = len(nbformat.writes(fresh)) / 1e6
        spent = f"{time.perf_counter() - begun:.0f} s, of the processor {measured[path.stem]:.0f} s"
        print(f"{path.stem}: {word}, {spent}, {size:.2f} MB", flush=True)
        if args.check and changed:
            print("\n".join(changed))
            failed = True
    if not args.check:
        write_table(measured)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
