"""Commands as processes of their own, forked from one that has imported everything: to import torch takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

STARTER = multiprocessing.get_context("forkserver")
STARTER.set_forkserver_preload(["clipviz.cli.main", "clipviz.methods.build", "clipviz.training.run", "clipviz.report"])


def start(
    command: Callable[..., int | None], *arguments: object, folder: Path | str = ".",
    said: Path | str = os.devnull, most: int = 0, more: Mapping[str, str] | None = None,
) -> BaseProcess:  # fmt: skip
    """Start a command in a folder; its stdout goes nowhere, its stderr into `said`, its files may have `most` bytes.

    `more` is added to its environment.
    """
    process = STARTER.Process(target=_do, args=(command, arguments, folder, said, most, more or {}), daemon=True)
    process.start()
    return process


def start_two(command: Callable[..., int | None], *arguments: object, said: Path) -> list[BaseProcess]:
    """Start a command as torchrun does in two processes; they write to `said`/0 and `said`/1."""
    said.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [start(command, *arguments, said=said / rank["RANK"], more=rank) for rank in ranks]


def _do(
    command: Callable[..., int | None], arguments: tuple, folder: Path | str, said: Path | str, most: int,
    more: Mapping[str, str],
) -> None:  # fmt: skip
    os.environ.update(more)
    for number, place in ((1, os.devnull), (2, said)):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    import torch

    torch.set_num_threads(1)  # as in conftest.py: bits depend on it
    sys.exit(command(*arguments))
