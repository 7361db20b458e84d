"""The methods: one file each. A new one is its file and a line in `METHODS`."""

from __future__ import annotations

from clipviz.methods.base import AdaptConfig, Method
from clipviz.methods.microclip import MicroCLIP
from clipviz.methods.zero_shot import Descriptions, ZeroShot

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "descriptions": Descriptions,
    "microclip": MicroCLIP,
}

__all__ = ["METHODS", "AdaptConfig", "Method"]
