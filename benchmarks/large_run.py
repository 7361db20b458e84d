"""A large run folder, explored: `python -m benchmarks.large_run [--images 50000] [--classes 1000]`.

Writes two folders of 15 epochs, as training leaves them, and opens them as a reader does: until views are there, and
until the list of another filter is shown. A model that has every image, of one color, stands in for the real one. In
seconds of processor time of all threads, which other work on the machine does not lengthen as much as those of a clock.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import clipviz
from benchmarks import command, positive

EPOCHS, OPEN_SECONDS, FILTER_SECONDS = 15, 5.0, 0.3


def write_run(folder: Path, n: int, n_classes: int, seed: int) -> Path:
    """Predictions and pseudo-labels of n images, of which 30 % are wrong at random; prototypes and names of files."""
    rng, target = np.random.default_rng(seed), np.arange(n) % n_classes

    def said(epoch: int, label: str, sources: tuple[str, ...] = ()) -> pd.DataFrame:
        guess = lambda: np.where(rng.random(n) < 0.3, rng.integers(0, n_classes, n), target)  # noqa: E731
        confidence, labels = rng.random(n).astype("f4"), guess()
        own = {"epoch": epoch, "index": np.arange(n), label: labels, "confidence": confidence, "target": target}
        more = {f"{name}_label": labels if i else guess() for i, name in enumerate(sources)}
        more |= {f"{name}_confidence": confidence for name in sources}
        return pd.DataFrame({**own, "margin": confidence / 2, **({"weight": np.float32(1), **more} if sources else {})})

    files = [f"class_{label}/{i:06}.jpg" for i, label in enumerate(target)]
    facts = {"method": "microclip", "model": "ViT-B-16", "data": "photos", "split": "train", "status": "finished",
             "eval_data": "photos", "eval_split": "test", "n_images": n, "epochs": EPOCHS, "seed": seed,
             "class_names": [f"class {i}" for i in range(n_classes)], "sources": ["static", "dynamic"],
             "files": {"learned": files, "measured": files}, "accuracy_is": "test"}  # fmt: skip
    samples = pd.concat([said(epoch, "pseudo_label", ("static", "dynamic")) for epoch in range(EPOCHS)])
    predictions = pd.concat([said(epoch, "prediction") for epoch in range(-1, EPOCHS)])
    classifier = rng.standard_normal((EPOCHS + 1, n_classes, 512)).astype("f4")
    tables = {"samples": samples.reset_index(drop=True), "predictions": predictions.reset_index(drop=True)}
    clipviz.Trace(**tables, arrays={"snapshot/learned_classifier": classifier}, meta=facts).save(folder / "trace")
    return folder


def seconds(what: str, limit: float, act: Callable[[], Any]) -> tuple[Any, bool]:
    """What an act returns, and whether it took no longer than it may; prints how long."""
    begun, clock = time.process_time(), time.perf_counter()
    found = act()
    taken = time.process_time() - begun
    print(
        f"{what:62} {taken:6.2f} s, at most {limit:g} s; by the clock {time.perf_counter() - clock:6.2f} s", flush=True
    )
    return found, taken <= limit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_run", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive, default=50_000)
    parser.add_argument("--classes", type=positive, default=1_000)
    args = parser.parse_args()
    image = np.full((32, 32, 3), 128, np.uint8)
    model = SimpleNamespace(image_size=32, kinds=(), n_layers=0, n_heads=0, has=lambda split, index: True,
                            pixels=lambda split, index: image)  # fmt: skip
    steps = (("outcome", "fixed"), ("flips", 2), ("confidence", (0.5, 1.0)), ("text", "12"), ("target", "class 7"),
             ("sort", "margin"), ("target", ""))  # fmt: skip
    in_time = []
    with tempfile.TemporaryDirectory() as place:
        folders = [write_run(Path(place) / f"{seed}", args.images, args.classes, seed) for seed in (0, 1)]
        run, is_fast = seconds("clipviz.open, its trace", OPEN_SECONDS, lambda: clipviz.open(folders[0]).trace)
        both = [run, clipviz.open(folders[1]).trace]
        in_time.append(is_fast)
        compared = [SimpleNamespace(trace=trace, model_probe=model) for trace in both]
        for name, made in (
            ("SaliencyExplorer", lambda: clipviz.SaliencyExplorer(run, model)),
            ("CompareExplorer", lambda: clipviz.CompareExplorer(compared)),
        ):
            view, is_fast = seconds(name, OPEN_SECONDS, made)
            in_time.append(is_fast)
            for control, value in steps:
                widget = getattr(view.finder, control)
                act = lambda widget=widget, value=value: setattr(widget, "value", value)  # noqa: E731
                in_time.append(seconds(f"  {name}: {control} {value!r}", FILTER_SECONDS, act)[1])
        for cell in ("only a right", "all"):
            act = lambda cell=cell: setattr(view.cells[cell], "value", True)  # noqa: E731
            in_time.append(seconds(f"  CompareExplorer: its cell {cell!r}", FILTER_SECONDS, act)[1])
    if not all(in_time):
        sys.exit("slower than it may be")


if __name__ == "__main__":
    command(main)
