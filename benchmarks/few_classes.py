"""What happens when only some of the classes are there: `python -m benchmarks.few_classes`.

60 images of 1, 3, 6, 12 or all 24 classes of birds, the text classifier always of all 24: zero-shot, TransCLIP and
StatA, on the same embeddings, by descriptions. Writes benchmarks/results/few_classes.csv (a row per domain, number of
classes and method: mean accuracy of the labels over the draws, half of its 95 % interval by Student's t, mean number of
classes that are predicted) and docs/few_classes.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks import command, positive
from benchmarks.accuracy_tables import half_width
from clipviz import load_backbone, load_dataset
from clipviz.data.batches.features import embed_dataset
from clipviz.figures.style import method_style
from clipviz.methods.base import prompt_sentences, text_classifier
from clipviz.methods.transclip import solve

PRESENT, IMAGES = (1, 3, 6, 12, 24), 60
METHODS = ("zero_shot", "transclip", "stata")


def draws(domain: str, n_draws: int, seed: int) -> pd.DataFrame:
    """Accuracy of the labels: columns domain, present, draw, method, accuracy, predicted."""
    backbone = load_backbone("birds")
    data = load_dataset(f"birds/{domain}", "train", seed=seed, n=IMAGES * 24)
    features = embed_dataset(backbone, data)
    classifier = text_classifier(backbone, prompt_sentences(data.prompts, "descriptions")).detach()
    targets, generator = torch.from_numpy(data.targets), torch.Generator().manual_seed(seed)
    rows = []
    for present in PRESENT:
        for draw in range(n_draws):
            classes = torch.randperm(24, generator=generator)[:present]
            pool = torch.isin(targets, classes).nonzero()[:, 0]
            chosen = pool[torch.randperm(len(pool), generator=generator)[:IMAGES]]
            f, scale = features.rows(chosen), backbone.logit_scale
            labels = {"zero_shot": (f @ classifier.T).argmax(1)}
            for name in METHODS[1:]:
                found = solve(f, classifier, anchor=name == "stata", logit_scale=scale)
                labels[name] = found.assignments.argmax(1)
            for name, guess in labels.items():
                right = (guess == targets[chosen]).float().mean().item()
                rows.append((domain, present, draw, name, right, len(guess.unique())))
    return pd.DataFrame(rows, columns=["domain", "present", "draw", "method", "accuracy", "predicted"])


def draw_figure(table: pd.DataFrame) -> Figure:
    """A panel for each domain: accuracy against the number of classes that are there."""
    domains = list(dict.fromkeys(table["domain"]))
    figure = Figure(figsize=(3.6 * len(domains) + 0.6, 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    for axis, domain in zip(panels, domains, strict=True):
        for name in METHODS:
            rows, style = table[(table["domain"] == domain) & (table["method"] == name)], method_style(name)
            marker, line = {"zero_shot": ("o", ":"), "transclip": ("P", "-"), "stata": ("v", "--")}[name]
            color = {"stata": "#D55E00"}.get(name, style.color)
            axis.errorbar(range(len(rows)), 100 * rows["accuracy"], 100 * rows["accuracy_ci95"],
                          label=style.name, color=color, marker=marker, linestyle=line, capsize=3)  # fmt: skip
        axis.set_xticks(range(len(PRESENT)), [str(present) for present in PRESENT])
        axis.set_title(f"birds/{domain}", fontsize=11)
        axis.set_xlabel("classes that are there, of 24")
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy of the labels (%)")
    panels[0].legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", default="fog,night,clutter")
    parser.add_argument("--draws", type=positive, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few_classes.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/few_classes.png"))
    args = parser.parse_args()
    runs = pd.concat([draws(domain, args.draws, args.seed) for domain in args.domains.split(",")])
    table = runs.groupby(["domain", "present", "method"], sort=False).agg(
        accuracy=("accuracy", "mean"), accuracy_ci95=("accuracy", half_width), predicted=("predicted", "mean")
    )
    table.reset_index().to_csv(args.out, index=False, float_format="%.4f")
    draw_figure(table.reset_index()).savefig(args.figure)
    print((100 * table["accuracy"]).unstack().round(1))


if __name__ == "__main__":
    command(main)
