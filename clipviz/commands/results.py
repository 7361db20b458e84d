"""What a finished run amounts to: the object of results.json."""

from __future__ import annotations

from typing import Any

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.evaluate import accuracy, predict
from clipviz.loop import versions
from clipviz.methods import METHODS
from clipviz.parallel import ONE, Ranks
from clipviz.trace import Trace


def zero_shot_accuracy(backbone: Backbone, evaluation: ImageDataset, ranks: Ranks = ONE) -> float | None:
    """Accuracy of the unadapted model with the template ensemble, or None without labels."""
    if not evaluation.has_targets:
        return None
    method = METHODS["zero_shot"](backbone, evaluation.prompts)
    predictions = predict(method, evaluation, ranks=ranks)
    return accuracy(predictions.probs.argmax(-1), predictions.target)


def results_of(trace: Trace, zero_shot: float | None, seconds: float) -> dict[str, Any]:
    """The object of results.json; accuracies are fractions, null where there are no labels."""
    last = {name: _last(trace, name) for name in ("accuracy", "pseudo_label_accuracy")}
    if trace.method == "zero_shot":
        zero_shot = last["accuracy"]
    keys = ("method", "model", "data", "split", "eval_data", "eval_split", "accuracy_is", "seed", "epochs")
    return {
        **{key: trace.meta[key] for key in keys},
        **last,
        "zero_shot_accuracy": zero_shot,
        **_cache_results(trace),
        "n_images": trace.meta["n_images"],
        "n_skipped": len(trace.skipped),
        "seconds": round(seconds, 2),
        "versions": versions(),
    }


def _cache_results(trace: Trace) -> dict[str, Any]:
    """What a method with a cache adds to its results: how much of it is filled, by whom, and how good that one is."""
    coverage = _last(trace, "coverage")
    if coverage is None:
        return {}
    settings = trace.meta["settings"]["method"]
    teacher = _last(trace, "accuracy_teacher")
    if teacher is None and settings["rectify"]:  # the model itself is its teacher
        teacher = _last(trace, "accuracy_zero_shot")
    return {
        "coverage": coverage,
        "cache_size": int(_last(trace, "cache_size") or 0),
        "selection": settings["selection"],
        "uses_labels": settings["selection"] == "oracle_balanced",
        "teacher": settings["teacher"],
        "teacher_zero_shot_accuracy": teacher,
    }


def _last(trace: Trace, metric: str) -> float | None:
    series = trace.metric(metric)
    return float(series.iloc[-1]) if len(series) else None
