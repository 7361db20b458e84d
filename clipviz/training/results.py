"""What stands beside a trace: the objects of config.json, when a run begins, and of results.json, when it is done."""

from dataclasses import asdict
from typing import Any

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.methods import METHODS, Method
from clipviz.parallel import ONE, Ranks
from clipviz.prompts import ClassPrompts
from clipviz.trace import Trace, calibration_error, label_accuracy, last_value
from clipviz.training.evaluate import accuracy, predict
from clipviz.training.loop import Adaptation, versions


def zero_shot_accuracy(
    backbone: Backbone, prompts: ClassPrompts, evaluation: ImageDataset | None, ranks: Ranks = ONE
) -> float | None:
    """Accuracy of a model that was not adapted with the template ensemble, or None without labels."""
    if evaluation is None or not evaluation.has_targets:
        return None
    predictions = predict(METHODS["zero_shot"](backbone, prompts), evaluation, ranks=ranks)
    return accuracy(predictions.probs.argmax(-1), predictions.target)


def measure_zero_shot(meta: dict[str, Any], method: Method, evaluation: ImageDataset | None, ranks: Ranks) -> None:
    """Note the zero-shot accuracy of a method's model before its first step, unless it is known, or never will be."""
    if "zero_shot_accuracy" not in meta and method.name != "zero_shot" and not method.has_learned:
        meta["zero_shot_accuracy"] = zero_shot_accuracy(method.backbone, method.prompts, evaluation, ranks)


def config_of(trace: Trace, adaptation: Adaptation) -> dict[str, Any]:
    """The object of config.json: all that was chosen, and, as far as it is known, where model and images came from.

    `origins` are arguments of `load_backbone` and `load_dataset`, null for what was made by hand; `prompts` are the
    texts that the method reads: where the images are gone, it can still be built.
    """
    method, command = adaptation.method, trace.meta.get("command")
    facts = {key: value for key, value in adaptation.facts().items() if key != "files"}  # the trace lists them
    return {
        **({"command": command} if command else {}),
        **facts,
        "class_names": list(method.class_names),
        "n_images": len(adaptation.dataset),
        "prompts": asdict(method.prompts),
    }


def results_of(trace: Trace) -> dict[str, Any]:
    """The object of results.json; accuracies and ECEs are fractions, null where there are no labels.

    "before" is what the method says at first. Where it labels all images together or one after the other, the accuracy
    of the labels is also given as transductive_accuracy or online_accuracy; accuracy is that on the evaluation images.
    """
    labels, before = label_accuracy(trace), trace.metric("accuracy").get(-1)
    last = {
        "accuracy": last_value(trace, "accuracy"),
        "pseudo_label_accuracy": labels,
        **({f"{what}_accuracy": labels} if (what := trace.meta.get("labels_are")) else {}),
        "accuracy_before": None if before is None else float(before),
        "ece": calibration_error(trace),
        "ece_before": calibration_error(trace, -1),
    }
    zero_shot = last["accuracy"] if trace.method == "zero_shot" else trace.meta.get("zero_shot_accuracy")
    keys = ("method", "model", "data", "split", "eval_data", "eval_split", "accuracy_is", "seed", "epochs")
    return {
        **{key: trace.meta[key] for key in keys},
        **last,
        "zero_shot_accuracy": zero_shot,
        **_cache_results(trace),
        **{key: trace.meta.get(key) for key in ("preset", "embeddings")},
        "n_images": trace.meta["n_images"],
        "n_skipped": len(trace.skipped),
        "seconds": trace.meta["seconds"],
        "versions": versions(),
    }


def _cache_results(trace: Trace) -> dict[str, Any]:
    """What a method with a cache adds to its results: how much of it is filled, by whom, and how good that one is."""
    coverage = last_value(trace, "coverage")
    if coverage is None:
        return {}
    settings = trace.meta["settings"]["method"]
    teacher = last_value(trace, "accuracy_teacher")
    if teacher is None and settings["teacher"] != "none":  # the model itself is its teacher
        teacher = last_value(trace, "accuracy_zero_shot")
    return {
        "coverage": coverage,
        "cache_size": int(last_value(trace, "cache_size") or 0),
        "selection": settings["selection"],
        "uses_labels": settings["selection"] == "oracle_balanced",
        "teacher": settings["teacher"],
        "teacher_zero_shot_accuracy": teacher,
    }
