"""What a run tells its listeners: four typed events and the records they carry.

A hook in clipviz is a listener, any `Callable[[Event], None]`. Tensors in events are detached, for reading only;
torch is imported for type checking alone, so the torch-free stem can import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

UNLABELLED = -1
"""Target of an image whose class is not known."""


@dataclass(frozen=True)
class CropLogits:
    """Logits of each crop, enough to reweight the crops."""

    similarity: Tensor  # (B, K) cosine of each crop to its image
    logits: Tensor  # (B, K, C) scaled logits of each crop alone, by the frozen classifier
    gram: Tensor  # (B, K, K) cosines among the crops of an image, for the norm of their weighted mean


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo-labels of a batch, and the sources they come from."""

    labels: Tensor  # (B,) int64, the classes used as training signal
    probs: Tensor  # (B, C) float, softmax of scaled logits
    weights: Tensor  # (B,) float, multiplier of each sample's loss term
    # name -> (B, C) float scaled logits of the classifiers that were mixed
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    crop_weights: Tensor | None = None  # (B, K) float, softmax relevance of each crop; None for methods without crops
    # name -> (B,) float diagnostics, averaged over an epoch ("lambda_2", "edge_density")
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    crop_logits: CropLogits | None = None  # what each crop says alone; None for methods without crops


@dataclass(frozen=True)
class Probe:
    """The fixed images that are followed through a run."""

    images: Tensor  # (P, 3, S, S) float in [0, 1]
    index: Tensor  # (P,) int64, positions in the dataset they come from
    target: Tensor  # (P,) int64, -1 unlabeled; for captions only
    parts: Tensor | None = None  # (P, S, S) uint8 part ids (0 background), or None where no part masks exist


@dataclass(frozen=True)
class Predictions:
    """Predictions of a method for the evaluation images."""

    index: Tensor  # (n,) int64
    probs: Tensor  # (n, C) float
    target: Tensor  # (n,) int64, -1 unlabeled
    # (n, E) float16, unit norm, the image tower's own, as they fell off on the way to `probs`; None if there are none
    embeddings: Tensor | None = None
    # name -> (n,) int64, the class that each part of a method says on its own, where that was asked for
    branches: Mapping[str, Tensor] = field(default_factory=dict)


class SentenceSimilarity(NamedTuple):
    """A sentence of class `label` and its cosine with image `place` of the highlights, in [-1, 1]."""

    place: int
    label: int
    sentence: str
    similarity: float


@dataclass(frozen=True)
class CacheContributions:
    """The cache entries that contribute most for each image, largest first."""

    index: Tensor  # (G, k) int64, positions in the training data
    labels: Tensor  # (G, k) int64, the class whose logit each entry adds to
    contributions: Tensor  # (G, k) float, what it adds


@dataclass(frozen=True)
class Highlights:
    """The most instructive evaluation images: confidently wrong, or least confident where labels are missing."""

    probe: Probe  # the images
    probs: Tensor  # (G, C) float, final probabilities
    explanation: Mapping[str, Tensor]  # kind -> (G, h, w) float saliency of the final model
    # name -> (G, C) float probabilities of parts of the inference path, each on its own
    branches: Mapping[str, Tensor] = field(default_factory=dict)
    # thumbnails of the images that are most surely called each class in question
    examples: Tensor | None = None
    example_labels: Tensor | None = None  # (X,) int64, the class that each example is called
    # what is said about the classes in question, and how like the image it is
    sentences: tuple[SentenceSimilarity, ...] = ()
    cache: CacheContributions | None = None  # of methods with a cache, on the CPU
    cache_images: Tensor | None = None  # (G, k, 3, h, w) float in [0, 1], thumbnails of its entries


@dataclass(frozen=True)
class Exploration:
    """Evaluation images spread over the classes (all if there are few), with predictions and maps."""

    index: Tensor  # (S,) int64, positions in the evaluation set, in order
    target: Tensor  # (S,) int64, -1 unlabeled; for captions and filters only
    maps: Mapping[str, Tensor]  # kind -> (S, h, w) float saliency
    top: Tensor  # (S, K) int64, the most probable classes; the true one is the last if it is not among them
    probs: Tensor  # (S, K) float, theirs
    logits: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (S, K), theirs by a part of the inference path
    sentences: tuple[SentenceSimilarity, ...] = ()
    images: Tensor | None = None  # (S, 3, h, w) float in [0, 1], thumbnails; before training only


@dataclass(frozen=True)
class RunStarted:
    """Before anything is trained, or before an interrupted run continues."""

    method: str
    meta: Mapping[str, Any]
    class_names: tuple[str, ...]
    n_images: int
    n_epochs: int
    n_steps: int
    probe: Probe | None
    steps_done: int = 0  # by earlier sessions of the run
    seconds: float = 0.0  # that these took


@dataclass(frozen=True)
class StepFinished:
    """One optimizer step, or one batch of pseudo-labels of a method that does not train (losses empty)."""

    epoch: int
    step: int
    index: Tensor
    target: Tensor
    pseudo: PseudoLabels
    losses: Mapping[str, Tensor]


@dataclass(frozen=True)
class EpochFinished:
    """The end of an epoch, measured; epoch -1 is the state before training."""

    epoch: int
    metrics: Mapping[str, float]  # name -> value; accuracies are fractions and absent where there are no targets
    predictions: Predictions | None  # on the evaluation images, None without an evaluation set
    snapshot: Mapping[str, Tensor]  # name -> (C, E) float classifiers or prototypes
    explanation: Mapping[str, Tensor]  # kind -> (P, h, w) float saliency of the probe images
    exploration: Exploration | None = None  # before training and after the last epoch


@dataclass(frozen=True)
class RunFinished:
    """The end: status "finished" or "stopped", wall seconds of all sessions, the instructive images."""

    status: str
    seconds: float
    highlights: Highlights | None


Event = RunStarted | StepFinished | EpochFinished | RunFinished
Listener = Callable[[Event], None]
