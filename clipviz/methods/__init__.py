"""The methods: one file each. A new one is its file and its class in `OURS`, or an entry point of another package."""

import warnings
from collections.abc import Container
from importlib.metadata import entry_points

from clipviz.errors import one_line
from clipviz.methods.base import AdaptConfig, Method
from clipviz.methods.dpa import DPA
from clipviz.methods.microclip import MicroCLIP
from clipviz.methods.ntua import NtUA
from clipviz.methods.oga import OGA
from clipviz.methods.tda import TDA
from clipviz.methods.tip_adapter import TipAdapter
from clipviz.methods.transclip import StatA, TransCLIP
from clipviz.methods.wca import WCA
from clipviz.methods.zero_shot import Descriptions, ZeroShot

OURS = (ZeroShot, Descriptions, WCA, TipAdapter, TransCLIP, StatA, TDA, OGA, NtUA, DPA, MicroCLIP)
METHODS: dict[str, type[Method]] = {method.name: method for method in OURS}


def installed(ours: Container[str]) -> dict[str, type[Method]]:
    """Methods of other packages: entry points of the group `clipviz.methods`; one that cannot be had is told."""
    found: dict[str, type[Method]] = {}
    for entry in entry_points(group="clipviz.methods"):
        try:
            if entry.name in ours or entry.name in found:
                raise ValueError("there already is one of this name")
            method = entry.load()
            if not (isinstance(method, type) and issubclass(method, Method)):
                raise ValueError("it is not a subclass of clipviz.methods.Method")
            if lacking := sorted(method.__abstractmethods__):
                raise ValueError(f"it lacks {', '.join(lacking)}")
            if (name := getattr(method, "name", None)) != entry.name:  # by which a run is opened again
                raise ValueError(f"its class has the name {name!r}; give it name = {entry.name!r}")
        except Exception as error:
            whose = f"method {entry.name!r} of {entry.dist.name if entry.dist else 'a package'}"
            warnings.warn(f"{whose} is left out: {one_line(error) or type(error).__name__}", stacklevel=2)
        else:
            found[entry.name] = method
    return found


METHODS |= installed(METHODS)

__all__ = ["METHODS", "AdaptConfig", "Method"]
