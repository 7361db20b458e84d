"""Explorables: a picture for where no script runs, and HTML that takes its place. Arrays may be tensors on the CPU."""

import base64
import json
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Template
from matplotlib.figure import Figure
from PIL import Image

from clipviz.figures import sources, style
from clipviz.figures.prototypes import draw_prototype_paths, prototype_drift_info, prototype_paths_info, unit
from clipviz.figures.redraw import redraw
from clipviz.figures.saliency import image_grid, overlay, unit_range
from clipviz.figures.static import encoded, show
from clipviz.trace import Trace


def html(kind: str, data: dict[str, Any], **picture: str) -> str:
    """What the script of this kind makes of the numbers; until it runs, `picture`: its `source` and `alt`."""
    names = "core.js", f"{kind}.js", "texts.toml", "page.html"
    core, script, texts, page = ((files(__name__) / name).read_text(encoding="utf-8") for name in names)
    numbers = json.dumps(data, default=lambda array: np.asarray(array, dtype=np.float64).round(4).tolist())
    more = tomllib.loads(texts)[kind]
    return Template(page).render(script=f"{core}\n{script}", data=numbers, picture=picture, **more)


def _show(kind: str, figure: Figure, data: dict[str, Any]) -> None:
    from IPython.display import display

    show(figure)
    display({"text/html": html(kind, data), "text/plain": f"Explorable({kind})"}, raw=True)


def _source(pixels: Any) -> str:
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((128, 128))
    return "data:image/jpeg;base64," + base64.b64encode(encoded(image, "JPEG", quality=85)).decode()


def softmax(names: list[str], cosines: Any, logit_scale: float) -> None:
    """Cosines (C,) of an image with C >= 2 classes, the first two of which can be moved, and the logit scale."""
    values, names = np.asarray(cosines, dtype=np.float64), style.apart(names)
    figure = Figure(figsize=(9, 0.8 + 0.5 * len(names)), layout="constrained")
    panels = {"cosine f · w": values, "probability": sources.softmax(logit_scale * values)}
    for axis, (title, lengths) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        axis.barh(names, lengths, color=style.BLUE)
        axis.set_title(title, fontsize=13)
    axis.invert_yaxis()
    figure.suptitle(f"Cosines of an image with {len(names)} classes, and their softmax")
    _show("softmax", figure, {"names": names, "cosines": values, "scale": logit_scale})


def cut(image: Any, grid: tuple[int, int], taus: Any, graphs: Any, found: list[Any], asked: Any) -> None:
    """The normalized cut of an image (H, W, 3) uint8 with N = h * w patches, for T rising taus.

    Graphs (T, N, N) by `patch_affinity`, `found` by `microclip.foreground`, asked (N, N) by `soap_pool` for each patch.
    """
    pixels, edges, start = np.asarray(image), np.asarray(graphs) > 0.5, len(taus) // 2
    parts = zip(*((*each.spectrum[:2], each.mask, each.attention, each.density) for each in found), strict=True)
    rows = dict(zip(("fiedler", "eigenvalue", "mask", "attention", "density"), map(np.concatenate, parts), strict=True))
    maps = [overlay(pixels, unit_range(rows[name][start].reshape(1, *grid))[0]) for name in ("fiedler", "attention")]
    figure = image_grid([pixels, edges[start], *maps])
    figure.suptitle(f"An image, its graph at tau = {taus[start]:.2f}, the Fiedler vector, and the attention of SOAP")
    data = {"image": _source(pixels), "grid": grid, "taus": taus, "start": start, "level": edges.sum(0), "asked": asked}
    _show("cut", figure, data | rows)


def mixed(names: Sequence[str], stored: sources.SourceLogits, rows: Any, photos: Sequence[Any]) -> dict[str, Any]:
    """Images for gamma.js by their rows, with their pixels, or None."""
    some, addresses = stored.rows(np.asarray(rows)), ["" if photo is None else _source(photo) for photo in photos]
    return {"names": style.apart(names), "first": some.first, "second": some.second, "gamma": some.reference,
            "target": some.target, "sources": some.sources, "images": addresses}  # fmt: skip


def gamma(trace: Trace, images: Any, n: int = 5) -> None:
    """At most n images that a run's two sources call different classes, as `images.image(i)`; ValueError without."""
    stored = sources.SourceLogits.of(trace)
    if stored is None or not (rows := stored.disputed()[:n]).size:
        raise ValueError("wanted the trace of a run with two sources that differ somewhere, got one where none do")
    some, photos = stored.rows(rows), [np.asarray(images.image(int(i))) for i in stored.index[rows]]
    data = mixed(trace.class_names, stored, rows, photos)
    photo, axis = (figure := Figure(figsize=(9, 3), layout="constrained")).subplots(1, 2, width_ratios=(1, 3))
    style.bare(photo).imshow(photos[0])
    best = dict.fromkeys(int(c) for g in (0, 0.5, 1) for c in np.argsort(-some.mix(g)[0])[:2])  # at most 6
    for c, dash in zip(best, style.DASHES.values(), strict=False):
        axis.plot((0, 1), (some.second[0, c], some.first[0, c]), linestyle=dash, label=data["names"][c])
    axis.axvline(some.reference, color="black", linestyle=":")
    axis.set(xlabel=f"gamma (0: {some.sources[1]} alone, 1: {some.sources[0]} alone)", ylabel="logit")
    axis.legend(fontsize=9)
    figure.suptitle("What the best classes of an image score, for every gamma")
    _show("gamma", figure, data)


def prototypes(trace: Trace) -> None:
    """The first two sets of class prototypes of a run, before training and after each epoch; ValueError without."""
    paths, drift = prototype_paths_info(trace), prototype_drift_info(trace)
    if len(sets := list(paths.paths)[:2]) < 2:
        raise ValueError(f"wanted the trace of a run with two sets of prototypes, such as dpa's, got {len(sets)}")
    first, second = (unit(trace.snapshots[name].astype(np.float64)) for name in sets)
    turned = np.stack([drift.angles[name] for name in sets])
    data = {"names": style.apart(paths.names), "sets": sets, "chosen": int(np.argmax(turned[:, -1].sum(0))),
            "explained": paths.explained, "paths": np.stack([paths.paths[name] for name in sets]),
            "cosines": (first * second).sum(-1), "turned": turned}  # fmt: skip
    _show("prototypes", redraw(draw_prototype_paths(paths)), data)


def anchor(names: list[str], strengths: Any, shares: Any, text: Any, target: Any) -> None:
    """Shares (K, n, C) by `transclip.solve` for K alphas, those by the text alone (n, C), and true classes (n,)."""
    held, said, true = np.asarray(shares), np.asarray(text), np.asarray(target)
    names, truth, start = style.apart(names), np.bincount(true, minlength=held.shape[2]), len(held) // 2
    axis = (figure := Figure(figsize=(9, 4.6), layout="constrained")).subplots()
    marked = [f"✓ {name}" if n else name for name, n in zip(names, truth, strict=True)]
    axis.bar(marked, held[start].sum(0), color=np.where(truth > 0, style.BLUE, style.ORANGE))
    axis.plot(marked, said.sum(0), "_", color="black", markersize=12)
    axis.tick_params("x", rotation=90, labelsize=9)
    figure.suptitle(f"Images that each class holds, alpha = {strengths[start]:g} (line: by the text alone; ✓: there)")
    right, by_text = (100 * (probs.argmax(-1) == true).mean(-1) for probs in (held, said))
    data = {"names": names, "strengths": strengths, "mass": held.sum(1), "text": said.sum(0), "truth": truth,
            "right": right, "textRight": by_text, "start": start}  # fmt: skip
    _show("anchor", figure, data)
