"""OGA (arXiv 2501.04352): a stream of batches, a Gaussian a class, without training and with one setting for all data.

Written from a description of the algorithm. Notation: x unit embedding, t_c of class c's text, s logit scale, E width,
p = softmax(s x . t) in double precision, H its entropy in nats, c = argmax p, tau = 0.05. A class has 8 slots.

    (1) memory       for each image of a batch: if H is below the largest H of class c's slots (log C where empty), the
                     image takes that slot
    (2) means        mu_c = mean of the filled slots of c, if there are two; else t_c
    (3) precision    P = E I, until a class has three; then of all N stored x, less their mu and centered, with
                     covariance M:  P = E pinv((N - 1) M + tr(M) I)  if N <= 4 E,  else pinv(M)
    (4) prediction   of the same batch: softmax(s x . t + tau g),  g_c = -1/2 (x - mu_c)^T P (x - mu_c)

(4) is p times the Gaussian's softmax, renormalized. The authors' code divides the sum of (2) by 8 also where slots are
empty, so that a mean of five has norm 0.6 and lies nearer to everything; `official=True` does that, we divide by the
number that is filled. In a run s is the model's own, 100 for OpenAI's; unseen images are predicted by the Gaussians as
they are.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipviz.errors import whole_number
from clipviz.events import CacheContributions
from clipviz.methods.base import AdaptConfig, check_constants, embed
from clipviz.methods.embedding import StreamMethod, heaviest, unit_rows
from clipviz.methods.tda import STREAM
from clipviz.prompts import TextSource


@dataclass(frozen=True)
class OGAConfig:
    """Constants of OGA."""

    tau: float = 0.05  # weight of the Gaussian's log-likelihood
    slots: int = 8  # of a class
    official: bool = False  # count empty slots as zeros in (2), as the authors' code does
    text: TextSource = "descriptions"
    schedule: AdaptConfig = STREAM  # its epochs are slices of the stream

    def __post_init__(self) -> None:
        check_constants(self, tau=0, slots=1)


Memory = dict[str, Tensor]
"""All float64: `keys` (C, K, E), `entropy` (C, K), `means` (C, E), `precision` (E, E); and `index` (C, K) int64,
positions in the data set, -1 where a slot is empty."""


def empty_memory(classifier: Tensor, config: OGAConfig) -> Memory:
    """A memory of (C, E) classes without entries, with the Gaussians of the texts."""
    t = classifier.double()
    (c, e), k = t.shape, config.slots
    return {
        "keys": t.new_zeros(c, k, e), "entropy": t.new_full((c, k), math.log(c)),
        "index": torch.full((c, k), -1, device=t.device), "means": t.clone(),
        "precision": e * torch.eye(e, dtype=t.dtype, device=t.device),
    }  # fmt: skip


def remember(x: Tensor, logits: Tensor, index: Tensor, memory: Memory) -> bool:
    """Eq. (1) for a batch (B, E) with its texts' (B, C) and positions (B,); returns whether anything was stored."""
    p = logits.softmax(-1)
    entropy, labels = -(p * (p + 1e-9).log()).sum(-1), p.argmax(-1)
    stored = False
    for i, label in enumerate(labels.tolist()):
        largest, slot = memory["entropy"][label].max(0)
        if entropy[i] < largest:
            stored = True
            for name, value in (("keys", x[i]), ("entropy", entropy[i]), ("index", index[i])):
                memory[name][label, slot] = value
    return stored


def fit_gaussians(memory: Memory, classifier: Tensor, official: bool) -> None:
    """Eqs. (2) and (3) from what is stored."""
    keys, filled = memory["keys"], memory["index"] >= 0
    n = filled.sum(1)
    divisor = torch.full_like(n, filled.shape[1]) if official else n
    means = keys.sum(1) / divisor.clamp(min=1)[:, None]
    memory["means"].copy_(torch.where((n >= 2)[:, None], means, classifier.double()))
    if int(n.max()) > 2:
        memory["precision"].copy_(precision((keys - memory["means"][:, None])[filled]))


def precision(deviations: Tensor) -> Tensor:
    """Eq. (3) of N >= 3 rows (N, E) float64."""
    n, e = deviations.shape
    d = deviations - deviations.mean(0)
    scatter = d.T @ d
    if n > 4 * e:
        return torch.linalg.pinv(scatter / (n - 1), hermitian=True)
    shrunk = scatter + scatter.trace() / (n - 1) * torch.eye(e, dtype=d.dtype, device=d.device)
    factor, failed = torch.linalg.cholesky_ex(shrunk)  # ten times faster; fails where all rows are the same
    return e * (torch.linalg.pinv(shrunk, hermitian=True) if failed else torch.cholesky_inverse(factor))


def log_likelihood(x: Tensor, memory: Memory) -> Tensor:
    """G of eq. (4), (B, E) -> (B, C) float64."""
    center = memory["means"].mean(0)
    x, mu = x.double() - center, memory["means"] - center
    xp, mup = x @ memory["precision"], mu @ memory["precision"]
    return xp @ mu.T - 0.5 * ((xp * x).sum(-1, keepdim=True) + (mup * mu).sum(-1))


def take_in(x: Tensor, index: Tensor, memory: Memory, classifier: Tensor, scale: float, config: OGAConfig) -> Tensor:
    """Eqs. (1)-(4) for a batch (B, E): tau g (B, C) float64; the memory changes."""
    if remember(x.double(), scale * x.double() @ classifier.double().T, index, memory):
        fit_gaussians(memory, classifier, config.official)
    return config.tau * log_likelihood(x, memory)


@torch.no_grad()
def stream(
    embeddings: Tensor, classifier: Tensor, *, batch_size: int = 32, logit_scale: float = 100.0, **constants: Any
) -> Tensor:
    """Predict images batch after batch.

    Embeddings (n, E), in the order in which they come, and classifier (C, E) are floats of unit norm; `logit_scale` is
    s, all else are constants of `OGAConfig`.

    Returns:
        (n, C) float probabilities in stream order.

    Raises:
        ValueError: for what is NaN, not of unit norm, or does not fit together, and batches without images.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    config = OGAConfig(**constants)
    embeddings, classifier = unit_rows(embeddings, classifier, logit_scale)
    memory, found = empty_memory(classifier, config), []
    positions = torch.arange(len(embeddings), device=embeddings.device)
    for x, index in zip(embeddings.split(batch_size), positions.split(batch_size), strict=True):
        gaussian = take_in(x, index, memory, classifier, logit_scale, config)
        found.append((logit_scale * x.double() @ classifier.double().T + gaussian).softmax(-1))
    return torch.cat(found).to(embeddings.dtype)


class OGA(StreamMethod):
    """OGA: a slice of the stream is an epoch, the memory is made of buffers."""

    name = "oga"
    presets: ClassVar = {
        "default": OGAConfig(), "paper": OGAConfig(text="templates"),
        "official": OGAConfig(text="templates", official=True),
    }  # fmt: skip
    config: OGAConfig

    def empty(self) -> dict[str, Tensor]:
        """The buffers of an empty memory."""
        return {f"memory_{name}": tensor for name, tensor in empty_memory(self.classifier, self.config).items()}

    @property
    def memory(self) -> Memory:
        """The buffers by name; writing into them changes the method."""
        return {name: getattr(self, f"memory_{name}") for name in ("keys", "entropy", "index", "means", "precision")}

    def _sources(self, embeddings: Tensor, gaussian: Tensor) -> dict[str, Tensor]:
        return {"zero_shot": self.text_logits(embeddings), "gaussian": gaussian.to(embeddings.dtype)}

    def step(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Eqs. (1)-(4)."""
        scale = self.backbone.logit_scale
        return self._sources(embeddings, take_in(embeddings, index, self.memory, self.classifier, scale, self.config))

    def addends(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Eq. (4) with the Gaussians as they are."""
        return self._sources(embeddings, self.config.tau * log_likelihood(embeddings, self.memory))

    def cache_contributions(self, images: Tensor, n: int) -> CacheContributions | None:
        """What each slot adds to its class by way of the mean: tau (x - m)^T P (x_j - m) / slots, m the mean of means.

        Only of classes with two filled slots; the norm of the mean, which all slots share, is left out.
        """
        memory, x = self.memory, embed(self.backbone, images).double()
        filled = memory["index"] >= 0
        counts = filled.sum(1)
        rows = (filled & (counts >= 2)[:, None]).flatten().nonzero()[:, 0]
        m, labels = memory["means"].mean(0), rows // filled.shape[1]
        parts = (x - m) @ memory["precision"] @ (memory["keys"].flatten(0, 1)[rows] - m).T
        divisor = torch.full_like(counts, filled.shape[1]) if self.config.official else counts
        adds = (self.config.tau * parts / divisor[labels]).float()
        return heaviest(adds, memory["index"].flatten()[rows], labels, n, signed=True)

    def diagnostics(self) -> dict[str, float]:
        """Filled slots."""
        return {"memory_entries": float((self.memory["index"] >= 0).sum())}
