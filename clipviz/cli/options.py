"""The options of every command of the command line, in the words of their users: meaning, unit, default.

Nothing here needs torch, so `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple


def natural(text: str, least: int = 0) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least {least}, got {text!r}")
    return int(text)


positive = partial(natural, least=1)


def gigabytes(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number of gigabytes above 0, got {text!r}")
    return value


def _option(help: str, **how: Any) -> dict[str, Any]:
    """The arguments of `add_argument`."""
    return {"help": help, **how}


Options = dict[str, dict[str, Any]]
"""By name and the word for the value, such as "--epochs N"; without such a word an option is a switch."""

_ONE_OF = "file, one of"
"""The group whose options exclude each other."""


class Command(NamedTuple):
    """What a command does in one line, in a few sentences, an example of it, and its options by group ("": of none)."""

    purpose: str
    more: str
    example: str
    groups: Mapping[str, Options]

    def add_options(self, command: argparse.ArgumentParser) -> None:
        """Add all options to the parser of the command."""
        for title, options in self.groups.items():
            group = command.add_argument_group(title) if title else command
            group = group.add_mutually_exclusive_group(required=True) if title == _ONE_OF else group
            for usage, how in options.items():
                name, _, metavar = usage.partition(" ")
                is_switch = not metavar and "choices" not in how
                group.add_argument(
                    name, **how, **({"action": "store_true"} if is_switch else {"metavar": metavar or None})
                )


# fmt: off
_MODEL: Options = {
    "--model NAME": _option(
        "birds (comes along), an architecture of open_clip such as ViT-B-32, hf-hub:OWNER/NAME, or a folder with "
        "open_clip_config.json; needed unless --data are embeddings"),
    "--pretrained TAG_OR_FILE": _option(
        "weights for an architecture: a tag of open_clip such as openai, which is downloaded once, or a .safetensors "
        "or .pt file; default: random weights, which know nothing"),
}
_ROOT: Options = {
    "--root DIR": _option(
        "folder that holds the benchmarks, default: $CLIPVIZ_DATA, else data; or the images of a split_zhou_*.json, "
        "default: that beside it"),
}
_DATA: Options = {
    "--data SPEC": _option(
        "folder of images (class folders, or none; with or without train/ and test/), table (.csv, .parquet with the "
        "columns path, label, split), split_zhou_*.json, benchmark (dtd, eurosat, ...), birds, birds/DOMAIN, or a file "
        "of embeddings (.npz, .safetensors)", required=True),
    "--classes FILE": _option(
        "text file with the class names, one a line, where there are no class folders; the first is number 0"),
    "--descriptions FILE.json": _option(
        "sentences for each class, {name: [sentence, ...]}, as clipviz describe writes; default: templates such as "
        "'a photo of a NAME.'"),
    **_ROOT,
    "--download": _option("let torchvision download a benchmark that is not there"),
    "--allow-outside": _option("let a table name images outside of its own folder; if you trust it"),
    "--cache-dir DIR": _option(
        "keep decoded images there, so that later epochs and runs open large ones faster; default: in memory only"),
    "--cache-gb X": _option("size of --cache-dir in GB, at most; default: %(default)g", type=gigabytes, default=10.0),
    "--cache-side N": _option(
        "short side in pixels that --cache-dir shrinks larger images to; default: %(default)s",
        type=positive, default=512),
}
_SEED: Options = {
    "--seed N": _option("of everything random; the same seed gives the same numbers; default: %(default)s",
                        type=natural, default=0),
}
_MACHINE: Options = {
    "--device NAME": _option("cpu, cuda, cuda:1, ...; default: cuda if there is one, else cpu"),
    "--devices N": _option("devices that share each batch, one process for each; default: 1", type=positive),
    "--num-nodes N": _option("machines with so many --devices each; default: 1, or torchrun's", type=positive),
    "--precision": _option(
        "numbers of the image tower: 32 bits, or 16 where that is safe (faster on a GPU); default: %(default)s",
        default="32", choices=("32", "bf16-mixed")),
}
_DEMO: Options = {
    "--out DIR": _option("folder to write, default: %(default)s", default="clipviz-demo"),
    "--domain NAME": _option(
        "how the birds differ from those that the model knows: clutter, night, fog, small, blur, mix, or source for "
        "not at all; default: %(default)s", default="fog"),
    "--epochs N": _option(
        "times that each method that trains sees every image; default: few, so that all of it takes minutes",
        type=positive),
    **_SEED,
    "--methods A,B": _option("methods with commas between them, such as zero_shot,dpa; default: all of them"),
}
_ADAPT: dict[str, Options] = {
    "": {"method METHOD": _option(
        "zero_shot, descriptions, wca and tip_adapter do not train; nor do transclip and stata, which see all images "
        "together, and tda and oga, which see one after the other; ntua trains a cache of embeddings; dpa and "
        "microclip train the image tower")},
    "model": _MODEL,
    "images and classes": _DATA | {"--eval-data SPEC": _option(
        "images to measure on; default: the test split of --data (val, if it has no test), else the same images")},
    "method": {
        "--preset NAME": _option(
            "a set of constants: official or paper (the authors'), birds, or a benchmark's name such as eurosat, as "
            "far as the method has them; default: the method's own choice"),
        "--set NAME=VALUE": _option(
            "one constant, such as gamma=0.3; may be repeated; a wrong name gets the list of them",
            action="append", default=[]),
        "--teacher NAME": _option("ntua only: a larger --model that refines the cache"),
        "--teacher-pretrained TAG_OR_FILE": _option("ntua only: the teacher's weights"),
        "--allow-labels": _option(
            "ntua only: permit --set selection=oracle_balanced, which looks at the labels; for comparisons"),
    },
    "training": {
        "--epochs N": _option(
            "passes over the images (tda, oga: slices of the stream); default: what the method recommends (the run's "
            "config.json says)", type=positive),
        "--batch-size N": _option("images in a step; default: as --epochs", type=positive),
        "--lr X": _option("learning rate, above 0; default: as --epochs", type=float),
        **_SEED,
    },
    "result": {
        "--out DIR": _option("run folder to write; not among the images; made if it is not there", required=True),
        "--resume": _option(
            "go on with the interrupted run in --out, to the same numbers; wants the same options as before"),
    },
    "machine": _MACHINE | {"--workers N": _option(
        "processes that load images beside the one that trains; default: %(default)s, none", type=natural, default=0)},
}
_EMBED: dict[str, Options] = {
    "model": _MODEL,
    "images and classes": {
        **_DATA,
        "--split": _option("which images, if the data have splits; default: %(default)s",
                           default="train", choices=("train", "val", "test")),
        **_SEED,
    },
    "result": {"--out FILE": _option("file to write, .npz or .safetensors", required=True)},
    "machine": _MACHINE,
}
_DESCRIBE: dict[str, Options] = {
    "classes, from one of": {
        "--data SPEC": _option("data whose classes they are, as for clipviz adapt; default: none"),
        "--classes FILE": _option("text file with the names, one a line; default: of --data"),
        **_ROOT,
    },
    _ONE_OF: {
        "--out FILE.json": _option("file to write; sentences that are in it already are kept"),
        "--check FILE.json": _option("say all that is wrong with a file, and write nothing"),
    },
    "": {"--model NAME": _option(
        "with --check: the model whose text tower will read it, to count what is too long; default: ViT-B-32")},
    "language model that writes them": {
        "--endpoint URL": _option(
            "address of an OpenAI-compatible server, up to /v1; default: $OPENAI_BASE_URL, else nobody is asked and "
            "the lists stay empty for you to fill; a key is taken from $OPENAI_API_KEY"),
        "--llm NAME": _option("what the server calls the model; default: $OPENAI_MODEL"),
        "--sentences N": _option("sentences for each class; default: %(default)s", type=positive, default=20),
        "--kind NOUN": _option("what the classes are kinds of, such as bird; default: the question says nothing"),
        "--yes": _option("make the calls without asking first; their number is printed"),
    },
}
_REPORT: Options = {
    "runs RUN_DIR": _option("folder that clipviz adapt wrote; several share a page", nargs="+"),
    "--out FILE.html": _option("page to write, on its own; - is stdout", required=True),
}
_LAB: Options = {
    "--out DIR": _option(
        "folder for your copy of the notebooks; those that are there stay as they are; default: %(default)s",
        default="clipviz-notebooks"),
    "--port N": _option("of JupyterLab; default: its own choice, 8888 if free", type=positive),
    "--no-browser": _option("open no browser; the address is printed"),
    "jupyter -- OPTION": _option("options of JupyterLab after two hyphens, such as -- --allow-root", nargs="*"),
}

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "adapt the bundled CLIP to shifted birds and write a report",
        "Needs no download, no data and no GPU. Writes a run folder for each method, results.csv and report.html.",
        "clipviz demo --domain night --methods zero_shot,dpa",
        {"": _DEMO},
    ),
    "adapt": Command(
        "adapt a CLIP to unlabelled images",
        "One method on one set of images into one run folder. Labels, where there are any, only measure. "
        "docs/your_data.md has a line for each kind of data and model.",
        "clipviz adapt microclip --model ViT-B-32 --pretrained openai --data PHOTOS --out runs/photos",
        _ADAPT,
    ),
    "embed": Command(
        "write the embeddings of images to a file that adapt can work on",
        "For methods that need embeddings only (all but wca and microclip): the images are looked at once.",
        "clipviz embed --model ViT-B-32 --pretrained openai --data PHOTOS --out photos.npz",
        _EMBED,
    ),
    "describe": Command(
        "write the file of class descriptions, fill it by a language model, or check it",
        "Sentences on how a class looks say more to a CLIP than its name. The file is {name: [sentence, ...]}.",
        "clipviz describe --data PHOTOS --out photos.json",
        _DESCRIBE,
    ),
    "report": Command(
        "write one HTML page from run folders",
        "Tables and figures of one run, or of several that were measured on the same images.",
        "clipviz report runs/photos --out photos.html",
        {"": _REPORT},
    ),
    "compare": Command(
        "print the results of run folders as one table",
        "Runs that were measured on different images or splits are refused: their accuracies cannot be compared.",
        "clipviz compare runs/dpa runs/microclip",
        {"": {"runs RUN_DIR": _option("folder of a finished run, of clipviz adapt", nargs="+")}},
    ),
    "lab": Command(
        "open the tutorials in JupyterLab",
        "Copies the notebooks into a folder and serves it until Ctrl-C; needs pip install 'clipviz[lab]'. What follows "
        "-- is for JupyterLab: clipviz lab -- --allow-root.",
        "clipviz lab --no-browser --port 8890",
        {"": _LAB},
    ),
}
"""By name, in the order of the help."""
