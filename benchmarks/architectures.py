"""What each architecture can do and what it costs: `python -m benchmarks.architectures [NAME ...] [--out FILE.md]`.

Every model is built at its full size with random weights, in a process of its own (so that the peak of its memory is
its own), and compared with open_clip: embeddings with `encode_image`, patch tokens with open_clip's tower in which the
last attention is replaced by its values. Nothing is downloaded; where a text tower wants a tokenizer from the hub it
gets open_clip's built-in one, and a vocabulary to match. Times are CPU seconds, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command
from clipviz import METHODS, AdaptConfig, load_backbone
from clipviz.backbone import Backbone
from clipviz.data.sources.benchmarks import ArrayDataset
from clipviz.errors import choose
from clipviz.events import StepFinished
from clipviz.methods.build import build_method
from clipviz.training.loop import adapt

# name here -> the architecture it comes from, and changes to its vision tower
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "MobileCLIP-S1": ("MobileCLIP-S1", {}),
    "RN50": ("RN50", {}),
    "ViT-B-32": ("ViT-B-32", {}),
    "ViT-B-32, custom blocks": ("ViT-B-32", {"block_type": "custom", "qk_norm": True}),
    "ViT-B-16": ("ViT-B-16", {}),
    "EVA02-B-16": ("EVA02-B-16", {}),
    "ViT-B-16-SigLIP": ("ViT-B-16-SigLIP", {}),
    "ViT-L-14": ("ViT-L-14", {}),
}
BATCH = 2


class Row(NamedTuple):
    """One line of the table; None where a tower has no such thing."""

    name: str
    tower: str
    parameters: int
    embedding_difference: float
    token_difference: float | None
    refused: list[str]
    embed_seconds: float
    dpa_seconds: float
    microclip_seconds: float | None
    embed_gb: float
    train_gb: float


def build(name: str) -> Backbone:
    """An architecture with random weights, without asking the hub for a tokenizer."""
    origin, vision = ARCHITECTURES[name]
    config = open_clip.get_model_config(origin)
    config["vision_cfg"].update(vision)
    if config["text_cfg"].pop("hf_tokenizer_name", None):
        config["text_cfg"]["vocab_size"] = 49408
    with tempfile.TemporaryDirectory() as folder:
        key = f"measured-{name.lower().replace('siglip', 'sig')}"  # open_clip: SigLIP in a name means its tokenizer
        (Path(folder) / f"{key}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_backbone(key)


def plain_embeddings(backbone: Backbone, images: Tensor) -> Tensor:
    """The embeddings by open_clip alone, with the pixel statistics that it keeps with the model."""
    preprocess = open_clip.get_model_preprocess_cfg(backbone.model)
    mean, std = (torch.tensor(preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
    embeddings: Tensor = backbone.model.encode_image((images - mean) / std, normalize=True)  # type: ignore[operator]
    return embeddings


def plain_value_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    """Patch tokens by another way than clipviz's: open_clip's whole tower, its last attention replaced by values."""
    tower = copy.copy(backbone.visual)
    block = copy.deepcopy(tower.transformer.resblocks[-1])
    tower._modules = {**tower._modules, "transformer": copy.copy(tower.transformer)}
    blocks = torch.nn.ModuleList([*tower.transformer.resblocks[:-1], block])
    tower.transformer._modules = {**tower.transformer._modules, "resblocks": blocks}
    attention = block.attn

    def values_only(q_x: Tensor, k_x: object = None, v_x: object = None, attn_mask: object = None) -> Tensor:
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        return F.linear(F.linear(q_x, weight, bias), attention.out_proj.weight, attention.out_proj.bias)

    block.attention = values_only
    tower.output_tokens = True
    tokens: Tensor = tower((images - backbone.mean) / backbone.std)[1]
    return tokens


def noise(n: int, side: int) -> ArrayDataset:
    """Pictures of two classes, in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)
    names = ("owl", "wren")
    return ArrayDataset(pixels, [i % 2 for i in range(n)], name="noise", split="all", class_names=names, templates="{}")


def refused_methods(backbone: Backbone, data: ArrayDataset) -> list[str]:
    """The methods that refuse a tower; they do so when they are built."""
    refused = []
    for name in METHODS:
        try:
            build_method(name, backbone, data)
        except ValueError:
            refused.append(name)
    return refused


def step_seconds(name: str, backbone: Backbone, data: ArrayDataset) -> float:
    """CPU seconds for an image in a step of training, its views and crops included."""
    begun = 0.0
    for event in adapt(METHODS[name](backbone, data.prompts), data, AdaptConfig(epochs=1, batch_size=BATCH)):
        if isinstance(event, StepFinished):
            break
        begun = time.process_time()
    return (time.process_time() - begun) / BATCH


def embed_seconds(backbone: Backbone, images: Tensor) -> float:
    """CPU seconds for an image, the best of three batches after one to warm up."""
    backbone.embed(images)
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        backbone.embed(images)
        best = min(best, time.process_time() - begun)
    return best / len(images)


def peak_gb() -> float:
    """The most memory that this process has had, in units of 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(name: str) -> Row:
    """All of one architecture."""
    backbone = build(name)
    data = noise(BATCH, backbone.image_size)
    size = (BATCH, 3, backbone.image_size, backbone.image_size)
    images = torch.rand(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        to_embed = embed_seconds(backbone, images)
        embed_gb = peak_gb()
        difference = (backbone.embed(images) - plain_embeddings(backbone, images)).abs().max().item()
        tokens = None
        if backbone.has_patches:
            golden = plain_value_tokens(backbone, images)
            tokens = (backbone.tokens(images).patches - golden).abs().max().item()
    return Row(
        name,
        type(backbone.visual).__name__,
        sum(p.numel() for p in backbone.model.parameters()),
        difference,
        tokens,
        refused_methods(backbone, data),
        to_embed,
        step_seconds("dpa", backbone, data),
        step_seconds("microclip", backbone, data) if backbone.has_patches else None,
        embed_gb,
        peak_gb(),
    )


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | tower | parameters | embeddings, max difference | patch tokens, max difference | methods | "
        "CPU s/image: embed | dpa step | microclip step | peak: embed | train |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tokens = "none" if row.token_difference is None else f"{row.token_difference:.0e}"
        methods = f"all but {', '.join(row.refused)}" if row.refused else "all"
        microclip = "-" if row.microclip_seconds is None else f"{row.microclip_seconds:.2f}"
        lines.append(
            f"| {row.name} | {row.tower} | {row.parameters / 1e6:.0f} M | {row.embedding_difference:.0e} | {tokens} | "
            f"{methods} | {row.embed_seconds:.3f} | {row.dpa_seconds:.2f} | {microclip} | {row.embed_gb:.1f} GB | "
            f"{row.train_gb:.1f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(map(repr, ARCHITECTURES))}"
    )
    parser.add_argument("--out", type=Path, help="Markdown file; default: the terminal only")
    parser.add_argument("--json", action="store_true", help="measure one in this process, and print it as JSON")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.names[0])))
        return
    rows = []
    for name in [choose("architecture", name, ARCHITECTURES) for name in args.names or ARCHITECTURES]:
        measured = [sys.executable, "-m", "benchmarks.architectures", name, "--json"]
        done = subprocess.run(measured, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(Row(*json.loads(done.stdout.splitlines()[-1])))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    text = f"{table(rows)}\n\nbatches of {BATCH}; CPU seconds of all {torch.get_num_threads()} threads together"
    print(text)
    if args.out is not None:
        args.out.write_text(f"{text}\n")
    wrong = [row.name for row in rows if max(row.embedding_difference, row.token_difference or 0.0) > 1e-5]
    if wrong:
        sys.exit(f"not open_clip's numbers to 1e-5: {', '.join(wrong)}")


if __name__ == "__main__":
    command(main)
