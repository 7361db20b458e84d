"""`clipviz embed`: images to a file of embeddings."""

import argparse
import sys
from pathlib import Path

from clipviz.backbone import Backbone
from clipviz.cli import inputs
from clipviz.data import load_dataset
from clipviz.data.base import ImageDataset
from clipviz.data.batches.features import FeatureDataset, embed_dataset
from clipviz.data.sources.feature_files import FEATURE_SUFFIXES, write_features
from clipviz.errors import inert
from clipviz.files import prepare_folder
from clipviz.methods.base import prompt_sentences, text_classifier
from clipviz.parallel import Ranks, launch


def embed(args: argparse.Namespace) -> None:
    """`clipviz embed`: images to embeddings, with labels, class names and a text classifier where they are known."""
    out = Path(args.out)
    if out.suffix.lower() not in FEATURE_SUFFIXES or out.is_dir():
        raise ValueError(f"--out needs a .npz or .safetensors file, got {'the folder ' * out.is_dir()}{args.out!r}")
    if not out.parent.is_dir():
        inputs.refuse_among_images(out.parent, args.data)
    prepare_folder(out.parent)
    ranks = launch(args.devices, args.num_nodes, args.device)
    (backbone, data), notes = ranks.together(lambda: inputs.told(_chosen, args, ranks))
    for note in notes if ranks.is_first else ():
        print(inert(note), file=sys.stderr)
    ranks.copy_from_first([*backbone.parameters(), *backbone.buffers()])
    classifier = None
    if data.class_names:
        classifier = text_classifier(backbone, prompt_sentences(data.prompts, "descriptions"))
    features = embed_dataset(backbone, data, classifier, ranks=ranks)
    if not ranks.is_first:
        return
    write_features(out, features)
    n, width = features.embeddings.shape
    classes = f", classifier of {len(data.class_names)} classes" if data.class_names else ""
    print(f"wrote {inert(out)}: {n} embeddings of width {width}{classes}")


def _chosen(args: argparse.Namespace, ranks: Ranks) -> tuple[Backbone, ImageDataset]:
    loaded = inputs.load_model(args.model, args.pretrained, args, ranks)
    data = load_dataset(args.data, args.split, seed=args.seed, **inputs.data_options(args))
    if isinstance(data, FeatureDataset):
        raise ValueError(f"{args.data} holds embeddings already; give images")
    inputs.warn_of_skipped(data)
    inputs.warn_of_cache(args)
    return inputs.backbone_for(data, loaded), data
