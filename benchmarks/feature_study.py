"""Methods on CLIP-like embeddings of more classes than a batch has images: `python -m benchmarks.feature_study`.

The embeddings are drawn, not computed: 2,500 images of 120 classes, of which the largest have 80 and the smallest none
or few, in groups of look-alikes; images and texts each around a mean of their own (cosines: 0.74 within a class, 0.61
across classes, 0.2 to 0.4 between image and text); a few directions in which images vary most, whatever their
class; texts beside the means of their classes, some nearer to all images than others. Three kinds of text differ in
how far beside. A world with a known answer, no claim about photographs.

Every method runs with its defaults ("after"), where one was mended as it was ("before"), and the caches with the beta
of the presets of benchmarks ("beta 1"), measured on the images that it learned from and on as many unseen ones. A row
of the table is a method, its cells are points over zero-shot, mean of the seeds and the worst of them; `--out` keeps
the single runs.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks import command, positive
from clipviz import METHODS, adapt
from clipviz.data.batches.features import FeatureDataset
from clipviz.methods.build import build_method, parse_constants
from clipviz.ops import class_logits, fairness_loss, normalize
from clipviz.training.evaluate import accuracy, predict

RESULTS = Path(__file__).parent / "results" / "feature_study.csv"

TEXTS = {"names": 0.9, "templates": 0.65, "descriptions": 0.4}
BEFORE = {"dpa": ["fairness=batch"], "tip_adapter": ["balanced=false"], "ntua": ["balanced=false"]}
"""Defaults that lost against zero-shot where classes outnumber the images of a batch, or fill a cache unevenly."""
BETA_1 = {"tip_adapter": ["beta=1"], "ntua": ["beta=1"]}
"""What the presets of benchmarks have, of which `clipviz adapt` warns."""

_CLASSES, _IMAGES, _WIDTH, _GROUPS, _RANK = 120, 2500, 512, 24, 32


def draw(text: str, seed: int) -> tuple[FeatureDataset, FeatureDataset]:
    """Embeddings to learn from and as many unseen ones, with the classifier of one kind of text."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(_WIDTH, _RANK + 2)))
    image_mean, text_mean, subspace = basis[:, 0], basis[:, 1], basis[:, 2:].T
    groups = rng.normal(size=(_GROUPS, _RANK))
    centers = groups[rng.integers(_GROUPS, size=_CLASSES)] + 0.7 * rng.normal(size=(_CLASSES, _RANK))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    shares = rng.lognormal(sigma=0.9, size=_CLASSES).clip(0.15, 5.0)
    nuisance = np.linspace(1.6, 0.4, _RANK) / np.sqrt(_RANK)
    spread = rng.uniform(0.7, 1.3, size=_CLASSES)
    off = rng.normal(size=(_CLASSES, _RANK)) / np.sqrt(_RANK)
    hub = rng.normal(scale=0.014, size=(_CLASSES, 1))

    def images(seed_of_split: int) -> tuple[np.ndarray, np.ndarray]:
        of_split = np.random.default_rng((seed, seed_of_split))
        labels = of_split.choice(_CLASSES, size=_IMAGES, p=shares / shares.sum())
        within = of_split.normal(size=(_IMAGES, _RANK)) * nuisance * spread[labels, None]
        rest = of_split.normal(size=(_IMAGES, _WIDTH)) / np.sqrt(_WIDTH)
        rows = 0.75 * image_mean + (0.36 * centers[labels] + 0.36 * within) @ subspace + 0.30 * rest
        return rows.astype(np.float32), labels

    rows = (centers + TEXTS[text] * off) / np.sqrt(1 + TEXTS[text] ** 2)
    classifier = 0.75 * text_mean + (0.25 + hub) * image_mean + 0.34 * rows @ subspace
    datasets = []
    for number, split in enumerate(("train", "test")):
        embeddings, labels = images(number)
        datasets.append(
            FeatureDataset(
                normalize(torch.from_numpy(embeddings)), name=f"drawn-{text}", split=split,
                targets=torch.from_numpy(labels), classifier=torch.from_numpy(classifier.astype(np.float32)),
            )
        )  # fmt: skip
    return datasets[0], datasets[1]


def study(names: list[str], seeds: int) -> pd.DataFrame:
    """A row for every run: text, seed, method, "before" or "after", accuracy and ECE on both kinds of images."""
    rows = []
    for seed, text in product(range(seeds), TEXTS):
        learned, unseen = draw(text, seed)
        for name in ["zero_shot", *names]:
            for when, changed in {"before": BEFORE.get(name), "beta 1": BETA_1.get(name), "after": []}.items():
                if changed is None:
                    continue
                method = build_method(name, learned.backbone(), learned, constants=parse_constants(changed))
                for _ in adapt(method, learned, seed=seed):
                    pass
                row = {"text": text, "seed": seed, "method": name, "when": when}
                for where, data in (("learned", learned), ("unseen", unseen)):
                    said = predict(method, data)
                    row[where] = accuracy(said.probs.argmax(-1), said.target)
                    row[f"{where}_ece"] = calibration_error(said.probs, said.target)
                rows.append(row)
                print(*row.values(), flush=True)
    return pd.DataFrame(rows)


def gradients(text: str, seed: int = 0, batch: int = 64) -> dict[str, float]:
    """Norm of fairness's gradient over the cross-entropy's, before training, mean of the steps of a full window."""
    data, _ = draw(text, seed)
    classifier = data.classifier.clone().requires_grad_()
    window, running, ratios = [], None, {"batch": [], "microclip": [], "window": []}
    for rows in torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).split(batch):
        logits = class_logits(data.rows(rows), classifier, data.logit_scale)
        probs = logits.softmax(-1).mean(0)
        running = probs if running is None else 0.5 * (running.detach() + probs)
        window = [*window, probs.detach()][-32:]
        mean = (sum(window[:-1]) + probs) / len(window)
        means = {"batch": fairness_loss(probs), "microclip": 2 * fairness_loss(running), "window": fairness_loss(mean)}
        own = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(-1)), classifier, retain_graph=True)[0].norm()
        for name, loss in means.items():
            gradient = torch.autograd.grad(loss, classifier, retain_graph=True)[0]
            ratios[name] += [float(gradient.norm() / own)] if len(window) == 32 else []
    return {name: sum(values) / len(values) for name, values in ratios.items()}


def calibration_error(probs: torch.Tensor, target: torch.Tensor, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by their images."""
    confidence, labels = probs.max(-1)
    place = (confidence * bins).long().clamp(max=bins - 1)
    off = torch.zeros(bins).index_add(0, place, (labels == target).float() - confidence)
    return float(off.abs().sum() / len(target))


def markdown(runs: pd.DataFrame) -> str:
    """Points over zero-shot, mean and (worst) of the seeds; ECE in %, zero-shot's first; learned / unseen images."""
    base = runs[runs["method"] == "zero_shot"].set_index(["text", "seed"])
    lines = ["| | | " + " | ".join(TEXTS) + " | ECE |", "|---" * (len(TEXTS) + 3) + "|"]
    for (name, when), group in runs.groupby(["method", "when"], sort=False):
        cells = []
        for text in TEXTS:
            own = group[group["text"] == text].set_index(["text", "seed"])
            pair = []
            for where in ("learned", "unseen"):
                if name == "zero_shot":
                    pair.append(f"{100 * own[where].mean():.1f} %")
                else:
                    gain = 100 * (own[where] - base.loc[own.index, where])
                    pair.append(f"{gain.mean():+.1f} ({gain.min():+.1f})")
            cells.append(" / ".join(pair))
        pairs = [(base[f"{where}_ece"].mean(), group[f"{where}_ece"].mean()) for where in ("learned", "unseen")]
        ece = " / ".join(" → ".join(f"{100 * value:.1f}" for value in dict.fromkeys(pair)) for pair in pairs)
        lines.append(f"| {name} | {'' if name == 'zero_shot' else when} | " + " | ".join([*cells, ece]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name, method in METHODS.items() if method.works_on_embeddings and name not in _TEXT_ONLY]
    parser.add_argument("--methods", default=",".join(known), help="default: %(default)s")
    parser.add_argument("--seeds", type=positive, default=3, help="drawn worlds, default: %(default)s")
    parser.add_argument(
        "--out", type=Path, help=f"file of single runs, default: {RESULTS}, or none of a part of the study"
    )
    parser.add_argument("--gradients", action="store_true", help="only how hard each kind of fairness pulls")
    args = parser.parse_args()
    if args.gradients:
        for text in TEXTS:
            print(text, {name: f"{ratio:.2f}" for name, ratio in gradients(text).items()})
        return
    runs = study(args.methods.split(","), args.seeds)
    is_whole = all(getattr(args, name) == parser.get_default(name) for name in ("methods", "seeds"))
    if out := args.out or (RESULTS if is_whole else None):
        runs.to_csv(out, index=False, float_format="%.4f")
    print(markdown(runs))


_TEXT_ONLY = ("zero_shot", "descriptions")

if __name__ == "__main__":
    command(main)
