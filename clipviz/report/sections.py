"""What templates say: facts of the summary, figures by chapter, settings, and the files that were skipped."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

from clipviz import figures
from clipviz.figures.moments import part_of_epoch, when
from clipviz.figures.redraw import plain
from clipviz.figures.style import trace_styles
from clipviz.report.explored import explored
from clipviz.report.page import charts, picture
from clipviz.report.summary import Summary, is_about_chance, model_names, n_evaluated, summarize, zero_shot_accuracy
from clipviz.report.views import CHAPTERS, View
from clipviz.trace import Trace

_PICTURES, _LEAST_PICTURE = 800_000, 36_000  # bytes that the runs share, so that the page stays below 6 MB
_MAX_SKIPPED = 100
_UNFINISHED = {"stopped": "was stopped", "failed": "failed", "running": "had not ended and was"}
_FACTS = ("model", "preset", "pretrained", "seed", "epochs", "status", "device")
COMPARED = "accuracy_over_epochs"
#: A view, their own titles, and for each its id, run, label, description, size, and address (None: a chart).
Group = tuple[View, list[str], list[dict[str, Any]]]


def contents(traces: Sequence[Trace]) -> dict[str, Any]:
    """Everything that `templates/page.html` wants of some runs."""
    labels, summary = figures.trace_labels(traces), summarize(traces)
    looks = [look._asdict() | {"label": label} for look, label in zip(trace_styles(traces), labels, strict=True)]
    images = explored(traces)
    drawn: dict[str, go.Figure] = {}
    most = max((row.accuracy for row in summary.rows if row.accuracy is not None), default=None)
    if most is not None or any(row.pseudo_label_accuracy is not None for row in summary.rows):
        drawn[COMPARED] = figures.accuracy_over_epochs(traces)
    chapters = _chapters(labels, traces, drawn)
    skipped = sorted({(str(row.path), str(row.reason)) for t in traces for row in t.skipped.itertuples(index=False)})
    return {
        **introduction(labels, traces, summary), "summary": summary, "has_accuracy": most is not None,
        "best": [row for row in summary.rows if row.accuracy == most is not None], "looks": looks,
        "trained": [label for label, t in zip(labels, traces, strict=True) if figures.is_trained(t)],
        "compared": COMPARED if COMPARED in drawn else None, "chapters": chapters,
        "n_drawn": sorted({one["run"] for groups in chapters.values() for _, _, shown in groups for one in shown}),
        **images, "charts": charts(drawn),
        "commands": list(dict.fromkeys(str(t.meta["command"]) for t in traces if t.meta.get("command"))),
        "settings": settings(traces), "labels": labels, "n_skipped": len(skipped), "skipped": skipped[:_MAX_SKIPPED],
    }  # fmt: skip


def introduction(labels: Sequence[str], traces: Sequence[Trace], summary: Summary) -> dict[str, Any]:
    """What was adapted to what, and what a reader must be careful about."""
    first, n_classes = traces[0], len(traces[0].class_names)

    def is_chance(accuracy: float | None) -> bool:
        return accuracy is not None and is_about_chance(accuracy, n_classes, summary.n_labeled)

    models, sentences = model_names(traces), {trace.meta.get("classes_from") for trace in traces}
    zero_shot = zero_shot_accuracy(traces) if len(models) == 1 else None
    n_images = {trace.meta.get("n_images") or trace.samples["index"].nunique() for trace in traces}
    ended = ((label, _UNFINISHED.get(str(t.meta.get("status"))), t) for label, t in zip(labels, traces, strict=True))
    return {
        "meta": first.meta, "models": models, "data": str(first.meta.get("data", "unnamed images")),
        "n_images": " or ".join(f"{n:,}" for n in sorted(n_images)),
        "classes_from": sentences.pop() if len(sentences) == 1 else None, "n_evaluated": n_evaluated(first),
        "n_classes": n_classes, "is_adapted": any(map(figures.is_trained, traces)),
        "zero_shot_by_chance": zero_shot if is_chance(zero_shot) else None,
        "at_chance": [row.label for row in summary.rows if is_chance(row.accuracy)],
        "unfinished": [f"{label} {word} {_ended(trace)}." for label, word, trace in ended if word],
    }  # fmt: skip


def _ended(trace: Trace) -> str:
    """Where a run ended that did not come to its end, and what was measured last."""
    part, measured = part_of_epoch(trace), trace.metric("accuracy").dropna().index
    last, known = ("after " * (epoch >= 0) + when(epoch) for epoch in (trace.final_epoch, max(measured, default=-1)))
    place = f"in {when(part.epoch, part)}" if part.epoch >= 0 else last
    return f"{place}: its accuracy is that {known}" if len(measured) else place


def _chapters(labels: Sequence[str], traces: Sequence[Trace], drawn: dict[str, go.Figure]) -> dict[str, list[Group]]:
    """Groups by chapter, of the runs that are not baselines; their charts are added to `drawn`."""
    runs = [run for run in enumerate(zip(labels, traces, strict=True)) if figures.is_trained(run[1][1])]
    chapters: dict[str, list[Group]] = {}
    most = max(_PICTURES // max(len(runs), 1), _LEAST_PICTURE)
    for chapter, view in ((chapter, view) for chapter, views in CHAPTERS.items() for view in views):
        shown, titles = list[dict[str, Any]](), dict[str, None]()
        for run, (label, trace) in runs:
            if (figure := view.draw(trace)) is None:
                continue
            name, address, size = f"{view.figure}-{run}", None, [0, 0]
            if isinstance(figure, Figure):
                address, size = picture(figure, most), [round(100 * side) for side in figure.get_size_inches()]
            else:
                drawn[name], titles[plain(figure.layout.title.text)] = figure, None
            what = f"{label}: {view.title}. {view.look_for}"
            shown.append({"name": name, "run": run, "label": label, "what": what, "picture": address, "size": size})
        if shown:
            chapters.setdefault(chapter, []).append((view, list(titles), shown))
    return chapters


def settings(traces: Sequence[Trace]) -> dict[bool, dict[str, list[str | None]]]:
    """The value of every setting in each run (None: it has none); under True those that are the same in all."""
    facts = [_facts(trace) for trace in traces]
    found: dict[bool, dict[str, list[str | None]]] = {False: {}, True: {}}
    for key in dict.fromkeys(key for own in facts for key in own):
        values = [own.get(key) for own in facts]
        found[len(traces) > 1 and len(set(values)) == 1][key] = values
    return found


def _facts(trace: Trace) -> dict[str, str]:
    meta, chosen = trace.meta, trace.meta.get("settings") or {}
    facts = {key: meta[key] for key in _FACTS if key in meta} | {"schedule": chosen.get("schedule") or {}}
    facts |= {key: value for key, value in (chosen.get("method") or {}).items() if key != "schedule"}
    facts |= {"versions": meta.get("versions") or {}, "changed while running": meta.get("changes") or {}}
    return dict(_flat(facts))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner, default=str)
