"""One signature for every kind of saliency map, and the table of kinds, which takes your own as well."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.errors import choose
from clipviz.saliency import attribution, token_maps
from clipviz.saliency.attention import attention_modules
from clipviz.saliency.question import Asked, Model, Question, ask, backbone_of

Needs = Literal["patches", "attention", "pixels"]


class Kind(NamedTuple):
    """A way to make a map."""

    function: Callable[..., Tensor]  # function(model, images[, question], **options) -> (B, h, w) raw values
    # of the image tower. "patches": value-path tokens (`Backbone.tokens`); "attention": open_clip blocks that end in a
    # CLS token; "pixels": nothing, any tower
    needs: Needs
    asks: bool  # whether it takes a question, so that `target` and `contrast` matter


KINDS: dict[str, Kind] = {
    "soap": Kind(token_maps.soap, "patches", asks=False),
    "ncut": Kind(token_maps.ncut, "patches", asks=False),
    "fiedler": Kind(token_maps.fiedler, "patches", asks=False),
    "cls_attention": Kind(token_maps.cls_attention, "attention", asks=False),
    "rollout": Kind(token_maps.rollout, "attention", asks=False),
    "relevance": Kind(token_maps.relevance, "attention", asks=True),
    "integrated_gradients": Kind(attribution.integrated_gradients, "pixels", asks=True),
    "occlusion": Kind(attribution.occlusion, "pixels", asks=True),
    "layer_gradcam": Kind(attribution.layer_gradcam, "pixels", asks=True),
    "class_map": Kind(token_maps.class_map, "patches", asks=True),
    "legrad": Kind(token_maps.legrad, "attention", asks=True),
    "grad_eclip": Kind(token_maps.grad_eclip, "patches", asks=True),
}
BUILT_IN = tuple(KINDS)
_OTHER_ARRAYS = ("images", "index", "target", "parts", "probs", "prediction", "confidence")  # beside maps in a trace


def register(name: str, function: Callable[..., Tensor], needs: Needs = "pixels") -> None:
    """Add a kind of map of your own to `KINDS`, for `saliency_maps`, the tables, and runs and explorers begun later.

    Args:
        name: letters, digits and underscores; one that is taken is refused.
        function: function(model, images) or function(model, images, question) -> (B, h, w) finite. It gets a method or
            a backbone in eval mode that nobody else uses meanwhile, images (B, 3, S, S) in [0, 1] on its device, and
            a `Question`, the score that is to be explained. Gradients are on. Keyword-only parameters are options.
        needs: what the image tower must have, see `Kind`.
    """
    if not isinstance(name, str) or not name.isidentifier() or name in _OTHER_ARRAYS:
        taken = " (a trace holds other things by that name)" if name in _OTHER_ARRAYS else ""
        raise ValueError(f"a kind of map needs a name of letters, digits and _, got {name!r}{taken}; choose another")
    if name in KINDS:
        remove = "" if name in BUILT_IN else f", or first: del clipviz.saliency.KINDS[{name!r}]"
        raise ValueError(f"there already is a kind of map {name!r}; choose another name{remove}")
    choose("need of a kind of map", needs, get_args(Needs))
    given = list(inspect.signature(function).parameters.values()) if callable(function) else []
    places = [p for p in given if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    if len(places) not in (2, 3) or any(p.kind is p.VAR_POSITIONAL for p in places):
        raise ValueError(
            "a kind of map needs function(model, images) or function(model, images, question), with options after a *, "
            f"got {getattr(function, '__name__', function)!r} of {', '.join(p.name for p in given) or 'nothing'}"
        )
    KINDS[name] = Kind(function, needs, asks=len(places) == 3)


def registered_maps(model: Model, images: Tensor) -> dict[str, Tensor]:
    """Raw maps (B, h, w) of the registered kinds, for the predicted classes; those that fail are left out."""
    made: dict[str, Tensor] = {}
    for kind in [kind for kind in available_kinds(model) if kind not in BUILT_IN]:
        try:
            made[kind] = saliency_maps(model, images, kind).raw
        except ValueError as error:
            warnings.warn(f"no map of the kind {kind} is recorded: {error}", stacklevel=2)
    return made


class SaliencyMaps(NamedTuple):
    """Maps of a batch, on the model's device."""

    maps: Tensor  # (B, h, w) float in [0, 1], for display: `unit_maps` of `raw`; 0 throughout if nothing is positive
    raw: Tensor  # (B, h, w) float, in the units of the kind; signed where evidence can speak against the class


def saliency_maps(
    model: Model, images: Tensor, kind: str, *, target: Asked = None, contrast: Asked = None, **options: Any
) -> SaliencyMaps:
    """Where a model looks.

    Args:
        model: a method (its own inference is explained), or a bare `Backbone`.
        images: (B, 3, S, S) float in [0, 1].
        kind: a key of `KINDS`.
        target: what to explain (see `clipviz.saliency.question.ask`): a class of the method, by default the one it
            predicts, or a sentence for a backbone. Class-independent kinds give the same map for every target.
        contrast: class or sentence to contrast it with: the difference of the two logits is explained.
        **options: of the kind's function: `layer` and `head` of cls_attention, `start_layer`, `tau`, `steps`, ...

    Returns:
        Detached, first row of the grid at the top of the image. Weights, modes, random state and hooks of the model are
        as before.

    Raises:
        ValueError: for an unknown kind or option, a tower that does not support it (with the kinds that work), a
            missing target, a contrast for a class-independent kind, or values that are not finite.
    """
    choose("saliency kind", kind, KINDS)
    asks = KINDS[kind].asks
    if contrast is not None and not asks:
        asking = ", ".join(name for name, other in KINDS.items() if other.asks)
        raise ValueError(f"{kind} is the same for every class, so it has no contrast; these have: {asking}")
    backbone_of(model).check_images(images)
    with preserved_state(model, gradients=True):  # over both: the model of the question is that of the map
        require_kind(model, kind)
        images = images.detach().clone().to(backbone_of(model).device)
        raw = raw_map(model, images, kind, ask(model, images, target, contrast) if asks else None, **options)
    return SaliencyMaps(unit_maps(raw), raw)


def raw_map(model: Model, images: Tensor, kind: str, question: Question | None, **options: Any) -> Tensor:
    """The raw values of `saliency_maps` for a prepared question, (B, h, w) float."""
    for name in options:
        choose(f"option of {kind}", name, option_names(kind))
    with preserved_state(model, gradients=True):
        function, _, asks = KINDS[kind]
        raw = function(model, images, question, **options) if asks else function(model, images, **options)
    if not isinstance(raw, Tensor) or raw.ndim != 3 or len(raw) != len(images) or not raw.numel():
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise ValueError(f"{kind} must give a tensor (B, h, w) with a map for each of {len(images)} images, got {got}")
    raw = raw.detach().to(images.device, torch.float32)
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
    """Refuse a kind that the image tower does not support, with the reason and the kinds that work."""
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
