"""How cost grows: `python -m benchmarks.growth [--repeats N] [--out FILE.png]`.

Processor seconds of one thread, for doubling numbers of images (an epoch), classes, crops and patches (a step of
microCLIP with a small ViT), and the exponent of the straight line through their logarithms: 1 is proportional, 0 is
constant. Something whose fixed costs are large has a small exponent at first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import open_clip
import torch

from benchmarks import command, positive
from benchmarks.measure import Work, processor_seconds
from benchmarks.steps import Step
from clipviz.backbone import Backbone
from clipviz.data.batches.features import FeatureDataset
from clipviz.methods import AdaptConfig
from clipviz.methods.build import build_method
from clipviz.ops import normalize
from clipviz.training.loop import adapt

OUT = Path(__file__).parents[1] / "docs" / "growth.png"


class Curve(NamedTuple):
    """Seconds of something at several sizes."""

    axis: str
    what: str
    sizes: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """Slope of log seconds over log size."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


def vit(image_size: int) -> Backbone:
    """A ViT of 4 layers, 192 wide, with patches of 16 pixels and random weights."""
    vision = {"image_size": image_size, "layers": 4, "width": 192, "head_width": 32, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    model = open_clip.CLIP(128, vision, text)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    return Backbone(model, tokenizer, (0.5,) * 3, (0.25,) * 3, "vit").requires_grad_(False).eval()


def dpa_epoch(images: int) -> Work:
    """An epoch of DPA on embeddings: what is left of an epoch when there is no image tower."""
    generator = torch.Generator().manual_seed(0)
    classifier = normalize(torch.randn(100, 128, generator=generator))
    rows = normalize(torch.randn(images, 128, generator=generator))
    data = FeatureDataset(rows, name="made up", classifier=classifier)
    method = build_method("dpa", data.backbone(), data)
    return lambda: list(adapt(method, data, AdaptConfig(epochs=1)))


def curves(repeats: int) -> Iterator[Curve]:
    """All that is drawn, panel by panel."""

    def curve(axis: str, what: str, sizes: list[int], make: Callable[[int], Work]) -> Curve:
        return Curve(axis, what, sizes, [processor_seconds(make(n), repeats) for n in sizes])

    yield curve("images", "dpa on embeddings, an epoch", [2000, 4000, 8000, 16000], dpa_epoch)
    small = vit(64)
    sizes = [10, 100, 1000]
    yield curve("classes", "microclip, a step", sizes, lambda n: Step("microclip", small, 8, n, crops="2").ours)
    yield curve("classes", "dpa, a step", sizes, lambda n: Step("dpa", small, 8, n).ours)
    sizes = [1, 2, 4, 8, 16]
    yield curve("crops", "microclip, a step", sizes, lambda n: Step("microclip", small, 8, crops=str(n)).ours)
    steps = {side**2 // 256: Step("microclip", vit(side), 4, crops="2") for side in (112, 160, 224, 320)}
    yield curve("patches", "microclip, a step", list(steps), lambda n: steps[n].ours)
    yield curve("patches", "NCut + SOAP", list(steps), lambda n: steps[n].foregrounds)


def draw(found: list[Curve], out: Path) -> None:
    """One panel an axis, both scales logarithmic."""
    axes = list(dict.fromkeys(curve.axis for curve in found))
    figure, panels = plt.subplots(1, len(axes), figsize=(3.2 * len(axes), 3.0), layout="constrained")
    for axis, panel in zip(axes, panels, strict=True):
        for curve, marker in zip((c for c in found if c.axis == axis), "os", strict=False):
            milliseconds = [1e3 * s for s in curve.seconds]
            panel.loglog(curve.sizes, milliseconds, marker + "-", label=f"{curve.what}\nexponent {curve.exponent:.2f}")
        panel.set(xlabel=axis, ylim=(0.5 * panel.get_ylim()[0], 4 * panel.get_ylim()[1]))
        panel.set_xticks(curve.sizes, [f"{n:,}" for n in curve.sizes], fontsize=8)
        panel.minorticks_off()
        panel.legend(fontsize=7, loc="upper left", frameon=False)
    panels[0].set_ylabel("processor time, ms")
    figure.savefig(out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=5, help="medians are over so many, default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for curve in curves(args.repeats):
        times = ", ".join(f"{n}: {1e3 * s:.1f} ms" for n, s in zip(curve.sizes, curve.seconds, strict=True))
        print(f"{curve.axis:8} {curve.what:28} exponent {curve.exponent:5.2f}   {times}", flush=True)
        found.append(curve)
    draw(found, args.out)


if __name__ == "__main__":
    command(main)
