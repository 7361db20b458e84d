"""`clipviz report`: one HTML page from run folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipviz.report import write_report
from clipviz.trace import Trace


def report(args: argparse.Namespace) -> None:
    """`clipviz report`: one HTML page from run folders."""
    out = Path(args.out)
    write_report([Trace.load(run) for run in args.runs], out)
    print(f"wrote {out}")
