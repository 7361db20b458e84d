"""Pretrain the bundled CLIP: `python -m tools.pretrain --out DIR`, on a CPU in about an hour, resumable.

Images are random birds, texts are captions and attribute prompts (`pretraining_data.py`). With e the image
embedding, t text embeddings, p_i the value-path patch tokens and u_i their projections (unit norm), c_i the share of
patch i that the bird covers, m the mean of u weighted by c, l SOAP's token (microCLIP's eq. (3), matrices as they
begin) with the true bird for its mask, and s the learned logit scale, the terms and their default weights are

    caption        1    CLIP(e, t_caption)                 symmetric contrastive loss (Radford et al., 2021)
    attribute      4    mean_a CE(s e . t_a, value_a)      one prompt per value of attribute a
    patch          2.8  mean_a CE(s pool_c(u . t_a), value_a)   the same on patches, pooled by c times their own softmax
                                                           (patch-aligned contrastive training, Mukhoti et al., 2023)
    bird_caption   0.8  CLIP(m, t_caption)
    bird_attribute 3.2  mean_a CE(s m . t_a, value_a)
    place          1    mean_i CE(s u_i . t_place, place_i)  the bird's plan where it is, else "background"
    pair           2    mean_ij hinge(cos(p_i, p_j))       at least 0.6 alike within bird and within background,
                                                           at most 0 across
    part           0    mean_a,i CE(s u_i . t_a, value_a)  over the patches i that show the part that a speaks of
    soap_caption   0    CLIP(l, t_caption)
    soap_attribute 0    mean_a CE(s l . t_a, value_a)
    zoom           0    mean_b CE(s z_b . f, b)            z pools the u of a region, f are embeddings of such regions,
                                                           enlarged, without gradient (dense self-distillation)

and `--weight NAME=VALUE` sets another. The first stage of the bundled model has the default ones, and its card tells
those of the later stages. All but the first two give the patch
tokens words, as large CLIPs have: microCLIP's [FG] token lives on them. The place of the bird must be told: left
free, a small tower keeps what it knows about the bird in the idle patches of the background, and the likeness of two
patches, which NCut cuts by, is mostly that of their positions. Plain contrastive learning alone is slow to find small
parts; the attribute term is still language supervision, and the evaluation species and their near neighbors never
occur. `--strangers` pastes pieces of other birds beside and behind the bird in a share of the views, and `--coarse`
leaves the details out of a share of the captions that CLS reads, as captions of photographs mostly do.

A run begins from an exported model with `--init`; the exported file tells the whole chain of such stages.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipviz.backbone import Backbone
from clipviz.errors import choose
from clipviz.methods.microclip import saliency_query, soap_pool
from clipviz.ops import normalize
from tools.losses import attribute_loss, clip_loss, pair_loss, part_loss, place_loss, zoom_loss
from tools.pool import TrainBatch, batches, render_pool
from tools.pretraining_data import CARDINALITIES
from tools.recipe import MODEL_CONFIG, PREPROCESS_CONFIG, PretrainConfig, Weights

DEFAULTS = PretrainConfig()

# ------------------------------------------------------------------------------------------------- loss


def soap_token(patches: Tensor, mask: Tensor, projection: Tensor) -> Tensor:
    """The [FG] embedding of microCLIP before training, (B, N, W) and (B, N) bool -> (B, E) unit norm."""
    identity = torch.eye(patches.shape[-1], device=patches.device)
    return soap_pool(saliency_query(patches, mask), patches, identity, identity, identity, projection)[0]


def losses(
    model: Any, tokenizer: Any, batch: TrainBatch, backbone: Backbone, weights: Weights, device: torch.device
) -> dict[str, Tensor]:
    """The weighted terms of the module docstring; those of weight 0 are left out."""
    images, codes, shares, cover = (t.to(device) for t in (batch.images, batch.codes, batch.parts, batch.cover))
    texts = batch.captions + [prompt for prompts in batch.prompts for prompt in prompts] + list(batch.coarse.values())
    # on a GPU, bf16 for the towers only; on a core of a CPU a step took half as long again in bf16 as in fp32
    fast = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type != "cpu")
    with fast():
        text = normalize(model.encode_text(tokenizer(texts).to(device)).float())
        cls, tokens, _ = backbone.tokens(images)
        projected = backbone.project(tokens)
    cls, tokens = normalize(cls.float()), tokens.float()
    sizes = [len(images), int(CARDINALITIES.sum()), 1, len(batch.coarse)]
    captions, prompts, background, coarse = text.split(sizes)
    from_afar = captions.index_copy(0, torch.tensor(list(batch.coarse), device=device, dtype=torch.long), coarse)
    scale = model.logit_scale.exp().clamp(max=100.0)
    patches = normalize(projected.float())
    similarity = patches @ prompts.T  # (B, N, V)

    def told(embedding: Tensor) -> Tensor:
        return attribute_loss(scale * embedding @ prompts.T, codes)

    def patch() -> Tensor:
        weight = (similarity / 0.07 + cover.clamp(min=1e-4).log()[..., None]).softmax(1)
        return attribute_loss(scale * (weight * similarity).sum(1), codes)

    def place() -> Tensor:
        logits = torch.cat([similarity[..., : CARDINALITIES[0]], patches @ background.T], -1)
        return place_loss(scale * logits, cover, codes[:, 0])

    def zoom() -> Tensor:
        assert batch.zoomed is not None  # weights.zoom asks for both
        assert batch.region is not None
        with torch.no_grad(), fast():
            target = normalize(backbone.embed(batch.zoomed.to(device)).float())
        return zoom_loss(patches, batch.region.to(device), target, scale)

    bird = normalize(torch.einsum("bn,bne->be", cover, patches))
    salient = soap_token(tokens, cover > 0.25, model.visual.proj)  # as `benchmarks.soap_oracle` draws the line
    terms: dict[str, Callable[[], Tensor]] = {
        "caption": lambda: clip_loss(cls, from_afar, scale),
        "attribute": lambda: told(cls),
        "patch": patch,
        "bird_caption": lambda: clip_loss(bird, captions, scale),
        "bird_attribute": lambda: told(bird),
        "place": place,
        "pair": lambda: pair_loss(normalize(tokens), cover),
        "part": lambda: part_loss(scale * similarity, shares, codes),
        "soap_caption": lambda: clip_loss(salient, captions, scale),
        "soap_attribute": lambda: told(salient),
        "zoom": zoom,
    }
    return {name: weight * terms[name]() for name, weight in asdict(weights).items() if weight}


# ------------------------------------------------------------------------------------------------- training


def build_model() -> tuple[Any, Any]:
    """The untrained model and its tokenizer, as open_clip makes them from `MODEL_CONFIG`."""
    model = open_clip.CLIP(**json.loads(json.dumps(MODEL_CONFIG)))
    return model, open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])


def forget_cls(visual: Any) -> None:
    """Draw anew what forms the CLS embedding and no patch token of the value path, as open_clip does at first.

    Blocks before the last do let patches look at CLS, whose token and place are drawn anew too.
    """
    width = visual.class_embedding.shape[0]
    with torch.no_grad():
        visual.class_embedding.normal_(std=width**-0.5)
        visual.positional_embedding[0].normal_(std=width**-0.5)
        torch.nn.init.xavier_uniform_(visual.transformer.resblocks[-1].attn.in_proj_weight[: 2 * width])
        visual.transformer.resblocks[-1].attn.in_proj_bias[: 2 * width].zero_()


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


def load_checkpoint(folder: Path, model: Any, optimizer: torch.optim.AdamW, config: PretrainConfig) -> int:
    """Restore what `save_checkpoint` wrote; returns the next step, 0 where there is no checkpoint.

    Raises:
        ValueError: if it is of another configuration.
    """
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    metadata = _metadata(path)
    if (made := json.loads(metadata["config"])) != asdict(config):
        other = sorted(name for name in asdict(config) if made.get(name) != asdict(config)[name])
        raise ValueError(f"{path} was made with another {', '.join(other)}; give the same, or another folder")
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    for name, parameter in model.named_parameters():
        if f"exp_avg/{name}" in tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(metadata["step"])),
                "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
            }
    return int(metadata["step"])


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def export(model: Any, folder: Path, stages: Sequence[dict[str, Any]]) -> None:
    """Write an ordinary open_clip model folder: config, and fp16 weights that say how they were made, by stages."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    metadata = {"pretraining": json.dumps(stages[-1]), "stages": json.dumps(stages)}
    save_file(weights, folder / "open_clip_model.tmp", metadata=metadata)
    (folder / "open_clip_model.tmp").replace(folder / "open_clip_model.safetensors")


def stages_of(folder: Path) -> list[dict[str, Any]]:
    """How an exported model was made, one configuration for each stage; of older files the last is known."""
    metadata = _metadata(folder / "open_clip_model.safetensors")
    return json.loads(metadata.get("stages") or f"[{metadata['pretraining']}]")  # type: ignore[no-any-return]


def pretrain(
    config: PretrainConfig,
    folder: Path,
    device: str = "cpu",
    save_every: int = 250,
    init: Path | None = None,
    pool_folder: Path | None = None,
) -> Any:
    """Train, log to `log.csv`, checkpoint every `save_every` steps, export to `folder/model`; resumes by itself.

    `init` is an exported model folder to begin from, instead of random weights; `pool_folder` is where the rendered
    birds are or shall be, `folder` by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pool = render_pool(config, pool_folder or folder)
    torch.manual_seed(config.seed)
    model, tokenizer = build_model()
    stages = [asdict(config)]
    if init is not None:
        weights = load_file(init / "open_clip_model.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        stages = [*stages_of(init), *stages]
    if config.fresh_cls:
        forget_cls(model.visual)
    model.to(device)
    backbone = Backbone(model, tokenizer, PREPROCESS_CONFIG["mean"], PREPROCESS_CONFIG["std"], "birds").to(device)
    optimizer = _optimizer(model, config)
    first = load_checkpoint(folder, model, optimizer, config)
    begun = time.time()
    with (folder / "log.csv").open("a") as log:
        for step, batch in batches(first, pool, config, MODEL_CONFIG["vision_cfg"]):
            for group in optimizer.param_groups:
                group["lr"] = _lr(step, config)
            terms = losses(model, tokenizer, batch, backbone, config.weights, torch.device(device))
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step == 0:
                print("step", *terms, "logit_scale", "images/s", sep=",", file=log)
            if step % 25 == 0:
                row = ",".join(f"{term.item():.4f}" for term in terms.values())
                speed = (step - first + 1) * config.batch_size / (time.time() - begun)
                print(f"{step},{row},{model.logit_scale.exp().item():.2f},{speed:.0f}", file=log, flush=True)
            if (step + 1) % save_every == 0 or step + 1 == config.steps:
                save_checkpoint(folder, model, optimizer, step + 1, config)
                export(model, folder / "model", [*stages[:-1], stages[-1] | _if_stopped(step + 1, config)])
    return model


def _if_stopped(done: int, config: PretrainConfig) -> dict[str, int]:
    """What a stage that was left before its last step has to tell besides its configuration."""
    return {"stopped_after": done} if done < config.steps else {}


def parse_weights(assignments: Sequence[str]) -> Weights:
    """["attribute=0.5", ...] -> the default weights with these changed; ValueError for an unknown term or no number."""
    known, changed = [term.name for term in fields(Weights)], {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        try:
            changed[choose("term of the loss", name, known)] = float(value)
        except ValueError as error:
            raise ValueError(f"--weight wants NAME=NUMBER, got {assignment!r}: {error}") from None
    return replace(Weights(), **changed)


SETTINGS = ("steps", "lr", "warmup", "pool", "strangers", "coarse", "seed")
"""Fields of the configuration that are options of the command line."""


def command_of(stage: dict[str, Any]) -> str:
    """The command, but for its folders, that makes a stage of `stages_of`; a field that the stage lacks is as today."""
    words = [f"--{name} {stage[name]}" for name in SETTINGS if stage.get(name) not in (None, getattr(DEFAULTS, name))]
    words += ["--fresh-cls"] if stage.get("fresh_cls") else []
    weights = stage.get("weights", {})
    changed = [f"{name}={value:g}" for name, value in weights.items() if value != getattr(DEFAULTS.weights, name)]
    return " ".join(["python -m tools.pretrain", *words, *(["--weight", *changed] if changed else [])])


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, PretrainConfig]:
    """The command line, and the configuration that it asks for."""
    parser = argparse.ArgumentParser(prog="python -m tools.pretrain", description="Pretrain the bundled CLIP.")
    parser.add_argument("--out", type=Path, required=True, help="working folder: checkpoint, log, model/")
    parser.add_argument("--pool-at", type=Path, help="folder of the rendered birds, default: that of --out")
    parser.add_argument("--init", type=Path, help="exported model folder to begin from")
    parser.add_argument("--weight", nargs="+", default=[], metavar="TERM=NUMBER", help="weights of terms of the loss")
    for name in SETTINGS:
        default = getattr(DEFAULTS, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--fresh-cls", action="store_true", help="CLS learns anew where to look")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints, default: %(default)s")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    named = {name: getattr(args, name) for name in (*SETTINGS, "fresh_cls")}
    try:
        return args, PretrainConfig(**named, weights=parse_weights(args.weight))
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    args, config = parse(argv)
    pretrain(config, args.out, args.device, args.save_every, args.init, args.pool_at)


if __name__ == "__main__":
    main()
