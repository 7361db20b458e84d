"""Where the model looked: saliency over the probe images, beside the true parts where they are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from PIL.Image import Resampling

from clipviz.figures import style
from clipviz.figures.moments import epoch_name, part_of_epoch
from clipviz.trace import Trace

KIND_NAMES: dict[str, str] = style.LOOKS["kinds"]
"""All kinds of maps that come with clipviz; others are a user's own."""

PART_COLORS: list[str] = style.LOOKS["parts"]
_LEFT, _HEAD = 130, 46  # pixels for the names of the rows and of the columns


def kind_name(kind: str) -> str:
    """A kind of map as its buttons and columns call it."""
    return KIND_NAMES.get(kind, kind.replace("_", " "))


class SaliencyMaps(NamedTuple):
    """Maps (P,h,w) in [0, 1] of one kind at one epoch, or one (h,w) of these; `is_mask`: 0 or 1 throughout."""

    title: str
    values: np.ndarray
    is_mask: bool

    @classmethod
    def of(cls, kind: str, maps: np.ndarray, when: str = "") -> SaliencyMaps:
        """Raw maps (P,h,w), each stretched to [0, 1]."""
        return cls(kind_name(kind) + when, unit_range(maps), bool(np.isin(maps, (0, 1)).all()))


class SaliencyGrid(NamedTuple):
    """Images (P,H,W,3) uint8 with their titles, true parts (P,H,W) or None, and the columns of maps."""

    images: np.ndarray
    titles: list[str]
    parts: np.ndarray | None
    part_names: list[str]
    columns: list[SaliencyMaps]


def saliency_grid_info(
    trace: Trace, kinds: Sequence[str] | None = None, epochs: Sequence[str | int] = ("before", "after"),
    max_images: int = 12,
) -> SaliencyGrid:  # fmt: skip
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
    """One row per image: the image, its true parts, then the maps laid over a gray copy of it."""
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
    rows = []
    for row, name in enumerate(style.apart(info.titles, 56)):
        top, parts = _HEAD + row * cell, None if info.parts is None else info.parts[row]
        page.write(_LEFT - 8, top + cell / 2, style.folded(name, 14), ha="right", va="center", ma="center")
        maps = [column._replace(values=column.values[row]) for column in info.columns]
        rows.append(squares(info.images[row], parts, maps, side=cell - 4))
    show_rows(page, _LEFT, _HEAD, cell - 4, rows)
    if used:
        _part_legend(page.figure, info.part_names, used, y=(foot - 8) / page.height)
    if has_heat:
        _color_bar(page)
    return page.figure


def show_rows(
    page: style.Page, left: float, top: float, side: float, rows: Sequence[Sequence[np.ndarray]], gap: float = 4
) -> None:
    """Rows of squares (S,S,3) uint8 as one picture, `side` pixels each: axes for every square would take far longer."""
    size = len(rows[0][0])
    step, n_columns = round(size * (side + gap) / side), max(map(len, rows))
    sheet = np.full((len(rows) * step, n_columns * step, 4), 255, np.uint8)  # matplotlib would double three channels
    for i, row in enumerate(rows):
        for j, square in enumerate(row):
            sheet[i * step :, j * step :][:size, :size, :3] = square
    height, width, _ = np.array(sheet.shape) * side / size
    style.bare(page.axes(left, top, width, height)).imshow(sheet, aspect="auto")


def squares(
    image: np.ndarray, parts: np.ndarray | None = None, maps: Sequence[SaliencyMaps] = (), *, side: float
) -> list[np.ndarray]:
    """An image, its true parts where they are known, and its maps (h,w), for `side` pixels of a page."""
    size = round(1.3 * side)  # as fine as the pictures of a report
    plain = _resized(image, size, Resampling.NEAREST if size > 4 * len(image) else Resampling.BICUBIC)
    pale = (64 + 0.75 * (plain @ np.array([0.299, 0.587, 0.114], np.float32)))[..., None]
    colored = [] if parts is None else [_over(pale, _part_colors(_resized(parts, size, Resampling.NEAREST)))]
    return [plain, *colored, *(_over(pale, _saliency_colors(one, size)) for one in maps)]


def overlay(image: np.ndarray, saliency: np.ndarray, is_mask: bool = False) -> np.ndarray:
    """Saliency (h,w) in [0, 1] laid over a gray copy of an image (H,W,3) uint8, as in `squares`: (S,S,3) uint8."""
    return squares(image, maps=[SaliencyMaps("", saliency, is_mask)], side=300)[-1]


def image_grid(images: Sequence[np.ndarray | None], titles: Sequence[str] = (), rows: int = 1) -> Figure:
    """Images (H,W,3) uint8, matrices (h,w), large values dark, or None for a gap, in equal rows with their titles."""
    per_row, lines = -(-len(images) // rows), "\n".join([*titles, " "]).split("\n")
    n_heads = -(-len(titles) // per_row) * (1 + max(title.count("\n") for title in [*titles, ""]))
    size = min(13.0, 1000 / per_row / max(map(len, lines)))
    figure = Figure(figsize=(9, rows * 9 / max(per_row, 3) + 0.25 * n_heads), layout="constrained")
    for axis, image, title in zip_longest(np.ravel(figure.subplots(rows, per_row)), images, titles):
        style.bare(axis).imshow(np.zeros((1, 1)) if image is None else image, cmap="gray_r")
        axis.set_title(title or "", fontsize=size, parse_math=False)
    return figure


def _resized(values: np.ndarray, size: int, how: Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize((size, size), how))


def _over(pale: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Lay colors (S,S,4) in [0, 1] over a pale gray copy of an image."""
    share = colors[..., 3:]
    return ((1 - share) * pale + 255 * share * colors[..., :3] + 0.5).astype(np.uint8)


def _saliency_colors(one: SaliencyMaps, size: int) -> np.ndarray:
    """A mask keeps its patches sharp and veils what it excludes; anything else is smoothed between patches."""
    values = _resized(one.values.astype(np.float32), size, Resampling.NEAREST if one.is_mask else Resampling.BILINEAR)
    if one.is_mask:
        return np.where((values > 0.5)[..., None], (1.0, 0.75, 0.0, 0.3), (0.05, 0.0, 0.2, 0.72))
    # Low values are let through, so that the image stays visible where nobody looked.
    return colormaps[style.SALIENCY_COLORS](values, alpha=0.2 + 0.65 * values)


def _part_colors(parts: np.ndarray) -> np.ndarray:  # of ids (H, W); 0 is background
    table = [to_rgba(color, 0.85) for color in PART_COLORS]
    return np.where(parts[..., None] > 0, np.take(table, parts.astype(int) - 1, 0, mode="wrap"), 0.0)


def _part_legend(figure: Figure, names: list[str], used: list[int], y: float) -> None:
    handles = [Patch(facecolor=PART_COLORS[(part - 1) % len(PART_COLORS)], edgecolor="#555") for part in used]
    labels = [style.shorten(names[part] if part < len(names) else f"part {part}", 16) for part in used]
    legend = figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(_LEFT / style.WIDTH, y), ncol=7, fontsize=style.FONT,
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
