"""Where the model looked: saliency over the probe images, beside the true parts where they are known."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from clipviz.figures import style
from clipviz.figures.moments import epoch_name, part_of_epoch
from clipviz.trace import Trace

KIND_NAMES = {
    "soap": "SOAP attention",
    "ncut": "NCut mask",
    "cls_attention": "CLS attention",
    "fiedler": "Fiedler vector",
    "layer_gradcam": "layer GradCAM",
    "legrad": "LeGrad",
    "grad_eclip": "Grad-ECLIP",
    **{
        kind: kind.replace("_", " ")
        for kind in ("rollout", "relevance", "integrated_gradients", "occlusion", "class_map")
    },
}
"""All kinds of maps that come with clipviz; others are a user's own."""

_LEFT = 130  # pixels for the names of the rows
# Okabe and Ito's colours, then lighter and darker ones of the same hues, for up to fifteen parts.
_PART_COLORS = [
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF",
    "#8C6200", "#BFE3F7", "#7FD6BB", "#7A7322", "#6FB4DD", "#F5B183", "#7D3F63",
]  # fmt: skip


class SaliencyColumn(NamedTuple):
    """Maps (P,h,w) in [0, 1] of one kind at one epoch; `is_mask` when they are 0 or 1 throughout."""

    title: str
    maps: np.ndarray
    is_mask: bool


class SaliencyGrid(NamedTuple):
    """Images (P,H,W,3) uint8 with their titles, true parts (P,H,W) or None, and the columns of maps."""

    images: np.ndarray
    titles: list[str]
    parts: np.ndarray | None
    part_names: list[str]
    columns: list[SaliencyColumn]


def saliency_grid_info(
    trace: Trace,
    kinds: Sequence[str] | None = None,
    epochs: Sequence[str | int] = ("before", "after"),
    max_images: int = 12,
) -> SaliencyGrid:
    """Collect images, parts and maps of the probe.

    Args:
        trace: The run.
        kinds: Kinds of the probe's maps; absent ones are left out. None for the NCut mask, SOAP, and the user's own.
        epochs: "before" (training), "after" (the last one) or epoch numbers, -1 for before.
        max_images: At most so many images, the first ones.
    """
    probe = trace.probe
    kinds = ("ncut", "soap", *(kind for kind in probe.maps if kind not in KIND_NAMES)) if kinds is None else kinds
    titles = [
        style.class_name(trace.class_names, int(label)) if label >= 0 else f"image {int(number)}"
        for label, number in zip(probe.target[:max_images], probe.index[:max_images], strict=True)
    ]
    columns = [column for kind in kinds for column in _columns(trace, kind, epochs, max_images)]
    part_names = [str(name) for name in trace.meta.get("part_names") or ()]
    parts = None if probe.parts is None else probe.parts[:max_images]
    return SaliencyGrid(probe.images[:max_images], titles, parts, part_names, columns)


def _columns(trace: Trace, kind: str, epochs: Sequence[str | int], n_images: int) -> list[SaliencyColumn]:
    maps = trace.probe.maps.get(kind)
    if maps is None or not len(maps):
        return []
    name = KIND_NAMES.get(kind, kind.replace("_", " "))
    is_mask = bool(np.isin(maps, (0, 1)).all())
    chosen: dict[int, str] = {}
    for epoch in epochs:
        place = {"before": 0, "after": len(maps) - 1}.get(str(epoch))
        place = int(epoch) + 1 if place is None else place
        when = str(epoch) if epoch in ("before", "after") else f"epoch {epoch_name(place - 1)}"
        if epoch == "after" and part_of_epoch(trace).epoch >= 0:  # the run went on from here, and was stopped
            when = f"after epoch {place - 1}" if place else "before"
        if 0 <= place < len(maps):
            chosen.setdefault(place, when)
    return [
        SaliencyColumn(f"{name}\n{when}", unit_range(maps[place][:n_images]), is_mask) for place, when in chosen.items()
    ]


def unit_range(maps: np.ndarray) -> np.ndarray:
    """Maps (P,h,w) stretched to [0, 1] one by one; a constant map is clipped instead, NaN becomes 0."""
    maps = np.nan_to_num(maps.astype(np.float32))
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.where(high > low, (maps - low) / np.maximum(high - low, 1e-12), np.clip(maps, 0, 1))


def draw_saliency_grid(info: SaliencyGrid) -> Figure:
    """One row per image: the image, its true parts, then the maps laid over a grey copy of it."""
    title = "Where the model looked"
    if not len(info.images):
        return style.empty_picture(title, "This trace holds no probe images.")
    if not info.columns:
        return style.empty_picture(title, "No saliency was recorded: this method has no patch-level maps.")
    titles = ["image", *["true parts"] * (info.parts is not None), *(column.title for column in info.columns)]
    used = [] if info.parts is None else [int(part) for part in np.unique(info.parts) if part]
    has_heat = any(not column.is_mask for column in info.columns)
    cell, head, foot = (
        min(150, (style.WIDTH - 8 - _LEFT) / len(titles)),
        46,
        14 + 24 * -(-len(used) // 7) + 46 * has_heat,
    )
    height = head + len(info.images) * cell + foot
    page = style.Page(height, "")
    edges = {"left": _LEFT / style.WIDTH, "right": (_LEFT + cell * len(titles)) / style.WIDTH}
    edges |= {"top": 1 - head / height, "bottom": foot / height, "wspace": 0.04, "hspace": 0.04}
    grid = page.figure.subplots(len(info.images), len(titles), squeeze=False, gridspec_kw=edges)
    labels = [textwrap.fill(name, 14) for name in style.apart(info.titles, 56)]
    for row, (axes, image) in enumerate(zip(grid, info.images, strict=True)):
        show_image(axes[0], image)
        look: dict[str, Any] = {
            "rotation": 0,
            "ha": "right",
            "va": "center",
            "fontsize": style.FONT,
            "labelpad": 6,
            "parse_math": False,
        }
        axes[0].set_ylabel(labels[row], **look)
        if info.parts is not None:
            show_parts(axes[1], image, info.parts[row])
        for axis, column in zip(axes[-len(info.columns) :], info.columns, strict=True):
            show_saliency(axis, image, column.maps[row], column.is_mask)
    for axis, name in zip(grid[0], titles, strict=True):
        axis.set_title(name, fontsize=style.FONT, parse_math=False)
    if used:
        _part_legend(page.figure, info.part_names, used, y=(foot - 8) / height)
    if has_heat:
        _color_bar(page)
    return page.figure


def _backdrop(axis: Axes, image: np.ndarray) -> tuple[float, float, float, float]:
    """A pale grey copy of the image; returns the extent that any overlay must have."""
    extent = (0.0, float(image.shape[1]), float(image.shape[0]), 0.0)
    gray = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    style.bare(axis).imshow(0.25 + 0.75 * gray, cmap="gray", vmin=0, vmax=1, extent=extent)
    return extent


def show_image(axis: Axes, image: np.ndarray) -> None:
    """The image (H,W,3) uint8 itself."""
    style.bare(axis).imshow(image, extent=(0, image.shape[1], image.shape[0], 0))


def show_saliency(axis: Axes, image: np.ndarray, saliency: np.ndarray, is_mask: bool = False) -> None:
    """Lay saliency (h,w) in [0, 1] over a grey copy of the image (H,W,3).

    A mask keeps its patches sharp and veils what it excludes; anything else is smoothed between patches.
    """
    extent = _backdrop(axis, image)
    if is_mask:
        veil = np.zeros((*saliency.shape, 4))
        veil[saliency <= 0.5] = (0.05, 0.0, 0.2, 0.72)
        veil[saliency > 0.5] = (1.0, 0.75, 0.0, 0.3)
        axis.imshow(veil, extent=extent, interpolation="nearest")
    else:
        # Low values are let through, so that the image stays visible where nobody looked.
        look: dict[str, Any] = {"cmap": style.SALIENCY_COLORS, "vmin": 0, "vmax": 1, "alpha": 0.2 + 0.65 * saliency}
        axis.imshow(saliency, extent=extent, interpolation="bilinear", **look)
    axis.set_xlim(extent[:2])
    axis.set_ylim(extent[2:])


def show_parts(axis: Axes, image: np.ndarray, parts: np.ndarray) -> None:
    """Colour each part of the mask (H,W) over a grey copy of the image; 0 is background."""
    extent = _backdrop(axis, image)
    shown = (np.ma.masked_equal(parts, 0) - 1) % len(_PART_COLORS)
    look: dict[str, Any] = {
        "cmap": ListedColormap(_PART_COLORS),
        "vmin": -0.5,
        "vmax": len(_PART_COLORS) - 0.5,
        "alpha": 0.85,
    }
    axis.imshow(shown, extent=extent, interpolation="nearest", **look)


def _part_legend(figure: Figure, names: list[str], used: list[int], y: float) -> None:
    labels = [style.shorten(names[part] if part < len(names) else f"part {part}", 16) for part in used]
    colors = [_PART_COLORS[(part - 1) % len(_PART_COLORS)] for part in used]
    handles = [Patch(facecolor=c, edgecolor="#555", label=label) for c, label in zip(colors, labels, strict=True)]
    legend = figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(_LEFT / style.WIDTH, y), ncol=7, fontsize=style.FONT,
        frameon=False, handlelength=1, handleheight=1, columnspacing=1.2, borderpad=0, borderaxespad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _color_bar(page: style.Page) -> None:
    axis = page.axes(_LEFT, page.height - 36, 330, 10)
    bar = page.figure.colorbar(
        ScalarMappable(cmap=colormaps[style.SALIENCY_COLORS]), cax=axis, orientation="horizontal"
    )
    bar.set_ticks([])
    for x, side, text in ((0, "left", "least attention"), (1, "right", "most, in each map")):
        axis.text(x, -0.5, text, fontsize=style.FONT, ha=side, va="top", transform=axis.transAxes)


saliency_grid = style.figure_of(saliency_grid_info, draw_saliency_grid)
