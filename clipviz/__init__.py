"""clipviz: adapt CLIP to fine-grained classes without labels, and see how it works while it happens.

The map, lowest first; a package imports only from those before it (`tests/test_layers.py`):

    with torch      ops, ncut | parallel | backbone | prompts | data, birds | methods | saliency | training
    without torch   trace | figures | report, training/follow, widgets
    both            training/recorder makes a trace of events; training/run_folder, run, opened and cli stand
                    on top
    neither         errors, files, origin, events, instructive

Public names are loaded on first use, so that `import clipviz` costs nothing and never imports torch by itself.
`__init__.pyi` lists them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

# Where each public name is defined, as the stub has it for type checkers and editors; "" for rooms themselves.
_STUB = Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
_HOME = {name: home for home, name in re.findall(r"^from clipviz\.?(\S*) import (\w+)", _STUB, re.MULTILINE)}

# The views want an extra: without it, `from clipviz import *` leaves them out; and Python's own `open` stays, always.
_HAS_VIEWS = False
with suppress(ImportError):
    _HAS_VIEWS = all(map(find_spec, ("anywidget", "ipywidgets")))
__all__ = [name for name, home in _HOME.items() if name != "open" and (_HAS_VIEWS or home != "widgets")]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'clipviz' has no attribute {name!r}")
    home = import_module(f"clipviz.{_HOME[name] or name}")
    value = getattr(home, name) if _HOME[name] else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
