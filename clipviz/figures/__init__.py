"""Figures of a run, each a function of its trace: `name(trace) = draw_name(name_info(trace))`.

`name_info` holds the numbers as a NamedTuple, `draw_name` only draws. Charts are plotly figures, image
grids are matplotlib figures; nothing is shown and no global state is touched. A trace that lacks what a
figure needs gives an empty, labelled figure that says what is missing. Nothing here imports torch.
"""

from clipviz.figures.accuracy import (
    accuracy_over_epochs,
    accuracy_over_epochs_info,
    draw_accuracy_over_epochs,
    draw_per_class_accuracy,
    per_class_accuracy,
    per_class_accuracy_info,
)
from clipviz.figures.compare import comparison_info, timeline_info
from clipviz.figures.confidence import (
    confidence_evolution,
    confidence_evolution_info,
    draw_confidence_evolution,
    draw_reliability,
    reliability,
    reliability_info,
)
from clipviz.figures.confusion import confusion, confusion_info, draw_confusion
from clipviz.figures.crops import crop_weights, crop_weights_info, draw_crop_weights
from clipviz.figures.flips import (
    draw_label_flips,
    draw_label_flow,
    label_flips,
    label_flips_info,
    label_flow,
    label_flow_info,
)
from clipviz.figures.labels import run_labels, trace_labels
from clipviz.figures.losses import draw_loss_terms, loss_terms, loss_terms_info
from clipviz.figures.mistakes import draw_prediction_mistakes, prediction_mistakes, prediction_mistakes_info
from clipviz.figures.prototypes import (
    draw_prototype_drift,
    draw_prototype_paths,
    prototype_drift,
    prototype_drift_info,
    prototype_paths,
    prototype_paths_info,
)
from clipviz.figures.saliency import draw_saliency_grid, saliency_grid, saliency_grid_info
from clipviz.figures.similarity import draw_prototype_similarity, prototype_similarity, prototype_similarity_info
from clipviz.figures.sources import (
    draw_gamma_what_if,
    draw_source_decisions,
    gamma_what_if,
    gamma_what_if_info,
    source_decisions,
    source_decisions_info,
)
from clipviz.figures.style import MethodStyle, is_trained, method_style
from clipviz.figures.suspects import draw_suspects, suspects, suspects_info
from clipviz.figures.why import why_wrong_info
from clipviz.figures.why_page import draw_why_wrong, why_wrong

# What is imported above, and nothing else: names would stand twice.
__all__ = [name for name, value in list(globals().items()) if callable(value)]
