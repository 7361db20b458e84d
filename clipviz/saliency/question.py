"""The question that a gradient map answers: how strongly does the model say A, or why A and not B?

    score(x) = s f(x) . t_A                      an image-text logit
    score(x) = s f(x) . t_A  -  s f(x) . t_B     the contrast: why A and not its look-alike B

For a method, the two logits come from its own inference; for a bare backbone, A and B are sentences (or embeddings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.backbone.ownership import preserved_state
from clipviz.errors import choose, one_line
from clipviz.methods.base import Method
from clipviz.ops import normalize

Model: TypeAlias = Backbone | Method
Asked: TypeAlias = int | str | Sequence[int] | Sequence[str] | Tensor | None


class Question(NamedTuple):
    """A scalar question per image."""

    score: Callable[..., Tensor]  # score(images, *args) -> (B,) float, differentiable in the images
    args: tuple[Tensor, ...]  # with one row per image: class indices, or directions in the embedding space

    def __call__(self, images: Tensor) -> Tensor:
        """The score of the images the question was asked about, (B,)."""
        return self.score(images, *self.args)

    def differentiable(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf copy of the images, and its score (B,) in the graph; refused where the score has no gradient."""
        pixels = images.detach().clone().requires_grad_(True)
        score = self(pixels)
        if not score.requires_grad:
            raise ValueError("the model computes its logits without gradient, so gradient kinds cannot explain them")
        return pixels, score

    def repeat(self, n: int) -> Question:
        """The same question for a batch in which every image stands n times in a row."""
        return Question(self.score, tuple(arg.repeat_interleave(n, 0) for arg in self.args))


def backbone_of(model: Model) -> Backbone:
    """The backbone of a method, or the backbone itself; refused if it is neither, or knows embeddings only."""
    backbone = model.backbone if isinstance(model, Method) else model
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"saliency needs a Backbone (load_backbone) or a method (METHODS[name](backbone, prompts)), "
            f"got {type(model).__name__}"
        )
    if backbone.image_size == 0:
        raise ValueError(
            f"saliency needs images, but {backbone.name!r} holds their embeddings only; "
            "load the images themselves, and the model that embeds them with load_backbone"
        )
    return backbone


def ask(model: Model, images: Tensor, target: Asked = None, contrast: Asked = None) -> Question:
    """Turn classes (of a method) or sentences (for a backbone) into a question.

    Target and contrast are one for all images (B, 3, S, S) or one each: of a method a class, by index or name, by
    default the one it predicts; of a backbone a sentence or an embedding (E,). No contrast means the plain logit.
    """
    if target is None and not isinstance(model, Method):
        raise ValueError(
            "a backbone has no classes, so gradient kinds want target='a sentence' (or an embedding); "
            "with a method the predicted class is the default"
        )
    asked = targets(model, images, target)
    other = None if contrast is None else resolve(model, contrast, len(images))
    if other is not None and len(same := (asked == other).reshape(len(images), -1).all(1).nonzero()):
        raise ValueError(f"target and contrast are the same for image {int(same[0])}; contrast another class")
    if isinstance(model, Method):
        return Question(partial(_class_score, model), (asked,) if other is None else (asked, other))
    return Question(partial(_sentence_score, model), (asked if other is None else asked - other,))


def _class_score(method: Method, images: Tensor, index: Tensor, other: Tensor | None = None) -> Tensor:
    logits = method.logits(images)
    score = logits.gather(1, index[:, None])
    return (score if other is None else score - logits.gather(1, other[:, None]))[:, 0]


def _sentence_score(backbone: Backbone, images: Tensor, direction: Tensor) -> Tensor:
    embeddings = backbone.embed(images)
    if direction.shape != embeddings.shape:
        raise ValueError(f"wanted target embeddings {tuple(embeddings.shape)}, got {tuple(direction.shape)}")
    return backbone.logit_scale * (embeddings * direction).sum(-1)


def targets(model: Any, images: Tensor, target: Asked) -> Tensor:
    """Classes (n,) int64 of a method, by default the predicted ones, or sentences (n, E) for a backbone."""
    return predicted_classes(model, images) if target is None else resolve(model, target, len(images))


def resolve(model: Model, asked: Asked, n: int) -> Tensor:
    """What is asked of one or n images, with a row per image: see `targets`."""
    return _class_indices(model, asked, n) if isinstance(model, Method) else _embeddings(model, asked, n)


def predicted_classes(method: Method, images: Tensor, batch_size: int = 256) -> Tensor:
    """The class that a method names for each image, (B,) int64."""
    with preserved_state(method):
        batches = images.to(method.backbone.device).split(batch_size)
        return torch.cat([method.logits(batch).argmax(-1) for batch in batches])


def runner_up(method: Method, images: Tensor, target: Asked = None) -> Tensor:
    """The class (B,) that a method would name if `target` did not exist: the natural look-alike for a contrast."""
    if len(method.class_names) < 2:
        raise ValueError("a runner-up needs at least two classes")
    with preserved_state(method):
        logits = method.logits(images.to(method.backbone.device))
    first = logits.argmax(-1) if target is None else _class_indices(method, target, len(images))
    return logits.scatter(1, first[:, None], -torch.inf).argmax(-1)


def _class_indices(method: Method, asked: Asked, n: int) -> Tensor:
    names = method.class_names
    single = isinstance(asked, str) or not getattr(asked, "ndim", isinstance(asked, Sequence))  # numpy's, too
    items: list[Any] = [asked] * n if single else list(asked)  # type: ignore[arg-type]
    if len(items) != n:
        raise ValueError(f"wanted one class or one for each of {n} images, got {len(items)}")
    rows = [names.index(choose("class", item, names)) if isinstance(item, str) else item for item in items]
    if wrong := [row for row in rows if not 0 <= int(row) < len(names) or int(row) != row]:
        raise ValueError(f"class index {wrong[0]} does not exist: {method.name} knows {len(names)}, from 0")
    return torch.tensor([int(row) for row in rows], dtype=torch.int64, device=method.backbone.device)


def _embeddings(backbone: Backbone, asked: Asked, n: int) -> Tensor:
    texts = [asked] if isinstance(asked, str) else asked
    if isinstance(asked, Tensor) and asked.is_floating_point():
        rows = normalize(asked.detach().to(backbone.device))
    elif isinstance(texts, Sequence) and texts and all(isinstance(text, str) for text in texts):
        rows = backbone.embed_text([str(text) for text in texts])
    else:
        raise ValueError(
            f"a backbone needs a sentence, one sentence per image, or embeddings, got {one_line(repr(asked))}; "
            "class indices need a method, such as METHODS['zero_shot'](backbone, prompts)"
        )
    if rows.ndim == 1 or len(rows) == 1:
        rows = rows.reshape(1, -1).expand(n, -1)
    if rows.ndim != 2 or len(rows) != n:
        raise ValueError(f"wanted one target for all {n} images, or one each, got {tuple(rows.shape)}")
    return rows
