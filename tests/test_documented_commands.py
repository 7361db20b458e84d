"""Every command of README and docs runs, and every model that they, the notebooks and the help name is loaded.

Nothing is downloaded: the architectures keep their names and become tiny, the weights of each tag are random, and what
the pages call PHOTOS, FILE or OWNER/NAME lies in a folder by these names.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY, ToyDataset

from clipviz.backbone import load_backbone
from clipviz.cli import main as cli
from clipviz.cli.options import COMMANDS
from clipviz.data import load_dataset
from clipviz.methods import METHODS
from clipviz.methods.microclip import BACKBONE_PRESETS, PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "notebooks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "trust.md")  # its examples are of what is refused
CLASSES = ToyDataset(3).class_names

# ------------------------------------------------------------------------------------------------- what the pages say


def spans(text: str) -> list[str]:
    """What stands between backticks, and the lines of shell blocks, each on one line."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, flags=re.M | re.S)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split("#")[0].split("&&")]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in (*lines, *re.findall(r"`([^`]+)`", prose))]


SUBCOMMANDS = cli.build_parser()._subparsers._group_actions[0].choices


def option(name: str):
    """The action of `clipviz adapt` that has an option; None if it is one of another program."""
    return SUBCOMMANDS["adapt"]._option_string_actions.get(name)


def method_with(constant: str) -> str:
    """The method whose constant it is; microclip for what is none."""
    found = (name for name, kind in METHODS.items() if any(hasattr(c, constant) for c in kind.presets.values()))
    return "microclip" if hasattr(PRESETS["default"], constant) else next(found, "microclip")


def commands(text: str) -> list[str]:
    """Commands of clipviz, and options that are to be added to the one before them."""
    found, base = [], None
    for span in spans(text):
        words = span.split()
        ours = re.search(r"(?:^|\s|/)clipviz (.*)", f" {span}")
        if ours and ours[1].split()[0] in COMMANDS:
            if len(ours[1].split()) > 1 or ours[1] in ("demo", "lab"):  # else the name of a command
                base = ours[1]
                found.append(base)
        elif words and words[0] == "..." and len(words) > 1:
            found.append(f"adapt microclip {span}")
        elif words and option(words[0]) and (len(words) > 1 or option(words[0]).nargs == 0):
            found.append(f"adapt {method_with(words[-1].split('=')[0])} ... {span}")
    return list(dict.fromkeys(found))


SMALL = {
    "embed_dim": 16,
    "vision_cfg": {**TINY["vision_cfg"], "layers": 1},
    "text_cfg": {**TINY["text_cfg"], "width": 8, "heads": 1, "layers": 1},
}
DEFAULTS = {"--model": "ViT-B-32", "--pretrained": "openai", "--data": "PHOTOS", "--out": "run"}


def completed(command: str) -> list[str]:
    """The words of a command, with what its page leaves to the reader where it says `...`."""
    words = shlex.split(command)
    if words[0] == "adapt" and not {"--data", "--out"} & set(words):
        words.append("...")  # the beginning of a command
    if "..." in words:
        words = shlex.split(" ".join(words).replace("--model ...", "--model birds"))
        if words[0] == "adapt" and (len(words) < 2 or words[1] == "..."):
            words.insert(1, "microclip")
        words = [word for word in words if word != "..."]
        brings_weights = "--model" in words
        for name, value in {**DEFAULTS, "--out": "run.npz" if words[0] == "embed" else "run"}.items():
            if name not in words and not (name == "--pretrained" and brings_weights):
                words += [name, value]
    for name in ("--devices", "--num-nodes"):  # one process here: tests/test_parallel.py has several
        if name in words:
            words[words.index(name) + 1] = "1"
    return ["gamma=0.5" if word == "NAME=VALUE" else word for word in words]


HELP = [*(about.example for about in COMMANDS.values()), *cli.EXAMPLES.splitlines()[1:]]
FOUND = {line.strip().removeprefix("clipviz "): "help" for line in HELP}
FOUND |= {command: path.relative_to(ROOT).as_posix() for path in PAGES for command in commands(path.read_text("utf-8"))}


# ------------------------------------------------------------------------------------------------- stand-ins


def stand_in(name: str) -> dict:
    """An architecture that is as the one of this name, but for its size."""
    config = json.loads(json.dumps(SMALL))
    config["quick_gelu"] = bool(open_clip.get_model_config(name).get("quick_gelu"))
    return config


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def weights(patched, tmp_path_factory):
    """Tiny architectures by the real names, and the tags whose weights were asked for."""
    folder, asked = tmp_path_factory.mktemp("weights"), []
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(SMALL)))
    save_file(model.state_dict(), folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "FILE")
    for name in (n for n in open_clip.list_models() if re.fullmatch(r"(ViT-[BLH]-\d+|RN50)(-quickgelu)?", n)):
        patched.setitem(open_clip.factory._MODEL_CONFIGS, name, stand_in(name))
    patched.setitem(open_clip.factory._MODEL_CONFIGS, "ARCHITECTURE", stand_in("ViT-B-32"))

    def download(cfg, **options):
        asked.append(cfg)
        return str(folder / "weights.safetensors")

    def from_hub(repo_id, filename, **options):
        if not (folder / "FOLDER" / filename).is_file():
            raise FileNotFoundError(filename)
        return str(folder / "FOLDER" / filename)

    patched.setattr(open_clip.factory, "download_pretrained", download)
    patched.setattr("huggingface_hub.hf_hub_download", from_hub)
    patched.setattr("open_clip.pretrained.hf_hub_download", from_hub)
    patched.setattr("clipviz.backbone.weights._is_reachable", lambda address: False)  # asked once for each model
    for presets in (PRESETS, BACKBONE_PRESETS):
        for name, preset in presets.items():
            patched.setitem(presets, name, replace(preset, crops=2))
    (folder / "FOLDER").mkdir()
    config = {"model_cfg": SMALL, "preprocess_cfg": {}}
    (folder / "FOLDER" / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "FOLDER" / "open_clip_model.safetensors")
    return folder, asked


def write_images(place: Path, rows: list[tuple[str, int]]) -> None:
    toy = ToyDataset(6)
    for i, (name, _) in enumerate(rows):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        toy.image(i).save(place / name)


@pytest.fixture(scope="module")
def world(weights, patched, tmp_path_factory):
    """The reader's folder: their photos, tables, weights and runs, by the names of the pages."""
    place = tmp_path_factory.mktemp("reader")
    patched.chdir(place)
    for name in ("FILE", "FOLDER"):
        (place / name).symlink_to(weights[0] / name)
    (place / "FILE.safetensors").symlink_to(weights[0] / "weights.safetensors")
    rows = [(f"{CLASSES[i % 3]}/{i}.png", i % 3) for i in range(6)]
    for name in ("PHOTOS", "PHOTOS2", "SPEC", "photos"):
        write_images(place / name, rows)
    Path("names.txt").write_text("\n".join(CLASSES))
    Path("file.json").write_text(json.dumps({name: [f"a {name}"] for name in CLASSES}))
    lines = "\n".join(["path,label", *(f"PHOTOS/{name},{CLASSES[label]}" for name, label in rows)])
    for name in ("images", "sample", "shard-000"):
        Path(f"{name}.csv").write_text(lines)
    rng = np.random.default_rng(0)
    numbers = {"embeddings": rng.normal(size=(6, 8)), "classifier": rng.normal(size=(3, 8))}
    np.savez("file.npz", labels=np.arange(6) % 3, **{name: array.astype("f4") for name, array in numbers.items()})
    split = {part: [[f"{name}", label, CLASSES[label]] for name, label in rows] for part in ("train", "val", "test")}
    for path in (Path("split_zhou_X.json"), Path("DIR/dtd/split_zhou_DescribableTextures.json")):
        write_images(path.parent, rows)
        write_images(path.parent / "images", rows)
        path.write_text(json.dumps(split))
    write_images(Path("DIR/dtd/dtd/images"), [("banded/1.jpg", 0), ("banded/2.jpg", 0)])
    Path("DIR/dtd/dtd/labels").mkdir()
    for name in ("train1", "val1", "test1"):
        Path(f"DIR/dtd/dtd/labels/{name}.txt").write_text("banded/1.jpg\nbanded/2.jpg\n")
    for run in ("run1", "run2", "RUN", "runs/dpa", "runs/microclip", "runs/photos", "runs/clutter"):
        if not Path("run1").exists():
            run_adapt = ["adapt", "zero_shot", "--model", "ViT-B-32", "--pretrained", "openai", "--data", "PHOTOS"]
            assert cli.main([*run_adapt, "--out", "run1"]) == 0
        else:
            shutil.copytree("run1", run)
    from clipviz.cli import demo, inputs, lab

    def few_birds(spec, *arguments, **options):
        return load_dataset(spec, *arguments, **options, **({"n": 8} if spec.startswith("birds") else {}))

    patched.setattr(inputs, "load_dataset", few_birds)
    patched.setattr(lab, "run_jupyter", lambda options: 0)
    patched.setattr(demo, "DEMO_IMAGES", {"train": 8, "test": 8})
    return weights[1]


@pytest.mark.parametrize("command", FOUND)
def test_a_documented_command_is_never_refused(command, world, capsys):
    words = completed(command)
    if words[0] == "adapt":
        words += ["--epochs", "1"]  # the last one of an option counts
        words += [] if "--batch-size" in words or words[1] == "zero_shot" else ["--batch-size", "8"]
        for name in {words[words.index("--out") + 1]} if "--out" in words else ():
            shutil.rmtree(name, ignore_errors=True)
        if "--resume" in words:
            assert cli.main([word for word in words if word != "--resume"]) == 0
    if words[0] == "demo":
        words += ["--methods", "zero_shot"]
    try:
        status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    assert status == 0, f"{FOUND[command]}: {capsys.readouterr().err}"


def test_the_pages_have_commands():
    assert set(FOUND.values()) >= {"README.md", "docs/your_data.md", "docs/scaling.md", "help"}
    assert len(FOUND) > 45


# ------------------------------------------------------------------------------------------------- models


def named_models() -> set[tuple[str, str | None]]:
    """Every model and its weights that README, docs, notebooks and the help name, as command or as a line of Python."""
    texts = (
        [path.read_text("utf-8") for path in PAGES] + [about.example for about in COMMANDS.values()] + [cli.EXAMPLES]
    )
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        texts += ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    joined = "\n".join(texts)
    found = set(re.findall(r"--model ([\w./:-]+)(?: --pretrained ([\w./-]+))?", joined))
    calls = re.findall(r'load_backbone\("([\w./:-]+)"(?:, "([\w./-]+)")?[^)]*\)', joined)
    return {(name, tag or None) for name, tag in {*found, *calls} if name != "..."}


MODELS = sorted(named_models(), key=str)


def test_models_are_named():
    assert {("ViT-B-32", "openai"), ("birds", None)} <= set(MODELS)


def load(name: str, pretrained: str | None):
    """A backbone, and what was said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return load_backbone(name, pretrained), [str(w.message) for w in said if w.category is UserWarning]


@pytest.mark.parametrize(("name", "pretrained"), MODELS)
def test_every_model_line_is_loaded(name, pretrained, world, weights):
    if name == "ViT-B32":  # the misspelt one of notebook 9
        with pytest.raises(ValueError, match="did you mean 'ViT-B-32'"):
            load_backbone(name)
        return
    if pretrained is not None and "." in pretrained and not Path(pretrained).is_file():
        shutil.copyfile("FILE.safetensors", pretrained)
    backbone, _ = load(name, pretrained)
    assert backbone.embed(torch.rand(1, 3, backbone.image_size, backbone.image_size)).isfinite().all()


TAGS = [
    (name, tag)
    for name in open_clip.list_models()
    for tag in open_clip.list_pretrained_tags_by_model(name.removesuffix("-quickgelu"))
    if re.fullmatch(r"(ViT-[BLH]-\d+|RN50)(-quickgelu)?", name)
]


@pytest.mark.parametrize("architecture", sorted({name for name, _ in TAGS}))
def test_weights_of_a_tag_get_the_activation_that_they_were_trained_with(architecture, world, weights):
    """Both ways, for every tag; what was built is told in words and in `built`, what was asked in `origin`."""
    for tag in (tag for name, tag in TAGS if name == architecture):
        wanted = bool(open_clip.get_pretrained_cfg(architecture.removesuffix("-quickgelu"), tag).get("quick_gelu"))
        backbone, said = load(architecture, tag)
        has = any(type(module).__name__ == "QuickGELU" for module in backbone.model.modules())
        assert has == wanted, tag
        assert bool(weights[1][-1].get("quick_gelu")) == wanted  # the weights of this tag were asked for
        other = wanted != architecture.endswith("-quickgelu")
        kind = "QuickGELU" if wanted else "GELU"
        told = f"{tag!r} were trained with {kind}, so {architecture!r} is built with it"
        assert [told in line for line in said] == [True] * other
        built = {"model": f"{architecture.removesuffix('-quickgelu')}{'-quickgelu' * wanted}", "quick_gelu": wanted}
        assert backbone.built == built
        assert (backbone.origin["name"], backbone.origin["pretrained"]) == (architecture, tag)


def test_an_architecture_without_a_sister_is_changed_or_kept(world, patched):
    """roberta-ViT-B-32 has no -quickgelu variant; its tag does not say what it wants, which is what it has."""
    roberta = open_clip.get_model_config("roberta-ViT-B-32")["quick_gelu"]
    assert roberta
    for has, wants in ((True, None), (False, None), (False, True), (True, False)):
        patched.setitem(open_clip.factory._MODEL_CONFIGS, "roberta-ViT-B-32", {**stand_in("RN50"), "quick_gelu": has})
        patched.setitem(
            open_clip.pretrained._PRETRAINED["roberta-ViT-B-32"], "laion2b_s12b_b32k", {"quick_gelu": wants}
        )
        backbone, said = load("roberta-ViT-B-32", "laion2b_s12b_b32k")
        assert backbone.built == {
            "model": "roberta-ViT-B-32",
            "quick_gelu": has if wants is None else wants,
        }
        assert len(said) == (wants is not None)


@pytest.mark.parametrize(
    ("name", "file", "quick"),
    [
        ("ViT-B-32", "vit_b_32.openai.pt", True),
        ("ViT-B-32", "ViT-B-32-quickgelu.safetensors", True),
        ("ViT-B-32", "vit_base.metaclip_fullcc.safetensors", True),
        ("ViT-B-16", "dfn2b-vit-b-16.safetensors", True),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k.safetensors", False),
        ("ViT-B-32", "laion2b_s34b_b79k.safetensors", False),
        ("ViT-B-32", "mine.safetensors", False),
        ("ViT-B-32-quickgelu", "mine.safetensors", True),
    ],
)
def test_the_name_of_a_file_may_tell_its_activation(name, file, quick, world, tmp_path):
    shutil.copyfile("FILE" if file.endswith(".pt") else "FILE.safetensors", tmp_path / file)
    backbone, said = load(name, str(tmp_path / file))
    assert backbone.built["quick_gelu"] == quick
    assert len([line for line in said if "is built with it" in line]) == (quick != name.endswith("quickgelu"))


def test_the_command_line_tells_it_once_and_in_config_json(world, capsys):
    assert cli.main(["adapt", "zero_shot", *(w for pair in DEFAULTS.items() for w in pair), "--out", "told"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "the weights 'openai' were trained with QuickGELU, so 'ViT-B-32' is built with it, as 'ViT-B-32-quickgelu'"
    ]
    config = json.loads(Path("told/config.json").read_text())
    assert config["model"] == "ViT-B-32"
    assert (config["origins"]["model"]["name"], config["origins"]["model"]["pretrained"]) == ("ViT-B-32", "openai")
    assert config["model_built"] == {"model": "ViT-B-32-quickgelu", "quick_gelu": True}
