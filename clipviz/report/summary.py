"""What was measured, in numbers: the facts behind the report's words and its summary table."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from clipviz.figures import trace_labels
from clipviz.figures.compare import other_images
from clipviz.figures.style import shorten
from clipviz.trace import Trace, calibration_error, label_accuracy, last_value

#: Baselines that a gain is measured against, the first one present.
REFERENCES = ("descriptions", "zero_shot")


class Row(NamedTuple):
    """One method's results: fractions in [0, 1], seconds; None where it was not measured.

    `before` is the accuracy before the first epoch, `ece` the calibration error on the evaluation images; `gain` is
    accuracy minus that of the reference; `changed` is the share of images whose pseudo-label is another one in the last
    epoch than in the first; `is_of_cache` says that pseudo-labels are of cached images only.
    """

    label: str
    accuracy: float | None
    before: float | None = None
    gain: float | None = None
    ece: float | None = None
    ece_before: float | None = None
    pseudo_label_accuracy: float | None = None
    confidence: float | None = None
    changed: float | None = None
    seconds: float | None = None
    is_of_cache: bool = False


class Summary(NamedTuple):
    """The table, what gains are against (None: each run's own start), labeled images, and the standard error of 1/2."""

    rows: list[Row]
    reference: str | None
    n_labeled: int
    standard_error: float | None


def summarize(traces: Sequence[Trace]) -> Summary:
    """Results of every trace in the order given."""
    labels = trace_labels(traces)
    by_method = {trace.method: i for i, trace in reversed(list(enumerate(traces)))}
    is_of_one_model = len(model_names(traces)) == 1
    reference = next((by_method[name] for name in REFERENCES if name in by_method and is_of_one_model), None)
    base, name = (None, None) if reference is None else (last_value(traces[reference], "accuracy"), labels[reference])
    first = []
    if "zero_shot" not in by_method and (known := _known_zero_shot(traces)) is not None:
        first = [Row("zero-shot", known)]  # the model before adaptation
        base, name = (known, "zero-shot") if base is None else (base, name)
    rows = [_row(label, trace, base, label == name) for label, trace in zip(labels, traces, strict=True)]
    n = max((n_evaluated(trace, 0) for trace in traces), default=0)
    return Summary(first + rows, name, n, 0.5 / math.sqrt(n) if n else None)


def _first(values: Iterable[object]) -> float | None:
    return next((number for value in values if (number := _finite(value)) is not None), None)


def _known_zero_shot(traces: Sequence[Trace]) -> float | None:
    """What all runs that know it agree on: those of another model, or with other templates, have another one."""
    known = {_finite(trace.meta.get("zero_shot_accuracy")) for trace in traces} - {None}
    return known.pop() if len(known) == 1 else None


def model_names(traces: Sequence[Trace]) -> list[str]:
    """The models of runs, each once, in their order."""
    return list(dict.fromkeys(str(trace.meta.get("model", "a CLIP model")) for trace in traces))


def _row(label: str, trace: Trace, base: float | None, is_reference: bool) -> Row:
    accuracy = last_value(trace, "accuracy")
    before = _finite(trace.metric("accuracy").get(-1))
    start = before if base is None else base
    gain = accuracy - start if accuracy is not None and start is not None and not is_reference else None
    of_cache = all(last_value(trace, metric) is not None for metric in ("cache_size", "pseudo_label_accuracy"))
    return Row(
        label, accuracy, before, gain, calibration_error(trace), calibration_error(trace, -1), label_accuracy(trace),
        _finite(trace.guesses()["confidence"].mean()), _changed(trace), _finite(trace.meta.get("seconds")), of_cache,
    )  # fmt: skip


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None


def _changed(trace: Trace) -> float | None:
    samples = trace.samples.drop_duplicates(["epoch", "index"]).set_index(["epoch", "index"])["pseudo_label"]
    epochs = samples.index.get_level_values("epoch")
    if not len(samples) or epochs.min() == epochs.max():
        return None
    start, end = samples[epochs.min()], samples[epochs.max()]
    both = start.index.intersection(end.index)
    return float((start[both] != end[both]).mean()) if len(both) else None


def n_evaluated(trace: Trace, target: int = -1) -> int:
    """Number of evaluation images, all or with a target from 0 on."""
    return int(trace.predictions.loc[trace.predictions["target"] >= target, "index"].nunique())


def zero_shot_accuracy(traces: Sequence[Trace]) -> float | None:
    """Accuracy before adaptation: of the zero-shot run, of the metadata, or of the beginning of a run."""
    runs = [last_value(trace, "accuracy") for trace in traces if trace.method == "zero_shot"]
    return _first([*runs, _known_zero_shot(traces), *(trace.metric("accuracy").get(-1) for trace in traces)])


def is_about_chance(accuracy: float, n_classes: int, n_images: int) -> bool:
    """Whether guessing among `n_classes` on `n_images` would do as well (within two standard errors)."""
    if n_classes < 2 or not n_images:
        return False
    chance = 1 / n_classes
    return accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / n_images)


def check_comparable(traces: Sequence[Trace]) -> None:
    """Refuse no runs, and runs measured on different images or classes, with a ValueError: one table would mislead."""
    if not traces:
        raise ValueError("a report needs at least one trace, got none; give the folder of a finished run")
    if not is_comparable(traces):
        seen = {_measured_on(trace): trace for trace in traces}
        labels = trace_labels(list(seen.values()))
        what = "; ".join(f"{label} on {place}" for (place, _), label in zip(seen, labels, strict=True))
        if len(seen) == 1:
            what = f"their evaluation images are of the same name, but differ in their {other_images(traces)}"
        raise ValueError(f"these runs cannot share a table, write one report for each: {what}")


def is_comparable(traces: Sequence[Trace]) -> bool:
    """Whether all were measured on the same images and classes."""
    return len({*map(_measured_on, traces)}) == 1 and not other_images(traces)


def _measured_on(trace: Trace) -> tuple[str, tuple[str, ...]]:
    meta, names = trace.meta, trace.class_names
    place = f"{meta.get('data')} ({meta.get('split')}), measured on {meta.get('eval_data')} "
    place += f"({meta.get('eval_split', 'no split named')}, {n_evaluated(trace)} images), {len(names)} classes: "
    return place + shorten(", ".join(names), 60), names
