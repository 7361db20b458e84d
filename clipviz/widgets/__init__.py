"""Widgets for JupyterLab: train, watch, stop, look closer. Nothing here imports torch by itself.

LiveMonitor(run)                       a run while it happens, with its buttons
SaliencyExplorer(traces)               from a confusion or a mistake to its saliency maps
CompareExplorer([one, other])          two runs: which is right, where each looked, labels over the epochs
PrototypeExplorer(trace)               prototypes and images in one fixed plane, epoch by epoch
DKAPlayground(trace)                   labels of another mixture of the sources
DescriptionPlayground(trace, model)    other sentences for a class: its row and the logits change
ViewState()                            give one to several views to link them
"""

from importlib.util import find_spec

for _name in ("anywidget", "ipywidgets"):  # the views are an extra: a script or a cluster job needs none of this
    if find_spec(_name) is None:
        raise ImportError(f"clipviz.widgets needs {_name}, which is not installed; pip install 'clipviz[lab]'")

from clipviz.widgets.compare import CompareExplorer  # noqa: E402
from clipviz.widgets.descriptions import DescriptionPlayground  # noqa: E402
from clipviz.widgets.explorer import SaliencyExplorer  # noqa: E402
from clipviz.widgets.live import LiveMonitor  # noqa: E402
from clipviz.widgets.playground import DKAPlayground  # noqa: E402
from clipviz.widgets.prototypes import PrototypeExplorer  # noqa: E402
from clipviz.widgets.view import ViewState  # noqa: E402

__all__ = ["CompareExplorer", "DKAPlayground", "DescriptionPlayground", "LiveMonitor", "PrototypeExplorer",
           "SaliencyExplorer", "ViewState"]  # fmt: skip
