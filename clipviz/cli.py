"""Command line: `clipviz demo | adapt | embed | describe | report | compare | lab`.

Exit 0: done. Exit 2 and one line on stderr: a mistake of the user's (what was wanted, what came, what to do); `--debug`
shows the traceback. Exit 1: the run itself failed, or clipviz did, and then with its traceback. Exit 130: stopped by
Ctrl-C; a run has saved what it did.
Torch is imported by the commands that need it, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from clipviz import __version__

EPILOG = """examples:
  clipviz demo
  clipviz adapt microclip --model birds --data birds/clutter --out runs/clutter
  clipviz adapt microclip --model ViT-B-32 --pretrained FILE.safetensors --data PHOTOS --out runs/photos
  clipviz report runs/clutter --out clutter.html
"""


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit 2."""
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (see {self.prog} --help)\n")


def _demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", default="clipviz-demo", metavar="DIR", help="default: %(default)s")
    command.add_argument("--domain", default="fog", metavar="NAME", help="shifted domain, default: %(default)s")
    command.add_argument("--epochs", type=_positive, metavar="N", help="epochs of each method that trains")
    command.add_argument("--seed", type=_natural, default=0, metavar="N", help="default: %(default)s")
    command.add_argument("--methods", metavar="A,B", help="default: all")


def _adapt_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "method", metavar="METHOD", help="zero_shot, descriptions, wca, tip_adapter, ntua, dpa, microclip"
    )
    _add_model_and_data(command)
    command.add_argument("--eval-data", metavar="SPEC", help="images to measure on; default: the test split of --data")
    command.add_argument("--preset", metavar="NAME", help="constants of the method: official, a benchmark's name, ...")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one constant of the method; may be repeated"
    )
    command.add_argument("--teacher", metavar="NAME", help="ntua: a larger model that refines the cache")
    command.add_argument("--teacher-pretrained", metavar="TAG_OR_FILE", help="its weights")
    command.add_argument("--allow-labels", action="store_true", help="ntua: permit selection=oracle_balanced")
    command.add_argument("--out", required=True, metavar="DIR", help="run folder")
    command.add_argument("--epochs", type=_positive, metavar="N", help="default: what the method recommends")
    command.add_argument("--batch-size", type=_positive, metavar="N", help="default: what the method recommends")
    command.add_argument("--lr", type=float, metavar="X", help="default: what the method recommends")
    command.add_argument("--seed", type=_natural, default=0, metavar="N", help="default: %(default)s")
    command.add_argument("--workers", type=_natural, default=0, metavar="N", help="processes that load images")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")


def _embed_options(command: argparse.ArgumentParser) -> None:
    _add_model_and_data(command)
    command.add_argument("--split", default="train", choices=("train", "val", "test"), help="default: %(default)s")
    command.add_argument("--seed", type=_natural, default=0, metavar="N", help="default: %(default)s")
    command.add_argument("--out", required=True, metavar="FILE", help=".npz or .safetensors")


def _describe_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", metavar="SPEC", help="data set whose classes are described")
    command.add_argument("--classes", metavar="FILE", help="class names, one a line")
    command.add_argument("--root", metavar="DIR", help="folder of the benchmarks; default: $CLIPVIZ_DATA, else data")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="FILE.json", help="file to write; what is filled in already is kept")
    what.add_argument("--check", metavar="FILE.json", help="say everything about a file, and write nothing")
    command.add_argument("--model", metavar="NAME", help="--check: count what its text tower cuts; default: ViT-B-32")
    command.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, up to /v1; default: $OPENAI_BASE_URL")
    command.add_argument("--llm", metavar="NAME", help="language model there; default: $OPENAI_MODEL")
    command.add_argument("--sentences", type=_positive, default=20, metavar="N", help="a class; default: %(default)s")
    command.add_argument("--kind", metavar="NOUN", help="what the classes are kinds of, such as bird")
    command.add_argument("--yes", action="store_true", help="make the calls without asking")


def _report_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", nargs="+", metavar="RUN_DIR")
    command.add_argument("--out", required=True, metavar="FILE.html")


def _compare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", nargs="+", metavar="RUN_DIR")


def _lab_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", default="clipviz-notebooks", metavar="DIR", help="their copy, default: %(default)s")
    command.add_argument("--port", type=_positive, metavar="N", help="default: JupyterLab's own choice")
    command.add_argument("--no-browser", action="store_true", help="only serve; the address is printed")


def _add_model_and_data(command: argparse.ArgumentParser) -> None:
    """Which model looks at which images, and what the classes are."""
    command.add_argument("--model", metavar="NAME", help="birds, or an open_clip architecture; not for embeddings")
    command.add_argument("--pretrained", metavar="TAG_OR_FILE", help="open_clip tag, or a .safetensors / .pt file")
    command.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="folder of images, manifest (.csv, .parquet), split_zhou_*.json, benchmark (dtd, eurosat, ...), birds, "
        "birds/DOMAIN, or a file of embeddings",
    )
    command.add_argument("--root", metavar="DIR", help="folder of the benchmarks; default: $CLIPVIZ_DATA, else data")
    command.add_argument("--download", action="store_true", help="let torchvision download a missing benchmark")
    command.add_argument("--allow-outside", action="store_true", help="let a manifest name images outside its folder")
    command.add_argument("--classes", metavar="FILE", help="class names, one a line, where there are no class folders")
    command.add_argument("--descriptions", metavar="FILE", help="CuPL JSON: class name -> list of sentences")
    command.add_argument("--cache-dir", metavar="DIR", help="keep decoded images there, for epochs and runs to come")
    command.add_argument("--cache-gb", type=_gigabytes, default=10.0, metavar="X", help="at most; default: %(default)g")
    command.add_argument(
        "--cache-side", type=_positive, default=512, metavar="N", help="their short side there; default: %(default)s"
    )
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; default: cuda if there is one")
    command.add_argument(
        "--devices", type=_positive, metavar="N", help="processes that share the work, a device each; default: 1"
    )
    command.add_argument(
        "--num-nodes", type=_positive, metavar="N", help="machines with so many devices each; default: 1, or torchrun's"
    )
    command.add_argument(
        "--precision", default="32", choices=("32", "bf16-mixed"), help="of the image tower, default: %(default)s"
    )


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("adapt the bundled CLIP to shifted birds and write a report", _demo_options),
    "adapt": ("adapt a CLIP to unlabelled images", _adapt_options),
    "embed": ("write the embeddings of images to a file that adapt can work on", _embed_options),
    "describe": ("write the file of class descriptions, fill it by a language model, or check it", _describe_options),
    "report": ("write one HTML page from run folders", _report_options),
    "compare": ("print the results of run folders as one table", _compare_options),
    "lab": ("open the tutorials in JupyterLab", _lab_options),
}
"""Name -> what it does, and its options."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="clipviz",
        description="Adapt CLIP to fine-grained classes without labels, and see how it works.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipviz {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (purpose, add_options) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        add_options(command)
        # here too, where one adds it to a command that failed
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    with _noting_ctrl_c() as was_pressed:
        try:
            _command(args.command, was_pressed)(args)
        except KeyboardInterrupt:
            return _fail(_stopped(args), 130)
        except Exception as error:
            if was_pressed():
                return _fail(_stopped(args), 130)
            return _failed(error, args)
    return 0


def _failed(error: Exception, args: argparse.Namespace) -> int:
    """One line and a status for what a user can mend; anything else is raised again, and all of it for --debug."""
    if args.debug or not isinstance(error, (ValueError, OSError, FloatingPointError)):
        raise error
    if isinstance(error, FloatingPointError):
        return _fail(f"{error}; the checkpoint of the last whole epoch is kept", 1)
    if not _is_about_the_input(error):
        raise error
    return _fail(str(error) or type(error).__name__, 2)


def _command(name: str, was_pressed: Callable[[], bool]) -> Callable[[argparse.Namespace], None]:
    module = import_module(f"clipviz.commands.{name}")  # one at a time: only some of them need torch
    if was_pressed():  # and numpy swallowed it
        raise KeyboardInterrupt
    command: Callable[[argparse.Namespace], None] = getattr(module, name)
    return command


@contextmanager
def _noting_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Remember Ctrl-C: a library that it interrupts while it is imported may swallow it, and be broken from then on."""
    pressed: list[int] = []

    def note(signum: int, frame: object) -> None:
        pressed.append(signum)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where there is no Ctrl-C either
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped(args: argparse.Namespace) -> str:
    if args.command == "adapt" and os.path.exists(os.path.join(args.out, "checkpoint.safetensors")):
        return "stopped, and saved: the same command with --resume goes on from here"
    return "stopped; nothing of this was saved"


def _is_about_the_input(error: Exception) -> bool:
    """Whether an error was raised by clipviz for its user to read, or by the system (no space, no permission).

    A ValueError from the depths of another library is a mistake of ours: it keeps its traceback and status 1.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return isinstance(error, OSError) or module.partition(".")[0] == "clipviz"


def _fail(message: str, status: int) -> int:
    print(f"clipviz: error: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _natural(text: str) -> int:
    return _whole_number(text, 0)


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number of gigabytes above 0, got {text!r}")
    return value


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least {least}, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
