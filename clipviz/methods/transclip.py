"""TransCLIP-ZS (arXiv 2406.01837, NeurIPS 2024) and StatA (arXiv 2501.03729, CVPR 2025): all images decide together.

Written from a description of the algorithms. Notation: f_i unit embedding of image i, t_c that of class c's text, s
logit scale, E width, nrm = unit norm, k = 3 neighbors, T = 50, lambda = 1.

    (1) y_i = softmax_c(s f_i . t_c);  z = y
    (2) mu_c = nrm(sum of z_ic f_i over the 8 rows with the largest z_ic)                        StatA: mu_c = t_c
    (3) v_e = 1 / E                          StatA, a variance per class: v0_e = (1/n) sum_ic y_ic (f_ie - t_ce)^2
    (4) W_ij = f_i . f_j for the k rows j != i that are most like i, else 0;  A = W + W^T
    eleven passes, the first without (8) and (9), each from the z of the one before:
    (8) mu_c = nrm(sum_i z_ic f_i)           StatA: nrm(b_c nrm(sum_i z_ic f_i) + (1 - b_c) t_c)
    (9) v_e = (1/n) sum_ic z_ic (f_ie - mu_ce)^2
                    StatA: b_c sum_i z_ic (f_ie - mu_ce)^2 / sum_i z_ic + (1 - b_c)(v0_e + (t_ce - mu_ce)^2)
                    with b_c = n_c / (alpha + n_c), n_c images with argmax z = c, alpha = 1
    (5) l_ic = -1/2 sum_e (f_ie - mu_ce)^2 / v_e            StatA: v_ce, and - 1/2 sum_e log v_ce
    (6) five times for all rows at once:  z_i = softmax_c(lambda log y_ic + l_ic / T + (A z)_ic / 2k)
    (7) an unseen image: (6) once, with sum_j W_j z_j / k over its neighbors j for the last addend             (ours)

The paper's objective weighs the likelihood by 1/N and takes all pairs; this is what the authors' code does. Unlike it
we count the classes by their texts and not by labels, never take an image for its own neighbor (the first of their four
need not be the image itself), take min(8, n) seeds, and compute StatA's v0 once. An image of the unlabeled set that is
asked for again is not unseen: it keeps its z. In a run s is the model's own, 100 for OpenAI's.
"""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, Views
from clipviz.events import CacheContributions, PseudoLabels
from clipviz.methods.base import AdaptConfig, check_constants, embed, guesses
from clipviz.methods.cache import CacheBatches
from clipviz.methods.embedding import GatheredMethod, unit_rows
from clipviz.methods.neighbors import nearest
from clipviz.prompts import ClassPrompts, TextSource

_SCHEDULE = AdaptConfig(epochs=11, batch_size=256)
_ROWS, _AFFORDABLE = 8192, 300_000
_LEAST_VARIANCE = 1e-7
"""Identical images have none; of real ones every coordinate has a thousand times more."""
_SAME = 1e-5


@dataclass(frozen=True)
class TransCLIPConfig:
    """Constants of TransCLIP and StatA.

    `search` is "all", the exact neighbors, or "likely", the nearest among the images that the text calls one of an
    image's likeliest classes, which a million images need: 99.3 % of the true ones on synthetic data of 100 classes.
    """

    neighbors: int = 3  # k; 0 switches the last addend of (6) off
    search: Literal["all", "likely"] = "all"
    seeds: int = 8  # rows of (2)
    sweeps: int = 5  # repetitions of (6) in a pass
    text_weight: float = 1.0  # lambda
    temperature: float = 50.0  # T
    alpha: float = 1.0  # of StatA, how many images the text counts for
    soft: bool = False  # StatA's n_c = sum_i z_ic
    text: TextSource = "descriptions"
    schedule: AdaptConfig = _SCHEDULE  # its epochs are the passes

    def __post_init__(self) -> None:
        check_constants(self, positive="temperature", neighbors=0, seeds=1, sweeps=1, text_weight=0, alpha=0)


class Solution(NamedTuple):
    """Where the passes have led."""

    assignments: Tensor  # z, (n, C) float, rows sum to 1
    prototypes: Tensor  # mu, (C, E) float, unit norm
    variances: Tensor  # v, (E,) float; of StatA (C, E)
    pulls: Tensor  # (n, C) float, the last addend of (6) that led to z
    text_variances: Tensor  # v0 of StatA, (E,) float; of TransCLIP 1 / E


class Problem(NamedTuple):
    """Embeddings (n, E) and text classifier (C, E), of unit norm; `anchor` means StatA, `logit_scale` is s."""

    embeddings: Tensor
    classifier: Tensor
    config: TransCLIPConfig = TransCLIPConfig()
    anchor: bool = False
    logit_scale: float = 100.0

    def text_log_probs(self, rows: slice) -> Tensor:
        """Logarithm of y, eq. (1), of some rows."""
        return (self.logit_scale * self.embeddings[rows] @ self.classifier.T).log_softmax(-1)

    def nearest(self, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and rows of the k neighbors of unseen images, or of its own; of an unseen image one at least."""
        lists, k = self.classifier if self.config.search == "likely" else None, self.config.neighbors
        if queries is None:
            if lists is None and k and len(self.embeddings) > _AFFORDABLE:
                warnings.warn(
                    f"the exact search for neighbors among {len(self.embeddings):,} images takes long, because it "
                    "grows with their square; search=likely (--set search=likely) searches among likely classes only",
                    stacklevel=2,
                )
            return nearest(self.embeddings, self.embeddings, k, lists, same=True)
        return nearest(queries, self.embeddings, max(1, k), lists)


def start(problem: Problem) -> Solution:
    """Eqs. (1)-(3)."""
    embeddings, classifier = problem.embeddings, problem.classifier
    z = torch.cat([problem.text_log_probs(rows).exp() for rows in _slices(len(embeddings))])
    pulls = torch.zeros_like(z)
    if problem.anchor:
        v0 = _scatter(_moments(embeddings, z), classifier).sum(0) / len(z)
        return Solution(z, classifier, v0.clamp(min=_LEAST_VARIANCE).expand_as(classifier), pulls, v0)
    weights, rows = z.topk(min(problem.config.seeds, len(z)), dim=0)
    weights = weights / weights[:1]  # or those of a class that is far from all images would vanish in its norm
    mu = _unit_or(torch.einsum("mc,mce->ce", weights, embeddings[rows]), classifier)
    variances = torch.full_like(mu[0], 1 / mu.shape[1])
    return Solution(z, mu, variances, pulls, variances)


def log_likelihood(embeddings: Tensor, prototypes: Tensor, variances: Tensor) -> Tensor:
    """Eq. (5), (B, E) and (C, E) -> (B, C); variances (E,), or (C, E) with their logarithms."""
    center = prototypes.mean(0)  # differences of small numbers, for the digits
    f, mu, precision = embeddings - center, prototypes - center, 1 / variances
    squares = (f**2) @ precision.T if precision.ndim == 2 else ((f**2) @ precision)[:, None]
    distances = squares - 2 * f @ (mu * precision).T + (mu**2 * precision).sum(-1)
    return -0.5 * (distances + variances.log().sum(-1)) if variances.ndim == 2 else -0.5 * distances


def assign(problem: Problem, old: Solution, graph: Tensor) -> Solution:
    """Eqs. (5) and (6); `graph` is A / 2k, sparse (n, n)."""
    config = problem.config
    z, fixed = old.assignments.clone(), torch.empty_like(old.assignments)
    for rows in _slices(len(z)):
        likelihood = log_likelihood(problem.embeddings[rows], old.prototypes, old.variances)
        fixed[rows] = config.text_weight * problem.text_log_probs(rows) + likelihood / config.temperature
    pulls = fixed
    for _ in range(config.sweeps):
        del pulls  # before there is another of its size
        pulls = torch.sparse.mm(graph, z)
        for rows in _slices(len(z)):
            z[rows] = (fixed[rows] + pulls[rows]).softmax(-1)
    return old._replace(assignments=z, pulls=pulls)


def refit(problem: Problem, old: Solution) -> Solution:
    """Eqs. (8) and (9)."""
    z, classifier, config = old.assignments, problem.classifier, problem.config
    moments = _moments(problem.embeddings, z)
    mu = _unit_or(moments.mean, classifier if problem.anchor else old.prototypes)
    if problem.anchor:
        n = moments.mass[:, 0] if config.soft else torch.bincount(z.argmax(-1), minlength=z.shape[1]).to(z)
        b = (n / (config.alpha + n).clamp(min=1e-12))[:, None]
        mu = _unit_or(b * mu + (1 - b) * classifier, classifier)
        own = _scatter(moments, mu) / moments.mass.clamp(min=torch.finfo(z.dtype).tiny)
        v = b * own + (1 - b) * (old.text_variances + (classifier - mu) ** 2)
    else:
        v = _scatter(moments, mu).sum(0) / len(z)
    return old._replace(prototypes=mu, variances=v.clamp(min=_LEAST_VARIANCE))


class _Moments(NamedTuple):
    """Of rows that are shared by classes: mass (C, 1), mean (C, E), and sums about `center` (E,), for the digits."""

    mass: Tensor
    mean: Tensor
    center: Tensor
    first: Tensor
    second: Tensor


def _moments(embeddings: Tensor, z: Tensor) -> _Moments:
    center = embeddings.mean(0)
    first, second = torch.zeros(2, z.shape[1], len(center), dtype=z.dtype, device=z.device)
    for rows in _slices(len(z)):
        f = embeddings[rows] - center
        first += z[rows].T @ f
        second += z[rows].T @ f**2
    mass = z.sum(0)[:, None]
    return _Moments(mass, first / mass + center, center, first, second)


def _scatter(moments: _Moments, prototypes: Tensor) -> Tensor:
    """sum_i z_ic (f_ie - mu_ce)^2, (C, E)."""
    mu = prototypes - moments.center
    return (moments.second - 2 * mu * moments.first + moments.mass * mu**2).clamp(min=0)


def _unit_or(rows: Tensor, otherwise: Tensor) -> Tensor:
    """Rows of unit norm, and another one for each that has no direction."""
    norms = rows.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, rows / norms, otherwise)


def _slices(n: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, n, _ROWS))


def neighbor_graph(weights: Tensor, rows: Tensor, k: int) -> Tensor:
    """A / 2k of eqs. (4) and (6), sparse (n, n), of the neighbors (n, k) and their cosines."""
    n = len(rows)
    here = torch.arange(n, device=rows.device).repeat_interleave(rows.shape[1])
    there, values = rows.flatten(), weights.flatten() / (2 * max(k, 1))
    places = torch.stack([torch.cat([here, there]), torch.cat([there, here])])
    return torch.sparse_coo_tensor(places, torch.cat([values, values]), (n, n), check_invariants=False).coalesce()


def passes(problem: Problem) -> Iterator[Solution]:
    """What each pass leads to."""
    graph = neighbor_graph(*problem.nearest(), problem.config.neighbors)
    solution = start(problem)
    for number in range(problem.config.schedule.epochs):
        solution = assign(problem, refit(problem, solution) if number else solution, graph)
        yield solution


def solve(
    embeddings: Tensor, classifier: Tensor, config: TransCLIPConfig | None = None, *, anchor: bool = False,
    logit_scale: float = 100.0,
) -> Solution:  # fmt: skip
    """Classify all images together, without training.

    Embeddings (n, E), n >= 1, and classifier (C, E), C >= 1, have unit norm; a class need not have images. The passes
    are the epochs of `config.schedule`; `logit_scale` is s. `anchor` means StatA: prototypes and variances of a class
    without images stay those of its text.

    Raises:
        ValueError: for what is NaN, not of unit norm, or does not fit together.
    """
    problem = Problem(*unit_rows(embeddings, classifier, logit_scale), config or TransCLIPConfig(), anchor, logit_scale)
    with torch.no_grad():
        return deque(passes(problem), maxlen=1).pop()  # eleven at once would be eleven times the memory


class TransCLIP(GatheredMethod):
    """TransCLIP, a pass an epoch: pseudo-labels are transductive, what it says of unseen images inductive, eq. (7)."""

    name = "transclip"
    presets: ClassVar = {"default": TransCLIPConfig(), "paper": TransCLIPConfig(text="templates")}
    labels_are: ClassVar[str | None] = "transductive"
    anchor: ClassVar[bool] = False
    sized_by_data = (*GatheredMethod.sized_by_data, "neighbors", "weights", "assignments", "pulls")
    kept_once = (*GatheredMethod.kept_once, "neighbors", "weights")

    config: TransCLIPConfig

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: TransCLIPConfig | None = None) -> None:
        super().__init__(backbone, prompts, config)
        t = self.classifier
        self.passes = nn.Buffer(self.index.new_zeros(()))
        self.neighbors = nn.Buffer(self.index.new_zeros(0, self.config.neighbors))
        self.weights = nn.Buffer(t.new_zeros(0, self.config.neighbors))
        self.assignments, self.pulls = nn.Buffer(t.new_zeros(0, len(t))), nn.Buffer(t.new_zeros(0, len(t)))
        self.prototypes, self.text_variances = nn.Buffer(t.clone()), nn.Buffer(torch.zeros_like(t[0]))
        self.variances = nn.Buffer(torch.zeros_like(t if self.anchor else t[0]))
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def _problem(self) -> Problem:
        return Problem(self.embeddings, self.classifier, self.config, self.anchor, self.backbone.logit_scale)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Gather the embeddings in the order of the data set; eqs. (1)-(4)."""
        super().prepare(batches)
        self.embeddings.copy_(self.embeddings[self.index.argsort()])
        self.index.copy_(torch.arange(len(self.index)))
        weights, rows = self._problem.nearest()
        self.fill(weights=weights, neighbors=rows, **start(self._problem)._asdict())
        self.passes.zero_()
        self._found = {}

    def training_batches(self, batch_size: int, seed: int) -> CacheBatches:
        """The embeddings again, so that nothing is decoded in a pass."""
        return CacheBatches(self.index, self.embeddings[:, None], batch_size, seed)

    @torch.no_grad()
    def begin_epoch(self) -> None:
        """A pass."""
        solution = Solution(*(getattr(self, name) for name in Solution._fields))
        if self.passes:
            solution = refit(self._problem, solution)
        graph = neighbor_graph(self.weights, self.neighbors, self.config.neighbors)
        self.fill(**assign(self._problem, solution, graph)._asdict())
        self.passes.add_(1)

    def _sum_of(self, embeddings: Tensor, pulls: Tensor) -> dict[str, Tensor]:  # the addends of (6)
        likelihood = log_likelihood(embeddings, self.prototypes, self.variances)
        text = self.config.text_weight * self.text_logits(embeddings)
        return {"zero_shot": text, "gaussian": likelihood / self.config.temperature, "neighbors": pulls}

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """The assignments after this pass."""
        return guesses(self.assignments[index], self._sum_of(self.embeddings[index], self.pulls[index]))

    def _neighbors(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and rows (B, k) of the neighbors, and which row an image itself is (B,), -1 if it is unseen."""
        key = hash(embeddings.cpu().numpy().tobytes())  # evaluation asks for the same images after every pass
        if key not in self._found:
            self._found[key] = self._problem.nearest(embeddings)
        weights, rows = self._found[key]
        first = rows[:, 0]
        is_own = (embeddings - self.embeddings[first]).abs().amax(-1) < _SAME
        k, own = self.neighbors.shape[1], is_own[:, None]
        rows = torch.where(own, self.neighbors[first], rows[:, :k])
        return torch.where(own, self.weights[first], weights[:, :k]), rows, first.where(is_own, -1)

    def addends(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Eq. (7); before the first pass nothing but the text."""
        if not self.passes:
            return {"zero_shot": self.text_logits(embeddings)}
        weights, rows, own = self._neighbors(embeddings)
        pulls = (weights[..., None] * self.assignments[rows]).sum(1) / max(1, self.config.neighbors)
        return self._sum_of(embeddings, torch.where(own[:, None] >= 0, self.pulls[own], pulls))

    def cache_contributions(self, images: Tensor, n: int) -> CacheContributions | None:
        """What each neighbor adds to the logit of the class that it is assigned to most."""
        weights, rows, _ = self._neighbors(embed(self.backbone, images))
        if not rows.shape[1]:
            return None
        shares, labels = self.assignments[rows].max(-1)
        adds, order = (weights * shares / self.config.neighbors).topk(min(n, rows.shape[1]))
        return CacheContributions(rows.gather(1, order).cpu(), labels.gather(1, order).cpu(), adds.cpu())

    def diagnostics(self) -> dict[str, float]:
        """How many classes hold at least one image."""
        return {"classes_with_images": float(len(self.assignments.argmax(-1).unique()) if len(self.assignments) else 0)}

    def snapshot(self) -> dict[str, Tensor]:
        """Text classifier and prototypes."""
        return {"classifier": self.classifier, "prototypes": self.prototypes}


class StatA(TransCLIP):
    """TransCLIP with an anchor: classes without images stay at their texts, so few classes do no harm."""

    name = "stata"
    anchor: ClassVar[bool] = True
