"""Figures of a run, each a function of its trace: `name(trace) = draw_name(name_info(trace))`.

`name_info` holds the numbers as a NamedTuple; `draw_name` only draws. Charts are plotly figures, image grids are
matplotlib figures; nothing is shown and no global state is touched. A trace that lacks what a figure needs gives an
empty, labeled figure that says what is missing. Nothing here imports torch.
"""

from clipviz.figures.accuracy import (
    accuracy_over_epochs_info,
    confusion_info,
    draw_accuracy_over_epochs,
    draw_confusion,
    draw_per_class_accuracy,
    per_class_accuracy_info,
)
from clipviz.figures.compare import comparison_info, run_labels, timeline_info, trace_labels
from clipviz.figures.confidence import (
    confidence_evolution_info,
    crop_weights_info,
    draw_confidence_evolution,
    draw_crop_weights,
    draw_reliability,
    reliability_info,
)
from clipviz.figures.flips import draw_label_flips, draw_label_flow, label_flips_info, label_flow_info
from clipviz.figures.image_table import export_csv, image_table
from clipviz.figures.losses import draw_loss_terms, loss_terms_info
from clipviz.figures.prototypes import (
    draw_prototype_drift,
    draw_prototype_paths,
    draw_prototype_similarity,
    prototype_drift_info,
    prototype_paths_info,
    prototype_similarity_info,
)
from clipviz.figures.saliency import draw_saliency_grid, saliency_grid_info
from clipviz.figures.sources import draw_gamma_what_if, draw_source_decisions, gamma_what_if_info, source_decisions_info
from clipviz.figures.style import figure_of, is_trained, method_style
from clipviz.figures.why import why_wrong_info
from clipviz.figures.why_page import draw_why_wrong

accuracy_over_epochs = figure_of(accuracy_over_epochs_info, draw_accuracy_over_epochs)
confidence_evolution = figure_of(confidence_evolution_info, draw_confidence_evolution)
confusion = figure_of(confusion_info, draw_confusion)
crop_weights = figure_of(crop_weights_info, draw_crop_weights)
gamma_what_if = figure_of(gamma_what_if_info, draw_gamma_what_if)
label_flips = figure_of(label_flips_info, draw_label_flips)
label_flow = figure_of(label_flow_info, draw_label_flow)
loss_terms = figure_of(loss_terms_info, draw_loss_terms)
per_class_accuracy = figure_of(per_class_accuracy_info, draw_per_class_accuracy)
prototype_drift = figure_of(prototype_drift_info, draw_prototype_drift)
prototype_paths = figure_of(prototype_paths_info, draw_prototype_paths)
prototype_similarity = figure_of(prototype_similarity_info, draw_prototype_similarity)
reliability = figure_of(reliability_info, draw_reliability)
saliency_grid = figure_of(saliency_grid_info, draw_saliency_grid)
source_decisions = figure_of(source_decisions_info, draw_source_decisions)
why_wrong = figure_of(why_wrong_info, draw_why_wrong)

__all__ = ["accuracy_over_epochs", "accuracy_over_epochs_info", "comparison_info", "confidence_evolution",
           "confidence_evolution_info", "confusion", "confusion_info", "crop_weights", "crop_weights_info",
           "export_csv", "gamma_what_if", "gamma_what_if_info", "image_table", "is_trained", "label_flips",
           "label_flips_info", "label_flow", "label_flow_info", "loss_terms", "loss_terms_info", "method_style",
           "per_class_accuracy", "per_class_accuracy_info", "prototype_drift", "prototype_drift_info",
           "prototype_paths", "prototype_paths_info", "prototype_similarity", "prototype_similarity_info",
           "reliability", "reliability_info", "run_labels", "saliency_grid", "saliency_grid_info", "source_decisions",
           "source_decisions_info", "timeline_info", "trace_labels", "why_wrong", "why_wrong_info"]  # fmt: skip
