"""Backbone: any open_clip model as images -> embeddings and patch tokens, texts -> embeddings.

The patch tokens of microCLIP are the *value path* of the last block. With x the input of that block,

    v = x + out_proj(W_v LN_1(x) + b_v),    v <- v + MLP(LN_2(v)),    patches = LN_post(v) without the CLS row

so a patch token is a function of its own patch only (MaskCLIP's observation; LoCoOp's code). One forward pre-hook on
the last block yields x; everything else is read from the model's own modules, so there is no fork of open_clip.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipviz.errors import choose
from clipviz.ops import normalize


class ImageTokens(NamedTuple):
    """What the image tower says about a batch.

    Attributes:
        cls: (B, E) float, unit norm, in the joint embedding space.
        patches: (B, N, W) float, value-path tokens of the last block after ln_post, in tower width.
        grid: (h, w) with h * w = N, row-major.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]


def value_path(visual: Any, x: Tensor) -> Tensor:
    """Value-path patch tokens from the input of the last block (see the module docstring).

    Args:
        visual: an open_clip `VisionTransformer`.
        x: (B, 1 + N, W) float, the input of `visual.transformer.resblocks[-1]`.

    Returns:
        (B, N, W) float. The CLS row is left out before the work, not after it.
    """
    block = visual.transformer.resblocks[-1]
    x = x[:, 1:]
    width = x.shape[-1]
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    v = x + block.ls_1(block.attn.out_proj(F.linear(block.ln_1(x), weight, bias)))
    v = v + block.ls_2(block.mlp(block.ln_2(v)))
    return visual.ln_post(v)


@contextmanager
def last_block_input(visual: Any) -> Iterator[list[Tensor]]:
    """Collect the input of the last block during the forward passes inside the `with` statement.

    Yields:
        A list that receives one (B, 1 + N, W) tensor per forward pass. The hook is removed on exit.
    """
    inputs: list[Tensor] = []
    handle = visual.transformer.resblocks[-1].register_forward_pre_hook(
        lambda _module, args, kwargs: inputs.append(args[0] if args else kwargs["q_x"]), with_kwargs=True
    )
    try:
        yield inputs
    finally:
        handle.remove()


class Backbone(nn.Module):
    """An open_clip model behind the few calls that the methods need.

    Images go in as (B, 3, S, S) floats in [0, 1]; the model's own pixel normalization is applied here, once.

    Args:
        model: an open_clip model with `encode_text` and a `visual` tower.
        tokenizer: texts -> (L, T) token ids.
        mean: (3,) channel means of the model's training pixels.
        std: (3,) channel standard deviations.
        name: what to call it in results.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, mean: Sequence[float], std: Sequence[float], name: str
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return cast(Tensor, self.mean).device

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        size = self.visual.image_size
        return int(size[0] if isinstance(size, Sequence) else size)

    @property
    def embed_dim(self) -> int:
        """E, the width of the joint embedding space."""
        proj = getattr(self.visual, "proj", None)
        return int(proj.shape[1]) if isinstance(proj, Tensor) else int(self.visual.output_dim)

    @property
    def width(self) -> int:
        """W, the width of the patch tokens."""
        self.require_patches("patch width")
        return int(self.visual.ln_post.weight.shape[0])

    @property
    def logit_scale(self) -> float:
        """exp of the learned scale: logits = logit_scale * cosine; 1 / temperature."""
        return float(cast(Tensor, self.model.logit_scale).detach().exp())

    @property
    def has_patches(self) -> bool:
        """Whether the tower is a ViT with a CLS token and plain attention blocks, as the value path needs."""
        visual = self.visual
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        return (
            blocks is not None
            and isinstance(getattr(blocks[-1], "attn", None), nn.MultiheadAttention)
            and getattr(visual, "pool_type", "tok") == "tok"
            and getattr(visual, "attn_pool", None) is None
            and isinstance(getattr(visual, "proj", None), Tensor)
        )

    def require_patches(self, purpose: str) -> None:
        """Refuse towers without usable patch tokens.

        Raises:
            ValueError: with what would work instead.
        """
        if not self.has_patches:
            raise ValueError(
                f"{purpose} needs the patch tokens of a ViT with a CLS token, but {self.name!r} is a "
                f"{type(self.visual).__name__}; use a ViT such as ViT-B-32 or ViT-B-16, "
                "or a method that needs only embeddings (zero_shot, descriptions)"
            )

    def _pixels(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[-2:] != (self.image_size,) * 2:
            raise ValueError(
                f"{self.name} wants images (B, 3, {self.image_size}, {self.image_size}) in [0, 1], "
                f"got {tuple(images.shape)}"
            )
        return (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)

    def embed(self, images: Tensor) -> Tensor:
        """Image embeddings, equal to `model.encode_image(normalize=True)` on normalized pixels.

        Args:
            images: (B, 3, S, S) float in [0, 1].

        Returns:
            (B, E) float, unit norm.

        Raises:
            ValueError: if the images have another shape.
        """
        return normalize(self.model.encode_image(self._pixels(images)))  # type: ignore[operator]

    def tokens(self, images: Tensor) -> ImageTokens:
        """Embedding and value-path patch tokens of a batch, in one forward pass.

        Args:
            images: (B, 3, S, S) float in [0, 1].

        Raises:
            ValueError: if the images have another shape, or the tower has no patch tokens.
        """
        self.require_patches("tokens")
        with last_block_input(self.visual) as inputs:
            cls = self.embed(images)
        return ImageTokens(cls, value_path(self.visual, inputs[0]), tuple(self.visual.grid_size))

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (..., W) -> joint space (..., E), by the tower's own projection; not normalized."""
        return tokens @ self.visual.proj

    def trainable_copy(self) -> Backbone:
        """A backbone with its own image tower, for training; text tower and tokenizer are shared with this one."""
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, "visual": copy.deepcopy(self.visual)}
        mean, std = (cast(Tensor, t).flatten().tolist() for t in (self.mean, self.std))
        return Backbone(model, self.tokenizer, mean, std, self.name).to(self.device)

    def embed_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Text embeddings, computed without gradient in batches.

        Args:
            texts: L sentences; longer ones than the model's context are cut by its tokenizer.
            batch_size: sentences at a time.

        Returns:
            (L, E) float, unit norm.
        """
        rows = []
        with torch.no_grad():
            for start in range(0, len(texts), batch_size):
                ids = self.tokenizer(list(texts[start : start + batch_size])).to(self.device)
                rows.append(normalize(self.model.encode_text(ids)))  # type: ignore[operator]
        return torch.cat(rows)


BUNDLED = Path(__file__).parent / "birds" / "model"
"""The embedded default: an ordinary open_clip model folder (config and safetensors)."""


def load_backbone(name: str, pretrained: str | None = None, device: str | torch.device | None = None) -> Backbone:
    """Load a CLIP model.

    Args:
        name: "birds" for the embedded default, or any open_clip architecture ("ViT-B-32", "RN50", "hf-hub:...").
        pretrained: an open_clip tag ("openai", "laion2b_s34b_b79k") or a local .safetensors / .pt file; None with an
            architecture name gives random weights.
        device: torch device; None means CPU.

    Returns:
        The backbone in eval mode, all weights frozen.

    Raises:
        ValueError: for an unknown name or tag, a file that is missing or does not fit, or activations that do not
            match the weights (QuickGELU).
    """
    import open_clip

    device = device or "cpu"
    if name == "birds":
        if pretrained is not None:
            raise ValueError(f"the bundled model 'birds' takes no pretrained weights, got {pretrained!r}; leave it out")
        source: str = f"local-dir:{BUNDLED}"
    elif ":" in name:
        source = name
    else:
        source = choose("model", name, ("birds", *open_clip.list_models()))
        _check_pretrained(name, pretrained)
    try:
        model, _, _ = open_clip.create_model_and_transforms(
            source, pretrained=pretrained, device=device, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(source)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"could not load model {name!r} with weights {pretrained!r}: {reason}") from error
    cfg = open_clip.get_model_preprocess_cfg(model)
    backbone = Backbone(model, tokenizer, cfg["mean"], cfg["std"], name).to(device)
    return backbone.requires_grad_(False).eval()


def _check_pretrained(name: str, pretrained: str | None) -> None:
    """Refuse a tag or file that open_clip would stumble over, or would load with the wrong activation."""
    import open_clip

    if pretrained is None:
        return
    path = Path(pretrained)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if path.suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        if not path.is_file():
            raise ValueError(f"no such weights file: {pretrained}; give an existing file or one of the tags {tags}")
        return
    choose(f"pretrained tag for {name}", pretrained, tags)
    wants_quick = bool((open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu", False))
    has_quick = bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))
    if wants_quick != has_quick:
        other = f"{name}-quickgelu" if wants_quick else name.removesuffix("-quickgelu")
        raise ValueError(
            f"the weights {pretrained!r} were trained with {'QuickGELU' if wants_quick else 'GELU'} but {name!r} uses "
            f"{'QuickGELU' if has_quick else 'GELU'}; use the architecture {other!r}"
        )
