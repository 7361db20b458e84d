"""Does the map point at the bird? `python -m benchmarks.saliency [--domains A B] [--seeds 0 1 2] [--out FILE.csv]`.

For every domain and seed: score each kind of saliency map against the true part masks with the bundled CLIP as
microCLIP starts from it ("before"), adapt microCLIP without labels, score again ("after"). The question asked of
gradient kinds is the true species; "... contrast" asks why it and not the look-alike that differs in one part ("pair"
is where that part is). "uniform" is what chance gets, "center" a blob in the middle of every picture.

Two more tables: whether SOAP beats the CLS attention of the last block, image by image; and what SOAP would see with
other graphs, thresholds and signs of the Fiedler vector (`--no-study` leaves it out). These are rendered birds and a
small CLIP of our own: a test bed with a known answer, not a claim about photographs.

With `--kinds` only these are scored, and their rows take the place of theirs in the file; all others stay. With
`--sanity` nothing is adapted: every kind of map is compared with that of the same model with scrambled weights.

With `--oracle` nothing is adapted either: can saliency help this model at all? (`benchmarks.soap_oracle`), for the
bundled model or any other: `--model ViT-B-16 --pretrained FILE --set affinity=cosine`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import command, positive
from benchmarks.saliency_tables import (
    STAGES,
    against_attention,
    best_settings,
    by_kind,
    by_sanity,
    by_side,
    mean_over_seeds,
)
from benchmarks.soap_oracle import by_oracle, soap_oracle, summarize_oracle
from benchmarks.soap_study import soap_study
from clipviz import METHODS, adapt, load_backbone, load_dataset
from clipviz.birds.dataset import DOMAINS
from clipviz.events import Probe
from clipviz.methods import Method
from clipviz.methods.build import build_method, parse_constants
from clipviz.saliency import bird_regions, saliency_scores, summarize_scores
from clipviz.saliency.table import mask_scores
from clipviz.training.evaluate import accuracy, predict, probe_images

RESULTS = Path(__file__).parent / "results"
# occlusion twice would be half of the time
CONTRASTED = ("relevance", "integrated_gradients", "layer_gradcam", "class_map", "legrad", "grad_eclip")


def look_alike(target: Tensor) -> Tensor:
    """The species of the same group that differs in one attribute only: groups are fours, (a, b), (a', b), ..."""
    return target ^ 1


def score(
    method: Method, probe: Probe, kinds: Sequence[str] | None, options: dict[str, dict], deletion: int
) -> pd.DataFrame:
    """Per-image scores of all kinds, of the contrasts, and of two maps that no model made."""
    images, target, parts = probe.images, probe.target, probe.parts
    other = look_alike(target)
    regions = bird_regions(parts, target)
    regions["pair"] = bird_regions(parts, target, other)["discriminative"]
    metrics = ["pointing_game", "part_mass", "part_rank"]
    common = {"target": target, "regions": regions, "parts": parts, "options": options}
    tables = [saliency_scores(method, images, kinds, metrics=metrics, **common)]
    if contrasted := [kind for kind in CONTRASTED if kinds is None or kind in kinds]:
        contrast = saliency_scores(method, images, contrasted, contrast=other, metrics=metrics, **common)
        tables.append(contrast.assign(kind=contrast["kind"] + " contrast"))
    few = slice(0, deletion)
    if deletion:
        tables.append(
            saliency_scores(method, images[few], kinds, target=target[few], metrics=["deletion_auc"], options=options)
        )
    for kind, maps in reference_maps(len(images)).items():
        for (metric, region), values in mask_scores(maps, regions, parts).items():
            row = {"kind": kind, "metric": metric, "region": region, "image": np.arange(len(images)), "value": values}
            tables.append(pd.DataFrame(row))
    return pd.concat(tables, ignore_index=True)


def reference_maps(n: int, side: int = 8) -> dict[str, Tensor]:
    """Maps that know nothing of the image, n of each."""
    axis = torch.linspace(-1, 1, side)
    blob = torch.exp(-2 * (axis[:, None] ** 2 + axis[None] ** 2))
    return {"uniform": torch.ones(n, side, side), "center": blob.expand(n, -1, -1)}


def run(domain: str, seed: int, args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Before and after one adaptation: per-image scores, the study of SOAP's settings, and accuracies."""
    spec = "birds" if domain == "source" else f"birds/{domain}"
    backbone = load_backbone("birds")
    train = load_dataset(spec, split="train", n=args.train, seed=seed)
    test = load_dataset(spec, split="test", n=args.test, seed=seed)
    method = METHODS["microclip"](backbone, train.prompts)
    probe = probe_images(test, np.random.default_rng(seed).permutation(len(test)), backbone.image_size)
    options = {"integrated_gradients": {"steps": args.steps}}
    scores, studies, accuracies = [], [], {}
    for stage in STAGES:
        if stage == "after":
            for _ in adapt(method, train, replace(method.schedule, epochs=args.epochs), seed=seed):
                pass
        predictions = predict(method, test)
        accuracies[stage] = accuracy(predictions.probs.argmax(-1), predictions.target)
        scores.append(score(method, probe, args.kinds, options, args.deletion).assign(stage=stage))
        if args.study and not args.kinds:
            studies.append(soap_study(method, probe).assign(stage=stage))
    place = {"domain": domain, "seed": seed}
    study = pd.concat(studies).assign(**place) if studies else pd.DataFrame()
    return pd.concat(scores).assign(**place), study, accuracies


def soap_against_attention(scores: pd.DataFrame) -> pd.DataFrame:
    """SOAP minus the last block's CLS attention, image by image over all seeds, with a bootstrap interval."""
    keys = ["domain", "stage", "metric", "region", "seed", "image"]
    values = scores[scores["kind"].isin(("soap", "cls_attention"))].pivot_table(
        index=keys, columns="kind", values="value"
    )
    paired = (values["soap"] - values["cls_attention"]).rename("value").reset_index()
    tables = []
    for domain in scores["domain"].unique():
        for stage in STAGES:
            group = paired[(paired["domain"] == domain) & (paired["stage"] == stage)]
            table = summarize_scores(group.assign(kind="soap - cls_attention"))
            tables.append(table.assign(domain=domain, stage=stage))
    return pd.concat(tables, ignore_index=True)


def tidy(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over images for each domain, seed and stage."""
    tables = []
    for (domain, seed, stage), group in scores.groupby(["domain", "seed", "stage"], sort=False):
        tables.append(summarize_scores(group).assign(domain=domain, seed=seed, stage=stage))
    return pd.concat(tables, ignore_index=True)


def merged(before: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows measured now in place of those of the same kind, domain, seed and stage; in the order of the file."""
    keys = ["kind", "domain", "seed", "stage"]
    both = pd.concat([before, new]).astype({"seed": str})
    is_new = np.arange(len(both)) >= len(before)
    is_old = both[keys].apply(tuple, axis=1).isin(set(map(tuple, both[is_new][keys].to_numpy())))
    both = both[is_new | ~is_old]
    last = {"uniform": 2, "center": 2, "soap - cls_attention": 3}
    place = both["kind"].map(lambda kind: last.get(kind, int(kind.endswith(" contrast"))))
    return both.assign(place=place).sort_values("place", kind="stable").drop(columns="place")


def sanity(args: argparse.Namespace) -> pd.DataFrame:
    """Rank correlation of maps before adaptation with those of a scrambled image tower, mean and interval, by kind."""
    backbone = load_backbone("birds")
    test = load_dataset("birds", split="test", n=args.test, seed=0)
    probe = probe_images(test, np.random.default_rng(0).permutation(len(test)), backbone.image_size)
    method = METHODS["microclip"](backbone, test.prompts)
    options = {"integrated_gradients": {"steps": args.steps}}
    scores = saliency_scores(method, probe.images, target=probe.target, metrics=["sanity"], options=options)
    return summarize_scores(scores)[["kind", "mean", "low", "high", "n"]]


def oracle(args: argparse.Namespace) -> pd.DataFrame:
    """What [FG] could know with the true mask, by domain; see `benchmarks.soap_oracle`."""
    backbone = load_backbone(args.model, args.pretrained)
    constants, tables = parse_constants(args.set), []
    for domain in args.domains:
        for seed in args.seeds:
            test = load_dataset(f"birds/{domain}", split="test", n=args.test, seed=seed)
            method = build_method("microclip", backbone, test, preset=args.preset, constants=constants)
            tables.append(soap_oracle(method, test).assign(domain=domain, seed=seed))
    return summarize_oracle(pd.concat(tables, ignore_index=True))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", nargs="+", help="default: source clutter night fog; with --oracle all of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", help="only these kinds of maps; the other rows of the file stay")
    parser.add_argument("--sanity", action="store_true", help="maps against those of scrambled weights, nothing else")
    parser.add_argument("--oracle", action="store_true", help="can saliency help this model at all? nothing else")
    parser.add_argument("--model", default="birds", help="of --oracle: a name or folder as load_backbone takes")
    parser.add_argument("--pretrained", help="of --oracle: its tag or file of weights")
    parser.add_argument("--preset", help="of --oracle: a preset of microCLIP; default: that of the model")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of --oracle: its constants")
    parser.add_argument("--train", type=positive, default=480, help="images to adapt to")
    parser.add_argument("--test", type=positive, help="images to score; default: 96, with --oracle 480")
    parser.add_argument("--deletion", type=int, default=32, help="images of them for the deletion AUC, 0 for none")
    parser.add_argument("--epochs", type=positive, default=5, help="of microCLIP")
    parser.add_argument("--steps", type=positive, default=10, help="of integrated gradients")
    parser.add_argument("--study", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="default: saliency.csv; of another model than birds, none")
    args = parser.parse_args(argv)
    if args.kinds and (args.sanity or args.oracle):
        parser.error("--kinds goes with neither --sanity nor --oracle")
    args.test = args.test or (480 if args.oracle else 96)
    args.domains = args.domains or (DOMAINS if args.oracle else ("source", "clutter", "night", "fog"))
    if args.out is None and args.model == "birds":
        args.out = RESULTS / "saliency.csv"
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything, write FILE.csv and FILE_soap.csv, print the tables."""
    args = parse(argv)
    if args.oracle:
        measured = oracle(args)
        if args.out:
            measured.round(5).to_csv(args.out.with_name(f"{args.out.stem}_oracle.csv"), index=False)
        print(by_oracle(measured))
        return
    if args.sanity:
        measured = sanity(args)
        measured.round(5).to_csv(args.out.with_name(f"{args.out.stem}_sanity.csv"), index=False)
        print(by_sanity(measured))
        return
    scores, studies = [], []
    for domain in args.domains:
        for seed in args.seeds:
            begun = time.perf_counter()
            measured, study, accuracies = run(domain, seed, args)
            scores.append(measured)
            studies.append(study)
            print(f"{domain} seed {seed}: accuracy {accuracies['before']:.3f} > {accuracies['after']:.3f}, "
                  f"{time.perf_counter() - begun:.0f} s", flush=True)  # fmt: skip
    everything = pd.concat(scores, ignore_index=True)
    if args.kinds:
        summary = merged(pd.read_csv(args.out).fillna({"region": ""}), tidy(everything))
        summary.round(5).to_csv(args.out, index=False)
        print(f"\nmean of all domains\n{by_kind(summary[summary['seed'] != 'all'])}")
        return
    summary, paired = tidy(everything), soap_against_attention(everything)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([summary, paired.assign(seed="all")]).round(5).to_csv(args.out, index=False)
    for domain, rows in summary.groupby("domain", sort=False):
        print(f"\n{domain}: mean over images and seeds, before → after adaptation\n{by_kind(rows)}")
    print(f"\nmean of these domains\n{by_kind(summary)}")
    print(f"\nSOAP minus CLS attention of the last block, with 95 % bootstrap intervals\n{against_attention(paired)}")
    if args.study:
        study = mean_over_seeds(pd.concat(studies, ignore_index=True))
        study.round(5).to_csv(args.out.with_name(f"{args.out.stem}_soap.csv"), index=False)
        print(f"\nSOAP's mass on the bird (IoU of its mask) by the side of the cut\n{by_side(study)}")
        for stage in STAGES:
            print(f"\nwhat SOAP would see with other settings, {stage} adaptation\n{best_settings(study, stage)}")


if __name__ == "__main__":
    command(main)
