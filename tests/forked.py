"""Commands and kernels as processes of their own, forked from one that has imported everything: torch takes seconds."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

STARTER = multiprocessing.get_context("forkserver")
STARTER.set_forkserver_preload(["preloaded"])


def keep_birds(config: pytest.Config) -> None:
    """Name a folder in which the processes of a session keep the birds that they render (`preloaded.py`)."""
    if "CLIPVIZ_TESTS_BIRDS" not in os.environ:  # else this is a worker: the process that started it has named one
        folder = TemporaryDirectory(prefix="birds-")
        os.environ["CLIPVIZ_TESTS_BIRDS"] = folder.name
        config.add_cleanup(folder.cleanup)


def start(
    command: Callable[..., int | None], *arguments: object, folder: Path | str = ".",
    said: Path | str = os.devnull, told: Path | str = os.devnull, most: int = 0,
    more: Mapping[str, str] | None = None, daemon: bool = True,
) -> BaseProcess:  # fmt: skip
    """Start a command in a folder; its stderr goes to `said`, its stdout to `told`, its files may have `most` bytes.

    `more` is added to its environment; a `daemon` may not fork any further.
    """
    task = command, arguments, folder, (told, said), most, more or {}
    return _started(_do, task, daemon)


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


def as_module(name: str, *arguments: str) -> None:
    """What `python -m name arguments` does, from its first line to its last: other processes may be started by it."""
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a process that was forked ends without


def _started(function: Callable[..., None], arguments: tuple, daemon: bool = True) -> BaseProcess:
    process = STARTER.Process(target=function, args=arguments, daemon=daemon)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as own:
        own.setenv("PYTHONPATH", path)  # else the first one does not find `preloaded`, and says nothing
        process.start()
    return process


def _do(
    command: Callable[..., int | None], arguments: tuple, folder: Path | str, outputs: tuple[Path | str, Path | str],
    most: int, more: Mapping[str, str],
) -> None:  # fmt: skip
    os.environ.update(more)
    for number, place in enumerate(outputs, 1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    import torch

    torch.set_num_threads(1)  # as in conftest.py: bits depend on it
    sys.exit(command(*arguments))


class Forked:
    """A process that was started here, as what others expect of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.pid, self.kill, self.terminate = process.pid, process.kill, process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Kernel(Forked):
    """A kernel of a notebook, as what jupyter_client expects of a process that it has started."""

    def __init__(self, command: list[str], *, cwd: str, env: dict[str, str], **_: Any) -> None:
        mine, its = STARTER.Pipe(duplex=False)
        super().__init__(_started(_kernel, (command[command.index("-f") :], cwd, env, its)))
        mine.recv()


def lab(options: list[str], environment: dict[str, str], log: Path) -> Forked:
    """JupyterLab, whose kernels are forked as well."""
    return Forked(start(_lab, *options, said=log, more=environment, daemon=False))


def _lab(*options: str) -> None:
    from jupyter_client.provisioning import local_provisioner

    os.setsid()  # for the signals of `serving`
    # Its kernels come from the process that it came from itself, which it cannot wait for.
    forkserver._forkserver.ensure_running = lambda: None
    local_provisioner.launch_kernel = Kernel
    as_module("jupyterlab", *options)


def _kernel(arguments: list[str], folder: str, env: dict[str, str], ready: Connection) -> None:
    os.setsid()  # jupyter_client sends its signals to the whole group, in which without this are the tests as well
    os.chdir(folder)
    os.environ.update(env)
    ready.send(None)
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])  # with which it ends
