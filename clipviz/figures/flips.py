"""When pseudo-labels changed: from right to wrong and back, and which classes exchanged them."""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clipviz.figures import style
from clipviz.figures.moments import WHOLE, Moments, Part, add_marks, moments, part_of_epoch
from clipviz.trace import Trace

_MAX_FLOWS = 16
_NEED_TWO = "Flips need images that were pseudo-labeled in at least two epochs."


class LabelFlips(NamedTuple):
    """Shares (steps,) of the images by what their pseudo-label did; without a target "unchanged" or "changed"."""

    steps: list[tuple[int, int]]
    shares: dict[str, np.ndarray]
    moments: Moments = Moments()


_WITH_TARGET, _WITHOUT_TARGET = style.outcome_looks("with_target"), style.outcome_looks("without_target")
_LOOKS = _WITH_TARGET | _WITHOUT_TARGET


def label_flips_info(trace: Trace, epoch_from: int | None = None, epoch_to: int | None = None) -> LabelFlips:
    """What pseudo-labels did from `epoch_from` to `epoch_to` (first and last by default); of slices nothing."""
    labels, target = _labels_by_epoch(trace, epoch_from, epoch_to)
    moves = {step: both for step in pairwise(map(int, labels.columns)) if len(both := labels[[*step]].dropna())}
    outcomes = [_outcomes(both[a], both[b], target[both.index]) for (a, b), both in moves.items()]
    names = [*_WITH_TARGET] * bool((target >= 0).any()) + [*_WITHOUT_TARGET] * bool((target < 0).any())
    shares = {name: np.array([(outcome == name).mean() for outcome in outcomes]) for name in names if moves}
    return LabelFlips([*moves], shares, moments(trace))


def _labels_by_epoch(trace: Trace, first: int | None, last: int | None) -> tuple[pd.DataFrame, pd.Series]:
    """Pseudo-labels, a row per image and a column per epoch within the bounds, and the target of every row."""
    samples = trace.samples.drop_duplicates(["epoch", "index"], keep="last")
    labels = samples.pivot(index="index", columns="epoch", values="pseudo_label").sort_index(axis=1)
    epochs = labels.columns.astype(int)
    first, last = epochs.min() if first is None else first, epochs.max() if last is None else last
    labels = labels.loc[:, (epochs >= first) & (epochs <= last)]
    return labels, samples.groupby("index")["target"].last().reindex(labels.index)


def _outcomes(start: pd.Series, end: pd.Series, target: pd.Series) -> np.ndarray:
    """What became of each pseudo-label (n,), by the names of `_LOOKS`."""
    stays = start == end
    cases = {
        "unchanged": (target < 0) & stays, "changed": target < 0, "right → right": stays & (end == target),
        "wrong → right": end == target, "wrong → same wrong": stays, "right → wrong": start == target,
    }  # fmt: skip
    return np.select(list(cases.values()), list(cases), "wrong → other wrong")


def draw_label_flips(info: LabelFlips) -> go.Figure:
    """Stacked bars, one per step between epochs."""
    title = "Label flips: how pseudo-labels changed from epoch to epoch"
    x, y = "from epoch → to epoch", "% of the images"
    if not info.steps:
        return style.empty_chart(title, _NEED_TWO, x, y)
    n = len(info.steps)
    figure = style.new_chart(title, legend_rows=2, x=x, y=y).update_layout(barmode="stack")
    for name, shares in info.shares.items():
        hover = name + ": %{y:.1f} %"
        style.add_bars(figure, list(range(n)), style.percent(shares), name, _LOOKS[name], hover, width=0.7)
    ticks = list(range(0, n, max(1, -(-n // 10))))
    text = [f"{start} → {end}{info.moments.part.below(end)}" for start, end in (info.steps[tick] for tick in ticks)]
    figure.update_xaxes(tickvals=ticks, ticktext=text, range=[-0.6, max(n - 0.4, 2)])
    figure.update_yaxes(range=[0, 100])
    add_marks(figure, [(mark.epoch - info.steps[0][0] - 0.5, mark.text) for mark in info.moments.marks], n)
    return figure


class Flow(NamedTuple):
    """`n` images whose label went from class `start` to class `end`, all with the same outcome."""

    start: str
    end: str
    outcome: str
    n: int


class LabelFlow(NamedTuple):
    """Which classes exchanged labels between two epochs: the largest flows, and how many images moved in all.

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
    if labels.shape[1] < 2 or not labels.iloc[:, [0, -1]].notna().all(axis=1).any():  # slices of a stream
        return LabelFlow(None, [], 0, len(labels))
    both = pd.DataFrame({"start": labels.iloc[:, 0], "end": labels.iloc[:, -1], "target": target}).dropna().astype(int)
    moved = both[both["start"] != both["end"]]
    moved = moved.assign(outcome=_outcomes(moved["start"], moved["end"], moved["target"]))
    counts = moved.value_counts(["start", "end", "outcome"]).reset_index(name="n")
    counts = counts.sort_values(["n", "start", "end", "outcome"], ascending=[False, True, True, True]).head(max_flows)
    ends = (counts[side].map(partial(style.class_name, trace.class_names)) for side in ("start", "end"))
    flows = [Flow(*row) for row in zip(*ends, counts["outcome"], counts["n"].tolist(), strict=True)]
    epochs = int(labels.columns[0]), int(labels.columns[-1])
    return LabelFlow(epochs, flows, len(moved), len(both), part_of_epoch(trace))


def draw_label_flow(info: LabelFlow) -> go.Figure:
    """Classes at the first epoch on the left, at the last on the right, and between them the labels that moved."""
    if info.epochs is None or not info.flows:
        why = _NEED_TWO if info.epochs is None else "No pseudo-label changed between these epochs."
        return style.empty_chart("Label flow: which classes exchanged labels", why)
    start, end = info.epochs
    shown = sum(flow.n for flow in info.flows)
    title = f"Label flow, epoch {start} → {end}{info.part.said(end, ', ')}: "
    title += f"{info.n_moved} of {info.n_images} labels changed"
    title += "" if shown == info.n_moved else f"; drawn are the {shown} in the largest flows"
    left = list(dict.fromkeys(flow.start for flow in info.flows))
    # On the right in the order of where their labels come from, so that few bands cross.
    came_from: dict[str, list[int]] = {}
    for flow in info.flows:
        came_from.setdefault(flow.end, []).extend([left.index(flow.start)] * flow.n)
    right = sorted(came_from, key=lambda name: float(np.mean(came_from[name])))
    figure = style.new_chart(title, 130 + 32 * max(len(left), len(right)))
    edges, lowest, written = list[list[float]](), 0.0, list[dict[str, object]]()
    for side, names, anchor, shift in ((0, left, "right", -6), (1, right, "left", 6)):
        tops, middles = _stacked(info.flows, side, names)
        edges.append(tops)
        lowest = max(lowest, middles[-1])
        for name, y in zip(style.short_names(names), middles, strict=True):
            written.append({"x": side, "y": y, "text": name, "showarrow": False, "xanchor": anchor, "xshift": shift})
    figure.layout.annotations = written  # at once: each that is added checks all before it again
    first = {flow.outcome: place for place, flow in reversed(list(enumerate(info.flows)))}
    for place, (flow, start_y, end_y) in enumerate(zip(info.flows, *edges, strict=True)):
        _add_band(figure, flow, start_y, end_y, first[flow.outcome] == place)
    figure.update_xaxes(visible=False, range=[-0.45, 1.45])
    return figure.update_yaxes(visible=False, range=[lowest + 1.5, -1])


def _stacked(flows: list[Flow], side: int, names: list[str]) -> tuple[list[float], list[float]]:
    """The upper edge of every flow on one side, and the middle of every name, one below the other with gaps."""
    sizes = np.array([flow.n for flow in flows], float)
    place = np.array([names.index((flow.start, flow.end)[side]) for flow in flows])
    order = np.argsort(place, kind="stable")
    # The side with fewer names is spread as far as the other one.
    gap = sizes.mean() * (1 + (len(flows) - len(names)) / max(len(names) - 1, 1))
    tops = np.empty(len(flows))
    tops[order] = np.cumsum(sizes[order]) - sizes[order]
    tops += gap * place
    return tops.tolist(), [(tops[place == i].min() + (tops + sizes)[place == i].max()) / 2 for i in range(len(names))]


def _add_band(figure: go.Figure, flow: Flow, left: float, right: float, in_legend: bool) -> None:
    x = np.linspace(0, 1, 24)
    upper = left + (right - left) * (3 * x**2 - 2 * x**3)
    text = f"{flow.n} × {' → '.join(style.short_names([flow.start, flow.end]))}<br>{flow.outcome}"
    x, y = np.concatenate([x, x[::-1]]), np.concatenate([upper, upper[::-1] + flow.n])
    look = {"fillcolor": _LOOKS[flow.outcome].color, "line": {"color": "white", "width": 1}, "opacity": 0.75}
    figure.add_scatter(
        x=x.astype(np.float32), y=y.astype(np.float32), mode="lines", fill="toself", hoveron="fills", text=text,
        hoverinfo="text", name=flow.outcome, legendgroup=flow.outcome, showlegend=in_legend, **look,
    )  # fmt: skip
