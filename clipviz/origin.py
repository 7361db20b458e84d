"""Where models and images came from: the arguments that loaded them, as `config.json` keeps them."""

import json
import os
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
_PLACES = ("spec", "root", "classes", "descriptions", "name", "pretrained")


class HasOrigin(Protocol):
    """What can say where it came from."""

    origin: Mapping[str, Any] | None


Loaded = TypeVar("Loaded", bound=HasOrigin)


def remembered(*but: str, **by: Callable[[Any], Any]) -> Callable[[Callable[P, Loaded]], Callable[P, Loaded]]:
    """Have what a function loads remember its arguments, without those in `but`; of those in `by` what these return."""

    def around(load: Callable[P, Loaded]) -> Callable[P, Loaded]:
        @wraps(load)
        def loads(*args: P.args, **options: P.kwargs) -> Loaded:
            loaded = load(*args, **options)
            given = signature(load).bind(*args, **options)
            given.apply_defaults()
            given.arguments.update({name: what(given.arguments[name]) for name, what in by.items()})
            loaded.origin = loaded.origin or {
                name: _plain(name, value) for name, value in given.arguments.items() if name not in but
            }
            return loaded

        return loads

    return around


def _plain(name: str, value: Any) -> Any:
    """An argument as JSON has it; a file or folder by a path that holds from everywhere."""
    if name in _PLACES and isinstance(value, str | bytes | os.PathLike):
        text = os.fsdecode(value)
        is_birds = text == "birds" or text.startswith("birds/")  # never the folder of that name
        path = os.path.abspath(os.path.expanduser(text))
        return path if os.path.exists(path) and not is_birds else text
    return json.loads(json.dumps(value, default=lambda other: getattr(other, "tolist", other.__str__)()))
