"""What no run can be made of, refused before anything is done."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipviz.data.base import ImageDataset
from clipviz.data.batches.features import FeatureBackbone, FeatureDataset
from clipviz.errors import one_line
from clipviz.events import UNLABELLED, PseudoLabels
from clipviz.methods.base import AdaptConfig, Method
from clipviz.ops import expect_axes
from clipviz.parallel import Ranks


def check_storable(settings: dict[str, dict[str, Any]]) -> None:
    """Refuse constants that no file of a run could hold: at the first save it would be too late."""
    for group, constants in settings.items():
        for name, value in constants.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name} of the {group} must be a plain number or text, got {one_line(repr(value), 60)}; "
                    "convert it with int() or float()"
                ) from error


def suspects(method: Method) -> str:
    """What may make numbers that are not finite; constants that are not the default ones as they are given to --set."""
    default = method.default_config(method.backbone)
    known = {} if default is None else {**asdict(default), "schedule": method.settings.get("schedule")}
    own = ", ".join(f"{name}={value}" for name, value in method.settings.items() if known.get(name, value) != value)
    why = "a constant is too large or too small, or the model has weights that are not"
    return f"{why}; see --set{f' ({own})' if own else ''}, --lr and --pretrained"


def check_labels(method: Method, *datasets: ImageDataset | None) -> None:
    """Refuse what a method cannot look at, and labels of no class of it, or of another; names may have got better."""
    known = {name: position for position, name in enumerate(method.class_names)}
    if half := [name for name, weights in method.backbone.named_parameters() if weights.dtype.itemsize == 2]:
        raise ValueError(f"{method.name} has weights in half precision ({half[0]}); use load_backbone(precision=...)")
    state = {name: tensor for name, tensor in method.trainable_state().items() if tensor.is_floating_point()}
    own = {tensor.dtype for name, tensor in state.items() if not name.startswith("backbone.")}
    if own and next(method.backbone.parameters()).dtype == torch.float64 not in own:
        raise ValueError(f"{method.name} was built before its model was made .double(); use method.double()")
    if any(tensor.is_inference() for tensor in state.values()):
        raise ValueError(f"{method.name} was built within torch.inference_mode() and cannot change; build it outside")
    for data in [data for data in datasets if data is not None]:
        _check_contents(data)
        _check_embeddings(method, data)
        if not data.has_targets:
            continue
        highest = int(np.max(data.targets))
        if highest >= len(known):
            raise ValueError(
                f"{data.name} has labels up to {highest}, but the prompts that {method.name} was built with are of "
                f"{len(known)} classes; both need the same classes"
            )
        for position, name in enumerate(data.class_names):
            if known.get(name, position) != position:
                raise ValueError(
                    f"label {position} of {data.name} is {name!r}, which is class {known[name]} of the prompts that "
                    f"{method.name} was built with; both need the same order"
                )


def _check_contents(data: Any) -> None:
    """Refuse what is no data set, and what one of a user's own class may get wrong, before hours are spent on it."""
    if not isinstance(data, ImageDataset):
        raise ValueError(f"wanted a data set (load_dataset; a subclass of ImageDataset), got {type(data).__name__}")
    n, targets = len(data.names), data.targets
    if getattr(targets, "dtype", None) != np.int64 or targets.shape != (n,) or (targets < UNLABELLED).any():
        raise ValueError(
            f"targets of {data.name} must be an int64 array of numpy with a class index, or {UNLABELLED}, for each of "
            f"its {n} names, got {one_line(repr(targets), 80)}"
        )
    if n and not isinstance(name := data.names[0], str):
        raise ValueError(f"names of {data.name} must be texts, got {one_line(repr(name), 60)}; convert each with str()")
    if data.has_pixels and n and not data.are_files:
        data.checked_image(0)


def _check_embeddings(method: Method, data: ImageDataset) -> None:
    """Refuse embeddings of another model than the method looks through, and images where it looks at embeddings."""
    model = method.backbone
    if isinstance(data, FeatureDataset) and (width := data.embeddings.shape[1]) != model.embed_dim:
        raise ValueError(
            f"{data.name} has embeddings of width {width}, but {method.name} was built for {model.name!r}, "
            f"whose are of width {model.embed_dim}; both must come from one model"
        )
    if data.has_pixels and isinstance(model, FeatureBackbone):
        raise ValueError(f"{method.name} was built for embeddings, but {data.name} holds images; embed them first")


def check_shares(method: Method, dataset: ImageDataset, config: AdaptConfig, ranks: Ranks) -> None:
    """Refuse what several processes cannot share, or gain nothing by."""
    if not dataset.has_pixels:
        raise ValueError(
            f"{dataset.name} holds embeddings, and {ranks.size} processes can share only the computation of "
            "embeddings; use one device"
        )
    if config.batch_size < ranks.size:
        raise ValueError(
            f"a batch of {config.batch_size} images cannot be shared by {ranks.size} processes; "
            "ask for a larger --batch-size, or fewer devices"
        )
    norms = (m for m in method.backbone.visual.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if method.trains and method.adapts_tower and any(norms):
        raise ValueError(
            f"{method.backbone.name} has BatchNorms, which learn from whole batches, so {ranks.size} processes cannot "
            "share one; use one device, or a ViT"
        )


def check_guesses(method: Method, pseudo: Any, n: int) -> None:
    """Refuse pseudo-labels of n images that no trace can hold, at the step that gives them."""
    if not isinstance(pseudo, PseudoLabels):
        raise ValueError(f"pseudo_label of {method.name} must return PseudoLabels, got {type(pseudo).__name__}")
    for what in ("sources", "metrics"):
        if not isinstance(found := getattr(pseudo, what), Mapping) or {*map(type, found)} - {str}:
            wanted = f"pseudo_label of {method.name}: {what} must be a dictionary, name -> tensor"
            raise ValueError(f"{wanted}, got {one_line(repr(found), 60)}")
    axes = {"labels": (pseudo.labels, "n"), "weights": (pseudo.weights, "n"), "probs": (pseudo.probs, "nC")}
    axes |= {f"source {name!r}": (logits, "nC") for name, logits in pseudo.sources.items()}
    try:
        expect_axes(**axes, **{f"metric {name!r}": (values, "n") for name, values in pseudo.metrics.items()})
    except ValueError as error:
        raise ValueError(f"pseudo_label of {method.name}: {error}") from error
    if len(pseudo.labels) != n:
        raise ValueError(
            f"{method.name} labels {len(pseudo.labels)} of the {n} images of a batch; a method that "
            "several processes share passes what it computes from views through views.gather"
        )


def check_terms(method: Method, terms: Any) -> None:
    """Refuse a loss that has no sum, or nothing that can be learned from it."""
    each: list[Any] = list(terms.values()) if isinstance(terms, Mapping) and {*map(type, terms)} == {str} else [None]
    is_sum = all(isinstance(term, Tensor) and term.numel() == 1 for term in each)
    if not is_sum or not any(term.requires_grad for term in each):
        raise ValueError(
            f"loss of {method.name} must return a dictionary, name -> tensor of one number, and one of them at least "
            f"must depend on what is trained, got {one_line(repr(terms), 100)}"
        )
