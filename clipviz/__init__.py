"""clipviz: adapt CLIP to fine-grained classes without labels, and see how it works while it happens.

The map, lowest first; a room imports only from those before it (`tests/test_layers.py`):

    with torch      ops, ncut | parallel | backbone | prompts | data, birds | methods | saliency | training
    without torch   trace | figures | report, training/follow, widgets
    both            training/recorder makes a trace of events; training/results, run_folder, run, opened and cli stand
                    on top
    neither         errors, files, origin, events, instructive

Public names are loaded on first use, so that `import clipviz` costs nothing and never imports torch by itself.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each name is defined; of `figures` and `saliency` the room itself is meant.
_HOME = {
    "METHODS": "methods",
    "AdaptConfig": "methods.base",
    "ClassPrompts": "prompts",
    "DKAPlayground": "widgets",
    "LiveMonitor": "widgets",
    "ModelProbe": "training.model_probe",
    "PrototypeExplorer": "widgets",
    "Run": "training.run",
    "SaliencyExplorer": "widgets",
    "Trace": "trace",
    "ViewState": "widgets",
    "adapt": "training.loop",
    "explore": "training.opened",
    "figures": "figures",
    "load_backbone": "backbone",
    "load_dataset": "data",
    "open": "training.opened",
    "record": "training.recorder",
    "saliency": "saliency",
    "save": "figures.static",
    "show": "figures.static",
    "spread_probe": "training.evaluate",
    "write_report": "report",
}

# The views want an extra: without it, `from clipviz import *` leaves them out; and Python's own `open` stays, always.
_HAS_VIEWS = False
with suppress(ImportError):
    _HAS_VIEWS = all(map(find_spec, ("anywidget", "ipywidgets")))
__all__ = [name for name, home in _HOME.items() if name != "open" and (_HAS_VIEWS or home != "widgets")]

if TYPE_CHECKING:
    from clipviz import figures, saliency
    from clipviz.backbone import load_backbone
    from clipviz.data import load_dataset
    from clipviz.figures.static import save, show
    from clipviz.methods import METHODS, AdaptConfig
    from clipviz.prompts import ClassPrompts
    from clipviz.report import write_report
    from clipviz.trace import Trace
    from clipviz.training.evaluate import spread_probe
    from clipviz.training.loop import adapt
    from clipviz.training.model_probe import ModelProbe
    from clipviz.training.opened import explore, open
    from clipviz.training.recorder import record
    from clipviz.training.run import Run
    from clipviz.widgets import DKAPlayground, LiveMonitor, PrototypeExplorer, SaliencyExplorer, ViewState


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'clipviz' has no attribute {name!r}")
    home = import_module(f"clipviz.{_HOME[name]}")
    value = home if _HOME[name] == name else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
