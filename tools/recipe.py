"""What a pretraining is made of: the weights of its terms, its data, its schedule, and the model it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    # The whole CLIP vocabulary in a narrow table (6.3 MB of fp16): words of one's own are tokens, if untrained ones.
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss, which `tools.pretrain` writes down; a term of weight 0 is not computed."""

    caption: float = 1.0  # CLS against captions
    attribute: float = 4.0  # CLS against the prompts of every attribute
    patch: float = 2.8  # patches against the same, pooled by their own softmax
    bird_caption: float = 0.8  # the mean patch of the bird against captions
    bird_attribute: float = 3.2  # and against attributes
    place: float = 1.0  # a patch shows the bird's plan or background
    pair: float = 2.0  # likeness of pairs of patches
    part: float = 0.0  # a patch that shows a part against the prompts of what can be seen there
    soap_caption: float = 0.0  # SOAP's token, over the true bird, against captions
    soap_attribute: float = 0.0  # and against attributes
    zoom: float = 0.0  # the patches of a region against the embedding of its enlarged view


@dataclass(frozen=True)
class PretrainConfig:
    """How to pretrain.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step.
        lr: peak learning rate of AdamW; warm-up over `warmup` steps, then cosine to 1 % of it.
        weight_decay: on matrices only.
        pool: rendered birds; each is seen many times, with other crops, colors and captions.
        shifted: share of the pool that is mildly shifted, with severity up to `max_severity`.
        whole: share of views that are the whole picture; the others are squares of 0.5 to 0.95 of its side.
        strangers: share of views with pieces of other birds beside and behind the bird.
        coarse: share of the captions that CLS reads which tell only what is seen from afar, the plan and large colors;
            the terms on patches read detailed ones of the same images.
        fresh_cls: whether CLS forgets, before the first step, how it looks: its token, its place, and the queries and
            keys of the last block, on which no patch token depends.
        weights: of the terms of the loss.
        seed: of everything.
    """

    steps: int = 7300
    batch_size: int = 128
    lr: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.05
    pool: int = 60_000
    shifted: float = 0.25
    max_severity: float = 0.4
    whole: float = 0.5
    strangers: float = 0.0
    coarse: float = 0.0
    fresh_cls: bool = False
    weights: Weights = field(default_factory=Weights)
    seed: int = 0
