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
- Where (nearly) every pair of patches is connected, the mask is an artifact of the solver: the whole image is used.
- The zero "unrelated" token of SOAP changes no output and no gradient; it is left out, so attention sums to 1.
- t_c is the mean of unit prompt embeddings, as everywhere else, not of raw ones.
- The strong view is filled with CLIP's mean color, as DPA does, not with black.
- Test images are center-cropped, as everywhere; the code crops them at random, so its accuracy depends on the seed.
- The presets `official` and `birds` take the whole image only where every pair is connected; `official` also keeps
  black and the mean of raw embeddings. On nearly complete graphs its masks, like those of the authors' code, can depend
  on the last bit (see `clipviz.ncut`), so runs in float32 and float64 may diverge there.
Beyond the official method: `crop_teacher="frozen"` takes the g_k of (4) from the frozen model, once an image, which
makes a step several times cheaper (`clipviz.methods.crop_teacher`), in no preset; `side="border"` takes the side of the
cut with less of the image's border, which can find the object where the peak finds clutter (docs/saliency.md), and
`soap_lr_scale` slows the SOAP matrices down, both in the preset `birds`: AdamW moves every entry by about the learning
rate, so it turns a W x W identity by up to lr * W a step, 0.08 for the authors' ViT-B and 0.26 for birds, whose
LayerNorms need the larger rate.

Each equation raises ValueError, naming the tensor, where shapes or precisions disagree.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz import ncut
from clipviz.backbone import Backbone, ImageTokens
from clipviz.data.base import Batch, ViewConfig, Views
from clipviz.events import CropLogits, PseudoLabels
from clipviz.methods import base
from clipviz.methods.base import AdaptConfig, Method
from clipviz.methods.crop_teacher import FrozenCrops
from clipviz.ops import class_logits, expect_axes, expect_floats, fairness_loss, normalize
from clipviz.prompts import ClassPrompts

CropTeacherKind = Literal["student", "frozen"]
NameEmbedding = Literal["unit", "raw"]


@dataclass(frozen=True)
class MicroCLIPConfig:
    """Constants of microCLIP; the defaults are those of the authors' code for a ViT-B.

    All but three, `full_density`, `name_embedding` and `fill`, of which `official` has theirs.
    """

    gamma: float = 0.5  # share of the static (W_fix, crops) source in the pseudo-label, eq. (5)
    rho: float = 0.5  # share of CLS in the fused logits, eq. (6)
    crops: int = 8  # K, crops per image
    crop_scale: tuple[float, float] = (0.5, 0.9)  # side of a crop as a share of the short side of the image
    crop_temperature: float = 1.0  # of the softmax in eq. (4)
    fairness_weight: float = 1.0  # multiplier of the fairness term
    soap_lr_scale: float = 1.0  # learning rate of the SOAP matrices, as a multiple of the schedule's (1 but for birds)
    soap: bool = True  # False replaces the [FG] embedding by CLS everywhere, the ablation "without SOAP"
    tau: float = 0.2  # threshold of the patch graph
    affinity: ncut.AffinityKind = "dot"  # what the threshold is applied to, raw dot products or cosines
    mask_rule: ncut.MaskRule = "std"  # where the Fiedler vector is cut
    side: ncut.Side = "peak"  # the foreground holds the largest entry, or less of the image's "border" (ours)
    full_density: float = 0.98  # from this share of connected pairs on, the graph tells nothing: all is foreground
    name_embedding: NameEmbedding = "unit"  # t_c of eq. (7), the mean of unit or of raw prompt embeddings
    crop_teacher: CropTeacherKind = "student"  # who embeds the crops: the model as it is, or as it was (ours)
    fill: tuple[int, int, int] = (123, 117, 104)  # RGB that geometric operations of the strong view uncover
    schedule: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        least: dict[str, float] = {"crops": 1, "fairness_weight": 0, "soap_lr_scale": 0}
        base.check_constants(self, shares="gamma rho", positive="crop_temperature", **least)


_OFFICIAL = MicroCLIPConfig(full_density=1.0, name_embedding="raw", fill=(0, 0, 0))
PRESETS = {"default": MicroCLIPConfig(), "official": _OFFICIAL}
_BIRDS = MicroCLIPConfig(
    crops=4, crop_scale=(0.7, 1.0), affinity="cosine", tau=0.4, side="border", full_density=1.0, soap_lr_scale=0.3,
    schedule=AdaptConfig(lr=2e-3),
)  # fmt: skip
BACKBONE_PRESETS = {"birds": _BIRDS}


def saliency_query(patches: Tensor, mask: Tensor) -> Tensor:
    """Mean foreground token, eq. (2): (B, N, W) float and (B, N) bool -> (B, W), zero where the mask is empty."""
    expect_axes(patches=(patches, "BNW"), mask=(mask, "BN"))
    expect_floats(patches=patches)
    weight = mask.to(patches.dtype)
    return torch.einsum("bn,bnw->bw", weight, patches) / weight.sum(1, keepdim=True).clamp(min=1.0)


def soap_pool(
    query: Tensor, patches: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, projection: Tensor
) -> tuple[Tensor, Tensor]:
    """Saliency-oriented attention pooling, eq. (3), with one head.

    Query (B, W), patches (B, N, W), three matrices (W, W), each as the weight of an `nn.Linear` (y = x w^T), and the
    tower's own projection (W, E), multiplied from the right -> the [FG] embedding (B, E), unit norm, and the attention
    (B, N), summing to 1.
    """
    matrices = {"w_query": w_query, "w_key": w_key, "w_value": w_value}
    axes = {name: (matrix, "WW") for name, matrix in matrices.items()}
    expect_axes(query=(query, "BW"), patches=(patches, "BNW"), **axes, projection=(projection, "WE"))
    expect_floats(query=query, patches=patches, **matrices, projection=projection)
    # Reassociated: W_k^T (W_q q) once per image instead of W_k P_j for every patch; the same for W_v.
    key = query @ w_query.T @ w_key
    attention = (torch.einsum("bnw,bw->bn", patches, key) / query.shape[-1] ** 0.5).softmax(-1)
    return normalize(torch.einsum("bn,bnw->bw", attention, patches) @ w_value.T @ projection), attention


def crop_composite(embedding: Tensor, crops: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Relevance-weighted mean of the crop embeddings, eq. (4).

    (B, E), of the weak view, and (B, K, E), of unit norm -> the composite (B, E), unit norm, and the crop weights
    (B, K), summing to 1. The softmax over crops has a positive temperature; 1 (official) is nearly a plain mean.
    """
    expect_axes(embedding=(embedding, "BE"), crops=(crops, "BKE"))
    expect_floats(embedding=embedding, crops=crops)
    if crops.shape[1] == 0:
        raise ValueError(f"crops must be (B, K, E) with K >= 1, got {tuple(crops.shape)}")
    weights = (torch.einsum("bke,be->bk", crops, embedding) / temperature).softmax(-1)
    return normalize(torch.einsum("bk,bke->be", weights, crops)), weights


def description_classifier(descriptions: list[Tensor], name_embeddings: Tensor) -> Tensor:
    """Frozen classifier W_fix, eq. (7): descriptions weighted by their cosine to the class name, no softmax.

    C tensors (M_c, E) and (C, E), of unit norm -> (C, E), unit norm. The weights of a class must have a
    nonzero sum.
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
            f"the descriptions of classes {lost} have no similarity to the class name that sums to a weight; "
            "give others, or check the embeddings for NaN"
        )
    return classifier


def dka_similarity(static: Tensor, dynamic: Tensor, gamma: float) -> Tensor:
    """Dynamic Knowledge Aggregation, eq. (5): gamma * static + (1 - gamma) * dynamic, all (B, C) cosines."""
    expect_axes(static=(static, "BC"), dynamic=(dynamic, "BC"))
    expect_floats(static=static, dynamic=dynamic)
    return gamma * static + (1.0 - gamma) * dynamic


class Foreground(NamedTuple):
    """The [FG] branch of one batch, with its intermediate results."""

    embedding: Tensor  # (B, E) float, unit norm, l of eq. (3)
    attention: Tensor  # (B, N) float, summing to 1
    mask: Tensor  # (B, N) bool
    spectrum: ncut.Spectrum  # Fiedler vector, the foreground positive, lambda_2 and gap
    density: Tensor  # (B,) float, share of connected patch pairs

    def maps(self, grid: tuple[int, int]) -> dict[str, Tensor]:
        """Its maps on the patch grid (h, w): kind -> (B, h, w) float."""
        found = {"soap": self.attention, "ncut": self.mask.float(), "fiedler": self.spectrum.fiedler}
        return {kind: values.unflatten(1, grid) for kind, values in found.items()}


def foreground(
    tokens: ImageTokens, config: MicroCLIPConfig, w_query: Tensor, w_key: Tensor, w_value: Tensor, projection: Tensor
) -> Foreground:
    """The [FG] branch of the tokens of a batch, eqs. (1)-(3); the matrices are those of `soap_pool`."""
    patches = tokens.patches
    affinity = ncut.patch_affinity(patches.detach(), config.tau, config.affinity)
    cut, density = ncut.spectrum(affinity), ncut.edge_density(affinity)
    cut = cut._replace(fiedler=ncut.turn_to_side(cut.fiedler, tokens.grid, config.side))
    mask = ncut.foreground_mask(cut.fiedler, config.mask_rule) | (density >= config.full_density)[:, None]
    embedding, attention = soap_pool(saliency_query(patches, mask), patches, w_query, w_key, w_value, projection)
    return Foreground(embedding, attention, mask, cut, density)


class MicroCLIP(Method):
    """microCLIP, on a ViT with patch tokens: trains its LayerNorms, the SOAP matrices and the learnable classifier."""

    name = "microclip"
    presets, backbone_presets = PRESETS, BACKBONE_PRESETS
    adjustable = ("gamma", "rho", "crop_temperature")
    sized_by_data = kept_once = ("crop_teacher.bank",)

    config: MicroCLIPConfig

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: MicroCLIPConfig | None = None) -> None:
        super().__init__(backbone, prompts, config)
        backbone.require_patches(self.name)
        templates = base.prompt_sentences(prompts, "templates")
        names = base.text_classifier(backbone, templates, unit=self.config.name_embedding == "unit")
        descriptions = base.sentence_embeddings(backbone, self.sentences)
        self.static_classifier = nn.Buffer(description_classifier(descriptions, names))
        self.learned_classifier = nn.Parameter(base.text_classifier(backbone, self.sentences))
        identity = torch.eye(backbone.width).to(self.static_classifier)
        matrices = (nn.Parameter(identity.clone(), requires_grad=self.config.soap) for _ in range(3))
        self.w_query, self.w_key, self.w_value = matrices
        # Running mean of the predicted probabilities and the number of steps in it, both per epoch.
        self.mean_probs = nn.Buffer(torch.zeros(len(self.class_names), device=backbone.device))
        self.mean_steps = nn.Buffer(torch.zeros((), device=backbone.device))
        self.crop_teacher = FrozenCrops(backbone) if self.config.crop_teacher == "frozen" else None
        base.unfreeze_norms(self.backbone.visual)
        own = self.config
        self.needs = ViewConfig(strong=True, crops=own.crops, crop_scale=own.crop_scale, fill=own.fill)
        # no crops where the teacher has embedded them once and for all
        self.training_needs = replace(self.needs, crops=0) if self.crop_teacher else self.needs

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group as the authors have it; two where the SOAP matrices have a learning rate of their own."""
        groups = super().parameter_groups(weight_decay)
        if self.config.soap_lr_scale == 1.0 or not self.config.soap:
            return groups
        matrices = [self.w_query, self.w_key, self.w_value]
        ours = {id(matrix) for matrix in matrices}
        others = [p for p in groups[0]["params"] if id(p) not in ours]
        own = {"params": matrices, "weight_decay": weight_decay, "lr_scale": self.config.soap_lr_scale}
        return [{**groups[0], "params": others}, own]

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Prepare a frozen crop teacher with the images before training."""
        if self.crop_teacher:
            self.crop_teacher.see(self.backbone, batches)

    def foreground(self, tokens: ImageTokens) -> Foreground:
        """The [FG] branch of a batch, by the trained matrices."""
        return foreground(tokens, self.config, self.w_query, self.w_key, self.w_value, self.backbone.visual.proj)

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
            of_graph = {"lambda_2": found.spectrum.eigenvalue, "edge_density": found.density}
            metrics = {name: views.gather(values) for name, values in of_graph.items()}
        if self.crop_teacher:
            crops = self.crop_teacher.embeddings(index)
        else:
            crops = views.gather(base.embed_crops(self.backbone, views))
        composite, crop_weights = crop_composite(cls, crops, self.config.crop_temperature)
        static = class_logits(composite, self.static_classifier)
        dynamic = class_logits(normalize(0.5 * cls + 0.5 * fg), self.learned_classifier)
        scale = self.backbone.logit_scale
        probs = (scale * dka_similarity(static, dynamic, self.config.gamma)).softmax(-1)
        sources = {"static": scale * static, "dynamic": scale * dynamic}
        of_crops = CropLogits(
            torch.einsum("bke,be->bk", crops, cls),
            scale * class_logits(crops, self.static_classifier), crops @ crops.mT,
        )  # fmt: skip
        return base.guesses(probs, sources, crop_weights=crop_weights, metrics=metrics, crop_logits=of_crops)

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
        self.mean_steps.add_(1)
        return mean

    def begin_epoch(self) -> None:
        """Reset the running mean."""
        self.mean_probs.zero_()
        self.mean_steps.zero_()

    def logits(self, images: Tensor) -> Tensor:
        """Fused logits of eq. (6) on whole images."""
        tokens = self.backbone.tokens(images)
        return self._fused_logits(tokens.cls, self._fg_embedding(tokens))

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """CLS alone and [FG] alone."""
        tokens, scale = self.backbone.tokens(images), self.backbone.logit_scale
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
