"""Pretrain the bundled CLIP: `python -m tools.pretrain --out DIR`, on a CPU in about an hour, resumable.

Images are random birds, texts are captions and attribute prompts (`pretraining_data.py`). With e the image
embedding, t text embeddings, u_i the projected value-path patch tokens (unit norm), c_i the share of patch i that the
bird covers, m the mean of u weighted by c, and s the learned logit scale:

    L =      CLIP(e, t_caption)                          symmetric contrastive loss (Radford et al., 2021)
      + 4    mean_a CE(s e . t_a, value_a)               attribute term: one prompt per value of attribute a
      + 2.8  mean_a CE(s pool_c(u . t_a), value_a)       the same on patches, pooled by c times their own softmax
                                                         (patch-aligned contrastive training, Mukhoti et al., 2023)
      + 0.8  CLIP(m, t_caption) + 3.2 mean_a CE(s m . t_a, value_a)
      + 1    mean_i CE(s u_i . t_place, place_i)         place: the bird's plan where it is, else "background"
      + 2    mean_ij hinge(cos(p_i, p_j))                pairs of tokens p before the projection: at least 0.6 alike
                                                         within bird and within background, at most 0 across

The last four give the patch tokens words, as large CLIPs have: microCLIP's [FG] token lives on them. The place of the
bird must be told: left free, a small tower keeps what it knows about the bird in the idle patches of the background,
and the likeness of two patches, which NCut cuts by, is mostly that of their positions.
Plain contrastive learning alone is slow to find small parts; the attribute term is still language supervision, and
the evaluation species and their near neighbours never occur.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.birds.domains import SHIFTS, render_image
from clipviz.birds.render import IMAGE_SIDE
from clipviz.birds.world import ATTRIBUTE_NAMES
from clipviz.ops import normalize
from tools.losses import attribute_loss, clip_loss, pair_loss, place_loss
from tools.pretraining_data import CARDINALITIES, attribute_prompts, background_prompt, caption, sample_attributes

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
    seed: int = 0


# ------------------------------------------------------------------------------------------------- data


COVER_SIDE = 40
"""Side of the stored coverage maps, in cells of 4 x 4 pixels."""


def _render_one(index: int, codes: np.ndarray, config: PretrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """The image (S, S, 3) and how much of each cell the bird covers, (40, 40) in 0..255; both uint8."""
    rng = np.random.default_rng([config.seed, 1, index])
    shifted = rng.random() < config.shifted
    domain = str(rng.choice(SHIFTS)) if shifted else "source"
    severity = rng.uniform(0.0, config.max_severity) if shifted else 0.0
    image, parts = render_image(codes[index], domain, rng, severity)
    cells = (parts > 0).reshape(COVER_SIDE, IMAGE_SIDE // COVER_SIDE, COVER_SIDE, -1)
    return image, (cells.mean((1, 3)) * 255).astype(np.uint8)


class Pool(NamedTuple):
    """The training birds: images (n, S, S, 3) uint8, coverage (n, 40, 40) uint8, attribute codes (n, A) int64."""

    images: np.ndarray
    cover: np.ndarray
    codes: np.ndarray


def _open_pool(folder: Path, codes: np.ndarray, mode: Literal["r", "r+", "w+"]) -> Pool:
    images = np.memmap(folder / "pool.u8", np.uint8, mode, shape=(len(codes), IMAGE_SIDE, IMAGE_SIDE, 3))
    cover = np.memmap(folder / "cover.u8", np.uint8, mode, shape=(len(codes), COVER_SIDE, COVER_SIDE))
    return Pool(images, cover, codes)


def _render_chunk(bounds: tuple[int, int], codes: np.ndarray, config: PretrainConfig, folder: Path) -> None:
    pool = _open_pool(folder, codes, "r+")
    for index in range(*bounds):
        pool.images[index], pool.cover[index] = _render_one(index, codes, config)


def render_pool(config: PretrainConfig, folder: Path, workers: int = 2) -> Pool:
    """Render the training birds once, into memory-mapped files that a resumed run finds again."""
    codes = sample_attributes(config.pool, np.random.default_rng([config.seed, 0]))
    done = folder / "pool.json"
    stamp = json.dumps(
        {"pool": config.pool, "seed": config.seed, "shifted": config.shifted, "side": IMAGE_SIDE, "cover": COVER_SIDE}
    )
    if not done.is_file() or done.read_text() != stamp:
        _open_pool(folder, codes, "w+")
        chunks = [(i, min(i + 500, config.pool)) for i in range(0, config.pool, 500)]
        with ProcessPoolExecutor(workers) as executor:
            list(executor.map(partial(_render_chunk, codes=codes, config=config, folder=folder), chunks))
        done.write_text(stamp)
    return _open_pool(folder, codes, "r")


class TrainBatch(NamedTuple):
    """One batch.

    Attributes:
        images: (B, 3, S, S) in [0, 1].
        cover: (B, N) in [0, 1], share of each patch that the bird covers.
        captions: B sentences.
        codes: (B, A) attribute indices.
        prompts: for every attribute one prompt per value; the last entry is one prompt for the background.
    """

    images: Tensor
    cover: Tensor
    captions: list[str]
    codes: Tensor
    prompts: list[list[str]]


def _view(
    image: np.ndarray, cover: np.ndarray, rng: np.random.Generator, size: int, grid: int, whole: float
) -> tuple[np.ndarray, np.ndarray]:
    """A view of a picture and its coverage: all of it or a square, mirrored or not."""
    side = image.shape[0]
    box = (0.0, 0.0, float(side), float(side))
    if rng.random() >= whole:
        edge = side * rng.uniform(0.5, 0.95)
        x, y = rng.uniform(0, side - edge, 2)
        box = (x, y, x + edge, y + edge)
    cells = tuple(edge * len(cover) / side for edge in box)
    view = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
    covered = np.asarray(Image.fromarray(cover).resize((grid, grid), Image.Resampling.BOX, box=cells))
    return (view[:, ::-1], covered[:, ::-1]) if rng.random() < 0.5 else (view, covered)


def _jitter(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Weak photometric jitter: gain per channel, brightness, contrast."""
    n = len(images)
    gain = torch.from_numpy(rng.normal(1.0, 0.05, (n, 3, 1, 1)) * rng.normal(1.0, 0.12, (n, 1, 1, 1))).float()
    contrast = torch.from_numpy(rng.uniform(0.75, 1.2, (n, 1, 1, 1))).float()
    mean = images.mean((1, 2, 3), keepdim=True)
    return (((images - mean) * contrast + mean) * gain).clamp(0, 1)


def make_batch(step: int, pool: Pool, config: PretrainConfig) -> TrainBatch:
    """The batch of a step; it depends on nothing but the step and the seed, so a resumed run sees the same."""
    rng = np.random.default_rng([config.seed, 2, step])
    index = rng.integers(0, len(pool.images), config.batch_size)
    size = MODEL_CONFIG["vision_cfg"]["image_size"]
    grid = size // MODEL_CONFIG["vision_cfg"]["patch_size"]
    views, cover = zip(
        *(_view(pool.images[i], pool.cover[i], rng, size, grid, config.whole) for i in index), strict=True
    )
    pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255.0
    covered = torch.from_numpy(np.stack(cover)).flatten(1).float() / 255.0
    captions = [caption(pool.codes[i], rng) for i in index]
    prompts = [attribute_prompts(name, rng) for name in ATTRIBUTE_NAMES] + [[background_prompt(rng)]]
    return TrainBatch(_jitter(pixels, rng), covered, captions, torch.from_numpy(pool.codes[index]), prompts)


def batches(first: int, pool: Pool, config: PretrainConfig) -> Iterator[tuple[int, TrainBatch]]:
    """Batches from step `first` on, prepared one ahead in a thread."""
    with ThreadPoolExecutor(1) as executor:
        pending = executor.submit(make_batch, first, pool, config)
        for step in range(first, config.steps):
            batch = pending.result()
            if step + 1 < config.steps:
                pending = executor.submit(make_batch, step + 1, pool, config)
            yield step, batch


# ------------------------------------------------------------------------------------------------- loss


def losses(
    model: Any, tokenizer: Any, batch: TrainBatch, backbone: Backbone, device: torch.device
) -> dict[str, Tensor]:
    """The weighted terms of the module docstring."""
    images, codes, cover = batch.images.to(device), batch.codes.to(device), batch.cover.to(device)
    texts = batch.captions + [prompt for prompts in batch.prompts for prompt in prompts]
    # bf16 for the towers only; similarities and losses in fp32
    with torch.autocast(device.type, torch.bfloat16):
        text = normalize(model.encode_text(tokenizer(texts).to(device)).float())
        cls, tokens, _ = backbone.tokens(images)
        projected = backbone.project(tokens)
    cls = normalize(cls.float())
    captions, prompts, background = text.split([len(images), int(CARDINALITIES.sum()), 1])
    scale = model.logit_scale.exp().clamp(max=100.0)
    patches = normalize(projected.float())
    similarity = patches @ prompts.T  # (B, N, V)
    weight = (similarity / 0.07 + cover.clamp(min=1e-4).log()[..., None]).softmax(1)
    bird = normalize(torch.einsum("bn,bne->be", cover, patches))
    place = torch.cat([similarity[..., : CARDINALITIES[0]], patches @ background.T], -1)
    return {
        "caption": clip_loss(cls, captions, scale),
        "attribute": 4.0 * attribute_loss(scale * cls @ prompts.T, codes),
        "patch": 2.8 * attribute_loss(scale * (weight * similarity).sum(1), codes),
        "bird": 0.8 * clip_loss(bird, captions, scale) + 3.2 * attribute_loss(scale * bird @ prompts.T, codes),
        "place": place_loss(scale * place, cover, codes[:, 0]),
        "pair": 2.0 * pair_loss(normalize(tokens.float()), cover),
    }


# ------------------------------------------------------------------------------------------------- training


def build_model() -> tuple[Any, Any]:
    """The untrained model and its tokenizer, as open_clip makes them from `MODEL_CONFIG`."""
    model = open_clip.CLIP(**json.loads(json.dumps(MODEL_CONFIG)))
    return model, open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])


def _optimizer(model: Any, config: PretrainConfig) -> torch.optim.AdamW:
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


def _lr(step: int, config: PretrainConfig) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    t = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * t)))


def save_checkpoint(folder: Path, model: Any, optimizer: torch.optim.AdamW, step: int, config: PretrainConfig) -> None:
    """Write weights and optimizer moments atomically; `step` is the next one to do."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}/{names[id(parameter)]}"] = state[key]
    temporary = folder / "checkpoint.tmp"
    save_file(tensors, temporary, metadata={"step": str(step), "config": json.dumps(asdict(config))})
    temporary.replace(folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, model: Any, optimizer: torch.optim.AdamW) -> int:
    """Restore what `save_checkpoint` wrote; returns the next step, 0 where there is no checkpoint."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    for name, parameter in model.named_parameters():
        if f"exp_avg/{name}" in tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
            }
    return step


def export(model: Any, folder: Path, config: PretrainConfig) -> None:
    """Write an ordinary open_clip model folder: config, and fp16 weights that say how they were made."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"pretraining": json.dumps(asdict(config))})


def pretrain(
    config: PretrainConfig, folder: Path, device: str = "cpu", save_every: int = 250, init: Path | None = None
) -> Any:
    """Train, log to `log.csv`, checkpoint every `save_every` steps, export to `folder/model`; resumes by itself.

    `init` is an exported model folder to begin from, instead of random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pool = render_pool(config, folder)
    torch.manual_seed(config.seed)
    model, tokenizer = build_model()
    if init is not None:
        weights = load_file(init / "open_clip_model.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.to(device)
    backbone = Backbone(model, tokenizer, PREPROCESS_CONFIG["mean"], PREPROCESS_CONFIG["std"], "birds").to(device)
    optimizer = _optimizer(model, config)
    first = load_checkpoint(folder, model, optimizer)
    begun = time.time()
    with (folder / "log.csv").open("a") as log:
        for step, batch in batches(first, pool, config):
            for group in optimizer.param_groups:
                group["lr"] = _lr(step, config)
            terms = losses(model, tokenizer, batch, backbone, torch.device(device))
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 0:
                row = ",".join(f"{term.item():.4f}" for term in terms.values())
                speed = (step - first + 1) * config.batch_size / (time.time() - begun)
                print(f"{step},{row},{model.logit_scale.exp().item():.2f},{speed:.0f}", file=log, flush=True)
            if (step + 1) % save_every == 0 or step + 1 == config.steps:
                save_checkpoint(folder, model, optimizer, step + 1, config)
                export(model, folder / "model", config)
    return model


def main() -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m tools.pretrain", description="Pretrain the bundled CLIP.")
    parser.add_argument("--out", type=Path, required=True, help="working folder: pool, checkpoint, log, model/")
    parser.add_argument("--steps", type=int, default=PretrainConfig.steps)
    parser.add_argument("--lr", type=float, default=PretrainConfig.lr)
    parser.add_argument("--init", type=Path, help="exported model folder to begin from")
    parser.add_argument("--seed", type=int, default=PretrainConfig.seed)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    config = PretrainConfig(steps=args.steps, lr=args.lr, seed=args.seed)
    pretrain(config, args.out, args.device, init=args.init)


if __name__ == "__main__":
    main()
