"""When pseudo-labels changed: from right to wrong and back, and which classes traded them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clipviz.figures.moments import WHOLE, Moments, Part, add_marks, moments, part_of_epoch
from clipviz.figures.style import (
    BLUE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    apply_layout,
    class_name,
    empty_chart,
    pattern,
    percent,
    short_names,
)
from clipviz.trace import Trace

_MAX_FLOWS = 16
_NEED_TWO = "Flips need pseudo-labels of at least two epochs."


class LabelFlips(NamedTuple):
    """Shares (steps,) of the images by what their pseudo-label did from epoch to epoch.

    Without targets only "unchanged" and "changed" are known.
    """

    steps: list[tuple[int, int]]
    shares: dict[str, np.ndarray]
    moments: Moments = Moments()


_FLIP_STYLES = {
    "right → right": (BLUE, ""),
    "wrong → right": (SKY, "/"),
    "wrong → same wrong": ("#BBBBBB", ""),
    "wrong → other wrong": (ORANGE, "x"),
    "right → wrong": (VERMILLION, "\\"),
    "unchanged": ("#BBBBBB", ""),
    "changed": (PURPLE, "/"),
}


def label_flips_info(trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None) -> LabelFlips:
    """What pseudo-labels did from `epoch_from` to `epoch_to` (first and last by default), step by step."""
    labels, target = _labels_by_epoch(trace, epoch_from, epoch_to)
    seen = labels.notna()  # an epoch of a stream sees other images than the one before
    steps = [(a, b) for a, b in pairwise(int(epoch) for epoch in labels.columns) if (seen[a] & seen[b]).any()]
    kinds = [_flip_shares(labels[start], labels[end], target) for start, end in steps]
    names = [name for name in _FLIP_STYLES if any(name in kind for kind in kinds)]
    return LabelFlips(
        steps, {name: np.array([kind.get(name, 0.0) for kind in kinds]) for name in names}, moments(trace)
    )


def _labels_by_epoch(trace: Trace, first: int | None, last: int | None) -> tuple[pd.DataFrame, pd.Series]:
    """Pseudo-labels, a row per image and a column per epoch within the bounds, and the target of every row."""
    samples = trace.samples.drop_duplicates(["epoch", "index"], keep="last")
    labels = samples.pivot(index="index", columns="epoch", values="pseudo_label").sort_index(axis=1)
    labels = labels.loc[:, [_within(epoch, first, last) for epoch in labels.columns.astype(int)]]
    return labels, samples.groupby("index")["target"].last().reindex(labels.index)


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


def draw_label_flips(info: LabelFlips) -> go.Figure:
    """Stacked bars, one per step between epochs."""
    title = "Label flips: what the pseudo-labels did from epoch to epoch"
    if not info.steps:
        return empty_chart(title, _NEED_TWO, "from epoch → to epoch", "% of the images")
    figure = go.Figure()
    apply_layout(figure, title, 420, legend_rows=2)
    figure.update_layout(barmode="stack")
    for name, shares in info.shares.items():
        figure.add_bar(
            x=list(range(len(info.steps))),
            y=percent(shares),
            name=name,
            width=0.7,
            marker=pattern(*_FLIP_STYLES[name]),
            hovertemplate=name + ": %{y:.1f} %<extra></extra>",
        )
    ticks = list(range(0, len(info.steps), max(1, -(-len(info.steps) // 10))))
    part = info.moments.part
    text = [
        f"{start} → {end}{part.said(end, '<br>').replace(' im', '<br>im')}"
        for start, end in (info.steps[tick] for tick in ticks)
    ]
    bounds = [-0.6, max(len(info.steps) - 0.4, 2)]
    figure.update_xaxes(title_text="from epoch → to epoch", tickvals=ticks, ticktext=text, range=bounds)
    figure.update_yaxes(title_text="% of the images", range=[0, 100])
    add_marks(
        figure, [(mark.epoch - info.steps[0][0] - 0.5, mark.text) for mark in info.moments.marks], len(info.steps)
    )
    return figure


def label_flips(trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None) -> go.Figure:
    """How many pseudo-labels changed from epoch to epoch, and whether for the better."""
    return draw_label_flips(label_flips_info(trace, epoch_from, epoch_to))


class Flow(NamedTuple):
    """`n` images whose label went from class `start` to class `end`, all with the same outcome."""

    start: str
    end: str
    outcome: str
    n: int


class LabelFlow(NamedTuple):
    """Which classes traded labels between two epochs: the largest flows, and how many images moved in all.

    Outcomes are "wrong → right", "wrong → other wrong", "right → wrong", or "changed" without a target.
    """

    epochs: tuple[int, int] | None
    flows: list[Flow]
    n_moved: int
    n_images: int
    part: Part = WHOLE


def label_flow_info(
    trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None, max_flows: int = _MAX_FLOWS
) -> LabelFlow:
    """Labels that moved from `epoch_from` to `epoch_to` (first and last by default)."""
    labels, target = _labels_by_epoch(trace, epoch_from, epoch_to)
    if labels.shape[1] < 2:
        return LabelFlow(None, [], 0, len(labels))
    both = pd.DataFrame({"start": labels.iloc[:, 0], "end": labels.iloc[:, -1], "target": target}).dropna().astype(int)
    moved = both[both["start"] != both["end"]]
    counts = moved.assign(outcome=_outcomes(moved)).value_counts(["start", "end", "outcome"]).reset_index(name="n")
    counts = counts.sort_values(["n", "start", "end", "outcome"], ascending=[False, True, True, True])
    names = trace.class_names
    columns = (counts[name].head(max_flows).tolist() for name in ("start", "end", "outcome", "n"))
    flows = [
        Flow(class_name(names, old), class_name(names, new), outcome, n)
        for old, new, outcome, n in zip(*columns, strict=True)
    ]
    epochs = int(labels.columns[0]), int(labels.columns[-1])
    return LabelFlow(epochs, flows, len(moved), len(both), part_of_epoch(trace))


def _outcomes(moved: pd.DataFrame) -> np.ndarray:
    known, target = moved["target"] >= 0, moved["target"]
    conditions = [~known, moved["end"] == target, moved["start"] == target]
    return np.select(conditions, ["changed", "wrong → right", "right → wrong"], "wrong → other wrong")


def draw_label_flow(info: LabelFlow) -> go.Figure:
    """Classes at the first epoch on the left, at the last on the right, and between them the labels that moved."""
    if info.epochs is None or not info.flows:
        why = _NEED_TWO if info.epochs is None else "No pseudo-label moved between these epochs."
        return empty_chart("Label flow: which classes traded labels", why)
    start, end = info.epochs
    shown = sum(flow.n for flow in info.flows)
    done = info.part.said(end, ", ")
    title = f"Label flow, epoch {start} → {end}{done}: {info.n_moved} of {info.n_images} labels moved"
    title += "" if shown == info.n_moved else f"; drawn are the {shown} in the largest flows"
    left = list(dict.fromkeys(flow.start for flow in info.flows))
    # On the right in the order of where their labels come from, so that few bands cross.
    came_from: dict[str, list[int]] = {}
    for flow in info.flows:
        came_from.setdefault(flow.end, []).extend([left.index(flow.start)] * flow.n)
    right = sorted(came_from, key=lambda name: float(np.mean(came_from[name])))
    figure = go.Figure()
    apply_layout(figure, title, 130 + 32 * max(len(left), len(right)))
    places = [_stacked(info.flows, side, names) for side, names in ((0, left), (1, right))]
    seen: set[str] = set()
    for i, flow in enumerate(info.flows):
        _add_band(figure, flow, places[0][0][i], places[1][0][i], flow.outcome not in seen)
        seen.add(flow.outcome)
    _name_sides(figure, (left, right), (places[0][1], places[1][1]))
    return figure


def _stacked(flows: list[Flow], side: int, names: list[str]) -> tuple[list[float], list[float]]:
    """The upper edge of every flow on one side, and the middle of every name, one below the other with gaps."""
    total = sum(flow.n for flow in flows)
    gap = total / len(flows)
    free = gap * (len(flows) - len(names))  # the side with fewer names is spread as far as the other one
    tops, middles, y = [0.0] * len(flows), [], 0.0
    for name in names:
        top = y
        for i, flow in enumerate(flows):
            if flow[side] == name:
                tops[i] = y
                y += flow.n
        middles.append((top + y) / 2)
        y += gap + free / max(len(names) - 1, 1)
    return tops, middles


def _add_band(figure: go.Figure, flow: Flow, left: float, right: float, in_legend: bool) -> None:
    x = np.linspace(0, 1, 24)
    upper = left + (right - left) * (3 * x**2 - 2 * x**3)
    color, _ = _FLIP_STYLES[flow.outcome]
    text = f"{flow.n} × {' → '.join(short_names([flow.start, flow.end]))}<br>{flow.outcome}"
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]).astype(np.float32),
        y=np.concatenate([upper, upper[::-1] + flow.n]).astype(np.float32),
        mode="lines",
        fill="toself",
        fillcolor=color,
        line={"color": "white", "width": 1},
        opacity=0.75,
        name=flow.outcome,
        legendgroup=flow.outcome,
        showlegend=in_legend,
        hoveron="fills",
        text=text,
        hoverinfo="text",
    )


def _name_sides(
    figure: go.Figure, names: tuple[list[str], list[str]], middles: tuple[list[float], list[float]]
) -> None:
    bottom = max(middles[0][-1], middles[1][-1]) + 1
    for side, x in ((0, 0.0), (1, 1.0)):
        for name, y in zip(short_names(names[side], 26), middles[side], strict=True):
            figure.add_annotation(
                x=x,
                y=y,
                text=name,
                showarrow=False,
                xanchor=("right", "left")[side],
                xshift=(-6, 6)[side],
            )
    figure.update_xaxes(visible=False, range=[-0.45, 1.45])
    figure.update_yaxes(visible=False, range=[bottom + 0.5, -1])


def label_flow(trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None) -> go.Figure:
    """Which classes traded labels between two epochs (first and last by default), and whether for the better."""
    return draw_label_flow(label_flow_info(trace, epoch_from, epoch_to))
