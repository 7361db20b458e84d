"""microCLIP (arXiv 2510.02270): pseudo-labels from crops and descriptions, learned through a salient [FG] token.

Notation: g CLS embedding and P patch tokens (value path) of a view, b composite of K crop embeddings, W_fix frozen and
W learnable description classifier, nrm = unit norm, s = logit scale, all of the model being trained.

    (1) NCut     m = foreground mask of the patches (`clipviz.ncut`)
    (2) query    q = sum_i m_i P_i / max(1, sum_i m_i)
    (3) SOAP     a = softmax((W_q q) . (W_k P_j) / sqrt(width)),   l = nrm((sum_j a_j W_v P_j) proj)  the [FG] embedding
    (4) crops    r_k = g_k . g,   b = nrm(sum_k softmax(r)_k g_k)
    (5) DKA      z = gamma b W_fix^T + (1 - gamma) nrm(g/2 + l/2) nrm(W)^T,   pseudo-label y = argmax z
    (6) training o = s (rho g + (1 - rho) l) nrm(W)^T   on the strong view
                 L = CE(o, y) + fairness(p),   p: running mean of softmax(o) within the epoch
    (7) heads    W_fix,c = nrm(sum_m w_cm d_cm / sum_m w_cm),  w_cm = d_cm . t_c;   W starts at nrm(mean_m d_cm)

(1)-(5) without gradient, from the weak view and the crops; inference is (6) on the whole image, without crops or W_fix.

Where the official code is followed to the letter: hard labels, no threshold, plain cosines in (5); the running mean is
halved with the past at every step but an epoch's first and divided by 0.5 in the loss; AdamW decays everything by 0.1.
Where it is not, and why:
- The sign of the Fiedler vector is fixed before the threshold, not after (see `clipviz.ncut`); one mask, not two.
- Where (nearly) every pair of patches is connected, the mask is an artefact of the solver: the whole image is used.
- The zero "unrelated" token of SOAP changes no output and no gradient; it is left out, so attention sums to 1.
- t_c is the mean of unit prompt embeddings, as everywhere else, not of raw ones.
- The strong view is filled with CLIP's mean color, as DPA does, not with black.
- Test images are cut in the middle, as everywhere; the code cuts them at random, so its accuracy depends on the seed.
- The presets `official` and `birds` take the whole image only where every pair is connected; `official` also keeps
  black and the mean of raw embeddings. On nearly complete graphs its masks, as those of the authors' code, can hang on
  the last bit (see `clipviz.ncut`), so runs in float32 and float64 may part there.
Beyond the official method: `crop_teacher="frozen"` takes the g_k of (4) from the frozen model, once an image, which
makes a step several times cheaper (`clipviz.methods.crop_teacher`); `side="border"` takes the side of the cut with
less of the image's border, which finds the object in clutter (docs/saliency.md). No preset does either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.backbone import Backbone, ImageTokens
from clipviz.data.base import Batch, Views
from clipviz.events import CropVotes, PseudoLabels
from clipviz.methods.base import (
    AdaptConfig,
    Method,
    ViewNeeds,
    check_constants,
    prompt_sentences,
    sentence_embeddings,
    text_classifier,
    unfreeze_norms,
)
from clipviz.methods.crop_teacher import CropTeacherKind, crop_teacher
from clipviz.ncut import (
    AffinityKind,
    MaskRule,
    Side,
    Spectrum,
    edge_density,
    foreground_mask,
    patch_affinity,
    spectrum,
    turn_to_side,
)
from clipviz.ops import class_logits, expect_axes, expect_floats, fairness_loss, normalize
from clipviz.prompts import ClassPrompts

NameEmbedding = Literal["unit", "raw"]


@dataclass(frozen=True)
class MicroCLIPConfig:
    """Constants of microCLIP; the defaults are those of the authors' code for a ViT-B.

    All but three, `full_density`, `name_embedding` and `fill`, of which `official` has theirs.

    Attributes:
        gamma: share of the static (W_fix, crops) vote in the pseudo-label, eq. (5).
        rho: share of CLS in the fused logits, eq. (6).
        crops: K, crops per image.
        crop_scale: side of a crop as a share of the short side of the image.
        crop_temperature: of the softmax in eq. (4).
        fairness_weight: multiplier of the fairness term.
        soap: False replaces the [FG] embedding by CLS everywhere, the ablation "without SOAP".
        tau: threshold of the patch graph.
        affinity: what the threshold is applied to, raw dot products or cosines.
        mask_rule: where the Fiedler vector is cut.
        side: which side of the cut is the foreground: the one with the largest entry ("peak"), or with less of the
            border of the image ("border", ours).
        full_density: share of connected patch pairs from which on the graph tells nothing apart, so that the whole
            image is the foreground.
        name_embedding: t_c of eq. (7), the mean of "unit" or of "raw" prompt embeddings.
        crop_teacher: who embeds the crops: "student", the model being trained (official), or "frozen", the model as it
            was, once an image; that is much cheaper, and not the published method.
        fill: RGB that geometric operations of the strong view uncover.
        schedule: recommended schedule.
    """

    gamma: float = 0.5
    rho: float = 0.5
    crops: int = 8
    crop_scale: tuple[float, float] = (0.5, 0.9)
    crop_temperature: float = 1.0
    fairness_weight: float = 1.0
    soap: bool = True
    tau: float = 0.2
    affinity: AffinityKind = "dot"
    mask_rule: MaskRule = "std"
    side: Side = "peak"
    full_density: float = 0.98
    name_embedding: NameEmbedding = "unit"
    crop_teacher: CropTeacherKind = "student"
    fill: tuple[int, int, int] = (123, 117, 104)
    schedule: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        """Refuse constants outside their range."""
        for name in ("gamma", "rho"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        check_constants(self, crops=1, fairness_weight=0)
        if not self.crop_temperature > 0:
            raise ValueError(f"crop_temperature must be positive, got {self.crop_temperature}")


PRESETS: dict[str, MicroCLIPConfig] = {
    "default": MicroCLIPConfig(),
    "official": MicroCLIPConfig(full_density=1.0, name_embedding="raw", fill=(0, 0, 0)),
    "birds": MicroCLIPConfig(
        crops=4, crop_scale=(0.7, 1.0), affinity="cosine", tau=0.4, full_density=1.0, schedule=AdaptConfig(lr=2e-3)
    ),
}


# ------------------------------------------------------------------------------------------------- the equations


def saliency_query(patches: Tensor, mask: Tensor) -> Tensor:
    """Mean foreground token, eq. (2).

    Args:
        patches: (B, N, W) float.
        mask: (B, N) bool.

    Returns:
        (B, W) float; zero where the mask is empty. Gradient flows through the patches.

    Raises:
        ValueError: if the shapes disagree, or the tokens are not floats.
    """
    expect_axes(patches=(patches, "BNW"), mask=(mask, "BN"))
    expect_floats(patches=patches)
    weight = mask.to(patches.dtype)
    return torch.einsum("bn,bnw->bw", weight, patches) / weight.sum(1, keepdim=True).clamp(min=1.0)


def soap_pool(
    query: Tensor, patches: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, projection: Tensor
) -> tuple[Tensor, Tensor]:
    """Saliency-oriented attention pooling, eq. (3), with one head.

    Args:
        query: (B, W) float.
        patches: (B, N, W) float.
        w_query: (W, W) float, as the weight of an `nn.Linear` (y = x w^T); likewise the next two.
        w_key: (W, W) float.
        w_value: (W, W) float.
        projection: (W, E) float, the tower's own, multiplied from the right.

    Returns:
        The [FG] embedding (B, E), unit norm, and the attention (B, N), summing to 1.

    Raises:
        ValueError: if shapes or precisions disagree.
    """
    expect_axes(
        query=(query, "BW"),
        patches=(patches, "BNW"),
        w_query=(w_query, "WW"),
        w_key=(w_key, "WW"),
        w_value=(w_value, "WW"),
        projection=(projection, "WE"),
    )
    expect_floats(query=query, patches=patches, w_query=w_query, w_key=w_key, w_value=w_value, projection=projection)
    # Reassociated: W_k^T (W_q q) once per image instead of W_k P_j for every patch; the same for W_v.
    key = query @ w_query.T @ w_key
    attention = (torch.einsum("bnw,bw->bn", patches, key) / query.shape[-1] ** 0.5).softmax(-1)
    pooled = torch.einsum("bn,bnw->bw", attention, patches) @ w_value.T
    return normalize(pooled @ projection), attention


def crop_composite(embedding: Tensor, crops: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Relevance-weighted mean of the crop embeddings, eq. (4).

    Args:
        embedding: (B, E) float, unit norm, of the weak view.
        crops: (B, K, E) float, unit norm.
        temperature: of the softmax over crops, positive; 1 (official) is nearly a plain mean.

    Returns:
        The composite (B, E), unit norm, and the crop weights (B, K), summing to 1.

    Raises:
        ValueError: if shapes or precisions disagree.
    """
    expect_axes(embedding=(embedding, "BE"), crops=(crops, "BKE"))
    expect_floats(embedding=embedding, crops=crops)
    weights = (torch.einsum("bke,be->bk", crops, embedding) / temperature).softmax(-1)
    return normalize(torch.einsum("bk,bke->be", weights, crops)), weights


def description_classifier(descriptions: list[Tensor], name_embeddings: Tensor) -> Tensor:
    """Frozen classifier W_fix, eq. (7): descriptions weighted by their cosine to the class name, no softmax.

    Args:
        descriptions: C tensors (M_c, E) float, unit norm; no class without any.
        name_embeddings: (C, E) float, unit norm.

    Returns:
        (C, E) float, unit norm.

    Raises:
        ValueError: if there are no classes, a class has no description or only ones whose weights add up to nothing,
            or shapes or precisions disagree.
    """
    expect_axes(name_embeddings=(name_embeddings, "CE"))
    if len(descriptions) != len(name_embeddings) or not len(descriptions):
        classes = f"{len(name_embeddings)} classes" if len(name_embeddings) else "at least one class"
        raise ValueError(f"wanted descriptions of {classes}, got {len(descriptions)}")
    if empty := [c for c, sentences in enumerate(descriptions) if not len(sentences)]:
        raise ValueError(f"every class needs a description, but there is none for classes {empty}")
    rows = []
    for sentences, name in zip(descriptions, name_embeddings, strict=True):
        expect_axes(name_embeddings=(name, "E"), descriptions=(sentences, "ME"))
        expect_floats(name_embeddings=name, descriptions=sentences)
        weights = sentences @ name
        rows.append(weights @ sentences / weights.sum())
    classifier = normalize(torch.stack(rows))
    if not torch.isfinite(classifier).all():
        lost = [c for c, row in enumerate(classifier) if not torch.isfinite(row).all()]
        raise ValueError(
            f"the descriptions of classes {lost} have no similarity to the class name that adds up to a weight; "
            "give others, or look for NaN among the embeddings"
        )
    return classifier


def dka_similarity(static: Tensor, dynamic: Tensor, gamma: float) -> Tensor:
    """Dynamic Knowledge Aggregation, eq. (5): gamma * static + (1 - gamma) * dynamic, all (B, C) cosines.

    Raises:
        ValueError: if the shapes disagree.
    """
    expect_axes(static=(static, "BC"), dynamic=(dynamic, "BC"))
    return gamma * static + (1.0 - gamma) * dynamic


class Foreground(NamedTuple):
    """The [FG] branch of one batch, with what it was made from.

    Attributes:
        embedding: (B, E) float, unit norm, l of eq. (3).
        attention: (B, N) float, summing to 1.
        mask: (B, N) bool.
        spectrum: Fiedler vector, the foreground positive, lambda_2 and gap.
        density: (B,) float, share of connected patch pairs.
    """

    embedding: Tensor
    attention: Tensor
    mask: Tensor
    spectrum: Spectrum
    density: Tensor

    def maps(self, grid: tuple[int, int]) -> dict[str, Tensor]:
        """What can be drawn of it on the patch grid (h, w): kind -> (B, h, w) float."""
        found = {"soap": self.attention, "ncut": self.mask.float(), "fiedler": self.spectrum.fiedler}
        return {kind: values.unflatten(1, grid) for kind, values in found.items()}


def foreground(
    tokens: ImageTokens, config: MicroCLIPConfig, w_query: Tensor, w_key: Tensor, w_value: Tensor, projection: Tensor
) -> Foreground:
    """The [FG] branch of the tokens of a batch, eqs. (1)-(3); the matrices are those of `soap_pool`."""
    patches = tokens.patches
    affinity = patch_affinity(patches.detach(), config.tau, config.affinity)
    cut, density = spectrum(affinity), edge_density(affinity)
    cut = cut._replace(fiedler=turn_to_side(cut.fiedler, tokens.grid, config.side))
    mask = foreground_mask(cut.fiedler, config.mask_rule) | (density >= config.full_density)[:, None]
    query = saliency_query(patches, mask)
    embedding, attention = soap_pool(query, patches, w_query, w_key, w_value, projection)
    return Foreground(embedding, attention, mask, cut, density)


# ------------------------------------------------------------------------------------------------- the method


class MicroCLIP(Method):
    """microCLIP: trains the LayerNorms of the image tower, the three SOAP matrices and the learnable classifier.

    Args:
        backbone: a ViT with CLS and patch tokens.
        prompts: class names, templates and descriptions (templates stand in for missing descriptions).
        config: constants; None: the preset of the backbone's name, else "default".

    Raises:
        ValueError: if the tower has no patch tokens.
    """

    name = "microclip"
    presets = PRESETS
    adjustable = ("gamma", "rho", "crop_temperature")
    sized_by_data = ("crop_teacher.bank",)

    static_classifier: Tensor
    mean_probs: Tensor
    mean_steps: Tensor

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: MicroCLIPConfig | None = None) -> None:
        backbone.require_patches(self.name)
        super().__init__(backbone, prompts)
        self.config = config or self.default_config(backbone)
        templates = prompt_sentences(prompts, "templates")
        names = text_classifier(backbone, templates, unit=self.config.name_embedding == "unit")
        descriptions = sentence_embeddings(backbone, self.sentences)
        self.register_buffer("static_classifier", description_classifier(descriptions, names))
        self.learned_classifier = nn.Parameter(text_classifier(backbone, self.sentences))
        identity = torch.eye(backbone.width, device=backbone.device)
        self.w_query, self.w_key, self.w_value = (
            nn.Parameter(identity.clone(), requires_grad=self.config.soap) for _ in range(3)
        )
        # Running mean of the predicted probabilities and the number of steps in it, both per epoch.
        self.register_buffer("mean_probs", torch.zeros(len(self.class_names), device=backbone.device))
        self.register_buffer("mean_steps", torch.zeros((), device=backbone.device))
        self.crop_teacher = crop_teacher(self.config.crop_teacher, backbone)
        unfreeze_norms(self.backbone.visual)

    @property
    def needs(self) -> ViewNeeds:
        """A strong view and the crops."""
        return ViewNeeds(True, self.config.crops, self.config.crop_scale, self.config.fill)

    @property
    def training_needs(self) -> ViewNeeds:
        """No crops where the teacher has embedded them once and for all."""
        return self.needs if self.crop_teacher.trains_on_crops else replace(self.needs, crops=0)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Let the crop teacher see the images before training."""
        self.crop_teacher.see(self.backbone, batches)

    def foreground(self, tokens: ImageTokens) -> Foreground:
        """The [FG] branch of a batch, by the trained matrices."""
        matrices = self.w_query, self.w_key, self.w_value
        return foreground(tokens, self.config, *matrices, self.backbone.visual.proj)

    def _fg_embedding(self, tokens: ImageTokens) -> Tensor:
        return self.foreground(tokens).embedding if self.config.soap else tokens.cls

    def _fused_logits(self, cls: Tensor, fg: Tensor) -> Tensor:
        """Logits of eq. (6); the mean of two unit vectors is deliberately not normalized."""
        fused = self.config.rho * cls + (1.0 - self.config.rho) * fg
        return class_logits(fused, self.learned_classifier, self.backbone.logit_scale)

    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """Eqs. (1)-(5) on the weak view and the crops, by the current model."""
        tokens = self.backbone.tokens(views.weak)
        cls = fg = views.gather(tokens.cls)
        metrics = {}
        if self.config.soap:
            found = self.foreground(tokens)
            fg = views.gather(found.embedding)
            metrics = {"lambda_2": found.spectrum.eigenvalue, "edge_density": found.density}
            metrics = {name: views.gather(values) for name, values in metrics.items()}
        crops = self.crop_teacher.embeddings(self.backbone, views, index)
        composite, crop_weights = crop_composite(cls, crops, self.config.crop_temperature)
        static = class_logits(composite, self.static_classifier)
        dynamic = class_logits(normalize(0.5 * cls + 0.5 * fg), self.learned_classifier)
        scale = self.backbone.logit_scale
        probs = (scale * dka_similarity(static, dynamic, self.config.gamma)).softmax(-1)
        confidence, labels = probs.max(-1)
        sources = {"static": scale * static, "dynamic": scale * dynamic}
        votes = CropVotes(
            torch.einsum("bke,be->bk", crops, cls),
            scale * class_logits(crops, self.static_classifier),
            crops @ crops.mT,
        )
        return PseudoLabels(labels, probs, torch.ones_like(confidence), sources, crop_weights, metrics, votes)

    def loss(self, views: Views, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Eq. (6) on the strong view."""
        assert views.strong is not None
        tokens = self.backbone.tokens(views.strong)
        logits = self._fused_logits(views.gather(tokens.cls), views.gather(self._fg_embedding(tokens)))
        mean_probs = self._update_mean_probs(logits.softmax(-1).mean(0))
        return {
            "cross_entropy": F.cross_entropy(logits, pseudo.labels),
            "fairness": self.config.fairness_weight * fairness_loss(mean_probs) / 0.5,
        }

    def _update_mean_probs(self, batch: Tensor) -> Tensor:
        """Running mean: the batch's at an epoch's first step, then half past and half batch; gradient by the batch."""
        past = 0.5 * (self.mean_steps > 0)
        mean = past * self.mean_probs + (1.0 - past) * batch
        self.mean_probs.copy_(mean.detach())
        self.mean_steps += 1
        return mean

    def begin_epoch(self) -> None:
        """Forget the running mean."""
        self.mean_probs.zero_()
        self.mean_steps.zero_()

    def logits(self, images: Tensor) -> Tensor:
        """Fused logits of eq. (6) on whole images."""
        tokens = self.backbone.tokens(images)
        return self._fused_logits(tokens.cls, self._fg_embedding(tokens))

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """CLS alone and [FG] alone."""
        tokens = self.backbone.tokens(images)
        scale = self.backbone.logit_scale
        return {
            "cls": class_logits(tokens.cls, self.learned_classifier, scale),
            "fg": class_logits(self._fg_embedding(tokens), self.learned_classifier, scale),
        }

    def snapshot(self) -> dict[str, Tensor]:
        """Both classifiers, unit norm."""
        return {"static_classifier": self.static_classifier, "learned_classifier": normalize(self.learned_classifier)}

    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """SOAP attention, NCut mask and Fiedler vector on the patch grid."""
        tokens = self.backbone.tokens(images)
        return self.foreground(tokens).maps(tokens.grid)
