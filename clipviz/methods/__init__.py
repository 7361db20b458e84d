"""The methods: one file each. A new one is its file and a line in `METHODS`."""

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

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "descriptions": Descriptions,
    "wca": WCA,
    "tip_adapter": TipAdapter,
    "transclip": TransCLIP,
    "stata": StatA,
    "tda": TDA,
    "oga": OGA,
    "ntua": NtUA,
    "dpa": DPA,
    "microclip": MicroCLIP,
}

__all__ = ["METHODS", "AdaptConfig", "Method"]
