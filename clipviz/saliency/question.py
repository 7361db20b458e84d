"""The question that a gradient map answers: how strongly does the model say A, or A rather than B?

    score(x) = s f(x) . t_A                      an image-text logit
    score(x) = s f(x) . t_A  -  s f(x) . t_B     the contrast: why A and not its look-alike B

For a method, the two logits come from its own inference; for a bare backbone, A and B are sentences (or embeddings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.backbone.ownership import preserved_state
from clipviz.errors import unknown
from clipviz.methods.base import Method
from clipviz.ops import normalize

Model: TypeAlias = Backbone | Method
Asked: TypeAlias = int | str | Sequence[int] | Sequence[str] | Tensor


class Question(NamedTuple):
    """A scalar question per image.

    Attributes:
        score: score(images, *args) -> (B,) float, differentiable in the images.
        args: tensors with one row per image (class indices, or directions in the embedding space), so that they can be
            repeated when the images are.
    """

    score: Callable[..., Tensor]
    args: tuple[Tensor, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """The score of the images the question was asked about, (B,)."""
        return self.score(images, *self.args)

    def repeat(self, n: int) -> Question:
        """The same question for a batch in which every image stands n times in a row."""
        return Question(self.score, tuple(arg.repeat_interleave(n, 0) for arg in self.args))


def backbone_of(model: Model) -> Backbone:
    """The backbone of a method, or the backbone itself.

    Raises:
        ValueError: if it is neither, or if it knows embeddings instead of images.
    """
    backbone = model.backbone if isinstance(model, Method) else model
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"saliency wants a Backbone (load_backbone) or a method (METHODS[name](backbone, prompts)), "
            f"got {type(model).__name__}"
        )
    if backbone.image_size == 0:
        raise ValueError(
            f"saliency wants images, but {backbone.name!r} holds their embeddings only; "
            "load the images themselves, and the model that embeds them with load_backbone"
        )
    return backbone


def ask(model: Model, images: Tensor, target: Asked | None = None, contrast: Asked | None = None) -> Question:
    """Turn classes (of a method) or sentences (for a backbone) into a question.

    Args:
        model: a method, or a backbone.
        images: (B, 3, S, S) float in [0, 1].
        target: for a method a class, by index or name, one for all images or one each; None for the class it predicts.
            For a backbone a sentence or an embedding (E,), one for all images or one each, (B, E).
        contrast: likewise, the class or sentence to set it against; None for the plain logit.

    Raises:
        ValueError: for a missing or unknown target, or a contrast equal to it.
    """
    if isinstance(model, Method):
        return _class_question(model, images, target, contrast)
    return _sentence_question(model, images, target, contrast)


def resolve(model: Model, asked: Asked, n: int) -> Tensor:
    """Classes or sentences as a tensor with a row per image: (n,) int64 for a method, (n, E) float for a backbone.

    Raises:
        ValueError: for an unknown class, or a number of rows that is neither one nor n.
    """
    return class_indices(model, asked, n) if isinstance(model, Method) else _embeddings(model, asked, n)


def predicted_classes(method: Method, images: Tensor, batch_size: int = 256) -> Tensor:
    """The class that a method names for each image, (B,) int64."""
    with preserved_state(method):
        batches = images.to(method.backbone.device).split(batch_size)
        return torch.cat([method.logits(batch).argmax(-1) for batch in batches])


def runner_up(method: Method, images: Tensor, target: Asked | None = None) -> Tensor:
    """The class that a method would name if `target` did not exist: the natural look-alike for a contrast.

    Args:
        method: any.
        images: (B, 3, S, S) float in [0, 1].
        target: as for `ask`; None for the predicted class.

    Returns:
        (B,) int64.

    Raises:
        ValueError: if the method knows one class only.
    """
    if len(method.class_names) < 2:
        raise ValueError("a runner-up needs at least two classes")
    with preserved_state(method):
        logits = method.logits(images.to(method.backbone.device))
    first = logits.argmax(-1) if target is None else class_indices(method, target, len(images))
    return logits.scatter(1, first[:, None], -torch.inf).argmax(-1)


def _class_question(method: Method, images: Tensor, target: Asked | None, contrast: Asked | None) -> Question:
    asked = predicted_classes(method, images) if target is None else class_indices(method, target, len(images))

    def logit(images: Tensor, index: Tensor) -> Tensor:
        return method.logits(images).gather(1, index[:, None])[:, 0]

    def difference(images: Tensor, index: Tensor, other: Tensor) -> Tensor:
        logits = method.logits(images)
        return (logits.gather(1, index[:, None]) - logits.gather(1, other[:, None]))[:, 0]

    if contrast is None:
        return Question(logit, (asked,))
    other = class_indices(method, contrast, len(images))
    _require_different(asked == other)
    return Question(difference, (asked, other))


def _sentence_question(backbone: Backbone, images: Tensor, target: Asked | None, contrast: Asked | None) -> Question:
    if target is None:
        raise ValueError(
            "a backbone has no classes, so gradient kinds want target='a sentence' (or an embedding); "
            "with a method the predicted class is the default"
        )
    direction = _embeddings(backbone, target, len(images))
    if contrast is not None:
        other = _embeddings(backbone, contrast, len(images))
        _require_different((direction == other).all(-1))
        direction = direction - other

    def logit(images: Tensor, direction: Tensor) -> Tensor:
        embeddings = backbone.embed(images)
        if direction.shape != embeddings.shape:
            raise ValueError(f"wanted target embeddings {tuple(embeddings.shape)}, got {tuple(direction.shape)}")
        return backbone.logit_scale * (embeddings * direction).sum(-1)

    return Question(logit, (direction,))


def class_indices(method: Method, asked: Asked, n: int) -> Tensor:
    """Classes by index or name, one or n of them -> (n,) int64.

    Raises:
        ValueError: for an unknown class or a wrong number of them.
    """
    names = method.class_names
    single = isinstance(asked, int | str) or (isinstance(asked, Tensor) and asked.ndim == 0)
    items: list[Any] = [asked] * n if single else list(asked)  # type: ignore[arg-type]
    if len(items) != n:
        raise ValueError(f"wanted one class or one for each of {n} images, got {len(items)}")
    rows = []
    for item in items:
        if isinstance(item, str):
            if item not in names:
                raise unknown("class", item, names)
            rows.append(names.index(item))
        elif not 0 <= int(item) < len(names) or int(item) != item:
            raise ValueError(f"class index {item} does not exist: {method.name} knows {len(names)}, from 0")
        else:
            rows.append(int(item))
    return torch.tensor(rows, dtype=torch.int64, device=method.backbone.device)


def _embeddings(backbone: Backbone, asked: Asked, n: int) -> Tensor:
    if isinstance(asked, Tensor) and asked.is_floating_point():
        rows = normalize(asked.detach().to(backbone.device))
    elif isinstance(asked, str):
        rows = backbone.embed_text([asked])
    elif isinstance(asked, Sequence) and asked and all(isinstance(text, str) for text in asked):
        rows = backbone.embed_text([str(text) for text in asked])
    else:
        raise ValueError(
            f"a backbone wants a sentence, one sentence per image, or embeddings, got {asked!r}; "
            "class indices need a method, such as METHODS['zero_shot'](backbone, prompts)"
        )
    if rows.ndim == 1 or len(rows) == 1:
        rows = rows.reshape(1, -1).expand(n, -1)
    if rows.ndim != 2 or len(rows) != n:
        raise ValueError(f"wanted one target for all {n} images, or one each, got {tuple(rows.shape)}")
    return rows


def _require_different(same: Tensor) -> None:
    if same.any():
        raise ValueError(f"target and contrast are the same for image {int(same.nonzero()[0])}; contrast another class")
