"""`clipviz lab`: the tutorials in JupyterLab, in a copy of their own."""

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from clipviz.errors import inert
from clipviz.files import prepare_folder, writing
from clipviz.training.interrupts import StoppedBySignal

_NEEDED = ("jupyterlab", "ipykernel", "ipywidgets", "anywidget")


def lab(args: argparse.Namespace) -> None:
    """`clipviz lab`: copy the notebooks that are not there yet, then run JupyterLab until it is stopped."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"clipviz lab needs {', '.join(missing)}, not installed here; pip install clipviz[lab]")
    if (args.port or 0) > 65535:  # which JupyterLab would announce, and nobody could open
        raise ValueError(f"--port must be at most 65535, got {args.port}")
    source, folder = notebooks_folder(), prepare_folder(args.out)
    copied = copy_notebooks(source, folder)
    place = inert(folder)
    print(f"{copied} notebooks copied to {place}" if copied else f"the notebooks are in {place}, as you left them")
    options = [f"--ServerApp.root_dir={folder.resolve()}"]
    options += ["--no-browser"] if args.no_browser else []
    options += [f"--port={args.port}"] if args.port else []
    options += args.jupyter
    status = run_jupyter(options)
    if status:
        raise ValueError(f"JupyterLab ended with status {status}; its own message is above")


def notebooks_folder() -> Path:
    """Where the notebooks are: in the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise ValueError(f"no notebooks in {package} or beside it; install clipviz again, or run it from a clone")


def copy_notebooks(source: Path, folder: Path) -> int:
    """Copy the notebooks, and the page they link to, that `folder` does not hold: own work stays. Returns how many."""
    new = [path for path in sorted(source.glob("*.*")) if path.suffix == ".ipynb" or path.name == "README.md"]
    new = [path for path in new if not (folder / path.name).exists()]
    for path in new:
        with writing(folder / path.name) as file:
            file.write(path.read_bytes())
    return sum(path.suffix == ".ipynb" for path in new)


def run_jupyter(options: list[str]) -> int:
    """Run JupyterLab of this very Python; Ctrl-C is answered by it, which asks back. Returns its status."""
    # The extension that shows pictures of widgets that are gone is installed with a wheel; a clone holds it here.
    extensions = [str(Path(__file__).parents[1] / "widgets" / "jupyter"), os.environ.get("JUPYTER_PATH", "")]
    environment = {**os.environ, "JUPYTER_PATH": os.pathsep.join(filter(None, extensions))}
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to both; JupyterLab decides
        except StoppedBySignal:
            process.terminate()
            raise
