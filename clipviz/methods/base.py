"""What a method is: three functions to write, and a few with defaults.

A method owns the model state that training changes. It gets images and their positions in the dataset, never targets.
"""

import math
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.backbone.ownership import lock_of
from clipviz.data.base import Batch, ViewConfig, Views
from clipviz.data.batches.features import FeatureBackbone
from clipviz.errors import choose, one_line
from clipviz.events import PseudoLabels
from clipviz.ops import normalize
from clipviz.prompts import ClassPrompts, TextSource

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

TUNED: dict[str, Any] = tomllib.loads(Path(__file__).with_name("benchmarks.toml").read_text(encoding="utf-8"))


def check_constants(config: Any, *, shares: str = "", positive: str = "", **least: float) -> None:
    """Refuse constants of a configuration that no formula can use, by its types and the minima in `least`.

    `shares` are from 0 to 1; names in a text are separated by spaces. Raises ValueError for the first word that is not
    a choice, value of another type, NaN, infinite or too small number.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, low, wanted = getattr(config, name), least.get(name), ""
        if get_origin(kind) is Literal:
            choose(name.replace("_", " "), value, get_args(kind))
        elif not _is_a(kind, value):
            default = getattr(type(config), name, AdaptConfig)
            wanted = f"{KINDS.get(get_origin(kind) or kind, 'an object')} such as {default}"
        elif name in shares.split() and not 0.0 <= value <= 1.0:
            wanted = "in [0, 1]"
        elif name in positive.split() and not 0.0 < value < math.inf:
            wanted = "positive and finite"
        elif low is not None and not low <= value < math.inf:
            wanted = f"at least {low:g}{'' if math.isfinite(value) else ' and finite'}"
        elif kind is float and not math.isfinite(value):
            wanted = "finite"
        elif kind is int and value >= 2**31:
            wanted = f"below {2**31:,}"
        elif get_origin(kind) is tuple and name.endswith("_scale") and not 0 < value[0] <= value[1] <= 1:
            wanted = "two numbers in (0, 1], the lower one first"
        elif name == "fill" and not all(0 <= part <= 255 for part in value):
            wanted = "three whole numbers from 0 to 255"
        if wanted:
            raise ValueError(f"{name} must be {wanted}, got {one_line(repr(value), 60)}")


KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list"}


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a constant is of the type of its field; numbers of numpy count, and lists where a tuple is wanted."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if get_origin(kind) is tuple:
        each = get_args(kind)
        return isinstance(value, tuple | list) and len(value) == len(each) and all(map(_is_a, each, value))
    return not isinstance(kind, type) or isinstance(value, kind)


@dataclass(frozen=True)
class AdaptConfig:
    """The schedule of a run: AdamW with a cosine per step, as in the official code of microCLIP and DPA."""

    epochs: int = 15  # passes over the unlabeled images
    batch_size: int = 64  # images per step, of all processes together; the last, smaller batch is kept
    lr: float = 1e-4  # learning rate at the first step
    min_lr: float = 2e-6  # where the cosine would be one step after the last, at most `lr`
    weight_decay: float = 0.1  # of AdamW, on everything trainable unless a method says otherwise
    workers: int = 0  # processes that prepare views; 0 prepares them in the caller

    def __post_init__(self) -> None:
        check_constants(self, positive="lr", epochs=1, batch_size=1, workers=0, min_lr=0, weight_decay=0)


class Method(nn.Module, ABC):
    """Base of all methods.

    To write: `pseudo_label`, `loss` (unless `trains` is False) and `logits`. All else has a default, and these are
    optional (see `ask`):

        training_needs -> ViewConfig            of the steps, where `prepare` has made some of `needs` superfluous
        training_batches(batch_size, seed)      of what `prepare` has cached, instead of views of all images: `epoch(e,
                                                first_step)` yields those of an epoch, `len` counts them
        begin_epoch(), end_epoch()              resets or updates something once per epoch
        diagnostics() -> {name: float}          numbers about the state, recorded every epoch
        explain(images) -> {kind: (B, h, w)}    saliency
        measured(views) -> (logits, branches)   both at once, if they share work
        view_logits(views) -> (B, C)            inference on a test image and its crops, with
        test_needs -> ViewConfig                views of a test image in addition to the whole one
        baselines(images) -> {name: (B, C)}     logits that training does not change, measured once
        cache_contributions(images, n)          the n cache entries that contribute most for each image

    Args:
        backbone: any CLIP. A method that trains works on a copy of the image tower, so the caller's does not change.
        prompts: class names with their templates and descriptions (templates stand in for missing descriptions).
        config: constants; None: the preset of the backbone's name, else "default".
    """

    name: ClassVar[str]  # the key in `METHODS`
    trains: ClassVar[bool] = True  # False for methods that only guess
    labels_are: ClassVar[str | None] = None  # "transductive" or "online": they change over epochs without training
    adapts_tower: ClassVar[bool] = True  # whether training changes the image tower; if not, the caller's is not copied
    works_on_embeddings: ClassVar[bool] = False  # takes CLS embeddings (B, E) wherever images are asked for
    text: ClassVar[TextSource] = "descriptions"  # what its text classifier is made of, unless `config` has a `text`
    sized_by_data: ClassVar[tuple[str, ...]] = ()  # buffers and parameters that `prepare` allocates
    kept_once: ClassVar[tuple[str, ...]] = ()  # buffers not kept for every epoch: no prediction needs those of its own
    # buffers whose rows are embeddings of training images -> buffer of their positions, "" for all in order; where the
    # data are embeddings, no checkpoint keeps them
    rows_of_data: ClassVar[Mapping[str, str]] = {}
    presets: ClassVar[Mapping[str, Any]] = {}  # "default" and what the authors say: name -> configuration
    backbone_presets: ClassVar[Mapping[str, Any]] = {}  # name of a backbone -> what it gets instead of "default"
    benchmark_presets: ClassVar[Mapping[str, Any]] = {}  # name of a data set -> what can be asked for on it
    adjustable: ClassVar[tuple[str, ...]] = ()  # constants of `config` that may change while the method runs
    epochs: int = 1  # those of the run, which the loop sets
    config: Any = None  # a frozen dataclass with the method's constants, and its schedule
    preset: str | None = None  # what `config` began as, where somebody asked for it by name
    has_learned = False  # whether it has done a step of training
    adapted_by: Any = None  # weak reference to the `Adaptation` at work on it
    needs = ViewConfig()  # views to prepare, of whatever size

    def __init__(self, backbone: Backbone, prompts: ClassPrompts, config: Any = None) -> None:
        super().__init__()
        default = self.presets.get("default")
        for what, given, kind in (
            ("a model (load_backbone)", backbone, Backbone),
            ("the prompts of a data set (data.prompts)", prompts, ClassPrompts),
            (f"its constants as a {type(default).__name__}", config if config and default else default, type(default)),
        ):
            if not isinstance(given, kind):
                raise ValueError(f"{self.name} needs {what}, got {type(given).__name__}")
        if not prompts.names:
            raise ValueError(f"{self.name} needs class names; give them with the dataset (classes=...)")
        if isinstance(backbone, FeatureBackbone) and not self.works_on_embeddings:
            raise ValueError(
                f"{self.name} needs the images themselves, but the data are embeddings only; "
                "give images, or use zero_shot, tip_adapter, transclip, tda, ntua or dpa"
            )
        self.backbone = backbone.trainable_copy() if self.trains and self.adapts_tower else backbone
        self.prompts, self.class_names = prompts, tuple(prompts.names)
        self.config = config or self.default_config(backbone)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, but for what does not learn: the text tower, and an image tower that is the caller's.

        In training mode their BatchNorms would adapt to their inputs, and attention rounds differently. No tower drops
        anything at random: it would draw global random numbers, and its pseudo-labels would be those of a part of it.
        """
        super().train(mode)
        self.backbone.eval()
        if self.trains and self.adapts_tower:
            self.backbone.visual.train(mode)
            for part in self.backbone.visual.modules():
                part.training = mode and "Drop" not in type(part).__name__
        return self

    @classmethod
    def default_config(cls, backbone: Backbone) -> Any:
        """The preset for a backbone: its own, where it has one, else the general one."""
        return cls.backbone_presets.get(backbone.name, cls.presets.get("default"))

    @classmethod
    def all_presets(cls) -> dict[str, Any]:
        """All presets by name."""
        return {**cls.presets, **cls.backbone_presets, **cls.benchmark_presets}

    @property
    def schedule(self) -> AdaptConfig:
        """The schedule that its authors (or its preset) recommend: that of the configuration, where it has one."""
        return getattr(self.config, "schedule", None) or AdaptConfig()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as JSON values, for the trace: the configuration."""
        settings = {} if self.config is None else asdict(self.config)
        return {**settings, "text": "classifier"} if "text" in settings and not self.backbone.reads_text else settings

    @property
    def preset_name(self) -> str | None:
        """The preset that was asked for, or else one that `config` is equal to; None where there is none."""
        known = self.all_presets()
        names = (self.backbone.name, *known)
        return self.preset or next((name for name in names if known.get(name, self) == self.config), None)

    def adjusted(self, **changes: float) -> Any:
        """The configuration with some constants changed, to be assigned to `config` between two steps.

        A ValueError if a constant cannot change while the method runs, or not to this value.
        """
        for name in changes:
            if name not in self.adjustable:
                can = ", ".join(self.adjustable) or "nothing"
                raise ValueError(f"{self.name} cannot change {name!r} while it runs; it can change: {can}")
        return replace(self.config, **changes)

    @abstractmethod
    def pseudo_label(self, views: Views, index: Tensor) -> PseudoLabels:
        """Pseudo-label a batch; called without gradient.

        `index` and the labels are of the whole batch, `views` of this process's share: `views.gather` gathers the rows
        of all processes. With one process they are the same.
        """

    def loss(self, views: Views, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Weighted loss terms of the whole batch (`views.gather`); their sum is minimized."""
        return {}

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Inference: (B, 3, S, S) in [0, 1] -> (B, C) scaled logits."""

    def branches(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of parts of the inference path, each measured on its own: name -> (B, C)."""
        return {}

    @property
    def sentences(self) -> list[tuple[str, ...]]:
        """The sentences of each class's text classifier: of the kind that `config` names, else `text`."""
        return prompt_sentences(self.prompts, getattr(self.config, "text", self.text))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Process the whole training set before the first epoch (banks, caches); default: nothing.

        It is called again when a run is resumed that ended in its first epoch, so it must overwrite, not add.
        """

    def snapshot(self) -> dict[str, Tensor]:
        """Classifiers or prototypes to follow over epochs: name -> (C, E)."""
        return {}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Trainable parameters for AdamW; default: one group with the given decay on everything.

        A group may have an `lr_scale`, by which the learning rate of the schedule is multiplied.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": weight_decay}]

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: what training changes and the method's own buffers, not the frozen backbone."""
        state: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if p.requires_grad}
        learns = self.trains and self.adapts_tower  # then BatchNorms of the tower gather statistics
        for name, buffer in self.named_buffers():
            if not name.startswith("backbone.") or (learns and name.endswith(_STATISTICS)):
                state[name] = buffer
        return {name: tensor.detach() for name, tensor in state.items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `trainable_state` gave; a ValueError if it is that of another method, model or class set."""
        for name in self.sized_by_data:
            if name in state:
                self._resize(name, state[name].shape)
        own = self.trainable_state()
        shapes = {name: tuple(t.shape) for name, t in own.items()}
        got = {name: tuple(t.shape) for name, t in state.items()}
        if different := sorted(n for n in shapes.keys() | got.keys() if shapes.get(n) != got.get(n)):
            raise ValueError(
                f"checkpoint does not fit this {self.name}: {len(different)} tensors differ, first {different[0]!r}: "
                f"wanted {shapes.get(different[0])}, got {got.get(different[0])}; "
                "use the same method, model and classes as when it was written"
            )
        with lock_of(self):
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def _resize(self, name: str, shape: Iterable[int]) -> Tensor:
        """Give a buffer or parameter another shape, in place, so that an optimizer that knows it still does."""
        tensor: Tensor = attrgetter(name)(self)
        tensor.data = tensor.new_zeros(tuple(shape))
        return tensor

    def fill(self, **tensors: Tensor) -> None:
        """Give buffers or parameters new shapes and values, atomically for concurrent readers."""
        with lock_of(self):
            for name, tensor in tensors.items():
                if tensor is not getattr(self, name):  # resizing would zero it first
                    self._resize(name, tensor.shape).copy_(tensor)


def ask(method: Method, hook: str, *args: Any, otherwise: Any = None) -> Any:
    """The result of an optional hook of a method, or a default: {} where names with tensors or numbers are wanted."""
    own, kinds = getattr(method, hook, lambda *_: otherwise), Tensor | Real
    if not callable(own):
        raise ValueError(f"{hook} of {method.name} must be a function, got {one_line(repr(own), 60)}")
    found = own(*args)
    named = isinstance(found, Mapping) and all(isinstance(k, str) and isinstance(v, kinds) for k, v in found.items())
    if otherwise == {} and not named:
        wanted = f"{hook} of {method.name} must return a dictionary, name -> tensor or number"
        raise ValueError(f"{wanted}, got {one_line(repr(found), 60)}")
    return found


def guesses(probs: Tensor, sources: Mapping[str, Tensor], **more: Any) -> PseudoLabels:
    """Pseudo-labels of equal weight: the classes that are most probable, (B, C)."""
    confidence, labels = probs.max(-1)
    return PseudoLabels(labels, probs, torch.ones_like(confidence), sources, **more)


def unfreeze_norms(visual: nn.Module) -> None:
    """Make the LayerNorm (and BatchNorm) parameters of an image tower trainable.

    As in the official code: every parameter whose name contains "ln" or "bn"; 39,936 numbers in a ViT-B. Towers
    of timm call theirs "norm".
    """
    named = dict(visual.named_parameters())
    for name in [n for n in named if "ln" in n or "bn" in n] or [n for n in named if "norm" in n]:
        named[name].requires_grad_(True)


def embed(backbone: Backbone, images: Tensor) -> Tensor:
    """Unit CLS embeddings (B, E) of images (B, 3, S, S); embeddings (B, E) are passed through."""
    return images.to(next(backbone.parameters()).dtype) if getattr(images, "ndim", 0) == 2 else backbone.embed(images)


def embed_crops(backbone: Backbone, views: Views) -> Tensor:
    """Unit CLS embeddings (B, K, E) of the crops."""
    assert views.crops is not None  # the loop prepares what the method needs
    return backbone.embed(views.crops.flatten(0, 1)).unflatten(0, views.crops.shape[:2])


def prompt_sentences(prompts: ClassPrompts, source: TextSource) -> list[tuple[str, ...]]:
    """The sentences that each class is made of."""
    of_class = prompts.description_sentences if source == "descriptions" else prompts.template_sentences
    return [of_class(name) for name in prompts.names]


def text_classifier(backbone: Backbone, sentences: Sequence[Sequence[str]], *, unit: bool = True) -> Tensor:
    """Mean of the sentence embeddings of each of C classes, normalized: w_c = nrm(mean_m E(d_cm)), (C, E).

    `unit` is whether each embedding is normalized before the mean; the code of microCLIP does not.
    """
    return normalize(torch.stack([rows.mean(0) for rows in sentence_embeddings(backbone, sentences, unit=unit)]))


def sentence_embeddings(backbone: Backbone, sentences: Sequence[Sequence[str]], *, unit: bool = True) -> list[Tensor]:
    """Embeddings of each class's sentences, C tensors (M_c, E) of unit norm (or raw), embedded in one go."""
    flat = [sentence for group in sentences for sentence in group]
    return list(backbone.embed_text(flat, unit=unit).split([len(group) for group in sentences]))
