"""`clipviz report`: one HTML page from run folders."""

import argparse
import sys

from clipviz.errors import inert
from clipviz.files import is_stream
from clipviz.report import write_report
from clipviz.trace import Trace


def report(args: argparse.Namespace) -> None:
    """`clipviz report`: one HTML page from run folders."""
    out = "/dev/stdout" if args.out == "-" else args.out
    write_report([Trace.load(run) for run in args.runs], out)
    print(f"wrote {inert(args.out)}", file=sys.stderr if is_stream(out) else sys.stdout)
