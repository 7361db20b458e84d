"""One signature for every kind of saliency map, and the table of kinds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.errors import choose
from clipviz.saliency.attention import attention_modules
from clipviz.saliency.attention_maps import cls_attention, relevance, rollout
from clipviz.saliency.attribution import integrated_gradients, layer_gradcam, occlusion
from clipviz.saliency.foreground import fiedler, ncut, soap
from clipviz.saliency.question import Asked, Model, Question, ask, backbone_of

Needs = Literal["patches", "attention", "pixels"]


class Kind(NamedTuple):
    """A way to make a map."""

    function: Callable[..., Tensor]  # function(model, images, question, **options) -> (B, h, w) raw values
    # of the image tower. "patches": value-path tokens (`Backbone.tokens`); "attention": open_clip blocks that end in a
    # CLS token; "pixels": nothing, any tower
    needs: Needs
    asks: bool  # whether it answers a question, so that `target` and `contrast` matter


KINDS: dict[str, Kind] = {
    "soap": Kind(soap, "patches", asks=False),
    "ncut": Kind(ncut, "patches", asks=False),
    "fiedler": Kind(fiedler, "patches", asks=False),
    "cls_attention": Kind(cls_attention, "attention", asks=False),
    "rollout": Kind(rollout, "attention", asks=False),
    "relevance": Kind(relevance, "attention", asks=True),
    "integrated_gradients": Kind(integrated_gradients, "pixels", asks=True),
    "occlusion": Kind(occlusion, "pixels", asks=True),
    "layer_gradcam": Kind(layer_gradcam, "pixels", asks=True),
}


class SaliencyMaps(NamedTuple):
    """Maps of a batch, on the model's device."""

    maps: Tensor  # (B, h, w) float in [0, 1], for display: `unit_maps` of `raw`; 0 throughout if nothing is positive
    raw: Tensor  # (B, h, w) float, in the units of the kind; signed where evidence can speak against the class


def saliency_maps(
    model: Model,
    images: Tensor,
    kind: str,
    *,
    target: Asked | None = None,
    contrast: Asked | None = None,
    **options: Any,
) -> SaliencyMaps:
    """Where a model looks.

    Args:
        model: a method (its own inference is explained), or a bare `Backbone`.
        images: (B, 3, S, S) float in [0, 1].
        kind: a key of `KINDS`.
        target: what to explain (see `clipviz.saliency.question.ask`): a class of the method, by default the one it
            predicts, or a sentence for a backbone. Kinds that do not ask give the same map for every target.
        contrast: class or sentence to set it against: the difference of the two logits is explained.
        **options: of the kind's function: `layer` and `head` of cls_attention, `start_layer`, `tau`, `steps`, ...

    Returns:
        Detached, first row of the grid at the top of the image. Weights, modes, random state and hooks of the model are
        as before.

    Raises:
        ValueError: for an unknown kind or option, a tower that cannot do it (with the kinds that can), a missing
            target, a contrast for a kind that does not ask, or values that are not finite.
    """
    choose("saliency kind", kind, KINDS)
    asks = KINDS[kind].asks
    if contrast is not None and not asks:
        asking = ", ".join(name for name, other in KINDS.items() if other.asks)
        raise ValueError(f"{kind} is the same for every class, so it has no contrast; these have: {asking}")
    side = backbone_of(model).image_size
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != (3, side, side):
        raise ValueError(f"saliency wants images (B, 3, {side}, {side}) in [0, 1], B >= 1, got {tuple(images.shape)}")
    with preserved_state(model, gradients=True):  # over both: the model of the question is that of the map
        require_kind(model, kind)
        images = images.detach().clone().to(backbone_of(model).device)
        question = ask(model, images, target, contrast) if asks else None
        raw = raw_map(model, images, kind, question, **options)
    return SaliencyMaps(unit_maps(raw), raw)


def raw_map(model: Model, images: Tensor, kind: str, question: Question | None, **options: Any) -> Tensor:
    """The raw values of `saliency` for a question that has been asked already, (B, h, w) float."""
    for name in options:
        choose(f"option of {kind}", name, option_names(kind))
    with preserved_state(model, gradients=True):
        raw = KINDS[kind].function(model, images, question, **options).detach().float()
    if not torch.isfinite(raw).all():
        raise ValueError(f"{kind} is not finite; the images or the model's weights hold NaN or infinity")
    return raw


def unit_maps(raw: Tensor) -> Tensor:
    """Positive part over its maximum, image by image: (B, h, w) float -> (B, h, w) in [0, 1]."""
    positive = raw.clamp(min=0)
    return positive / positive.amax((1, 2), keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)


def option_names(kind: str) -> tuple[str, ...]:
    """Names of what can be chosen for a kind ("layer", "head", "tau", ...)."""
    parameters = inspect.signature(KINDS[kind].function).parameters
    return tuple(name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY)


def available_kinds(model: Model) -> tuple[str, ...]:
    """The kinds that work with the image tower of a model."""
    with lock_of(model):  # a tower whose attention somebody captures seems to have none
        return tuple(name for name, kind in KINDS.items() if _obstacle(model, kind.needs) is None)


def require_kind(model: Model, kind: str) -> None:
    """Refuse a kind that the image tower cannot do, with the reason and the kinds that work."""
    if reason := _obstacle(model, KINDS[kind].needs):
        raise ValueError(f"{kind} {reason}; these kinds work with it: {', '.join(available_kinds(model))}")


def _obstacle(model: Model, needs: Needs) -> str | None:
    backbone = backbone_of(model)
    visual = backbone.visual
    name = f"{backbone.name!r} is a {type(visual).__name__}"
    if needs == "patches" and not backbone.has_patches:
        return f"needs the patch tokens of a ViT with a CLS token and standard blocks, but {name}"
    if needs == "attention":
        if getattr(visual, "pool_type", None) != "tok" or getattr(visual, "attn_pool", None) is not None:
            return f"needs a ViT that ends in its CLS token, but {name} and ends in another way"
        try:
            attention_modules(backbone)
        except ValueError as error:
            return f"needs attention weights: {error}"
    return None
