"""What each part of microCLIP adds, on birds: `python -m benchmarks.ablation`.

Each variant is the preset for birds but for one thing, on the images and seeds of the accuracy study:

    microclip           the preset
    without SOAP        CLS in place of the [FG] embedding, everywhere (soap=false)
    with true masks     SOAP's query from the true mask of the bird instead of NCut's (`benchmarks.true_masks`)
    without crops       one crop, which is the whole image (crops=1, crop_scale=[1.0, 1.0])
    without fairness    no fairness term in the loss (fairness_weight=0)

Runs are rows of the study's file and never done twice. The table is of the rows that this command would make, of all
its variants: of the bundled model, the preset of today and the same number of images and epochs, and of no others.
`--markdown` only prints it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd

from benchmarks import command
from benchmarks.accuracy import (
    Splits,
    Variant,
    built,
    cells,
    names_in,
    read_runs,
    rendered_on_demand,
    study,
    study_parser,
)
from benchmarks.accuracy_tables import half_width, of_one_state, percent
from benchmarks.saliency_tables import table
from benchmarks.true_masks import ObjectMasks, TrueMaskMicroCLIP
from clipviz import load_backbone
from clipviz.backbone import Backbone
from clipviz.birds.dataset import DOMAINS, VALIDATION_DOMAIN
from clipviz.errors import choose

WHOLE = "microclip"
ABLATED = {
    "without SOAP": {"soap": "false"},
    "without crops": {"crops": "1", "crop_scale": "[1.0, 1.0]"},
    "without fairness": {"fairness_weight": "0"},
}


def with_true_masks(backbone: Backbone, splits: Splits, seed: int) -> TrueMaskMicroCLIP:
    """MicroCLIP by its preset, with the true masks of both splits."""
    masks = ObjectMasks(*splits, backbone.image_size, seed)
    return TrueMaskMicroCLIP(backbone, splits[0].prompts, None, masks)


VARIANTS = {
    WHOLE: Variant(WHOLE, WHOLE, built(WHOLE)),
    "with true masks": Variant(f"{WHOLE} with true masks", WHOLE, with_true_masks),
    **{name: Variant(f"{WHOLE} {name}", WHOLE, built(WHOLE, constants)) for name, constants in ABLATED.items()},
}


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if not args.markdown:
        study(args, [VARIANTS[choose("variant", name, VARIANTS)] for name in names_in(args.variants, VARIANTS)])
    print(section(args))


def section(args: argparse.Namespace | None = None) -> str:
    """The table of the runs that are there, by default of those that the command makes by default."""
    args = args or _parser().parse_args([])
    runs = read_runs(args.runs)
    return ablation_table(runs[_made_by(args, runs)])


def _made_by(args: argparse.Namespace, runs: pd.DataFrame) -> pd.Series:
    """Which runs are those of the variants with these options, whatever their domain and seed."""
    same = ["method", "images", "test_images", "epochs", "lr", "settings", "model"]
    backbone = load_backbone("birds", device=args.device)
    domain, seed = DOMAINS[0], args.first_seed
    splits = rendered_on_demand(args, domain, seed)
    made = [key for key, _, _ in cells(args, VARIANTS.values(), backbone, splits, domain, seed)]
    wanted = {tuple(key[name] for name in same) for key in made}
    return pd.Series([row in wanted for row in runs[same].itertuples(index=False, name=None)], runs.index, dtype=bool)


def ablation_table(runs: pd.DataFrame) -> str:
    """Variant x domain, over the domains in which any part was left out or replaced.

    The mean of a variant is over the seeds that have all these domains; the difference is taken seed by seed, over the
    domains that both have.
    """
    runs = runs[runs["domain"].isin(runs.loc[runs["method"] != WHOLE, "domain"])]
    if not len(runs):
        return "no runs yet"
    runs = of_one_state(runs)
    by_seed = runs.pivot(index=["method", "seed"], columns="domain", values="accuracy")
    by_seed = by_seed[[name for name in (*DOMAINS, VALIDATION_DOMAIN) if name in by_seed]]
    known = {name: by_seed.xs(label) for name, (label, _, _) in VARIANTS.items() if label in by_seed.index}
    rows = []
    for name, own in known.items():
        difference = (known[WHOLE] - own).mean(axis=1) if WHOLE in known and name != WHOLE else pd.Series(dtype=float)
        means = [own[domain] for domain in own] + [own.dropna().mean(axis=1)]
        rows.append([name, str(len(own)), *map(_interval, means), _interval(difference, sign=True)])
    first = runs.iloc[0]
    return "\n".join(
        [
            f"Top-1 accuracy in % on {first['test_images']} unseen birds after adapting to {first['images']} unlabeled "
            f"images (epochs: {first['epochs']}): mean over seeds ± half the 95 % interval (Student's t); the "
            f"difference is taken seed by seed on the same images. Code: {' '.join(runs['code'].unique())}.",
            "",
            table(["variant", "seeds", *by_seed, "mean", "microclip minus variant"], rows),
        ]
    )


def _interval(values: pd.Series, sign: bool = False) -> str:
    known = values.dropna()
    return percent(known.mean(), half_width(known), sign)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(__doc__)
    parser.add_argument("--variants", metavar="A,B", help=f"of {', '.join(VARIANTS)}; default: all")
    parser.set_defaults(images=480, test_images=480, epochs=8)
    return parser


if __name__ == "__main__":
    command(main)
