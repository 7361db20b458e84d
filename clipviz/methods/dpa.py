"""DPA (arXiv 2408.08855, WACV 2025): pseudo-labels on which text prototypes and image prototypes agree.

Notation: f, f_s unit embeddings of the weak and the strong view, Z text prototypes (learned), P image prototypes,
s logit scale, nrm = unit norm, C classes.

    (1) text        Z starts at nrm(mean of unit prompt embeddings);   p_txt = softmax(s f nrm(Z)^T)
    (2) alignment   q = mean of the last 32 batch means of p_txt;   p_da = (p_txt / q) / sum_c (p_txt / q)_c
    (3) image       P_c = nrm(mean of the bank's embeddings with label c);   p_img = softmax(s f P^T)
    (4) label       p = a p_img + (1 - a) p_da,   y = argmax p
    (5) weight      omega = p_txt(y) / (max p_txt + 1e-7) * p_img(y) / (max p_img + 1e-7)    p_txt before alignment
    (6) loss        o = s f_s nrm(Z)^T,   L = mean_B(omega CE(o, y)) + reg * fairness(m)
                                              + align * CE(w nrm(P) nrm(Z)^T, diagonal)
        m           mean of the window of (2) with mean_B softmax(o) in its newest place (ours), or mean_B softmax(o)

(1)-(5) without gradient, by the model being trained. The bank holds f and y of every image as they were when it was
last seen, from a first pass with the zero-shot model on; P is computed from it before training and at the end of every
epoch. A class without images has its text prototype for P_c. The last term trains Z only. Inference is
argmax s f nrm(Z)^T.

As in the official code: the batch's own mean is in the window, which lives across epochs; weights divide by B, not by
their sum; biases of LayerNorms do not decay, LayerNorm weights and Z do. Where we differ, and why:
- m in (6). A batch of 64 cannot hold 100 classes, so the fairness of its own mean pulls toward those that happen to be
  absent, harder than the cross-entropy does: pseudo-labels get better and predictions worse (docs/features.md). The
  window knows 32 batches; only the newest carries a gradient. `official` and the presets of benchmarks, whose `reg` was
  tuned with it, keep the batch's mean.
- The bank, the prototypes and the window are in the checkpoint: the code keeps prototypes in a file beside the run that
  later runs silently reuse, and loses the bank.
- s is the model's learned logit scale, which the code writes as 100.
- The last epoch is the result; the code prints the best test epoch.
- A learning rate below the schedule's 2e-6 floor stays constant; in the code it rises to the floor.
- Descriptions are used for (1) where the user gives some; `official` uses the templates only.
- "_" in a class name is read as a space, as everywhere in clipviz; the code keeps it.

Each equation raises ValueError, naming the tensor, where shapes or precisions disagree.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.data.base import Batch, ViewConfig, Views
from clipviz.events import PseudoLabels
from clipviz.methods.base import TUNED, AdaptConfig, Method, check_constants, embed, text_classifier, unfreeze_norms
from clipviz.ops import class_logits, expect_axes, expect_floats, expect_integers, fairness_loss, normalize
from clipviz.prompts import ClassPrompts, TextSource

_SUMMED_ROWS = 16_384

FairnessMean = Literal["window", "batch"]


@dataclass(frozen=True)
class DPAConfig:
    """Constants of DPA; the defaults are the ones most benchmarks share, see `BENCHMARKS`."""

    a: float = 0.5  # share of the image prototypes in the pseudo-label, eq. (4)
    reg: float = 1.0  # multiplier of the fairness term
    align: float = 1.0  # multiplier of the prototype alignment
    w: float = 100.0  # sharpness of the prototype alignment
    window: int = 32  # number of batch means that distribution alignment averages, eq. (2)
    text: TextSource = "descriptions"
    fairness: FairnessMean = "window"  # m of eq. (6): mean of the last `window` batches (ours), or of one (official)
    fill: tuple[int, int, int] = (123, 117, 104)  # RGB that geometric operations of the strong view uncover
    schedule: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        check_constants(self, shares="a", reg=0, align=0, w=0, window=1)


BENCHMARKS: dict[str, tuple[float, float, float, float, float, int]] = TUNED["dpa"]
_OFFICIAL = DPAConfig(text="templates", fairness="batch")

PRESETS = {"default": DPAConfig(), "official": _OFFICIAL}
BACKBONE_PRESETS = {"birds": DPAConfig(schedule=AdaptConfig(lr=2e-3))}
BENCHMARK_PRESETS = {
    name: replace(_OFFICIAL, a=a, reg=reg, align=align, w=w, schedule=AdaptConfig(epochs=epochs, lr=lr))
    for name, (a, reg, align, w, lr, epochs) in BENCHMARKS.items()
}


def image_prototypes(embeddings: Tensor, labels: Tensor, text_prototypes: Tensor) -> Tensor:
    """Mean embedding of each class, eq. (3).

    (n, E), unit norm, integers (n,), -1 where there is no label yet, and (C, E), for classes without a label -> (C, E),
    unit norm, without gradient. A label that is not a class is refused.
    """
    expect_axes(embeddings=(embeddings, "nE"), labels=(labels, "n"), text_prototypes=(text_prototypes, "CE"))
    expect_integers(labels=labels)
    expect_floats(embeddings=embeddings, text_prototypes=text_prototypes)
    labels, embeddings = labels.long(), embeddings.detach()
    text = normalize(text_prototypes.detach())
    if len(labels) and not (int(labels.min()) >= -1 and int(labels.max()) < len(text)):
        raise ValueError(f"labels must be in -1..{len(text) - 1}, got {int(labels.min())}..{int(labels.max())}")
    sums = torch.zeros_like(text, dtype=torch.promote_types(text.dtype, torch.float32))  # half ends at 65,504
    # products with one-hot rows add in the same order on every run, which scattered additions on a GPU do not
    for rows, classes in zip(embeddings.split(_SUMMED_ROWS), labels.split(_SUMMED_ROWS), strict=True):
        sums += F.one_hot(classes + 1, len(text) + 1)[:, 1:].to(rows.dtype).T @ rows
    empty = torch.bincount(labels + 1, minlength=len(text) + 1)[1:] == 0
    return torch.where(empty[:, None], text, normalize(sums).to(text.dtype))


def align_distribution(probs: Tensor, mean_probs: Tensor) -> Tensor:
    """Distribution alignment, eq. (2): lowers classes that are predicted too often and raises the others.

    (B, C) and the mean (C,) -> (B, C), rows summing to 1. A class that is never predicted (mean 0) keeps
    probability 0.
    """
    expect_axes(probs=(probs, "BC"), mean_probs=(mean_probs, "C"))
    expect_floats(probs=probs, mean_probs=mean_probs)
    ratio = probs / torch.where(mean_probs > 0, mean_probs, 1.0)
    return ratio / ratio.sum(-1, keepdim=True)


def refine_probs(aligned_text_probs: Tensor, image_probs: Tensor, a: float) -> Tensor:
    """Convex combination of both sources, eq. (4): `a` is the weight of the image prototypes. All (B, C)."""
    expect_axes(aligned_text_probs=(aligned_text_probs, "BC"), image_probs=(image_probs, "BC"))
    expect_floats(aligned_text_probs=aligned_text_probs, image_probs=image_probs)
    return a * image_probs + (1.0 - a) * aligned_text_probs


def ranking_weights(text_probs: Tensor, image_probs: Tensor, labels: Tensor) -> Tensor:
    """Probability of the pseudo-label relative to each source's maximum, multiplied over both sources, eq. (5).

    (B, C), before distribution alignment, (B, C) and the pseudo-labels (B,) -> (B,) in (0, 1], 1 (but for 1e-7) where
    both agree with the label. A label that is not a class is refused, on a CPU.
    """
    expect_axes(text_probs=(text_probs, "BC"), image_probs=(image_probs, "BC"), labels=(labels, "B"))
    expect_floats(text_probs=text_probs, image_probs=image_probs)
    expect_integers(labels=labels)
    rows = labels.long()[:, None]
    try:
        shares = [probs.gather(1, rows)[:, 0] / (probs.amax(-1) + 1e-7) for probs in (text_probs, image_probs)]
    except (IndexError, RuntimeError) as error:  # instead of a look at the labels, for which a GPU would be waited
        raise ValueError(f"labels must be in 0..{text_probs.shape[1] - 1}: {error}") from error
    return shares[0] * shares[1]


def alignment_loss(image_prototypes: Tensor, text_prototypes: Tensor, w: float) -> Tensor:
    """Prototype alignment, last term of eq. (6): matches every image prototype to its text prototype.

    (C, E), without gradient, and raw parameters (C, E) -> (); `w` multiplies the cosines.
    """
    expect_axes(image_prototypes=(image_prototypes, "CE"), text_prototypes=(text_prototypes, "CE"))
    expect_floats(image_prototypes=image_prototypes, text_prototypes=text_prototypes)
    logits = w * normalize(image_prototypes.detach()) @ normalize(text_prototypes).T
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class DPA(Method):
    """DPA: trains the LayerNorms of the image tower and the text prototypes; on embeddings, the prototypes alone."""

    name = "dpa"
    presets, backbone_presets, benchmark_presets = PRESETS, BACKBONE_PRESETS, BENCHMARK_PRESETS
    works_on_embeddings = True
    sized_by_data = kept_once = ("bank_embeddings", "bank_labels")
    rows_of_data: ClassVar = {"bank_embeddings": ""}
    adjustable = ("a", "reg", "align", "w")

    config: DPAConfig

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: DPAConfig | None = None) -> None:
        super().__init__(backbone, prompts, config)
        text = text_classifier(backbone, self.sentences)
        self.text_prototypes = nn.Parameter(text)
        self.image_prototypes = nn.Buffer(text.clone())
        self.bank_embeddings = nn.Buffer(text.new_zeros(0, text.shape[1]))
        self.bank_labels = nn.Buffer(torch.zeros(0, dtype=torch.int64, device=text.device))
        # the last batch means of p_txt, written in turn, and how many were written
        self.window = nn.Buffer(text.new_zeros(self.config.window, len(text)))
        self.window_steps = nn.Buffer(torch.zeros((), dtype=torch.int64, device=text.device))
        unfreeze_norms(self.backbone.visual)
        self.needs = ViewConfig(strong=True, fill=self.config.fill)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Biases do not decay."""
        trained = [(name.endswith("bias"), p) for name, p in self.named_parameters() if p.requires_grad]
        rest, biases = ([p for is_bias, p in trained if is_bias == kind] for kind in (False, True))
        return [{"params": p, "weight_decay": decay} for p, decay in ((rest, weight_decay), (biases, 0.0)) if p]

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Fill the bank with the zero-shot model's embeddings and labels; the first image prototypes."""
        rows = []  # batch after batch: the logits of a million images and a thousand classes would be 4 GB
        for batch in batches:
            embeddings = batch.views.gather(embed(self.backbone, batch.views.weak))
            rows.append((batch.index, embeddings, self._text_logits(embeddings).argmax(-1)))
        n = sum(len(index) for index, _, _ in rows)
        bank = self._resize("bank_embeddings", (n, self.text_prototypes.shape[1]))
        bank_labels = self._resize("bank_labels", (n,))
        while rows:  # each goes as it is copied: all of them beside the bank would be its size again
            index, embeddings, labels = rows.pop()
            bank[index], bank_labels[index] = embeddings, labels
        self.end_epoch()

    def end_epoch(self) -> None:
        """New image prototypes, eq. (3)."""
        self.image_prototypes.copy_(image_prototypes(self.bank_embeddings, self.bank_labels, self.text_prototypes))

    def _text_logits(self, embeddings: Tensor) -> Tensor:
        return class_logits(embeddings, self.text_prototypes, self.backbone.logit_scale)

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """Eqs. (1)-(5) on the weak view; writes the bank."""
        embeddings = views.gather(embed(self.backbone, views.weak))
        text_logits = self._text_logits(embeddings)
        image_logits = class_logits(embeddings, self.image_prototypes, self.backbone.logit_scale)
        text_probs, image_probs = text_logits.softmax(-1), image_logits.softmax(-1)
        aligned = align_distribution(text_probs, self._update_window(text_probs.mean(0)))
        probs = refine_probs(aligned, image_probs, self.config.a)
        labels = probs.argmax(-1)
        weights = ranking_weights(text_probs, image_probs, labels)
        self.bank_embeddings[index] = embeddings
        self.bank_labels[index] = labels
        return PseudoLabels(labels, probs, weights, {"text": text_logits, "image": image_logits})

    def _update_window(self, mean_probs: Tensor) -> Tensor:
        """Add a batch mean to the window, over the oldest where it is full; returns the mean of the window, (C,)."""
        place = self.window_steps % len(self.window)  # never read by the host, so that no step waits for the device
        self.window.index_copy_(0, place[None], mean_probs[None])
        self.window_steps.add_(1)
        return self.window.sum(0) / self.window_steps.clamp(max=len(self.window))

    def _window_with(self, mean_probs: Tensor) -> Tensor:
        """Mean of the window with another one in its newest place, m of eq. (6), (C,); gradient by that one alone."""
        newest = (self.window_steps - 1) % len(self.window)
        others = self.window.index_fill(0, newest[None], 0.0).sum(0)
        return (others + mean_probs) / self.window_steps.clamp(1, len(self.window))

    def loss(self, views: Views, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Eq. (6) on the strong view; on embeddings, which have one view, on that."""
        config = self.config
        embeddings = views.gather(embed(self.backbone, views.weak if views.strong is None else views.strong))
        logits = self._text_logits(embeddings)
        cross_entropy = F.cross_entropy(logits, pseudo.labels, reduction="none")
        mean_probs = logits.softmax(-1).mean(0)
        if config.fairness == "window":
            mean_probs = self._window_with(mean_probs)
        return {
            "cross_entropy": (pseudo.weights * cross_entropy).mean(),
            "fairness": config.reg * fairness_loss(mean_probs),
            "alignment": config.align * alignment_loss(self.image_prototypes, self.text_prototypes, config.w),
        }

    def logits(self, images: Tensor) -> Tensor:
        """Text prototypes only."""
        return self._text_logits(embed(self.backbone, images))

    def snapshot(self) -> dict[str, Tensor]:
        """Both prototype sets, unit norm."""
        return {"text_prototypes": normalize(self.text_prototypes), "image_prototypes": self.image_prototypes}
