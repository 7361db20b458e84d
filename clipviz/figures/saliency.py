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

_LEFT, _HEAD = 130, 46  # pixels for the names of the rows and of the columns
# Okabe and Ito's colours, then lighter and darker ones of the same hues, for up to fifteen parts.
_PART_COLORS = [
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF",
    "#8C6200", "#BFE3F7", "#7FD6BB", "#7A7322", "#6FB4DD", "#F5B183", "#7D3F63",
]  # fmt: skip


class SaliencyMaps(NamedTuple):
    """Maps (P,h,w) in [0, 1] of one kind at one epoch, or one (h,w) of these; `is_mask`: 0 or 1 throughout."""

    title: str
    values: np.ndarray
    is_mask: bool

    @classmethod
    def of(cls, kind: str, maps: np.ndarray, when: str = "") -> SaliencyMaps:
        """Raw maps (P,h,w), each stretched to [0, 1]."""
        return cls(
            KIND_NAMES.get(kind, kind.replace("_", " ")) + when, unit_range(maps), bool(np.isin(maps, (0, 1)).all())
        )


class SaliencyGrid(NamedTuple):
    """Images (P,H,W,3) uint8 with their titles, true parts (P,H,W) or None, and the columns of maps."""

    images: np.ndarray
    titles: list[str]
    parts: np.ndarray | None
    part_names: list[str]
    columns: list[SaliencyMaps]


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
    labels = zip(probe.target[:max_images], probe.index[:max_images], strict=True)
    titles = [
        style.class_name(trace.class_names, int(label)) if label >= 0 else f"image {int(number)}"
        for label, number in labels
    ]
    columns = [column for kind in kinds for column in _columns(trace, kind, epochs, max_images)]
    part_names = [str(name) for name in trace.meta.get("part_names") or ()]
    parts = None if probe.parts is None else probe.parts[:max_images]
    return SaliencyGrid(probe.images[:max_images], titles, parts, part_names, columns)


def _columns(trace: Trace, kind: str, epochs: Sequence[str | int], n_images: int) -> list[SaliencyMaps]:
    maps, chosen = trace.probe.maps.get(kind, ()), dict[int, str]()
    for epoch in epochs:
        place = {"before": 0, "after": len(maps) - 1}.get(str(epoch))
        place = int(epoch) + 1 if place is None else place
        when = str(epoch) if epoch in ("before", "after") else f"epoch {epoch_name(place - 1)}"
        if epoch == "after" and part_of_epoch(trace).epoch >= 0:  # the run went on from here, and was stopped
            when = f"after epoch {place - 1}" if place else "before"
        if 0 <= place < len(maps):
            chosen.setdefault(place, when)
    columns = [SaliencyMaps.of(kind, maps[at][:n_images], f"\n{when}") for at, when in chosen.items()]
    return [column._replace(is_mask=bool(np.isin(maps, (0, 1)).all())) for column in columns]


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
    has_heat = not all(column.is_mask for column in info.columns)
    cell = min(150.0, (style.WIDTH - 8 - _LEFT) / len(titles))
    foot = 14 + 24 * -(-len(used) // 7) + 46 * has_heat
    page = style.Page(_HEAD + len(info.images) * cell + foot, "")
    for i, title in enumerate(titles):
        page.write(_LEFT + (i + 0.5) * cell - 2, _HEAD - 6, title, ha="center", va="bottom", ma="center")
    for row, name in enumerate(style.apart(info.titles, 56)):
        top, parts = _HEAD + row * cell, None if info.parts is None else info.parts[row]
        page.write(_LEFT - 8, top + cell / 2, textwrap.fill(name, 14), ha="right", va="center", ma="center")
        maps = [column._replace(values=column.values[row]) for column in info.columns]
        show_row(page, _LEFT, top, cell - 4, info.images[row], parts, maps)
    if used:
        _part_legend(page.figure, info.part_names, used, y=(foot - 8) / page.height)
    if has_heat:
        _color_bar(page)
    return page.figure


def show_row(
    page: style.Page, left: float, top: float, side: float, image: np.ndarray, parts: np.ndarray | None,
    maps: Sequence[SaliencyMaps], gap: float = 4,
) -> None:  # fmt: skip
    """An image, its true parts where they are known, and its maps (h,w), beside each other."""
    n = 1 + (parts is not None) + len(maps)
    first, *others = (page.axes(left + i * (side + gap), top, side, side) for i in range(n))
    show_image(first, image)
    if parts is not None:
        show_parts(others.pop(0), image, parts)
    for axes, one in zip(others, maps, strict=True):
        show_saliency(axes, image, one.values, one.is_mask)


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
    look: dict[str, Any] = {"vmin": -0.5, "vmax": len(_PART_COLORS) - 0.5, "alpha": 0.85}
    axis.imshow(shown, ListedColormap(_PART_COLORS), extent=extent, interpolation="nearest", **look)


def _part_legend(figure: Figure, names: list[str], used: list[int], y: float) -> None:
    handles = [
        Patch(
            facecolor=_PART_COLORS[(part - 1) % len(_PART_COLORS)],
            edgecolor="#555",
            label=style.shorten(names[part] if part < len(names) else f"part {part}", 16),
        )
        for part in used
    ]
    legend = figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(_LEFT / style.WIDTH, y), ncol=7, fontsize=style.FONT,
        frameon=False, handlelength=1, handleheight=1, columnspacing=1.2, borderpad=0, borderaxespad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _color_bar(page: style.Page) -> None:
    axis = page.axes(_LEFT, page.height - 36, 330, 10)
    scale = ScalarMappable(cmap=colormaps[style.SALIENCY_COLORS])
    page.figure.colorbar(scale, cax=axis, orientation="horizontal").set_ticks([])
    for x, side, text in ((0, "left", "least attention"), (1, "right", "most, in each map")):
        axis.text(x, -0.5, text, fontsize=style.FONT, ha=side, va="top", transform=axis.transAxes)


saliency_grid = style.figure_of(saliency_grid_info, draw_saliency_grid)
