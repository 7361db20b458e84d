"""`clipviz compare`: the results of run folders as one table."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipviz.cli.table import check_same_images, read_results, summary
from clipviz.errors import inert, parse_json
from clipviz.figures import run_labels
from clipviz.figures.compare import other_images
from clipviz.report import write_report
from clipviz.trace import Trace
from clipviz.trace.schema import check_meta


def compare(args: argparse.Namespace) -> None:
    """`clipviz compare`: one table from run folders; runs on different data or splits are not put together."""
    rows = [read_results(Path(run)) for run in args.runs]
    facts = [_chosen(run, row) | row for run, row in zip(args.runs, rows, strict=True)]
    check_same_images(args.runs, facts)
    print(summary(rows, args.runs, run_labels([row["method"] for row in rows], facts, args.runs)))
    if what := other_images([Trace(meta=fact) for fact in facts]):
        print(f"these runs were measured on different birds: their {what} differs")
    if args.html is not None:
        print(f"wrote {inert(write_report(list(map(Trace.load, args.runs)), args.html))}", file=sys.stderr)


def _chosen(run: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen for a run, and changed on the way, by its trace; nothing where that cannot be read."""
    try:
        chosen = check_meta(parse_json((Path(run) / "trace" / "meta.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
    for key in ("method", "model", "seed", "epochs", "seconds"):
        if chosen.get(key, row[key]) != row[key]:
            path, what = Path(run) / "results.json", f"{key} {row[key]!r} instead of {chosen[key]!r}"
            raise ValueError(f"{path} is of another run than the trace beside it, with {what}; put its own back")
    return chosen
