"""What about fifty mistakes of users are told, as a table: `python -m benchmarks.errors [--out FILE.md]`.

Each row is a real command on a real input in a folder made for it; what stands in the table is what came out. The rows
follow the table of bad input in the design, so that somebody who reads it sees what users will read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import command
from clipviz.cli import main as cli


class Row(NamedTuple):
    """One line of the table."""

    input: str
    command: str
    status: int
    message: str


# what is wrong -> the command, in a folder that `make_inputs` filled
COMMANDS = {
    "no such folder": "adapt zero_shot --model birds --data /photos/birds --out run",
    "folder misspelled": "adapt zero_shot --model birds --data phtoos --out run",
    "empty folder": "adapt zero_shot --model birds --data empty --out run",
    "folder with other files only": "adapt zero_shot --model birds --data texts --out run",
    "no readable image": "adapt zero_shot --model birds --data broken --out run",
    "a file in the place of a folder": "adapt zero_shot --model birds --data notes.txt --out run",
    "images without classes": "adapt zero_shot --model RN50 --data flat --out run",
    "split that does not exist": "embed --model birds --data splits --split val --out x.npz",
    "class folder not in the list": "adapt zero_shot --model birds --data photos --classes cats.txt --out run",
    "class list with a name twice": "adapt zero_shot --model birds --data flat --classes twice.txt --out run",
    "unknown method": "adapt micro_clip --model birds --data photos --out run",
    "unknown model": "adapt zero_shot --model VIT-B32 --data photos --out run",
    "unknown domain": "adapt zero_shot --model birds --data birds/fogg --out run",
    "unknown benchmark": "adapt zero_shot --model birds --data eurosatt --out run",
    "benchmark whose files are missing": "adapt zero_shot --model birds --data dtd --out run",
    "benchmark that cannot be downloaded": "adapt zero_shot --model birds --data cars --out run",
    "manifest without a path column": "adapt zero_shot --model birds --data columns.csv --out run",
    "manifest with semicolons": "adapt zero_shot --model birds --data semicolons.csv --out run",
    "run folder among the images": "adapt zero_shot --model birds --data photos --out photos/run",
    "manifest that leaves its folder": "adapt zero_shot --model birds --data outside.csv --out run",
    "manifest with numbers for labels": "adapt zero_shot --model birds --data numbers.csv --out run",
    "manifest that is no table": "adapt zero_shot --model birds --data damaged.parquet --out run",
    "split file without its images": "adapt zero_shot --model birds --data split_zhou_DTD.json --out run",
    "descriptions, all mistakes": "adapt zero_shot --model birds --data photos --descriptions wrong.json --out run",
    "descriptions that are no JSON": "adapt zero_shot --model birds --data photos --descriptions notes.txt --out run",
    "descriptions checked": "describe --classes names.txt --check wrong.json",
    "descriptions for no class": "describe --out d.json",
    "no file of weights": "adapt zero_shot --model ViT-B-32 --pretrained weights.pt --data photos --out run",
    "weights of another model": "adapt zero_shot --model RN50 --pretrained other.safetensors --data photos --out run",
    "weights cut off": "adapt zero_shot --model RN50 --pretrained cut.safetensors --data photos --out run",
    "weights that are pickled code": "adapt zero_shot --model RN50 --pretrained code.pt --data photos --out run",
    "file of OpenAI's weights": "adapt zero_shot --model RN50 --pretrained rn50.openai.pt --data photos --out run",
    "weights that are not here": "adapt zero_shot --model ViT-B-32 --pretrained laion2b_e16 --data photos --out run",
    "hub model that is not on this machine": "adapt zero_shot --model hf-hub:someone/clip --data photos --out run",
    "unknown tag": "adapt zero_shot --model ViT-B-32 --pretrained laion --data photos --out run",
    "file of weights as model": "adapt zero_shot --model other.safetensors --data photos --out run",
    "ResNet for a method with patches": "adapt microclip --model RN50 --data photos --out run",
    "embeddings for a method with patches": "adapt microclip --data features.npz --out run",
    "embeddings with NaN": "adapt zero_shot --data nan.npz --out run",
    "embeddings that are pickled": "adapt zero_shot --data pickled.npz --out run",
    "constant that is none": "adapt microclip --model birds --data photos --set gama=0.3 --out run",
    "constant with a wrong value": "adapt microclip --model birds --data photos --set gamma=much --out run",
    "output folder that is a file": "adapt zero_shot --model birds --data photos --out notes.txt",
    "output folder of another run": "adapt zero_shot --model birds --data photos --out done",
    "checkpoint of another run": "adapt zero_shot --model birds --data photos --out done --resume --seed 7",
    "checkpoint cut off": "adapt zero_shot --model birds --data photos --out cut --resume",
    "device that is none": "adapt zero_shot --model birds --data photos --device cuda:9 --out run",
    "report of no run": "report empty --out r.html",
    "report of an altered trace": "report altered --out r.html",
    "comparison of different data": "compare done other",
    "epochs that are no number": "adapt zero_shot --model birds --data photos --epochs many --out run",
    "option that is none": "adapt zero_shot --model birds --data photos --epoch-count 3 --out run",
}


def make_inputs() -> None:
    """Fill the working directory with what the commands need."""
    for folder in ("empty", "texts", "broken", "flat", "splits/train/owl", "photos/owl", "photos/wren"):
        Path(folder).mkdir(parents=True)
    for path in ("flat/1.png", "splits/train/owl/1.png", "photos/owl/1.png", "photos/owl/2.png", "photos/wren/1.png"):
        Image.new("RGB", (48, 48), "olive").save(path)
    Path("texts/readme.md").write_text("hello")
    Path("notes.txt").write_text("no images here")
    Path("broken/1.png").write_bytes(b"\x89PNG")
    Path("broken/2.jpg").write_bytes(b"")
    Path("cats.txt").write_text("cat\nowl\n")
    Path("twice.txt").write_text("cat\ncat\n")
    Path("names.txt").write_text("owl\nwren\n")
    Path("columns.csv").write_text("file,class\nphotos/owl/1.png,owl\n")
    Path("semicolons.csv").write_text("path;label\nphotos/owl/1.png;owl\n")
    Path("outside.csv").write_text("path,label\n../secret.png,owl\n")
    Path("numbers.csv").write_text("path,label\nphotos/owl/1.png,3\n")
    Path("damaged.parquet").write_bytes(b"PAR1PAR1")
    Path("split_zhou_DTD.json").write_text(json.dumps({"train": [["banded/banded_0002.jpg", 0, "banded"]]}))
    Path("wrong.json").write_text('{"Owl": ["An owl."], "owl": [], "robin": ["A robin.", 3], "wrenn": "A wren."}')
    _make_weights()
    _make_embeddings()


def _make_weights() -> None:
    save_file({"visual.proj": torch.zeros(4, 4)}, "other.safetensors")
    Path("cut.safetensors").write_bytes(Path("other.safetensors").read_bytes()[:20])
    save_file({"visual.proj": torch.zeros(4, 4)}, "rn50.openai.pt")
    Path("code.pt").write_bytes(pickle.dumps(os.getcwd))


def _make_embeddings() -> None:
    rng = np.random.default_rng(0)
    classifier, embeddings = rng.normal(size=(2, 4)), rng.normal(size=(8, 4))
    np.savez("features.npz", embeddings=embeddings, classifier=classifier)
    np.savez("nan.npz", embeddings=np.where(embeddings > 1, np.nan, embeddings), classifier=classifier)
    np.savez("pickled.npz", embeddings=np.array([{"a": 1}], dtype=object))


def make_runs() -> None:
    """Two finished runs, a run with a checkpoint that was cut off, and one with a trace that was altered."""
    for name in ("done", "other", "cut", "altered"):
        data = "flat --classes names.txt" if name == "other" else "photos"
        status, message = run(f"adapt zero_shot --model birds --data {data} --out {name}")
        assert status == 0, message
    for checkpoint in Path("cut").glob("checkpoint*.safetensors"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    meta = Path("altered/trace/meta.json")
    meta.write_text(meta.read_text().replace("owl", "eagle owl"))


def run(command: str) -> tuple[int, str]:
    """Exit status and stderr of a command."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = cli.main(command.split())
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, stderr.getvalue().strip()


def rows(folder: str) -> Iterator[Row]:
    """Run every command in an empty folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_inputs()
        make_runs()
        for what, command in COMMANDS.items():
            yield Row(what, command, *run(command))
    finally:
        os.chdir(before)


def table(found: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| what is wrong | status | what is said |", "|---|---|---|"]
    for row in found:
        message = row.message.removeprefix("clipviz: error: ").replace("|", "\\|").replace("\n", "<br>")
        lines.append(f"| {row.input} | {row.status} | {message} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file; default: the terminal")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(folder))
        text = table([row._replace(message=row.message.replace(f"{folder}/", "")) for row in found])
    print(text) if args.out is None else args.out.write_text(f"{text}\n")
    wrong = [row.input for row in found if row.status != 2 or "\n" in row.message]
    if wrong:
        sys.exit(f"not one line and status 2: {', '.join(wrong)}")


if __name__ == "__main__":
    command(main)
