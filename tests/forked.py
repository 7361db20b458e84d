"""Commands as processes of their own, forked from one that has imported everything: to import torch takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

STARTER = multiprocessing.get_context("forkserver")
STARTER.set_forkserver_preload(["clipviz.cli.main", "clipviz.methods.build", "clipviz.training.run", "clipviz.report"])


def start(
    command: Callable[..., int | None], *arguments: object, folder: Path | str = ".",
    said: Path | str = os.devnull, most: int = 0,
) -> BaseProcess:  # fmt: skip
    """Start a command in a folder; its stdout goes nowhere, its stderr into `said`, its files may have `most` bytes."""
    process = STARTER.Process(target=_do, args=(command, arguments, folder, said, most), daemon=True)
    process.start()
    return process


def _do(command: Callable[..., int | None], arguments: tuple, folder: Path | str, said: Path | str, most: int) -> None:
    for number, place in ((1, os.devnull), (2, said)):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    import torch

    torch.set_num_threads(1)  # as in conftest.py: bits depend on it
    sys.exit(command(*arguments))
