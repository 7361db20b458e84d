"""NtUA (arXiv 2309.14928, BMVC 2024): a key-value cache of a few confident, unlabeled images. A re-implementation.

No official code exists and the method section could not be read; the skeleton is from the abstracts and a summary, the
mechanics are those of Tip-Adapter(-F), on which NtUA builds. What the sources leave open is marked "ours".

Notation: f unit embedding of a query, f_ia of view a of cache image i (A augmented views), W text classifier, s logit
scale, nrm = unit norm, p student's and p' teacher's probabilities, K shots, M cache entries, M_c of them labeled c.

    (1) choose     for every predicted class the K images with the highest max p'                    (UPL's rule; ours)
    (2) keys       F_i = nrm(sum_a f_ia)
    (3) values     y_i = argmax p_i,  w_i = max p_i,  V = diag(w) onehot(y)                     adaptive cache formation
    (4) refine     y_i = argmax p'_i, w_i = max p'_i, V rebuilt; keys stay the student's          knowledge-guided
    (5) logits     z(f) = s f W^T + alpha exp(-beta (1 - f F^T)) V diag(K / M_c)            K / M_c: ours
    (6) training   min over F of  sum_i w_i r_i CE(z(f_ia), y_i) / sum_i w_i r_i,  a random view a per epoch     (ours)
                   r_i = exp(-beta (1 - f_ia . mu_y)) / (largest r of the class),  mu_c = nrm(sum_{y_i = c} w_i F_i)

(6) weighs samples by prototype affinity, after the "prototype-affinity loss" that a summary of version 3 mentions; its
formula is unknown, this one is ours ("reliability"; "contrastive" and "none" are the alternatives). Only F is trained,
by AdamW with eps 1e-4, without re-normalization; inference is (5) on the whole image.

K / M_c in (5): unlabeled images fill some classes and leave others nearly empty, and the plain sum, which was made for
K labeled images of each class, favors the class with most entries. K times the mean of a class's entries is the same
where there are K. M_c counts the labels of (4), not the weights, so a class of uncertain entries adds less; a class
without entries adds nothing. `paper` keeps the plain sum.

Ours as well: keys average unit embeddings, Tip-Adapter averages raw ones; augmented views are square crops of at least
half the area, every other one mirrored; the student predicts from one view and the teacher from all. Without a larger
teacher the teacher is the student itself, on the averaged views. Not inherited from Tip-Adapter-F: choosing the epoch,
alpha or beta by labeled images. A class that is predicted for no image keeps its text logits.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, ViewConfig, Views
from clipviz.data.batches.features import FeatureBackbone
from clipviz.events import CacheContributions, PseudoLabels
from clipviz.methods.base import TUNED, AdaptConfig, check_constants, embed
from clipviz.methods.cache import CacheBatches, Candidates, Teacher, choose_streaming, class_sums, most_confident
from clipviz.methods.embedding import AddingMethod, heaviest
from clipviz.ops import expect_axes, expect_floats, normalize
from clipviz.prompts import ClassPrompts, TextSource

_VIEWS_AT_ONCE = 640
"""256 images have 2,560 views; with the activations of all of them the demo took 2.2 GB."""

_SCHEDULE = AdaptConfig(epochs=20, batch_size=256, lr=1e-3, min_lr=0.0, weight_decay=0.01)

Selection = Literal["topk_pseudo", "random", "oracle_balanced"]
Affinity = Literal["reliability", "contrastive", "none"]


@dataclass(frozen=True)
class NtUAConfig:
    """Constants of NtUA.

    `selection` is "topk_pseudo", eq. (1), "random", K C images, whatever they are, or "oracle_balanced", K images per
    true class, as few-shot papers sample. The last uses labels, so it is for reproduction only: it needs `allow_labels`
    and the positions from `clipviz.data.batches.sampling.balanced_index`.
    """

    shots: int = 16  # K, images per class; fewer where there are no more
    selection: Selection = "topk_pseudo"
    allow_labels: bool = False  # says that the use of labels is meant
    views: int = 10  # A, augmented views per image
    view_scale: tuple[float, float] = (0.71, 1.0)  # side of a view as a share of the short side; 0.71 is half the area
    weighted: bool = True  # False sets all w to 1
    normalized_weights: bool = False  # w over its mean, so that alpha keeps the meaning it has without weights (ours)
    balanced: bool = True  # whether each class counts K / its entries times, eq. (5) (ours); False is the plain sum
    rectify: bool = True  # whether the teacher replaces labels and weights, eq. (4); it then chooses the images, too
    alpha: float = 2.0  # multiplier of the cache
    beta: float = 5.0  # sharpness of the cache
    affinity: Affinity = "reliability"  # what becomes of prototype affinity in the loss, eq. (6)
    text: TextSource = "descriptions"
    schedule: AdaptConfig = _SCHEDULE

    def __post_init__(self) -> None:
        check_constants(self, alpha=0, beta=0, shots=1, views=1)
        if self.selection == "oracle_balanced" and not self.allow_labels:
            raise ValueError(
                "selection='oracle_balanced' picks images by their true labels, so the result is not label-free; "
                "pass allow_labels=True (--allow-labels) if that is intended, or use 'topk_pseudo' or 'random'"
            )


BENCHMARKS: dict[str, tuple[float, float, int]] = TUNED["ntua"]
PRESETS = {"default": NtUAConfig(), "paper": NtUAConfig(text="templates", balanced=False)}
BACKBONE_PRESETS = {"birds": NtUAConfig(beta=10.0)}  # on the validation domain of birds, as DPA's learning rate there
BENCHMARK_PRESETS = {
    name: NtUAConfig(alpha=alpha, beta=beta, text="templates", schedule=replace(_SCHEDULE, epochs=epochs))
    for name, (beta, alpha, epochs) in BENCHMARKS.items()
}


def cache_affinity(cosine: Tensor, beta: float) -> Tensor:
    """Weight of a cache entry for an image, exp(-beta (1 - cosine)), in (0, 1] for unit embeddings; any shape."""
    return (1.0 - cosine).mul_(-beta).exp_()


def cache_logits(embeddings: Tensor, keys: Tensor, values: Tensor, alpha: float, beta: float) -> Tensor:
    """Second term of eq. (5): alpha exp(-beta (1 - f F^T)) V.

    Embeddings (B, E), unit norm, keys (M, E), M >= 0, and values (M, C), already weighted -> (B, C).

    Raises:
        ValueError: if shapes disagree, or the precisions of embeddings and keys.
    """
    expect_axes(embeddings=(embeddings, "BE"), keys=(keys, "ME"), values=(values, "MC"))
    expect_floats(embeddings=embeddings, keys=keys)
    return alpha * cache_affinity(embeddings @ keys.T, beta) @ values.to(embeddings.dtype)


def refine_cache(teacher_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and weights by a teacher, eq. (4) (by the model itself: eq. (3)), from (M, C) probabilities.

    Returns:
        The most probable class (M,) int64, of equals the first, and its probability (M,) float.

    Raises:
        ValueError: if they are not (M, C) floats with C >= 1.
    """
    expect_axes(teacher_probs=(teacher_probs, "MC"))
    expect_floats(teacher_probs=teacher_probs)
    if teacher_probs.shape[1] == 0:
        raise ValueError(f"teacher_probs must be (M, C) with C >= 1, got {tuple(teacher_probs.shape)}")
    weights, labels = teacher_probs.max(-1)
    return labels, weights


def class_affinity(embeddings: Tensor, prototypes: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Reliability r of eq. (6): affinity to the prototype of its label, relative to the class's largest in the batch.

    Embeddings (B, E) and prototypes (C, E), unit norm, labels (B,) int64 -> (B,) in (0, 1], without gradient.
    """
    with torch.no_grad():
        affinity = cache_affinity((embeddings * prototypes[labels]).sum(-1), beta)
        largest = affinity.new_zeros(len(prototypes)).scatter_reduce(0, labels, affinity, "amax")
        return affinity / largest[labels]


class NtUA(AddingMethod):
    """NtUA: trains the keys of a cache; both encoders, the text classifier and the values do not change.

    Besides what all methods take: `teacher`, a larger CLIP (None: the backbone itself, on averaged views), which needs
    images, not embeddings; and `oracle_index`, positions for `selection="oracle_balanced"`.
    """

    name = "ntua"
    presets, backbone_presets, benchmark_presets = PRESETS, BACKBONE_PRESETS, BENCHMARK_PRESETS
    sized_by_data = ("keys", "labels", "weights", "cache_index", "cache_views", "student", "teacher_probs")
    kept_once = ("cache_index", "cache_views", "student", "teacher_probs")
    rows_of_data: ClassVar = {"cache_views": "cache_index"}
    adjustable = ("alpha", "beta")

    config: NtUAConfig

    def __init__(
        self, backbone: Backbone, prompts: ClassPrompts, config: NtUAConfig | None = None, *,
        teacher: Backbone | None = None, oracle_index: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backbone, prompts, config)
        if teacher is not None and isinstance(backbone, FeatureBackbone):
            raise ValueError("a teacher needs images, but the data are embeddings only; leave it out")
        if (self.config.selection == "oracle_balanced") != (oracle_index is not None):
            raise ValueError("oracle_index and selection='oracle_balanced' go together; give both or neither")
        self.teacher = None if teacher is None else Teacher(teacher, self.sentences)
        self._oracle_index = oracle_index
        (c, e), empty = self.classifier.shape, self.classifier.new_zeros
        self.keys = nn.Parameter(empty(0, e)) if self.trains else nn.Buffer(empty(0, e))
        self.student, self.teacher_probs = nn.Buffer(empty(0, c)), nn.Buffer(empty(0, c))
        self.weights, self.cache_views = nn.Buffer(empty(0)), nn.Buffer(empty(0, 1, e))
        self.labels, self.cache_index = (nn.Buffer(empty(0, dtype=torch.int64)) for _ in range(2))
        # the augmented views, for the pass that fills the cache
        self.needs = ViewConfig(crops=self.config.views, crop_scale=self.config.view_scale)

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration, and which model refines the cache."""
        teacher = f"{self.backbone.name} itself, on {self.config.views} averaged views"
        if self.teacher is not None:
            teacher = self.teacher.backbone.name
        if not self.config.rectify or isinstance(self.backbone, FeatureBackbone):  # one view, so nothing to refine
            teacher = "none"
        return {**super().settings, "teacher": teacher}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The keys, with Tip-Adapter-F's eps."""
        return [{"params": [self.keys], "weight_decay": weight_decay, "eps": 1e-4}]

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Choose the images, eq. (1), and form the cache, eqs. (2)-(4)."""
        full = self.config.shots * len(self.class_names) if self.config.selection == "random" else None
        self._form(choose_streaming(map(self._candidates, batches), self._keep, full))

    def _candidates(self, batch: Batch) -> Candidates:
        """Views and probabilities of a batch of images (or of embeddings, which are their own only view)."""
        crops, gather = batch.views.crops, batch.views.gather
        weak = gather(embed(self.backbone, batch.views.weak))
        student = self.text_logits(weak).softmax(-1)
        if crops is None:
            return Candidates(batch.index, weak[:, None], student, student)
        crops = crops.clone()
        crops[:, 1::2] = crops[:, 1::2].flip(-1)
        rows = [self.backbone.embed(part) for part in crops.flatten(0, 1).split(_VIEWS_AT_ONCE)]
        views = gather(torch.cat(rows).unflatten(0, crops.shape[:2]))
        if self.teacher is None:
            teacher = self.text_logits(views).softmax(-1).mean(1)
        else:
            teacher = gather(self.teacher.logits(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]).softmax(-1).mean(1))
        return Candidates(batch.index, views, student, teacher)

    def _keep(self, pool: Candidates) -> Candidates:
        """Eq. (1), or another selection."""
        shots = self.config.shots
        match self.config.selection:
            case "topk_pseudo":
                return pool.take(most_confident(pool.teacher if self.config.rectify else pool.student, shots))
            case "random":  # images come in random order
                return pool.take(torch.arange(min(len(pool.position), shots * len(self.class_names))))
            case "oracle_balanced":
                return pool.take(torch.isin(pool.position, cast(Tensor, self._oracle_index).to(pool.position)))

    def _form(self, chosen: Candidates) -> None:  # keys, values and weights, eqs. (2)-(4)
        config = self.config
        labels, weights = refine_cache(chosen.teacher if config.rectify else chosen.student)
        if not config.weighted:
            weights = torch.ones_like(weights)
        if config.normalized_weights:
            weights = weights / weights.mean()
        said = slice(0 if isinstance(self.backbone, FeatureBackbone) else None)  # the only view says what both think
        self.fill(
            keys=normalize(chosen.views.sum(1)), labels=labels, weights=weights, cache_index=chosen.position,
            cache_views=chosen.views, student=chosen.student[said], teacher_probs=chosen.teacher[said],
        )  # fmt: skip

    def training_batches(self, batch_size: int, seed: int) -> CacheBatches:
        """The cache's images, as embeddings of their views."""
        return CacheBatches(self.cache_index, self.cache_views, batch_size, seed)

    def diagnostics(self) -> dict[str, float]:
        """Share of classes with an entry, and number of entries."""
        return {"coverage": len(self.labels.unique()) / len(self.class_names), "cache_size": float(len(self.labels))}

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """The entries' labels; as sources the current logits of each part, the cache without the image's own entry."""
        rows = torch.searchsorted(self.cache_index, index)
        is_known = not len(self.student)
        probs = self.text_logits(views.weak).softmax(-1) if is_known else self.student[rows]
        sources = {"zero_shot": _log(probs), "cache": self.leave_one_out_logits(views.weak, rows)}
        if self.config.rectify and not is_known:
            probs = self.teacher_probs[rows]
            sources["teacher"] = _log(probs)
        return PseudoLabels(self.labels[rows], probs, self.weights[rows], sources)

    def leave_one_out_logits(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Eq. (5) without each image's own entry, which would repeat its label."""
        cosine = (embeddings * self.keys[rows]).sum(-1, keepdim=True)
        own = self.config.alpha * cache_affinity(cosine, self.config.beta) * self.value_weights[rows, None]
        return self.logits(embeddings) - own * F.one_hot(self.labels[rows], len(self.class_names))

    def _prototypes(self) -> Tensor:
        """Class means of eq. (6), (C, E) unit norm; zero for classes without an entry."""
        return normalize(class_sums(self.keys, self.labels, self.weights, len(self.class_names)))

    def loss(self, views: Views, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Eq. (6) on cached views."""
        embeddings, weights = views.weak, pseudo.weights
        cross_entropy = F.cross_entropy(self.logits(embeddings), pseudo.labels, reduction="none")
        if self.config.affinity == "reliability":
            weights = weights * class_affinity(embeddings, self._prototypes().detach(), pseudo.labels, self.config.beta)
        terms = {"cross_entropy": (weights * cross_entropy).sum() / weights.sum()}
        if self.config.affinity == "contrastive":
            contrast = F.cross_entropy(embeddings @ self._prototypes().T / 0.07, pseudo.labels, reduction="none")
            terms["affinity"] = 0.5 * (weights * contrast).sum() / weights.sum()
        return terms

    @property
    def value_weights(self) -> Tensor:
        """What each entry's affinity is multiplied by in eq. (5): w K / M_c, or w for the plain sum, (M,)."""
        if not self.config.balanced:
            return self.weights
        counts = torch.bincount(self.labels, minlength=len(self.class_names))
        return self.weights * (self.config.shots / counts[self.labels]).to(self.weights.dtype)

    @property
    def values(self) -> Tensor:
        """V diag(K / M_c) of eq. (5) as the matrix (M, C) that `cache_logits` takes; the method never makes it."""
        return self.value_weights[:, None] * F.one_hot(self.labels, len(self.class_names))

    def addends(self, embeddings: Tensor) -> dict[str, Tensor]:
        """The terms of eq. (5); the second is `cache_logits` of keys and `values`, from labels and weights."""
        affinity = cache_affinity(self.keys @ embeddings.T, self.config.beta)
        cache = self.config.alpha * class_sums(affinity, self.labels, self.value_weights, len(self.class_names)).T
        return {"zero_shot": self.text_logits(embeddings), "cache": cache}

    def cache_contributions(self, images: Tensor, n: int) -> CacheContributions | None:
        """The terms of eq. (5) apart: what each entry adds to the logit of its own class."""
        affinity = cache_affinity(embed(self.backbone, images) @ self.keys.T, self.config.beta)
        return heaviest(self.config.alpha * affinity * self.value_weights, self.cache_index, self.labels, n)

    def baselines(self, images: Tensor) -> dict[str, Tensor]:
        """A larger teacher's own zero-shot; a cache that stays below it is no use if the teacher can be run."""
        return {} if self.teacher is None else {"teacher": self.teacher.logits(images)}

    def snapshot(self) -> dict[str, Tensor]:
        """Text classifier, and the weighted mean key of each class (its text where it has no entry)."""
        prototypes = self._prototypes()
        empty = prototypes.norm(dim=-1, keepdim=True) == 0
        return {"classifier": self.classifier, "key_prototypes": torch.where(empty, self.classifier, prototypes)}


def _log(probs: Tensor) -> Tensor:
    """Logits whose softmax is `probs`."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
