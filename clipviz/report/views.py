"""Which figures a run gets, in reading order, each with what to look for in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure

from clipviz import figures
from clipviz.figures.style import is_empty
from clipviz.trace import Trace


class View(NamedTuple):
    """Figures of a run under one heading, with what to look for in them.

    `draw(trace)` draws the figure, or `draw(trace, position)` that of each of the first `n` images.
    """

    title: str
    look_for: str
    draw: Callable[..., go.Figure | Figure]
    n: int = 0

    @property
    def name(self) -> str:
        """For ids and file names."""
        return self.draw.__name__

    def figures(self, trace: Trace) -> list[go.Figure | Figure]:
        """Those that the trace has the data for."""
        drawn = [self.draw(trace, i) for i in range(self.n)] if self.n else [self.draw(trace)]
        return [figure for figure in drawn if not is_empty(figure)]


def gamma_what_if(trace: Trace) -> go.Figure:
    """Only where labels came from gamma * first + (1 - gamma) * second is another gamma a true what-if."""
    info = figures.gamma_what_if_info(trace)
    return figures.draw_gamma_what_if(info if info.is_own else info._replace(sources=None))


VIEWS = (
    View(
        "Confidence of the pseudo-labels",
        "How confident the pseudo-labels were, and where true labels are known how often they were right: "
        "where confidence rises above accuracy, the method is overconfident. The second panel separates right from "
        "wrong pseudo-labels: the farther apart they are, the better confidence tells them from each other.",
        figures.confidence_evolution,
    ),
    View(
        "Reliability",
        "Bars on the dotted line are honest; bars below it are over-confident. ECE is the mean distance from the "
        "line; learning from one's own guesses often makes it grow.",
        figures.reliability,
    ),
    View(
        "Which source decided",
        "A pseudo-label mixes the logits of several sources. Hatched bars are images where the label of "
        'one source won against another; "neither" is a class that was no source\'s first choice. The margin '
        "says how clear the decision was; where true labels are known, the lower row says who was right to win.",
        figures.source_decisions,
    ),
    View(
        "What if gamma had been different?",
        "The pseudo-labels of the last epoch, recomputed from the stored source logits for every mixing weight. It "
        "shows what another gamma would have labelled, not what training with it would have led to.",
        gamma_what_if,
    ),
    View(
        "Crop weights",
        "Static logits come from crops, weighted by how much each resembles the whole image. Near the dotted lines "
        "all crops count alike and the weighting does nothing; far from them a few decide.",
        figures.crop_weights,
    ),
    View(
        "Where the model looked",
        "The same images before and after adaptation, beside the true parts where they are known. Look whether "
        "attention leaves the background and gathers on the parts that tell look-alike classes apart.",
        figures.saliency_grid,
    ),
    View(
        "Label flips",
        "How many pseudo-labels were corrected and how many were spoilt from one epoch to the next. Training has "
        "settled when few change any more.",
        figures.label_flips,
    ),
    View(
        "Label flow",
        "The classes that exchanged most labels between the first and the last epoch. Look for a class that takes from "
        "many others: it may be swallowing them.",
        figures.label_flow,
    ),
    View(
        "Loss terms",
        "What the optimizer minimised. The cross-entropy with pseudo-labels falls even when they are wrong, so read "
        "it together with their accuracy.",
        figures.loss_terms,
    ),
    View(
        "Instructive images",
        "With known labels, the most confident mistakes; without, the images it was least sure of. Compare where it "
        "looked with the part that would have told the classes apart.",
        figures.prediction_mistakes,
    ),
    View(
        "Why is this one wrong?",
        "The first of these images in full. Did it look at the right place? Did one branch know better? Do the "
        "examples show that the model has a wrong idea of a class? When did the label change?",
        figures.why_wrong,
        3,
    ),
    View(
        "Images worth a look",
        "Images are named by their files, or numbered by their places in the data. Confident mistakes show wrong "
        "ideas, labels that flip show doubt, and sources that disagree although both are sure show what each "
        "misses.",
        figures.suspects,
    ),
    View(
        "Confusion matrix",
        "Each row is a true class, and its colours say which classes were predicted for its images. Blocks beside the "
        "diagonal are look-alikes; a dark column is a class that swallows others.",
        figures.confusion,
    ),
    View(
        "Per class, before and after",
        "Adaptation rarely helps every class. Classes at the bottom lost: often their look-alike at the top won "
        "what they lost.",
        figures.per_class_accuracy,
    ),
    View(
        "Trajectories of the class prototypes",
        "Every class prototype from before training to the last epoch, in one plane that stays the same. Prototypes "
        "that move together, or meet, are classes that become harder to tell apart.",
        figures.prototype_paths,
    ),
    View(
        "Geometry of the class prototypes",
        "Left, how similar the prototypes of each pair of classes are in the end; right, what adaptation did to that. "
        "Look-alikes that moved apart are easier to tell from each other, pairs that moved together are merging.",
        figures.prototype_similarity,
    ),
    View(
        "Drift of the class prototypes",
        "How far each class prototype turned. A few that turned much farther than the rest may have been captured by "
        "wrong pseudo-labels.",
        figures.prototype_drift,
    ),
)
