"""Which figures a run gets, in reading order, each with what to look for in it; report and gallery share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure

from clipviz import figures
from clipviz.trace import Trace

_WHY = 3


class View(NamedTuple):
    """Figures of a run under one heading.

    Attributes:
        name: For ids and file names.
        title: The heading.
        look_for: What to look for.
        draw: The figures of a trace.
        applies: Whether a trace has the data.
    """

    name: str
    title: str
    look_for: str
    draw: Callable[[Trace], Sequence[go.Figure | Figure]]
    applies: Callable[[Trace], bool]


def _one(draw: Callable[[Trace], go.Figure | Figure]) -> Callable[[Trace], Sequence[go.Figure | Figure]]:
    return lambda trace: [draw(trace)]


def _why(trace: Trace) -> Sequence[Figure]:
    return [figures.why_wrong(trace, position) for position in range(min(_WHY, len(trace.highlights.images)))]


def _has_highlights(trace: Trace) -> bool:
    return len(trace.highlights.images) > 0


def _has_pseudo_labels(trace: Trace) -> bool:
    return len(trace.samples) > 0


def _has_sample_targets(trace: Trace) -> bool:
    return bool((trace.samples["target"] >= 0).any())


def _has_eval_targets(trace: Trace) -> bool:
    return bool((trace.predictions["target"] >= 0).any())


def _mixes_by_gamma(trace: Trace) -> bool:
    # Only where labels came from gamma * first + (1 - gamma) * second is another gamma a true what-if.
    info = figures.gamma_what_if_info(trace)
    return info.is_own and info.sources is not None


VIEWS = (
    View(
        "confidence_evolution",
        "Confidence of the pseudo-labels",
        "How sure the method was of its guesses, and where true labels are known how often they were right: "
        "confidence that climbs above accuracy has become blind. On the right, right and wrong guesses are "
        "drawn apart: the farther apart they are, the better confidence tells them from each other.",
        _one(figures.confidence_evolution),
        _has_pseudo_labels,
    ),
    View(
        "reliability",
        "Reliability",
        "Bars on the dotted line are honest; bars below it are over-confident. ECE is the mean distance "
        "from the line; learning from one's own guesses often makes it grow.",
        _one(figures.reliability),
        _has_sample_targets,
    ),
    View(
        "source_decisions",
        "Which source decided",
        "A pseudo-label mixes the votes of several sources. Hatched bars are images where the label of "
        'one source won against another; "neither" is a class that was no source\'s first choice. The margin '
        "says how clear the decision was; where true labels are known, the lower row says who was right to win.",
        _one(figures.source_decisions),
        lambda trace: len(figures.source_decisions_info(trace).epochs) > 0,
    ),
    View(
        "gamma_what_if",
        "What if they had been mixed otherwise",
        "The pseudo-labels of the last epoch, recomputed from the stored votes for every mixing weight. "
        "It shows what another gamma would have labelled, not what training with it would have led to.",
        _one(figures.gamma_what_if),
        _mixes_by_gamma,
    ),
    View(
        "crop_weights",
        "Crop weights",
        "Static votes come from crops, weighted by how much each resembles the whole image. Near the dotted "
        "lines all crops count alike and the weighting does nothing; far from them a few decide.",
        _one(figures.crop_weights),
        lambda trace: len(figures.crop_weights_info(trace).epochs) > 0,
    ),
    View(
        "saliency_grid",
        "Where it looked",
        "The same images before and after adaptation, beside the true parts where they are known. Look "
        "whether attention leaves the background and gathers on the parts that tell look-alike classes "
        "apart.",
        _one(figures.saliency_grid),
        lambda trace: bool(figures.saliency_grid_info(trace).columns),
    ),
    View(
        "label_flips",
        "Label flips",
        "Which share of the guesses was corrected and which was spoilt from one epoch to the next. Training "
        "has settled when little moves any more.",
        _one(figures.label_flips),
        lambda trace: bool(figures.label_flips_info(trace).steps),
    ),
    View(
        "label_flow",
        "Label flow",
        "The classes that traded most labels between the first and the last epoch. Look for a class that "
        "takes from many others: it may be swallowing them.",
        _one(figures.label_flow),
        lambda trace: bool(figures.label_flow_info(trace).flows),
    ),
    View(
        "loss_terms",
        "Loss terms",
        "What the optimizer minimised. The cross-entropy with pseudo-labels falls even when they are "
        "wrong, so read it together with their accuracy.",
        _one(figures.loss_terms),
        lambda trace: len(trace.steps) > 0,
    ),
    View(
        "prediction_mistakes",
        "Instructive images",
        "With known labels, the most confident mistakes; without, the images it was least sure of. "
        "Compare where it looked with the part that would have told the classes apart.",
        _one(figures.prediction_mistakes),
        _has_highlights,
    ),
    View(
        "why_wrong",
        "Why is this one wrong?",
        "The first of these images in full. Did it look at the right place? Did one branch know better? Do the "
        "examples show that the model has a wrong idea of a class? When did the label change?",
        _why,
        _has_highlights,
    ),
    View(
        "suspects",
        "Images worth a look",
        "Images are named by their files, or numbered by their places in the data. Confident mistakes show wrong "
        "ideas, labels that flip show doubt, "
        "and sources that disagree although both are sure show what each of them misses.",
        _one(figures.suspects),
        lambda trace: any(figures.suspects_info(trace)),
    ),
    View(
        "confusion",
        "Confusion",
        "Each row is a true class, and its colours say what its images were called. Blocks beside the "
        "diagonal are look-alikes; a dark column is a class that swallows others.",
        _one(figures.confusion),
        _has_eval_targets,
    ),
    View(
        "per_class_accuracy",
        "Per class, before and after",
        "Adaptation rarely helps every class. Classes at the bottom lost: often their look-alike at the "
        "top won what they lost.",
        _one(figures.per_class_accuracy),
        _has_eval_targets,
    ),
    View(
        "prototype_paths",
        "Paths of the class vectors",
        "Every class vector from before training to the last epoch, in one plane that stays the same. "
        "Vectors that move together, or meet, are classes that become harder to tell apart.",
        _one(figures.prototype_paths),
        lambda trace: bool(figures.prototype_paths_info(trace).paths),
    ),
    View(
        "prototype_similarity",
        "Geometry of the class vectors",
        "Left, how alike the vectors of each pair of classes are in the end; right, what adaptation did to that. "
        "Look-alikes that moved apart are easier to tell from each other, pairs that moved together are merging.",
        _one(figures.prototype_similarity),
        lambda trace: figures.prototype_similarity_info(trace).rows is not None,
    ),
    View(
        "prototype_drift",
        "Drift of the class vectors",
        "How far each class vector turned. A few that turned much farther than the rest may have been "
        "captured by wrong pseudo-labels.",
        _one(figures.prototype_drift),
        lambda trace: bool(figures.prototype_drift_info(trace).angles),
    ),
)
