"""All that commands and notebooks import, for the process that the tests fork theirs from (`forked.py`)."""

import contextlib
import gc
import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

COMMANDS = ["clipviz.cli.main", "clipviz.methods.build", "clipviz.training.run", "clipviz.report", "clipviz.saliency"]
NOTEBOOKS = ["ipykernel.kernelapp", "matplotlib_inline.backend_inline", "clipviz.widgets", "clipviz.figures.static"]


def kept(
    folder: Path, render: Callable[..., tuple[np.ndarray, np.ndarray]],
    code: np.ndarray, domain: str, rng: np.random.Generator, *options: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What `render_image` returns, from a folder if a process has rendered it: notebooks look at the same birds."""
    asked = repr((code.tolist(), domain, rng.bit_generator.state, options))
    place = folder / f"{sha256(asked.encode()).hexdigest()}.npy"
    with contextlib.suppress(FileNotFoundError):
        both = np.load(place)
        return both[..., :3].copy(), both[..., 3].copy()
    image, parts = render(code, domain, rng, *options)
    with NamedTemporaryFile(dir=folder, delete=False) as file:
        np.save(file, np.dstack([image, parts]))
    os.replace(file.name, place)  # whole, for whoever looks at the same time
    return image, parts


gc.disable()  # looking for garbage would take a quarter of the time
for name in ["prepared", *COMMANDS, *NOTEBOOKS, "lightning_fabric", "tiny"]:
    import_module(name)
import_module("tiny").make_tiny_backbone()
import_module("open_clip").SimpleTokenizer(context_length=40)  # as birds have it
birds = import_module("clipviz.birds.dataset")
birds.render_image = partial(kept, Path(os.environ["CLIPVIZ_TESTS_BIRDS"]), birds.render_image)
gc.freeze()  # all of it stays, and no process that is forked looks at it again
gc.enable()
