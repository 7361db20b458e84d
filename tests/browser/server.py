"""A JupyterLab on the loopback interface with a fresh profile, and Chromium: for tests, screenshots and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat

import clipviz

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")  # the first opens pages fastest
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
TESTS = Path(__file__).parent.parent
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
READY = """name => {
    const notebook = window.jupyterapp?.shell?.currentWidget;
    if (notebook?.context?.path !== name) return false; // the one that an older workspace had open
    const session = notebook.sessionContext;
    const kernel = session?.session?.kernel;
    return session?.isReady && kernel?.connectionStatus === 'connected' && kernel?.status === 'idle';
}"""
RUN_ALL = """() => Promise.race([
    window.jupyterapp.commands.execute('notebook:run-all-cells'),
    new Promise((_, reject) => setTimeout(() => reject(new Error('cells still run after 280 s')), 280000)),
])"""
CLOSE = """async () => {
    const { shell, serviceManager } = window.jupyterapp;
    const { sessionContext } = shell.currentWidget;
    await sessionContext.ready;
    const { model } = sessionContext.session.kernel;
    shell.currentWidget.dispose();
    const kernel = serviceManager.kernels.connectTo({ model, handleComms: false });
    // else the next notebook would find the names of all older ones, and fetch their widgets
    const code = "__import__('ipywidgets').Widget.close_all()\\nget_ipython().run_line_magic('reset', '-f')";
    await kernel.requestExecute({ code, silent: true }).done;
    kernel.dispose();
    for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame); // what waited for one is done
    return model.id;
}"""
OPEN = """([path, id]) => window.jupyterapp.commands.execute('docmanager:open',
    { path, factory: 'Notebook', kernel: { id } }).then(() => null)"""
"""With the kernel of the notebook that was closed."""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(cell => cell.outputs || [])
    .filter(output => output.output_type === 'error').map(output => `${output.ename}: ${output.evalue}`)"""


class Lab:
    """A server and the folder it serves."""

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root

    def write(self, name: str, *cells: str) -> str:
        """Write a notebook of code cells; returns its address."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell, id=f"c{i:02d}") for i, cell in enumerate(cells)],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.root / name)
        return f"{self.url}/lab/tree/{name}?reset"


def started(options: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """JupyterLab as a process of its own."""
    command = [sys.executable, "-m", "jupyterlab", *options]
    with log.open("w") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)


@contextmanager
def serving(folder: Path, start: Callable[[list[str], dict[str, str], Path], Any] = started) -> Iterator[Lab]:
    """JupyterLab with all its settings under `folder`; ends with the block."""
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    root = folder / "root"
    root.mkdir()
    port = free_port()
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "JUPYTER_PATH": str(Path(clipviz.__file__).parent / "widgets" / "jupyter"),
        "OMP_NUM_THREADS": "1",
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True",
    ]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    server = start(options, environment, log)
    try:
        wait_for_server(f"{url}/api/status", server, log)
        yield Lab(url, root)
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself, of which `wait_for_server` tells
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_server(url: str, server: Any, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()[-2000:]}"
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not answer in {seconds} s:\n{log.read_text()[-2000:]}")


@contextmanager
def browsing() -> Iterator[Any]:
    """Headless Chromium; ends with the block."""
    from playwright.sync_api import sync_playwright

    wanted = "chromium-headless-shell fonts-dejavu-core"
    assert CHROMIUM, f"no Chromium found; apt-get install -y --no-install-recommends {wanted}"
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--renderer-process-limit=1"]  # one for the tabs of a context
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            browser.close()


def open_and_run(page: Any, url: str) -> None:
    """Open a notebook, wait until its kernel is really there, run all cells and wait for them; none may fail."""
    page.goto(url)
    run_notebook(page, url.split("/")[-1].split("?")[0])


def run_notebook(page: Any, name: str) -> None:
    """The same for the one that is open."""
    page.wait_for_function(READY, arg=name, timeout=180_000)
    page.evaluate(RUN_ALL)
    errors = page.evaluate(ERRORS)
    assert errors == [], errors
