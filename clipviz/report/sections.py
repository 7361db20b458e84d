"""The chapters of the report, in reading order; each figure with what to look for in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure

from clipviz import figures
from clipviz.report.page import Column, Html, chart, element, paragraphs, picture, table
from clipviz.report.summary import (
    Summary,
    is_about_chance,
    n_evaluated,
    summarize,
    zero_shot_accuracy,
)
from clipviz.trace import Trace

_MAX_SKIPPED = 100
_FACTS = ("model", "pretrained", "seed", "epochs", "status", "device")


class View(NamedTuple):
    """One figure of a method: its heading, what to look for, how to draw it and when it says something."""

    title: str
    look_for: str
    draw: Callable[[Trace], go.Figure | Figure]
    applies: Callable[[Trace], bool]


def introduction(traces: Sequence[Trace], summary: Summary) -> Iterator[Html]:
    """What was adapted on what, what accuracy means here, and what it does not mean."""
    first = traces[0]
    model, data = first.meta.get("model", "a CLIP model"), first.meta.get("data", "unnamed images")
    n_images = first.meta.get("n_images") or first.samples["index"].nunique()
    split = f" ({first.meta['split']} split)" if first.meta.get("split") else ""
    yield paragraphs(
        f"The model {model} was adapted to {n_images:,} images of {data}{split} in "
        f"{len(first.class_names)} classes. The methods saw the images and the names and descriptions of "
        "the classes, never a label: they learn from their own guesses, the pseudo-labels."
    )
    yield _meaning_of_accuracy(first, summary)
    if str(model) == "birds" or str(data).split("/")[0] == "birds":
        yield _note(
            "The birds are a procedural world with known parts, and their model is a very small CLIP: a "
            "teaching instrument, not a claim about real photographs."
        )
    zero_shot = zero_shot_accuracy(traces)
    n_classes = len(first.class_names)
    if zero_shot is not None and is_about_chance(zero_shot, n_classes, summary.n_evaluated):
        yield _note(
            f"Before adaptation this model is right in {100 * zero_shot:.1f} % of cases; guessing among "
            f"{n_classes} classes gives {100 / n_classes:.1f} %. It does not know these classes, so its "
            "pseudo-labels are little better than noise, and nothing below should be read as a success or"
            " a failure of a method. Try a model that was trained on such images."
        )


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
    if trace.meta.get("accuracy_is") == "transductive":
        kind = "the very images that the methods adapted to, without their labels (transductive)"
    else:
        kind = "images that no method has seen"
    error = f"{100 * (summary.standard_error or 0.0):.1f}"
    return paragraphs(
        f"Accuracy is the share of {where} whose predicted class is the true one: {kind}. It is that of "
        "the last epoch; nothing was selected by it. With so many images its standard error is up to "
        f"{error} points, so smaller differences mean nothing."
    )


def summary_table(summary: Summary) -> Html:
    """Every method in one table; without labels, what can be said without them."""
    if not any(row.accuracy is not None for row in summary.rows):
        titles = ("mean confidence", "labels changed", "seconds")
        return table(
            [Column("method"), *(Column(title, True) for title in titles)],
            [
                (row.label, _percent(row.confidence), _percent(row.changed), _seconds(row.seconds))
                for row in summary.rows
            ],
        )
    over = f"gain over {summary.reference}" if summary.reference else "gain over its own start"
    headings = ("accuracy", over, "pseudo-label accuracy", "seconds")
    best = max(range(len(summary.rows)), key=lambda i: summary.rows[i].accuracy or 0.0)
    return table(
        [Column("method"), *(Column(title, True) for title in headings)],
        [
            (
                row.label,
                _percent(row.accuracy),
                "–" if row.gain is None else f"{100 * row.gain:+.1f}",
                _percent(row.pseudo_label_accuracy),
                _seconds(row.seconds),
            )
            for row in summary.rows
        ],
        best if len(summary.rows) > 1 else None,
    )


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:,.1f}"


def comparison(traces: Sequence[Trace]) -> Iterator[Html]:
    """Summary and accuracy over epochs."""
    summary = summarize(traces)
    yield summary_table(summary)
    if any(row.accuracy is not None or row.pseudo_label_accuracy is not None for row in summary.rows):
        yield paragraphs(
            "Left, how often each method is right on the evaluation images, from before training on; "
            "right, how often the pseudo-labels it learned from were right. A method gains while its "
            "pseudo-labels are better than its predictions; horizontal lines are methods that do not "
            "train."
        )
        what = "Accuracy per epoch of every method"
        yield chart(figures.accuracy_over_epochs(traces), "accuracy-over-epochs", what)


def _has(array: str) -> Callable[[Trace], bool]:
    return lambda trace: len(trace.arrays.get(array, ())) > 0


def _has_pseudo_labels(trace: Trace) -> bool:
    return len(trace.samples) > 0


def _has_sample_targets(trace: Trace) -> bool:
    return bool((trace.samples["target"] >= 0).any())


def _has_eval_targets(trace: Trace) -> bool:
    return bool((trace.predictions["target"] >= 0).any())


def _mixes_by_gamma(trace: Trace) -> bool:
    # Only where labels came from gamma * first + (1 - gamma) * second is another gamma a true what-if.
    info = figures.gamma_what_if_info(trace)
    return info.is_own and info.sources is not None


VIEWS = (
    View(
        "Confidence of the pseudo-labels",
        "How sure the method was of its guesses. Where true labels are known, right and wrong guesses are"
        " drawn apart: the farther apart they are, the better confidence tells them from each other.",
        figures.confidence_evolution,
        _has_pseudo_labels,
    ),
    View(
        "Reliability",
        "Bars on the dotted line are honest; bars below it are over-confident. ECE is the mean distance "
        "from the line; learning from one's own guesses often makes it grow.",
        figures.reliability,
        _has_sample_targets,
    ),
    View(
        "Which source decided",
        "A pseudo-label mixes the votes of several sources. Hatched bars are images where the label of "
        'one source won against another; "neither" is a class that was no source\'s first choice.',
        figures.source_decisions,
        lambda trace: len(figures.source_decisions_info(trace).epochs) > 0,
    ),
    View(
        "What if they had been mixed otherwise",
        "The pseudo-labels of the last epoch, recomputed from the stored votes for every mixing weight. "
        "It shows what another gamma would have labelled, not what training with it would have led to.",
        figures.gamma_what_if,
        _mixes_by_gamma,
    ),
    View(
        "Where it looked",
        "The same images before and after adaptation, beside the true parts where they are known. Look "
        "whether attention leaves the background and gathers on the parts that tell look-alike classes "
        "apart.",
        figures.saliency_grid,
        lambda trace: bool(figures.saliency_grid_info(trace).columns),
    ),
    View(
        "Label flips",
        "Which share of the guesses was corrected and which was spoilt from one epoch to the next, and "
        "between which classes labels moved. Training has settled when little moves any more.",
        figures.label_flips,
        lambda trace: bool(figures.label_flips_info(trace).steps),
    ),
    View(
        "Loss terms",
        "What the optimizer minimised. The cross-entropy with pseudo-labels falls even when they are "
        "wrong, so read it together with their accuracy.",
        figures.loss_terms,
        lambda trace: len(trace.steps) > 0,
    ),
    View(
        "Instructive images",
        "With known labels, the most confident mistakes; without, the images it was least sure of. "
        "Compare where it looked with the part that would have told the classes apart.",
        figures.prediction_mistakes,
        _has("gallery/images"),
    ),
    View(
        "Confusion",
        "Each row is a true class, and its colours say what its images were called. Blocks beside the "
        "diagonal are look-alikes; a dark column is a class that swallows others.",
        figures.confusion,
        _has_eval_targets,
    ),
    View(
        "Per class, before and after",
        "Adaptation rarely helps every class. Classes at the bottom lost: often their look-alike at the "
        "top won what they lost.",
        figures.per_class_accuracy,
        _has_eval_targets,
    ),
    View(
        "Paths of the class vectors",
        "Every class vector from before training to the last epoch, in one plane that stays the same. "
        "Vectors that move together, or meet, are classes that become harder to tell apart.",
        figures.prototype_paths,
        lambda trace: bool(figures.prototype_paths_info(trace).paths),
    ),
    View(
        "Drift of the class vectors",
        "How far each class vector turned. A few that turned much farther than the rest may have been "
        "captured by wrong pseudo-labels.",
        figures.prototype_drift,
        lambda trace: bool(figures.prototype_drift_info(trace).angles),
    ),
)


def method_views(label: str, trace: Trace, number: int, most_bytes: int) -> Iterator[Html]:
    """Every figure that this run has the data for; `most_bytes` is what one picture may weigh."""
    for i, view in enumerate(view for view in VIEWS if view.applies(trace)):
        yield element("h3", view.title)
        yield paragraphs(view.look_for)
        figure = view.draw(trace)
        what = f"{label}: {view.title}. {view.look_for}"
        if isinstance(figure, Figure):
            yield picture(figure, what, most_bytes)
        else:
            yield chart(figure, f"run-{number}-{i}", what)


def settings(labels: Sequence[str], traces: Sequence[Trace]) -> Iterator[Html]:
    """For every run how to repeat it, its settings and the versions that produced it."""
    for label, trace in zip(labels, traces, strict=True):
        yield element("h3", label)
        if trace.meta.get("command"):
            yield element("pre", str(trace.meta["command"]))
        meta = trace.meta
        rows = [*_flat({key: meta[key] for key in _FACTS if key in meta})]
        rows += [*_flat(meta.get("settings") or {}), *_flat({"versions": meta.get("versions") or {}})]
        if rows:
            yield table([Column("setting"), Column("value")], rows)


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
