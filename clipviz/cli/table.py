"""Results of runs as text: one table for runs that were measured on the same images, never for others."""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipviz.errors import inert, one_line, parse_json
from clipviz.figures.compare import other_images
from clipviz.trace import Trace

_SHOWN = {
    **dict.fromkeys(("method", "model"), str), **dict.fromkeys(("seed", "epochs"), int | None),
    **dict.fromkeys(("accuracy", "pseudo_label_accuracy", "zero_shot_accuracy"), int | float | None),
    "seconds": int | float, **dict.fromkeys(("data", "split"), str),
    **dict.fromkeys(("eval_data", "eval_split"), str | None),
}  # fmt: skip


def read_results(run: Path) -> dict[str, Any]:
    """The results of a run folder, refused if they are none of clipviz's."""
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"{run} {_lack(run)}; give the folder of a finished run")
    try:
        row = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}); repeat the run") from error
    missing = [key for key in _SHOWN if key not in row] if isinstance(row, dict) else list(_SHOWN)
    if missing:
        raise ValueError(f"{path} is not a result of clipviz: it lacks {', '.join(missing)}; repeat the run")
    for key, kind in _SHOWN.items():
        if isinstance(row[key], bool) or not isinstance(row[key], kind):
            raise ValueError(f"{path} is not a result of clipviz: {key} is {reprlib.repr(row[key])}; repeat the run")
    return dict(row)


def _lack(run: Path) -> str:  # why a folder has no results
    if not run.exists():
        return "does not exist"
    try:
        status = str(Trace.load(run).meta.get("status"))
    except ValueError:
        return "holds no results.json"
    was = {"running": "is still running", "failed": "failed"}.get(status, f"was {status}")
    return f"holds no results.json, because its run {was}"


def measured_on(row: dict[str, Any]) -> str:
    """The images that a run learned from, and those that it was measured on."""
    learned, measured = (f"{one_line(row[name])} ({one_line(row[split])})" for name, split in
                         (("data", "split"), ("eval_data", "eval_split")))  # fmt: skip
    if row["eval_data"] is None:
        return f"{learned}, not measured"
    is_same = measured == learned and row.get("accuracy_is") != "test"  # which are others of that name
    return f"{learned}, measured on {'the same images' if is_same else measured}"


def check_same_images(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Refuse results on different images, splits or classes: their accuracies do not compare."""
    groups: dict[Any, list[str]] = {}  # the images in words, then the names of runs
    for name, row in zip(names, rows, strict=True):
        classes = row.get("class_names") or ()
        images = measured_on(row) + (f", {len(classes)} classes" if classes else "")
        groups.setdefault((row.get("embeddings") or measured_on(row), *classes), [images]).append(name)
    is_of_other_files = other_images([Trace(meta=row) for row in rows]) == "files"
    if len(groups) > 1 or is_of_other_files:
        listed = "; ".join(f"{', '.join(runs)}: {images}" for images, *runs in groups.values())
        if len({images for images, *_ in groups.values()}) == 1:
            listed += f"; but the {'files' if is_of_other_files else 'names or the order of the classes'} differ"
        raise ValueError(
            f"runs on different images, splits or classes cannot be compared in one table ({listed}); "
            "give only those that were measured on the same"
        )


def summary(
    rows: Sequence[dict[str, Any]], runs: Sequence[str] | None = None, methods: Sequence[str] | None = None
) -> str:
    """Results on the same images: a line that names them, and an aligned table; `methods` are labels for their runs.

    Accuracies are in percent, "-" where there is none. Before is the method's own start, for methods without training
    zero-shot by the same prompts; zero-shot is the same model by class names alone.
    """

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def gain(row: dict[str, Any]) -> str:
        pair = row["accuracy"], row["zero_shot_accuracy"]
        return "-" if None in pair else f"{100 * (pair[0] - pair[1]):+.1f}"

    def pseudo_labels(row: dict[str, Any]) -> str:
        value = row["pseudo_label_accuracy"]
        return percent(value) + " of cached images" * ("cache_size" in row and value is not None)

    shares = {"accuracy %": "accuracy", "before %": "accuracy_before", "ECE %": "ece", "ECE before %": "ece_before"}
    columns = {
        **({"run": list(runs)} if runs is not None else {}),
        **({"data": [one_line(row["data"]) for row in rows]} if len({row["data"] for row in rows}) > 1 else {}),
        "method": list(methods or [row["method"] for row in rows]),
        **{name: [str(row[name]) for row in rows] for name in ("model", "seed", "epochs")},
        **{title: [percent(row.get(name)) for row in rows] for title, name in shares.items()},
        "pseudo-labels %": [pseudo_labels(row) for row in rows],
        "zero-shot %": [percent(row["zero_shot_accuracy"]) for row in rows],
        "over zero-shot": [gain(row) for row in rows], "seconds": [f"{row['seconds']:.0f}" for row in rows],
    }  # fmt: skip
    return f"{measured_on(rows[0])}\n{_aligned(columns)}"


def _aligned(columns: dict[str, list[str]]) -> str:
    """Columns with two spaces between them; names to the left, numbers to the right."""
    cells = []
    for name, values in columns.items():
        values = [*map(inert, values)]
        width = max(map(len, (name, *values)))
        justify = str.ljust if name in ("run", "data", "method", "model") else str.rjust
        cells.append([justify(text, width) for text in (name, *values)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*cells, strict=True))
