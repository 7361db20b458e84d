"""Measure the bundled model and write its card: `python -m benchmarks.model_card [--model DIR] [--out FILE]`.

The card is made from the measurements, so that it cannot say what nobody measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from benchmarks import command, positive
from clipviz import METHODS, load_backbone
from clipviz.backbone import Backbone
from clipviz.backbone.weights import BUNDLED
from clipviz.birds.dataset import DOMAINS, VALIDATION_DOMAIN, BirdsDataset, render_image
from clipviz.birds.world import ATTRIBUTE_NAMES, SPECIES
from clipviz.data.base import ViewConfig
from clipviz.data.batches.loader import ViewLoader
from clipviz.data.images.views import eval_view
from clipviz.methods.microclip import BACKBONE_PRESETS, MicroCLIP, crop_composite
from clipviz.ops import class_logits, normalize
from clipviz.training.evaluate import accuracy, predict
from tools.pretrain import command_of, stages_of
from tools.pretraining_data import CARDINALITIES, MIN_DISTANCE, attribute_prompts, sample_attributes
from tools.recipe import MODEL_CONFIG

CARD = BUNDLED.parent / "MODEL_CARD.md"
TEMPLATE = Path(__file__).with_suffix(".md")
SEEDS = (101, 102, 103)
"""Seeds of the birds that are measured on; no study uses them."""


def domain_row(backbone: Backbone, domain: str, images: int) -> dict[str, float]:
    """Zero-shot accuracies in percent on the test birds of a domain, mean over `SEEDS`."""
    rows = []
    for seed in SEEDS:
        data = BirdsDataset(domain, "test", seed=seed, n=images)
        row = {name: _accuracy(METHODS[name](backbone, data.prompts), data) for name in ("zero_shot", "descriptions")}
        rows.append({**row, **_token_accuracies(backbone, data)})
    return pd.DataFrame(rows).mean().to_dict()


def _accuracy(method: Any, data: BirdsDataset) -> float:
    predictions = predict(method, data)
    return accuracy(predictions.probs.argmax(-1), predictions.target)


@torch.no_grad()
def _token_accuracies(backbone: Backbone, data: BirdsDataset) -> dict[str, float]:
    """[FG] alone, CLS and [FG] fused, the weak view alone and the composite of its crops, all with the descriptions."""
    config = BACKBONE_PRESETS["birds"]
    method = MicroCLIP(backbone, data.prompts, config)
    classifier = normalize(method.learned_classifier)
    views = ViewConfig(backbone.image_size, True, config.crops, config.crop_scale, config.fill)
    right: dict[str, list[Tensor]] = {}
    for batch in ViewLoader(data, views, 64, seed=0).epoch(0):
        tokens = method.backbone.tokens(batch.views.weak)
        foreground = method.foreground(tokens).embedding
        assert batch.views.crops is not None
        crops = method.backbone.embed(batch.views.crops.flatten(0, 1)).unflatten(0, batch.views.crops.shape[:2])
        embeddings = {
            "fg": foreground,
            "fused": 0.5 * tokens.cls + 0.5 * foreground,
            "view": tokens.cls,
            "crops": crop_composite(tokens.cls, crops)[0],
        }
        for name, embedding in embeddings.items():
            right.setdefault(name, []).append(class_logits(embedding, classifier).argmax(-1) == batch.target)
    return {name: float(torch.cat(values).double().mean()) for name, values in right.items()}


@torch.no_grad()
def attribute_rows(backbone: Backbone, images: int) -> pd.DataFrame:
    """Accuracy among the values of each attribute on birds of other combinations, from CLS and from patches."""
    rng = np.random.default_rng(SEEDS[0])
    codes = sample_attributes(images, rng)
    pixels = [
        eval_view(Image.fromarray(render_image(code, "source", rng, 0.0)[0]), backbone.image_size) for code in codes
    ]
    tokens = backbone.tokens(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255.0)
    patches = normalize(backbone.project(tokens.patches))
    rows = []
    for column, name in enumerate(ATTRIBUTE_NAMES):
        wordings = [backbone.embed_text(attribute_prompts(name, np.random.default_rng(k))) for k in range(8)]
        classifier = normalize(torch.stack(wordings).mean(0))
        similarity = patches @ classifier.T
        pooled = ((similarity / 0.07).softmax(1) * similarity).sum(1)
        scores = {"CLS": tokens.cls @ classifier.T, "patches": pooled}
        right = {k: float((v.argmax(-1).numpy() == codes[:, column]).mean()) for k, v in scores.items()}
        rows.append({"attribute": name.replace("_", " "), "chance": 1.0 / CARDINALITIES[column], **right})
    return pd.DataFrame(rows)


def markdown_table(table: pd.DataFrame) -> str:
    """A pipe table; fractions as percent with one decimal."""
    head = "| " + " | ".join(table.columns) + " |"
    rule = "|" + "---|" * len(table.columns)
    cells = table.map(lambda v: v if isinstance(v, str) else f"{100 * v:.1f}")
    return "\n".join([head, rule, *("| " + " | ".join(row) + " |" for row in cells.itertuples(index=False))])


def stage_list(stages: list[dict[str, Any]]) -> str:
    """The stages that a model came about in, with their commands, as a list."""
    return "\n".join(f"{i}. `{command_of(stage)}`{_aside(stage)}" for i, stage in enumerate(stages, 1))


def _aside(stage: dict[str, Any]) -> str:
    """What the command of a stage does not say."""
    stopped = f", stopped after {stage['stopped_after']:,} steps" if "stopped_after" in stage else ""
    return stopped + (f"\n   ({stage['note']})" if "note" in stage else "")


def card(folder: Path, images: int) -> str:
    """The whole card."""
    backbone = load_backbone("birds") if folder == BUNDLED else load_backbone(str(folder))
    with safe_open(folder / "open_clip_model.safetensors", "pt") as file:
        made = json.loads(file.metadata()["pretraining"])
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (not a dict)
    domains = pd.DataFrame(
        [{"domain": domain, **domain_row(backbone, domain, images)} for domain in (*DOMAINS, VALIDATION_DOMAIN)]
    )
    domains.columns = ["domain", "class names", "descriptions", "[FG] only", "CLS + [FG]", "weak view", "its crops"]
    return TEMPLATE.read_text().format(
        vision=MODEL_CONFIG["vision_cfg"],
        text=MODEL_CONFIG["text_cfg"],
        parameters=parameters / 1e6,
        made=made,
        stages=stage_list(stages_of(folder)),
        shifted=100 * made["shifted"],
        coarse=100 * made["coarse"],
        strangers=100 * made["strangers"],
        distance=MIN_DISTANCE,
        images=images,
        chance=100 / len(SPECIES),
        seeds=", ".join(map(str, SEEDS)),
        validation=VALIDATION_DOMAIN,
        domains=markdown_table(domains),
        attributes=markdown_table(attribute_rows(backbone, images)),
    )


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_card", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUNDLED, help="model folder, default: the bundled one")
    parser.add_argument("--images", type=positive, default=960, help="birds per domain and seed, default: %(default)s")
    parser.add_argument("--out", type=Path, default=CARD, help="default: %(default)s")
    args = parser.parse_args()
    args.out.write_text(card(args.model, args.images))
    print(args.out.read_text())


if __name__ == "__main__":
    command(main)
