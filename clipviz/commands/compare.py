"""`clipviz compare`: the results of run folders as one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipviz.commands.table import check_same_images, read_results, summary


def compare(args: argparse.Namespace) -> None:
    """`clipviz compare`: one table from run folders; runs on different data or splits are not put together."""
    rows = [read_results(Path(run)) for run in args.runs]
    check_same_images(args.runs, rows)
    print(summary(rows, args.runs))
