"""One step of a method, beside the plain open_clip forwards and the backward that it cannot do without."""

from __future__ import annotations

from functools import cache
from typing import Any

import open_clip
import torch
import torch.nn.functional as F

from benchmarks.scale import small_backbone
from clipviz import load_backbone
from clipviz.backbone import Backbone
from clipviz.data.base import Batch, ImageDataset, Views
from clipviz.methods.base import ask
from clipviz.methods.build import build_method
from clipviz.methods.microclip import MicroCLIP
from clipviz.prompts import ClassPrompts


@cache
def backbone_of(name: str) -> Backbone:
    """The bundled model, a "small" one for measuring what is not the model, or an architecture with random weights."""
    if name == "small":
        return small_backbone()
    if name == "birds":
        return load_backbone("birds")
    model, _, transform = open_clip.create_model_and_transforms(name)
    pixels: Any = transform.transforms[-1]
    return Backbone(model, open_clip.get_tokenizer(name), pixels.mean, pixels.std, name).requires_grad_(False).eval()


def made_up_prompts(classes: int) -> ClassPrompts:
    """Names and two descriptions of so many classes."""
    names = tuple(f"kind {i}" for i in range(classes))
    return ClassPrompts(names, ("a photo of a {}.",), {name: (f"A {name}.", f"{name} outside.") for name in names})


class OnlyPrompts(ImageDataset):
    """A data set without images, for whoever needs its classes only."""

    def __init__(self, prompts: ClassPrompts) -> None:
        self.name, self.prompts, self.class_names = "made up", prompts, prompts.names

    def image(self, index: int) -> Any:
        """There is none."""
        raise IndexError(index)


class Step:
    """A method by name, with constants as text, random views of one batch, and AdamW."""

    def __init__(self, method: str, backbone: Backbone, batch: int, classes: int = 24, **constants: str) -> None:
        prompts = made_up_prompts(classes)
        self.method = build_method(method, backbone, OnlyPrompts(prompts), constants=constants)
        size, needs = backbone.image_size, self.method.needs
        whole = (batch, 3, size, size)
        crops = torch.rand(batch, needs.crops, 3, size, size) if needs.crops else None
        self.views = Views(torch.rand(whole), torch.rand(whole), crops)
        self.index = torch.arange(batch)
        self.optimizer = torch.optim.AdamW(self.method.parameter_groups(0.1), lr=1e-6)
        self.classifier = torch.randn(classes, backbone.embed_dim)
        self.method.train()
        ask(self.method, "begin_epoch")
        with torch.no_grad():
            self.method.prepare([Batch(self.views, self.index, self.index)])
            if isinstance(self.method, MicroCLIP):
                self.tokens = self.method.backbone.tokens(self.views.weak)

    @property
    def n_views(self) -> str:
        """How many forwards a step has, in words."""
        return f"2+{self.method.needs.crops}" if self.views.crops is not None else "2"

    def ours(self) -> None:
        """The step."""
        with torch.no_grad():
            pseudo = self.method.pseudo_label(self.views, self.index)
        self._learn(torch.stack(list(self.method.loss(self.views, pseudo).values())).sum())

    def plain(self) -> None:
        """Forwards of all views and one backward through the trainable parameters, by open_clip itself."""
        encode: Any = self.method.backbone.model.encode_image
        with torch.no_grad():
            encode(self.views.weak, normalize=True)
            if self.views.crops is not None:
                encode(self.views.crops.flatten(0, 1), normalize=True)
        logits = 100.0 * encode(self.views.strong, normalize=True) @ self.classifier.T
        self._learn(F.cross_entropy(logits, self.index % len(self.classifier)))

    def foregrounds(self) -> None:
        """NCut and SOAP, which happen twice in a step."""
        assert isinstance(self.method, MicroCLIP)
        with torch.no_grad():
            self.method.foreground(self.tokens)
            self.method.foreground(self.tokens)

    def _learn(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
