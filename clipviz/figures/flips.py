"""When pseudo-labels changed: from right to wrong and back, and which classes traded them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clipviz.figures._style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    apply_layout,
    class_name,
    empty_chart,
    pattern,
    percent,
    ranked_bars,
    short_name,
)
from clipviz.trace import Trace


class LabelFlips(NamedTuple):
    """Shares of images (steps,) by what their pseudo-label did from epoch to epoch, and who traded labels.

    Without targets only "unchanged" and "changed" are known. `pairs` is (from class, to class, images)
    between the first and the last epoch, most first.
    """

    steps: list[tuple[int, int]]
    shares: dict[str, np.ndarray]
    pairs: list[tuple[str, str, int]]


_FLIP_STYLES = {
    "right → right": (BLUE, ""),
    "wrong → right": (SKY, "/"),
    "wrong → same wrong": ("#BBBBBB", ""),
    "wrong → other wrong": (ORANGE, "x"),
    "right → wrong": (VERMILLION, "\\"),
    "unchanged": ("#BBBBBB", ""),
    "changed": (PURPLE, "/"),
}


def label_flips_info(
    trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None, n_pairs: int = 12
) -> LabelFlips:
    """What pseudo-labels did from `epoch_from` to `epoch_to` (first and last by default), step by step."""
    samples = trace.samples.drop_duplicates(["epoch", "index"], keep="last")
    labels = samples.pivot(index="index", columns="epoch", values="pseudo_label").sort_index(axis=1)
    labels = labels.loc[:, [_within(epoch, epoch_from, epoch_to) for epoch in labels.columns.astype(int)]]
    target = samples.groupby("index")["target"].last().reindex(labels.index)
    epochs = [int(epoch) for epoch in labels.columns]
    steps = list(pairwise(epochs))
    if not steps:
        return LabelFlips([], {}, [])
    kinds = [_flip_shares(labels[start], labels[end], target) for start, end in steps]
    names = [name for name in _FLIP_STYLES if any(name in kind for kind in kinds)]
    shares = {name: np.array([kind.get(name, 0.0) for kind in kinds]) for name in names}
    pairs = _traded(labels[epochs[0]], labels[epochs[-1]], trace.class_names, n_pairs)
    return LabelFlips(steps, shares, pairs)


def _within(epoch: int, first: int | None, last: int | None) -> bool:
    return (first is None or epoch >= first) and (last is None or epoch <= last)


def _flip_shares(start: pd.Series, end: pd.Series, target: pd.Series) -> dict[str, float]:
    seen = start.notna() & end.notna()  # an image may be missing from an epoch (last, incomplete batch)
    known = seen & (target >= 0)
    if not known.any():
        changed = float((start[seen] != end[seen]).mean()) if seen.any() else 0.0
        return {"unchanged": 1 - changed, "changed": changed}
    start, end, target = start[known], end[known], target[known]
    was, is_right = start == target, end == target
    return {
        "right → right": float((was & is_right).mean()),
        "wrong → right": float((~was & is_right).mean()),
        "wrong → same wrong": float((~was & ~is_right & (start == end)).mean()),
        "wrong → other wrong": float((~was & ~is_right & (start != end)).mean()),
        "right → wrong": float((was & ~is_right).mean()),
    }


def _traded(start: pd.Series, end: pd.Series, names: tuple[str, ...], n_pairs: int) -> list[tuple[str, str, int]]:
    moved = start.notna() & end.notna() & (start != end)
    pairs = np.stack([start[moved].to_numpy(int), end[moved].to_numpy(int)], 1)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:n_pairs]
    return [
        (class_name(names, int(old)), class_name(names, int(new)), int(n))
        for (old, new), n in zip(unique[order], counts[order], strict=True)
    ]


def draw_label_flips(info: LabelFlips) -> go.Figure:
    """Stacked bars, one per step between epochs, and below the class pairs that traded most labels."""
    title = "Label flips: what the pseudo-labels did from epoch to epoch"
    if not info.steps:
        return empty_chart(title, "Flips need pseudo-labels of at least two epochs.", "epochs", "% of the images")
    bars = 26 * max(len(info.pairs), 4)
    figure = make_subplots(
        rows=2,
        row_heights=[300, bars],
        vertical_spacing=100 / (400 + bars),
        subplot_titles=("", f"labels that moved most, epoch {info.steps[0][0]} → {info.steps[-1][1]}"),
    )
    apply_layout(figure, title, 540 + bars, legend_rows=2)
    figure.update_layout(barmode="stack")
    for name, shares in info.shares.items():
        figure.add_bar(
            x=list(range(len(info.steps))),
            y=percent(shares),
            name=name,
            width=0.7,
            marker=pattern(*_FLIP_STYLES[name]),
            hovertemplate=name + ": %{y:.1f} %<extra></extra>",
            row=1,
            col=1,
        )
    ticks = list(range(0, len(info.steps), max(1, -(-len(info.steps) // 10))))
    text = [f"{info.steps[tick][0]} → {info.steps[tick][1]}" for tick in ticks]
    bounds = [-0.6, max(len(info.steps) - 0.4, 2)]
    figure.update_xaxes(title_text="from epoch → to epoch", tickvals=ticks, ticktext=text, range=bounds, row=1, col=1)
    figure.update_yaxes(title_text="% of the images", range=[0, 100], row=1, col=1)
    labels = [f"{short_name(start)} → {short_name(end)}" for start, end, _ in info.pairs]
    ranked_bars(figure, labels, [n for _, _, n in info.pairs], GREEN, row=2)
    return figure


def label_flips(trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None) -> go.Figure:
    """How pseudo-labels changed between two epochs (first and last by default), and who traded them."""
    return draw_label_flips(label_flips_info(trace, epoch_from, epoch_to))
