"""Figures of a run, each a function of its trace: `name(trace) = draw_name(name_info(trace))`.

`name_info` holds the numbers as a NamedTuple; `draw_name`, in the figure's own module, only draws. Charts are plotly
figures, image grids are matplotlib figures; nothing is shown and no global state is touched. A trace that lacks what a
figure needs gives an empty, labeled figure that says what is missing. Nothing here imports torch.
"""

from clipviz.figures.accuracy import (
    accuracy_over_epochs,
    accuracy_over_epochs_info,
    per_class_accuracy,
    per_class_accuracy_info,
)
from clipviz.figures.compare import comparison_info, timeline_info
from clipviz.figures.confidence import confidence_evolution, confidence_evolution_info, reliability, reliability_info
from clipviz.figures.confusion import confusion, confusion_info
from clipviz.figures.crops import crop_weights, crop_weights_info
from clipviz.figures.flips import label_flips, label_flips_info, label_flow, label_flow_info
from clipviz.figures.image_table import export_csv, image_table
from clipviz.figures.labels import run_labels, trace_labels
from clipviz.figures.losses import loss_terms, loss_terms_info
from clipviz.figures.prototypes import (
    prototype_drift,
    prototype_drift_info,
    prototype_paths,
    prototype_paths_info,
    prototype_similarity,
    prototype_similarity_info,
)
from clipviz.figures.saliency import saliency_grid, saliency_grid_info
from clipviz.figures.sources import (
    draw_gamma_what_if,
    gamma_what_if,
    gamma_what_if_info,
    source_decisions,
    source_decisions_info,
)
from clipviz.figures.style import is_trained, method_style
from clipviz.figures.why import why_wrong_info
from clipviz.figures.why_page import draw_why_wrong, why_wrong

# What is imported above, and nothing else: names would stand twice.
__all__ = [name for name, value in list(globals().items()) if callable(value)]
