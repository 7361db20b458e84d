"""What runs are called: by their method, and runs of one method by what differs between their settings."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from clipviz.figures.style import method_style
from clipviz.trace import Trace

#: Facts beside the method's constants and its schedule, in the order in which they are told.
_OTHERS = (
    "epochs", "seed", "model", "pretrained", "data", "split", "n_images", "eval_data", "eval_split", "descriptions",
    "texts", "precision",
)  # fmt: skip
#: How a fact is said; all others by their name and value.
_SAID = {"epochs": "{} epochs", "n_images": "{} images", "model": "{}", "data": "on {}", "eval_data": "measured on {}"}
_MOST = 3


def trace_labels(traces: Sequence[Trace]) -> list[str]:
    """One distinct plain-text label per trace, see `run_labels`; `meta["label"]` takes the place of the method."""
    names = [str(trace.meta.get("label") or method_style(trace.method).name) for trace in traces]
    return run_labels(names, [trace.meta for trace in traces], [trace.folder for trace in traces])


def run_labels(names: Sequence[str], metas: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[str]:
    """One distinct label per run: its name, and for runs of one name what differs between them ("DPA, a 0.3").

    `metas` are what was chosen for each run, as in `Trace.meta`; `folders`, "" in memory, tell runs apart that
    differ in nothing else.
    """
    labels = list(names)
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        group = [i for i, other in enumerate(names) if other == name]
        texts = _differences([_facts(metas[i]) for i in group])
        for more in (_places([folders[i] for i in group]), [f"run {i}" for i in range(1, len(group) + 1)]):
            texts = [
                ", ".join(filter(None, pair)) if texts.count(pair[0]) > 1 else pair[0]
                for pair in zip(texts, more, strict=True)
            ]
        for i, text in zip(group, texts, strict=True):
            labels[i] = f"{name}, {text}"
    return labels


def _facts(meta: Mapping[str, Any]) -> dict[str, str]:
    """Everything that was chosen, as text: how many workers read the images, say, was not, and changes nothing."""
    settings = meta.get("settings") or {}
    method = {key: _text(value) for key, value in (settings.get("method") or {}).items() if key != "schedule"}
    for change in meta.get("changes") or ():
        for key in change.keys() - {"step"}:
            method[key] = f"{method.get(key, '')}, {_text(change[key])} from step {change.get('step')}".lstrip(", ")
    schedule = {key: _text(value) for key, value in (settings.get("schedule") or {}).items() if key != "workers"}
    return {key: _text(meta[key]) for key in _OTHERS if key in meta} | schedule | method


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " to ".join(map(_text, value)) if len(value) == 2 else "/".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def _differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """What differs, in words: the method's constants first; of many facts as many as tell the runs apart."""
    order = [key for fact in facts for key in fact if key not in _OTHERS or key == "epochs"]
    differing = [key for key in dict.fromkeys([*order, *_OTHERS]) if len({fact.get(key) for fact in facts}) > 1]

    def told(n: int) -> list[str]:
        keys = differing[:n]
        return [
            ", ".join(_SAID.get(key, f"{key.replace('_', ' ')} {{}}").format(fact.get(key, "unknown")) for key in keys)
            for fact in facts
        ]

    n_apart = len(set(told(len(differing))))
    n = next(n for n in count(min(_MOST, len(differing))) if len(set(told(n))) == n_apart)
    more = f" and {len(differing) - n} more" if n < len(differing) else ""
    return [text + more for text in told(n)]


def _places(folders: Sequence[str]) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    parts = [Path(folder).parts for folder in folders]
    n = next(n for n in count(1) if len({part[-n:] for part in parts}) == len(set(parts)))
    return ["/".join(part[-n:]) for part in parts]
