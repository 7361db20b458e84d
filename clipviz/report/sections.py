"""The chapters of the report, in reading order; each figure with what to look for in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from clipviz import figures
from clipviz.figures.moments import part_of_epoch, when
from clipviz.report.page import Column, Html, chart, element, paragraphs, picture, table
from clipviz.report.summary import Summary, is_about_chance, n_evaluated, summarize, zero_shot_accuracy
from clipviz.report.views import VIEWS
from clipviz.trace import Trace

_MAX_SKIPPED = 100
_UNFINISHED = {"stopped": "was stopped", "failed": "failed", "running": "had not ended, and stood"}
_SEEN = {
    "classifier": "embeddings of the images and a classifier that came with them",
    "names": "the images and the names of the classes",
    "descriptions": "the images and the names and descriptions of the classes",
}
_FACTS = ("model", "preset", "pretrained", "seed", "epochs", "status", "device")


def introduction(traces: Sequence[Trace], summary: Summary) -> Iterator[Html]:
    """What was adapted on what, what accuracy means here, and what it does not mean."""
    first = traces[0]
    model, data = first.meta.get("model", "a CLIP model"), first.meta.get("data", "unnamed images")
    n_images = first.meta.get("n_images") or first.samples["index"].nunique()
    split = f" ({first.meta['split']} split)" if first.meta.get("split") not in (None, "all") else ""
    seen = _SEEN.get(str(first.meta.get("classes_from")), _SEEN["descriptions"])
    yield paragraphs(
        f"The model {model} was adapted to {n_images:,} images of {data}{split} in "
        f"{len(first.class_names)} classes. The methods saw {seen}, never a label: they learn "
        "from their own guesses, the pseudo-labels."
    )
    yield _meaning_of_accuracy(first, summary)
    if str(data).split("/")[0] == "birds":
        yield _note(
            "The birds are a procedural world with known parts, and their model is a very small CLIP: a "
            "teaching instrument, not a claim about real photographs."
        )
    elif str(model) == "birds":
        yield _note(
            "The model birds is a very small CLIP that has seen drawn birds only: it shows how a method works, "
            "not what it would do for these images. Try a model that was trained on photographs."
        )
    yield from _warn_of_chance(traces, summary)
    for label, trace in zip(figures.trace_labels(traces), traces, strict=True):
        if word := _UNFINISHED.get(str(trace.meta.get("status"))):
            yield _note(f"{label} {word} {_ended(trace)}.")


def _ended(trace: Trace) -> str:
    """Where a run ended that did not come to its end, and what was measured last."""
    part, measured = part_of_epoch(trace), trace.metric("accuracy").dropna().index
    place = f"in {when(part.epoch, part)}" if part.epoch >= 0 else _after(trace.final_epoch)
    return f"{place}: its accuracy is that {_after(max(measured))}" if len(measured) else place


def _after(epoch: int) -> str:
    return when(epoch) if epoch < 0 else f"after {when(epoch)}"


def _warn_of_chance(traces: Sequence[Trace], summary: Summary) -> Iterator[Html]:
    n_classes = len(traces[0].class_names)

    def is_chance(accuracy: float | None) -> bool:
        return accuracy is not None and is_about_chance(accuracy, n_classes, summary.n_evaluated)

    zero_shot = zero_shot_accuracy(traces)
    if zero_shot is not None and is_chance(zero_shot):
        yield _note(
            f"Before adaptation this model is right in {100 * zero_shot:.1f} % of cases; guessing among "
            f"{n_classes} classes gives {100 / n_classes:.1f} %. It does not know these classes, so its "
            "pseudo-labels are little better than noise, and nothing below should be read as a success or"
            " a failure of a method. Try a model that was trained on such images."
        )
    if at_chance := [row.label for row in summary.rows if is_chance(row.accuracy)]:
        yield _note(f"No better than guessing ({100 / n_classes:.1f} %) in the end: {', '.join(at_chance)}.")


def _note(text: str) -> Html:
    return element("p", text, class_="note")


def _meaning_of_accuracy(trace: Trace, summary: Summary) -> Html:
    if not any(row.accuracy is not None for row in summary.rows):
        return _note(
            "No evaluation image came with its true label, so accuracy cannot be measured. The views "
            "below show what can be seen without labels: confidence, agreement of the sources, labels "
            "that changed, and where the model looked. A confident model is not necessarily a right one."
        )
    where = f"{n_evaluated(trace):,} images of {trace.meta.get('eval_data') or trace.meta.get('data')}"
    kind = "images that no method has seen"
    if trace.meta.get("accuracy_is") == "transductive":
        kind = "the very images that the methods adapted to, without their labels (transductive)"
    error = f"{100 * (summary.standard_error or 0.0):.1f}"
    return paragraphs(
        f"Accuracy is the share of {where} whose predicted class is the true one: {kind}. It is that of "
        "the last epoch; nothing was selected by it. With so many images its standard error is up to "
        f"{error} points, so smaller differences mean nothing."
    )


def summary_table(summary: Summary) -> Html:
    """Every method in one table; without labels, what can be said without them."""
    rows = summary.rows
    cells = {
        "accuracy": [_percent(row.accuracy) for row in rows],
        f"gain over {summary.reference or 'its own start'}": [_points(row.gain) for row in rows],
        "ECE": [_percent(row.ece) for row in rows],
        "ECE before": [_percent(row.ece_before) for row in rows],
        "pseudo-label accuracy": [
            _percent(row.pseudo_label_accuracy) + " of cached images" * row.is_of_cache for row in rows
        ],
    }
    best = max(range(len(rows)), key=lambda i: rows[i].accuracy or 0.0) if len(rows) > 1 else None
    if not any(row.accuracy is not None for row in rows):
        cells = {"accuracy": ["no labels"] * len(rows), "mean confidence": [_percent(row.confidence) for row in rows]}
        cells["labels changed"], best = [_percent(row.changed) for row in rows], None
    cells["seconds"] = ["–" if row.seconds is None else f"{row.seconds:,.1f}" for row in rows]
    titles = [Column("method"), *(Column(title, True) for title in cells)]
    return table(titles, zip([row.label for row in rows], *cells.values(), strict=True), best)


def _points(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:+.1f}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def comparison(traces: Sequence[Trace]) -> Iterator[Html]:
    """Summary and accuracy over epochs."""
    summary = summarize(traces)
    yield summary_table(summary)
    if any(row.accuracy is not None or row.pseudo_label_accuracy is not None for row in summary.rows):
        yield paragraphs(
            "Left, how often each method is right on the evaluation images, from before training on; "
            "right, how often the pseudo-labels it learned from were right. Horizontal lines are methods "
            "that do not train."
        )
        what = "Accuracy per epoch of every method"
        yield chart(figures.accuracy_over_epochs(traces), "accuracy-over-epochs", what)


def method_views(label: str, trace: Trace, number: int, most_bytes: int) -> Iterator[Html]:
    """Every figure that this run has the data for; `most_bytes` is what one picture may weigh."""
    for view in VIEWS:
        drawn = view.figures(trace)
        if drawn:
            yield element("h3", view.title)
            yield paragraphs(view.look_for)
        what = f"{label}: {view.title}. {view.look_for}"
        for i, figure in enumerate(drawn):
            if isinstance(figure, Figure):
                yield picture(figure, what, most_bytes)
            else:
                yield chart(figure, f"run-{number}-{view.name}-{i}", what)


def settings(labels: Sequence[str], traces: Sequence[Trace]) -> Iterator[Html]:
    """How to repeat the runs: the commands, what all runs share, and what is particular to each."""
    commands = dict.fromkeys(str(trace.meta["command"]) for trace in traces if trace.meta.get("command"))
    if commands:
        yield paragraphs("The commands that led here; with the same versions on the same machine, to the same numbers:")
        yield element("pre", "\n".join(commands))
    facts = [_facts(trace) for trace in traces]
    shared = {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}
    parts = [("All runs" if len(traces) > 1 else labels[0], shared)]
    parts += [
        (label, {key: own[key] for key in own if key not in shared}) for label, own in zip(labels, facts, strict=True)
    ]
    for title, rows in parts:
        if rows:
            yield element("h3", title)
            yield table([Column("setting"), Column("value")], rows.items())


def _facts(trace: Trace) -> dict[str, str]:
    meta, settings = trace.meta, trace.meta.get("settings") or {}
    facts = {key: meta[key] for key in _FACTS if key in meta} | {"schedule": settings.get("schedule") or {}}
    facts |= {key: value for key, value in (settings.get("method") or {}).items() if key != "schedule"}
    facts |= {"versions": meta.get("versions") or {}, "changed while running": meta.get("changes") or {}}
    return dict(_flat(facts))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner, default=str)


def skipped(traces: Sequence[Trace]) -> Iterator[Html]:
    """The files that could not be read, once each."""
    files = {(str(row.path), str(row.reason)) for trace in traces for row in trace.skipped.itertuples(index=False)}
    if not files:
        return
    listed = sorted(files)[:_MAX_SKIPPED]
    more = f" The first {len(listed)} of them:" if len(files) > len(listed) else ""
    yield element("h2", "Skipped files", id="skipped", class_="flows")
    yield paragraphs(f"{len(files)} files could not be read as images and were left out.{more}")
    yield table([Column("file"), Column("reason")], listed)


def contents(entries: Sequence[tuple[str, str]]) -> Html:
    """Links to the chapters, as (id, title)."""
    items = [element("li", element("a", title, href=f"#{name}")) for name, title in entries]
    return element("nav", element("ol", *items), aria_label="Contents")


def heading(name: str, title: str, flows: bool = False) -> Html:
    """A chapter's heading; `flows` keeps it from starting a new sheet in print."""
    return element("h2", title, id=name, **({"class_": "flows"} if flows else {}))
