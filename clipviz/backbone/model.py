"""Backbone: any open_clip model as images -> embeddings and patch tokens, texts -> embeddings.

There is no fork of open_clip: `clipviz.backbone.tower` reads patch tokens from the model's own modules.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, cast, get_args

import open_clip
import torch
from torch import Tensor, nn

from clipviz.backbone.ownership import lock_of
from clipviz.backbone.tower import encode, is_watched, value_path
from clipviz.backbone.weights import Unfilled, fitting, loading, planned, refuse_code, rounding_notice, source_of
from clipviz.errors import choose, one_line, path_text
from clipviz.ops import normalize
from clipviz.origin import remembered

Precision = Literal["32", "bf16-mixed"]
"""What an image tower computes in: float32, or bfloat16 where autocast takes it (its weights stay float32)."""

PIECE_TOKENS = 5120
"""So many tokens pass an image tower at a time on a CPU: for many more, memory is mapped anew in each layer."""

MOST_TEXTS = 2**15
"""So many text embeddings are remembered: 100 MB of a large model's."""


class ImageTokens(NamedTuple):
    """Output of the image tower for a batch."""

    cls: Tensor  # (B, E) float, unit norm, in the joint embedding space
    patches: Tensor  # (B, N, W) float, value-path tokens of the last block after ln_post, in tower width
    grid: tuple[int, int]  # (h, w) with h * w = N, row-major


class Backbone(nn.Module):
    """An open_clip model behind the few calls that the methods need.

    Images are (B, 3, S, S) floats in [0, 1]; all else is refused. The pixel normalization of the model is applied
    here, once, by the channel `mean` and `std` of its training. `precision` is that of the image tower; its output
    and everything else is float32. The tokenizer makes texts token ids, (L, T).

    Attributes:
        origin: the arguments of `load_backbone` that made it; None if it was made another way.
        built: the architecture and activation that were built for them.
        reads_text: whether sentences can be embedded, or class names only.
    """

    origin: Mapping[str, Any] | None = None
    built: Mapping[str, Any] | None = None
    reads_text = True

    def __init__(
        self, model: nn.Module, tokenizer: Any, mean: Sequence[float], std: Sequence[float], name: str,
        precision: Precision = "32",
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name, self.precision = name, precision
        self._collected: list[Tensor] | None = None
        self._texts: dict[tuple[tuple[str, ...], int], tuple[Any, Tensor]] = {}  # embedded, with the state of the tower
        self._shared: dict[Any, tuple[Any, int, Any]] | None = None  # what was computed, and of which images
        self._scale: tuple[Tensor | None, int, float] = (None, 0, 0.0)  # parameter, its version, exponential
        self.mean = nn.Buffer(torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.mean.device

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        size = self.visual.image_size
        height, width = size if isinstance(size, Sequence) else (size, size)
        if height != width:
            raise ValueError(f"{self.name!r} reads images of {height} x {width} pixels; use a model of square ones")
        return int(height)

    @property
    def embed_dim(self) -> int:
        """E, the width of the joint embedding space."""
        proj = getattr(self.visual, "proj", None)
        if isinstance(proj, Tensor):
            return int(proj.shape[1])
        width = getattr(self.visual, "output_dim", None)  # timm's towers do not say: then the other tower does
        return int(width) if width is not None else int(self.embed_text(["a"]).shape[1])

    @property
    def width(self) -> int:
        """W, the width of the patch tokens."""
        self.require_patches("patch width")
        return int(self.visual.ln_post.weight.shape[0])

    @property
    def logit_scale(self) -> float:
        """Exponential of the learned scale: logits = logit_scale * cosine; 1 / temperature.

        Read from the device only when the parameter has changed: each read makes a step wait.
        """
        parameter = cast(Tensor, self.model.logit_scale)
        known, version, scale = self._scale
        if known is not parameter or version != parameter._version:
            scale = float(parameter.detach().exp())
            self._scale = (parameter, parameter._version, scale)
        return scale

    @property
    def has_patches(self) -> bool:
        """Whether the tower is a ViT with a CLS token and plain attention blocks, as the value path needs."""
        visual = self.visual
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        attn = None if blocks is None else getattr(blocks[-1], "attn", None)
        is_plain = isinstance(attn, nn.MultiheadAttention) and attn.batch_first
        takes_cls = getattr(visual, "pool_type", "tok") == "tok" and getattr(visual, "attn_pool", None) is None
        return is_plain and takes_cls and isinstance(getattr(visual, "proj", None), Tensor)

    def require_patches(self, purpose: str) -> None:
        """Refuse towers without usable patch tokens, with what would work instead."""
        if not self.has_patches:
            raise ValueError(
                f"{purpose} needs the patch tokens of a ViT with a CLS token, but {self.name!r} is a "
                f"{type(self.visual).__name__}; use a ViT such as ViT-B-32 or ViT-B-16, "
                "or a method that needs only embeddings (dpa, ntua, tip_adapter, wca, descriptions, zero_shot)"
            )

    def check_images(self, images: Tensor, *, values: bool = True) -> None:
        """Refuse what are not images (B, 3, S, S) in [0, 1]; bytes and normalized pixels by their `values`."""
        side, shape = self.image_size, tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        if shape[1:] != (3, side, side) or not len(images) or not images.is_floating_point():
            got = f"{str(getattr(images, 'dtype', '')).removeprefix('torch.')} {shape}".strip()
            raise ValueError(f"{self.name} needs images (B, 3, {side}, {side}) in [0, 1], B >= 1, got {got}")
        if values and (images.min() < -1e-3 or images.max() > 1.001):  # a resize rounds
            raise ValueError(f"{self.name} needs images in [0, 1], got {images.min():g} to {images.max():g}")

    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Unit embeddings, and of a tower with patch tokens the inputs of its last block, in pieces."""
        self.check_images(images, values=False)  # which would have a GPU wait
        parts, inputs = [], []
        for piece in self._pieces(images):
            pixels = (piece.to(next(self.parameters()).dtype) - self.mean) / self.std
            if self.has_patches:
                part, x = encode(self.visual, pixels)
                inputs.append(x)
            else:
                part = self.model.encode_image(pixels)  # type: ignore[operator]
            parts.append(self._float(part))
        unit = normalize(torch.cat(parts))
        if self._collected is not None:
            self._collected.append(unit)
        return unit, inputs

    def _pieces(self, images: Tensor) -> Sequence[Tensor]:
        """On a CPU without gradients a few images at a time, a third less work; who watches sees them all at once."""
        if torch.is_grad_enabled() or self.device.type != "cpu" or not self.has_patches:
            return [images]
        n = -(-len(images) * (1 + math.prod(self.visual.grid_size)) // PIECE_TOKENS)
        return [images] if n < 2 or any(map(is_watched, self.visual.modules())) else images.tensor_split(n)

    def _float(self, x: Tensor) -> Tensor:  # what autocast made bfloat16, as float32
        return x if self.precision == "32" else x.float()

    @contextmanager
    def collected(self) -> Iterator[list[Tensor]]:
        """The unit embeddings of each pass of the image tower inside the `with` statement, (B, E), in its graph."""
        with lock_of(self):
            seen: list[Tensor] = []
            self._collected = seen
            try:
                yield seen
            finally:
                self._collected = None

    @contextmanager
    def shared_tokens(self) -> Iterator[None]:
        """Inside the `with` statement, without gradients, a tensor passes the tower once, whoever asks about it."""
        with lock_of(self):
            self._shared = {}
            try:
                yield
            finally:
                self._shared = None

    def _once(self, images: Tensor, compute: Callable[[Tensor], Any]) -> Any:
        """What a function makes of images, from before where it is shared and they have not been changed since."""
        mixed = nullcontext() if self.precision == "32" else torch.autocast(self.device.type, torch.bfloat16)
        with lock_of(self), mixed:
            if self._shared is None or torch.is_grad_enabled() or images.is_inference():
                return compute(images)
            known, version, result = self._shared.get(compute.__name__, (None, 0, None))
            if known is not images or version != images._version:
                result = compute(images)
                self._shared[compute.__name__] = images, images._version, result
            return result

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, E), unit norm, of images: `model.encode_image(normalize=True)` of normalized pixels."""
        return self._once(images, self._encode)[0]

    def tokens(self, images: Tensor) -> ImageTokens:
        """Embedding and value-path patch tokens of a batch, in one forward pass; refused without patch tokens."""
        self.require_patches("tokens")
        return self._once(images, self._tokens)

    def block_inputs(self, images: Tensor) -> Tensor:
        """What enters the last block, CLS first, (B, 1 + N, W); refused without patch tokens."""
        self.require_patches("the last block")
        return self._float(torch.cat(self._once(images, self._encode)[1]))

    def _tokens(self, images: Tensor) -> ImageTokens:
        cls, inputs = self._once(images, self._encode)
        patches = torch.cat([self._float(value_path(self.visual, x)) for x in inputs])
        return ImageTokens(cls, patches, tuple(self.visual.grid_size))

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (..., W) -> joint space (..., E), by the tower's own projection; not normalized."""
        return tokens @ self.visual.proj

    def trainable_copy(self) -> Backbone:
        """A backbone with its own image tower, for training; text tower and tokenizer are shared with this one."""
        model = copy.copy(self.model)
        with lock_of(self):  # neither in the middle of a step nor with somebody's hooks
            model._modules = {**self.model._modules, "visual": copy.deepcopy(self.visual)}
        mean, std = (t.flatten().tolist() for t in (self.mean, self.std))
        own = Backbone(model, self.tokenizer, mean, std, self.name, self.precision).to(self.device)
        own.origin, own.built, own._texts = self.origin, self.built, self._texts
        return own

    def fingerprint(self) -> str:
        """Short hash of a sample of every frozen weight, to tell two models of one architecture apart."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                sample = parameter.detach().flatten()[:64].float().cpu()
                digest.update(f"{name}{tuple(parameter.shape)}".encode())
                digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def embed_text(self, texts: Sequence[str], batch_size: int = 256, *, unit: bool = True) -> Tensor:
        """Text embeddings (L, E), without gradient in batches; unit norm unless `unit` is False.

        Sentences longer than the model's context are cut by its tokenizer.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"wanted a list of sentences, got {one_line(repr(texts), 60)}")
        with torch.no_grad():
            rows = self._text_rows(tuple(texts), batch_size)
            return normalize(rows) if unit else rows.clone()

    def _text_rows(self, texts: tuple[str, ...], batch_size: int) -> Tensor:
        """Raw text embeddings; lists are remembered, for methods, measures and figures ask for the same ones.

        A list is embedded as it stands, never put together from others: bits depend on what shares a batch.
        """
        tower = [p for name, p in self.model.named_parameters() if not name.startswith("visual.")]
        state = self.device, *((p.data_ptr(), p._version) for p in tower)
        known, rows = self._texts.get((texts, batch_size), (None, torch.empty(0)))
        if known != state:
            parts = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
            encode_text = cast(Callable[[Tensor], Tensor], self.model.encode_text)
            rows = torch.cat([encode_text(self.tokenizer(part).to(self.device)) for part in parts])
            self._texts[texts, batch_size] = state, rows
            for oldest in [*self._texts]:  # a copy: other threads may be here as well
                if sum(len(kept) for kept, _ in [*self._texts]) > MOST_TEXTS:
                    self._texts.pop(oldest, None)
        return rows


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of a name, None for the CPU; refused if torch cannot use it."""
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try device cpu") from error
    return device


@remembered("device")
@torch.inference_mode(False)  # or nothing that is made of its weights could change later
def load_backbone(
    name: str, pretrained: str | None = None, device: str | torch.device | None = None, precision: Precision = "32"
) -> Backbone:
    """Load a CLIP model.

    Args:
        name: "birds" for the bundled model, any open_clip architecture ("ViT-B-32", "RN50"), "hf-hub:...", or a
            folder with open_clip's config and weights, as `tools.pretrain` writes it.
        pretrained: an open_clip tag ("openai", "laion2b_s34b_b79k") or a local .safetensors / .pt file; None with an
            architecture name gives random weights, with a warning. Weights that are known to need the other
            activation (QuickGELU or not) get it, with a warning.
        device: torch device; None means CPU.
        precision: that of the image tower.

    Returns:
        The backbone in eval mode, all weights frozen.

    Raises:
        ValueError: for an unknown name or tag, a file that is missing, damaged, pickled or does not fit, a model
            whose files ask for code to be run, or a device that cannot be used.
    """
    name = path_text("a model", name)
    pretrained = None if pretrained is None else path_text("weights", pretrained)
    choose("precision", precision, get_args(Precision))
    place, plan = usable_device(device), planned(name, pretrained)
    is_random = pretrained is None and ":" not in plan.source
    changes = {} if plan.quick_gelu is None else {"quick_gelu": plan.quick_gelu}
    what = f"model {name!r} with weights {pretrained!r}" if pretrained else f"model {name!r}"
    fills_all = not is_random and not str(pretrained).endswith((".npz", ".npy"))  # those are not checked for gaps
    with loading(what, plan.source, pretrained), Unfilled() if fills_all else nullcontext():
        options = refuse_code(plan.source)
        tokenizer = None
        if ":" not in plan.source:
            tokenizer = open_clip.get_tokenizer(plan.source, **options)  # the sooner to fail: no model is fetched yet
        model, _, _ = open_clip.create_model_and_transforms(
            plan.source, pretrained=None if plan.archive else pretrained, device=place, weights_only=True,
            require_pretrained=not is_random and plan.archive is None, **changes,
        )  # fmt: skip
        if plan.archive is not None:
            model.load_state_dict(fitting(plan.archive.tensors, model))
        tokenizer = tokenizer or open_clip.get_tokenizer(plan.source, **options)
    notices = [plan.notice]
    if is_random:
        notices.append(f"{name!r} has random weights, so it is untrained; name pretrained weights (a tag or a file)")
    elif pretrained is not None and plan.archive is None:
        notices.append(rounding_notice(plan, pretrained, model.visual))
    for notice in filter(None, notices):
        warnings.warn(notice, stacklevel=3)
    cfg = open_clip.get_model_preprocess_cfg(model)
    backbone = Backbone(model, tokenizer, cfg["mean"], cfg["std"], name, precision).to(place)
    quick = any(isinstance(module, open_clip.transformer.QuickGELU) for module in model.modules())
    backbone.built = {"model": name if ":" in plan.source else plan.source, "quick_gelu": quick}
    return backbone.requires_grad_(False).eval()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without the model: texts -> (L, T) token ids."""
    source = source_of(name)
    with loading(f"the tokenizer of {name!r}", source):
        return open_clip.get_tokenizer(source, **refuse_code(source))
