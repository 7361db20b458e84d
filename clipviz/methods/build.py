"""From names and values that a user writes to a method: presets, changed constants, a teacher."""

import json
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from clipviz.backbone import Backbone
from clipviz.data.base import ImageDataset
from clipviz.data.batches.sampling import balanced_index
from clipviz.data.sources.benchmarks import find_benchmark
from clipviz.errors import choose, parse_json
from clipviz.methods import METHODS, Method
from clipviz.methods.base import KINDS
from clipviz.methods.ntua import NtUA, NtUAConfig


def build_method(
    name: str, backbone: Backbone, dataset: ImageDataset, *, preset: str | None = None,
    constants: Mapping[str, str] | None = None, teacher: Backbone | None = None, allow_labels: bool = False,
) -> Method:  # fmt: skip
    """Build the method called `name` for a data set.

    Its prompts are used, its labels only where `allow_labels` permits `selection=oracle_balanced`. `preset` may be
    another spelling of a benchmark's name; without one the method has its default for this backbone. `constants` are
    new values as text, for example {"gamma": "0.3"}; `teacher` is a larger model, for methods that have a teacher.

    Raises:
        ValueError: for what the method does not have.
    """
    method: Any = METHODS[choose("method", name, METHODS)]
    config = method.default_config(backbone)
    if preset is not None:
        known = method.all_presets()
        preset = choose(f"preset of {name}", _preset(preset, known), known)
        config = known[preset]
    elif config is not None:
        preset = backbone.name if backbone.name in method.backbone_presets else "default"
    changes = {key: _value(name, config, key, text) for key, text in (constants or {}).items()}
    options: dict[str, Any] = {}
    if issubclass(method, NtUA):
        config = replace(config, **{"allow_labels": allow_labels, **changes})
        if "beta" not in changes and config.beta <= 1:
            warnings.warn(
                f"preset {preset} of {name} has beta {config.beta:g}, the value from which Tip-Adapter searches with "
                "labels: all entries count nearly alike, which may cost accuracy with pseudo-labels; compare with "
                f"--set beta={NtUAConfig.beta:g}", stacklevel=2,
            )  # fmt: skip
        if config.selection == "oracle_balanced":
            options = {"oracle_index": balanced_index(dataset, config.shots, allow_labels=config.allow_labels)}
        options["teacher"] = teacher
    elif teacher is not None or allow_labels:
        raise ValueError(f"{name} has no teacher and selects no images; only ntua and tip_adapter do")
    elif changes:
        config = replace(config, **changes)
    given = () if config is None else (config,)
    built: Method = method(backbone, dataset.prompts, *given, **options)
    built.preset = preset
    if fixed := [key for key, value in changes.items() if getattr(built.config, key) != value]:
        raise ValueError(f"{fixed[0]} of {name} is always {json.dumps(getattr(built.config, fixed[0]))}; leave it out")
    return built


def _preset(name: str, known: Mapping[str, Any]) -> str:
    """A preset's own name; a benchmark's may come in any spelling that `load_dataset` takes ("oxford_iiit_pet")."""
    if name in known or (meant := find_benchmark(name)) is None:
        return name
    return next((preset for preset in known if find_benchmark(preset) == meant), name)


def parse_constants(assignments: Sequence[str]) -> dict[str, str]:
    """["gamma=0.3", ...] -> {"gamma": "0.3", ...}; a ValueError for anything without "="."""
    pairs = [text.partition("=") for text in assignments]
    for name, equals, _ in pairs:
        if not equals:
            raise ValueError(f"wanted NAME=VALUE, got {name!r}; for example --set gamma=0.3")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(method: str, config: Any, name: str, text: str) -> Any:
    if config is None:
        raise ValueError(f"{method} has no constants to set")
    constants = [f.name for f in fields(config) if not is_dataclass(getattr(config, f.name))]
    now = getattr(config, choose(f"constant of {method}", name, constants))
    if isinstance(now, str):
        kinds = get_args(get_type_hints(type(config))[name])
        return choose(f"{name} of {method}", text, kinds) if kinds else text
    try:
        value = parse_json(text.lower() if text.lower() in ("true", "false", "none") else text)
    except ValueError:
        value = text
    if isinstance(now, tuple) and isinstance(value, list) and [*map(_is_number, value)] == [True] * len(now):
        return tuple(value)
    if isinstance(now, float) and _is_number(value):
        return float(value)
    if now is None or type(value) is type(now):
        return value
    raise ValueError(
        f"{name} of {method} needs {KINDS.get(type(now), 'a value')} such as {json.dumps(now)}, its default; "
        f"got {reprlib.repr(text)}"
    )
