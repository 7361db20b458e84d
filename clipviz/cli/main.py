"""Command line: `clipviz demo | adapt | embed | describe | watch | report | compare | lab`.

Exit 0: done. Exit 2 and one line on stderr: a mistake of the user's (what was wanted, what came, what to do); `--debug`
shows the traceback. Exit 1: the run itself failed, or clipviz did, and then with its traceback. Exit 128 + n: stopped
by signal n (130: Ctrl-C, 143: SIGTERM, 129: SIGHUP, unless nohup has it ignored); a run has saved what it did.
Torch is imported by the commands that need it, so `--help` is instant.
"""

import argparse
import atexit
import difflib
import dis
import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from clipviz import __version__
from clipviz.cli.options import COMMANDS, EXAMPLES
from clipviz.errors import one_line
from clipviz.training.interrupts import StoppedBySignal, on_signal, raise_for


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message, None)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="clipviz", description="Adapt CLIP to fine-grained classes without labels, and see how it works.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"clipviz {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, about in COMMANDS.items():
        sub = commands.add_parser(name, help=about.purpose, description=about.more, epilog=f"example: {about.example}")
        sub.allow_abbrev = False  # --n 256 would be --num-nodes 256, and wait for 255 machines
        about.add_options(sub)
        # here too, where one adds it to a command that failed
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # None after 2>&-: print takes stdout
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.exit(2, f"clipviz {args.command}: error: {one_line(_no_such_option(unknown, args), None)}\n")
    for name, value in vars(args).items():
        if "\0" in "".join(value if isinstance(value, list) else str(value)):
            parser.exit(2, f"clipviz {args.command}: error: {name} holds a NUL character, which no file name has\n")
        if isinstance(value, str | list):  # a shell leaves the ~ of --out=~/x as it is
            home = os.path.expanduser
            setattr(args, name, home(value) if isinstance(value, str) else [*map(home, value)])
    if getattr(sys.stdout, "errors", "") == "strict":  # as on stderr, what its encoding lacks becomes escapes
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    came: list[int] = []  # a library that a signal interrupts while it is imported may swallow it, and be broken then

    def note(signum: int) -> None:
        came.append(signum)
        raise_for(signum)

    with warnings.catch_warnings(), on_signal(note):
        warnings.showwarning = lambda message, *_: print(one_line(message, None), file=sys.stderr)
        try:
            _command(args.command, came)(args)
        except (KeyboardInterrupt, StoppedBySignal) as stop:
            return _fail(_stopped(args), getattr(stop, "code", 130))
        except Exception as error:
            return _fail(_stopped(args), 128 + came[0]) if came else _failed(error, args)
    return 0


def _no_such_option(unknown: Sequence[str], args: argparse.Namespace) -> str:
    """Name what a command does not know, and its option that is spelled most like it."""
    others = ("command", "method", "run", "runs", "order", "jupyter")
    options = [f"--{name.replace('_', '-')}" for name in vars(args) if name not in others]
    nearest = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
    after = "; options of JupyterLab go after --" if args.command == "lab" else ""
    hint = f"; did you mean {nearest[0]}?" if nearest else after
    return f"unrecognized arguments: {' '.join(unknown)}{hint} (see clipviz {args.command} --help)"


def _failed(error: Exception, args: argparse.Namespace) -> int:
    """One line and a status for what a user can mend; anything else is raised again, and all of it for --debug."""
    is_memory = isinstance(error, MemoryError) or ("memory" in str(error) and "allocat" in str(error))  # so says torch
    if is_memory and not args.debug:
        return _fail(f"not enough memory: {one_line(error) or 'none is left'}", 1)
    if args.debug or not isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError)):
        raise error
    if isinstance(error, FloatingPointError):
        return _fail(f"{error}; the checkpoint of the last complete epoch is kept", 1)
    if not is_about_the_input(error):
        raise error
    return _fail(str(error) or type(error).__name__, 1 if isinstance(error, RuntimeError) else 2)


def _command(name: str, came: Sequence[int]) -> Callable[[argparse.Namespace], None]:
    where = f"clipviz.cli.{name}"  # one at a time: only some of them need torch
    if where not in sys.modules:
        gc.disable()  # looking for garbage is a quarter of the time that torch takes
        try:
            import_module(where)
            gc.freeze()  # what was imported stays
            atexit.register(gc.unfreeze)  # else triton reports leaks when Python ends
        finally:
            gc.enable()
    if came:  # and numpy swallowed it
        raise_for(came[0])
    return getattr(sys.modules[where], name)


def _stopped(args: argparse.Namespace) -> str:
    if args.command == "watch":
        return "stopped watching; the run continues"
    if args.command == "adapt" and os.path.exists(os.path.join(args.out, "results.json")):
        return f"the run had already finished; {args.out} holds all of it"
    if args.command == "adapt" and os.path.exists(os.path.join(args.out, "checkpoint.safetensors")):
        return "stopped and saved; the same command with --resume continues from here"
    if args.command == "describe" and os.path.exists(args.out or ""):
        return f"stopped; the answers so far are in {args.out}, and the same command asks for the rest"
    if args.command == "demo":
        return f"stopped; the runs so far are in {args.out}, and the same command starts again"
    return "stopped; nothing was saved"


def is_about_the_input(error: Exception) -> bool:
    """Whether an error was raised by clipviz for its user to read, or by the system (no space, no permission).

    A ValueError from the depths of another library, or of Python itself in a line of ours, is a mistake of ours: it
    keeps its traceback and status 1.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or isinstance(error, OSError):
        return True
    is_ours = last.tb_frame.f_globals["__name__"].partition(".")[0] == "clipviz"
    return is_ours and dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _fail(message: str, status: int) -> int:
    print(f"clipviz: error: {one_line(message, None)}", file=sys.stderr)
    return status
