"""The public names, for type checkers and editors: `__init__.py` loads each on first use."""

from clipviz import figures as figures
from clipviz import saliency as saliency
from clipviz.backbone import load_backbone as load_backbone
from clipviz.data import load_dataset as load_dataset
from clipviz.figures.static import save as save
from clipviz.figures.static import show as show
from clipviz.methods import METHODS as METHODS
from clipviz.methods.base import AdaptConfig as AdaptConfig
from clipviz.prompts import ClassPrompts as ClassPrompts
from clipviz.report import write_report as write_report
from clipviz.trace import Trace as Trace
from clipviz.training.evaluate import spread_probe as spread_probe
from clipviz.training.loop import adapt as adapt
from clipviz.training.model_probe import ModelProbe as ModelProbe
from clipviz.training.opened import explore as explore
from clipviz.training.opened import open as open
from clipviz.training.recorder import record as record
from clipviz.training.run import Run as Run
from clipviz.widgets import CompareExplorer as CompareExplorer
from clipviz.widgets import DescriptionPlayground as DescriptionPlayground
from clipviz.widgets import DKAPlayground as DKAPlayground
from clipviz.widgets import LiveMonitor as LiveMonitor
from clipviz.widgets import PrototypeExplorer as PrototypeExplorer
from clipviz.widgets import SaliencyExplorer as SaliencyExplorer
from clipviz.widgets import ViewState as ViewState

__version__: str
