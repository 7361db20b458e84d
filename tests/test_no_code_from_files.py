"""No file runs code: TorchScript archives, pickles, model folders and what transformers would do for them.

Every trap here would leave a file called `proof`, or write over one that is there.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save

from clipviz.backbone import load_backbone
from clipviz.backbone.script_archive import read_archive
from clipviz.cli import main as cli

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 400, "width": 64, "heads": 1, "layers": 1}
READS = {"context_length": 24, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}  # every token


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("jit-vit", False), ("jit-vit-quickgelu", True), ("trap-tiny", False)):
        config = {"embed_dim": 32, "quick_gelu": quick, "vision_cfg": VISION, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.factory, "SimpleTokenizer", functools.cache(open_clip.SimpleTokenizer))
        yield


JIT_LOAD = torch.jit.load


@pytest.fixture(autouse=True)
def no_jit(monkeypatch):
    """Whatever loads a user's file, it is not TorchScript."""

    def fail(*arguments, **options):
        raise AssertionError("torch.jit.load was called")

    monkeypatch.setattr(torch.jit, "load", fail)


def one_line(call, *arguments):
    with pytest.raises(ValueError, match=r"\w") as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- archives that load


def model(quick):
    torch.manual_seed(1)
    return open_clip.CLIP(32, VISION, TEXT, quick_gelu=quick).eval()


def traced(quick, half):
    """As OpenAI made theirs: traced, in half precision, with sizes and masks among the tensors."""
    clip = model(quick)
    clip.register_buffer("input_resolution", torch.tensor(32))
    clip.transformer.resblocks[0].attn_mask = torch.zeros(77, 77)  # neither a parameter nor a buffer
    inputs = {"encode_image": (torch.rand(1, 3, 32, 32),), "encode_text": (torch.randint(0, 100, (1, 77)),)}
    archive = torch.jit.trace_module(clip, inputs, check_trace=False)
    return archive.half() if half else archive


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("how", ["scripted", "traced", "traced half"])
def test_an_archive_gives_the_tensors_that_torch_would_give(quick, how, tmp_path):
    archive = torch.jit.script(model(quick)) if how == "scripted" else traced(quick, how.endswith("half"))
    archive.save(tmp_path / "ViT-B-32.pt")
    tensors = read_archive(str(tmp_path / "ViT-B-32.pt")).tensors
    expected = archive.state_dict()
    assert expected.keys() <= tensors.keys()
    assert [n for n, t in expected.items() if t.dtype != tensors[n].dtype or not torch.equal(t, tensors[n])] == []
    for name in ("jit-vit", "jit-vit-quickgelu"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            backbone = load_backbone(name, str(tmp_path / "ViT-B-32.pt"))
        said = [str(w.message) for w in caught if "is built" in str(w.message)]
        assert len(said) == (quick != name.endswith("quickgelu"))
        assert backbone.built == {"model": f"jit-vit{'-quickgelu' * quick}", "quick_gelu": quick}
        weights = model(quick).state_dict()
        atol = 1e-3 if how.endswith("half") else 0
        torch.testing.assert_close(backbone.model.state_dict(), weights, atol=atol, rtol=0)


def test_weights_that_two_modules_share_have_both_names(tmp_path):
    shared = torch.nn.Linear(2, 3)
    torch.jit.script(torch.nn.Sequential(shared, torch.nn.Linear(3, 2), shared)).save(tmp_path / "a.pt")
    tensors = read_archive(str(tmp_path / "a.pt")).tensors
    assert sorted(tensors) == sorted(f"{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias"))
    assert torch.equal(tensors["0.weight"], shared.weight)
    assert torch.equal(tensors["2.weight"], shared.weight)


def test_slices_and_plain_attributes(tmp_path):
    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            table = torch.arange(24.0).view(4, 6)
            self.register_buffer("rows", table[1:3])
            self.register_buffer("columns", table.T[2:4])
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("one", torch.tensor(True))
            self.sizes, self.name, self.scale, self.table = [1, 2], "parts", 0.5, {"a": 1.5}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale + len(self.sizes) + len(self.name) + self.table["a"]

    parts = torch.jit.script(Parts())
    parts.save(tmp_path / "a.pt")
    tensors = read_archive(str(tmp_path / "a.pt")).tensors
    assert sorted(tensors) == ["columns", "empty", "one", "rows"]
    for name, tensor in parts.state_dict().items():
        assert torch.equal(tensors[name], tensor)


# ------------------------------------------------------------------------------------------------- archives that attack


class Overwrites(torch.nn.Module):
    """What was found: torch.jit.load calls `__setstate__`, which writes a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.w = path, torch.ones(2)

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.w)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor]) -> None:
        torch.save("overwritten", state[0])
        self.path = state[0]
        self.w = state[1]
        self.training = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torch_itself_overwrites(victim, archive):
    victim.write_text("mine")
    JIT_LOAD(archive)
    return victim.read_bytes() != b"mine"


def test_setstate_of_an_archive_is_not_called(tmp_path, capsys):
    victim = tmp_path / "proof"
    torch.jit.script(Overwrites(str(victim))).save(tmp_path / "evil.pt")
    assert torch_itself_overwrites(victim, tmp_path / "evil.pt")
    victim.write_text("mine")
    assert "TorchScript archive, which is never run" in one_line(load_backbone, "jit-vit", str(tmp_path / "evil.pt"))
    arguments = ["embed", "--model", "jit-vit", "--pretrained", str(tmp_path / "evil.pt"), "--data", "birds"]
    assert cli.main([*arguments, "--out", str(tmp_path / "x.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert victim.read_text() == "mine"


@functools.cache
def contents(archive: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as file:
        return [(part.filename, file.read(part)) for part in file.infolist()]


def rewritten(source: Path, target: Path, data: bytes | None, compress=zipfile.ZIP_STORED, **parts: bytes) -> str:
    """A copy of an archive with another data.pkl (None: none) or other parts."""
    with zipfile.ZipFile(target, "w", compress) as new:
        for name, content in contents(source):
            if not name.endswith("/data.pkl"):
                new.writestr(name, content, zipfile.ZIP_STORED)
            elif data is not None:
                new.writestr(name, data)
        for name, content in parts.items():
            new.writestr(name, content)
    return str(target)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    path = tmp_path_factory.mktemp("linear") / "linear.pt"
    torch.jit.script(torch.nn.Linear(3, 2)).save(path)
    return path


def description(linear):
    with zipfile.ZipFile(linear) as file:
        return file.read("linear/data.pkl")


def module(*attributes: bytes) -> bytes:
    """A pickle of one module with attributes, each a name and a value in opcodes."""
    return b"\x80\x02c__torch__\nM\n)\x81}(" + b"".join(attributes) + b"ub."


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def stored(count: bytes = b"K\x06", kind: bytes = b"ctorch\nFloatStorage\n", key: str = "0") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"


def tensor(
    storage: bytes, size: bytes = b"K\x02K\x03\x86", stride: bytes = b"K\x03K\x01\x86", offset=b"K\x00"
) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


HUGE = b"\x8a\x08" + (10**15).to_bytes(8, "little")
ATTACKS = {
    "calls os.system": b"\x80\x02cos\nsystem\n" + text("touch proof") + b"\x85R.",
    "calls eval": b"\x80\x02cbuiltins\neval\n" + text("open('proof', 'w')") + b"\x85R.",
    "makes an object": b"\x80\x02csubprocess\nPopen\n(X\x05\x00\x00\x00touch" + text("proof") + b"l\x85\x81.",
    "calls what a tensor would": module(text("w"), b"ctorch\nload\n" + text("x.pt") + b"\x85R"),
    "extension registry": b"\x80\x02\x82\x01.",
    "text as a function": module(text("w"), text("os.system") + text("touch proof") + b"\x85R"),
    "numbers past the end": module(text("w"), tensor(stored(), offset=b"K\x05")),
    "negative offset": module(text("w"), tensor(stored(), offset=b"J\xff\xff\xff\xff")),
    "negative stride": module(text("w"), tensor(stored(), stride=b"J\xff\xff\xff\xffK\x01\x86")),
    "storage that is larger than its bytes": module(text("w"), tensor(stored(count=HUGE))),
    "size that is absurd": module(text("w"), tensor(stored(), size=HUGE + HUGE + b"\x86")),
    "numbers of no kind": module(text("w"), tensor(stored(kind=b"ctorch\nUntypedStorage\n"))),
    "part that does not exist": module(text("w"), tensor(stored(key="../../../etc/passwd"))),
    "other persistent object": module(text("w"), b"(" + text("module") + text("os") + b"tQ"),
    "memo far away": b"\x80\x02Nr\xff\xff\xff\xff0r.",
    "bytes that are not there": b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b".",
    "key that is nested deeply": module(b"N" + b"\x85" * 200_000, b"N"),
    "module in itself": b"\x80\x02c__torch__\nM\n)\x81q\x00}" + text("a") + b"h\x00sb.",
    "module of 2^60 paths": b"\x80\x02c__torch__\nM\n)\x81q\x00}" + text("w") + tensor(stored()) + b"sb"
    + b"".join(
        b"0c__torch__\nM\n)\x81q" + bytes([i + 1]) + b"}(" + text("a") + b"h" + bytes([i]) + text("b") + b"h"
        + bytes([i]) + b"ub" for i in range(60)
    ) + b".",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "empty stack": b"\x80\x02R.",
    "not a tree of modules": b"\x80\x02]K\x01a.",
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_description_that_attacks_is_refused(attack, linear, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = one_line(read_archive, rewritten(linear, tmp_path / "evil.pt", ATTACKS[attack]))
    assert "evil.pt" in message
    assert not (tmp_path / "proof").exists()


def test_the_attacks_are_archives_but_for_what_they_do(linear, tmp_path):
    """The helpers above make what torch makes, so that each attack fails for what it says."""
    good = rewritten(linear, tmp_path / "good.pt", module(text("weight"), tensor(stored())))
    with zipfile.ZipFile(linear) as file:
        assert torch.equal(read_archive(good).tensors["weight"], read_archive(str(linear)).tensors["weight"])
        assert file.read("linear/constants.pkl")


def test_archives_that_unpack_to_much_are_refused(linear, tmp_path):
    zeros = bytes(50_000_000)
    squeezed = rewritten(linear, tmp_path / "squeezed.pt", zeros, compress=zipfile.ZIP_DEFLATED)
    assert os.path.getsize(squeezed) < 100_000
    assert "compressed, or larger" in one_line(read_archive, squeezed)
    weights = module(text("w"), tensor(stored(key="big")))
    with zipfile.ZipFile(rewritten(linear, tmp_path / "big.pt", weights), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("linear/data/big", zeros)
    assert "compressed, or larger" in one_line(read_archive, str(tmp_path / "big.pt"))


def test_an_archive_without_a_description(linear, tmp_path):
    assert "damaged" in one_line(read_archive, rewritten(linear, tmp_path / "none.pt", None))


@pytest.mark.timeout(120)
def test_archives_that_are_cut_or_altered_are_refused_or_read(linear, tmp_path):
    """Cuts, and changes of one to three bytes: a line, or tensors; never another error, never a wait."""
    whole, data, rng = linear.read_bytes(), description(linear), random.Random(0)
    path = tmp_path / "a.pt"
    for _ in range(8):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        assert "a.pt" in one_line(load_backbone, "jit-vit", str(path))
    said = []
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read_archive(rewritten(linear, path, bytes(changed)))
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 200
    assert "\n" not in "".join(said)


# ------------------------------------------------------------------------------------------------- pickles by any name


class Trap:
    """A pickle that leaves a proof; `raises` makes the careful reader fail first, as if it were no pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def pickled(kind: str, trap: Trap) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        torch.save({"state_dict": trap}, buffer)
    elif kind == "legacy":
        torch.save({"w": trap}, buffer, _use_new_zipfile_serialization=False)
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in ("pickle", "storages", "tensors"):
                info = tarfile.TarInfo(name)
                info.size = len(pickle.dumps(trap))
                tar.addfile(info, io.BytesIO(pickle.dumps(trap)))
    elif kind == "type error":  # open_clip tries again, less carefully, after a TypeError
        body = pickle.dumps(trap, 2)[:-1] + b"0ccollections\nOrderedDict\n(K\x01K\x02K\x03tR."
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data.pkl", body)
            file.writestr("archive/version", "3\n")
    else:
        buffer.write(pickle.dumps(trap, int(kind)))
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy", ".safetensors"])
def test_pickles_are_not_opened_whatever_they_are_called(suffix, tmp_path):
    proof = tmp_path / "proof"
    for kind in ("zip", "legacy", "tar", "type error", "0", "2", "4", "5"):
        path = tmp_path / f"{kind.replace(' ', '-')}{suffix}"
        path.write_bytes(pickled(kind, Trap(proof)))
        one_line(load_backbone, "trap-tiny", str(path))
        assert not proof.exists(), kind


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.pth"])
def test_pickles_in_a_model_folder_are_not_opened(name, linear, tmp_path):
    proof = tmp_path / "proof"
    folder = model_folder(tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    for content in (
        *(pickled(kind, Trap(proof)) for kind in ("zip", "legacy", "type error", "2")),
        linear.read_bytes(),
    ):
        (folder / name).write_bytes(content)
        one_line(load_backbone, str(folder))
        assert not proof.exists()


# ------------------------------------------------------------------------------------------------- folders and the hub


def model_folder(folder: Path, text: dict | None = None, vision: dict | None = None, **files: object) -> Path:
    """A folder with a model that loads; `text` and `vision` change its configuration, `files` are further ones."""
    folder.mkdir(parents=True)
    config = {"embed_dim": 32, "vision_cfg": {**VISION, **(vision or {})}, "text_cfg": {**READS, **(text or {})}}
    if config["text_cfg"].get("hf_model_name") == "this folder":
        config["text_cfg"]["hf_model_name"] = str(folder)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    for name, value in files.items():
        path = folder / (name if name.endswith(".pkl") else f"{name}.json")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    (folder / "evil.py").write_text(f"open({str(folder / 'proof')!r}, 'w').close()\nclass Evil: pass\n")
    (folder / "open_clip_model.safetensors").write_bytes(folder_weights())
    return folder


@functools.cache
def folder_weights() -> bytes:
    return save(open_clip.CLIP(32, VISION, READS).state_dict())


AUTO_MAP = {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
FOLDERS = {
    "trust in tokenizer_kwargs": ({"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"trust_remote_code": True}}, {}),
    "trust, and an auto_map": (
        {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"tokenizer_config": {"auto_map": AUTO_MAP}, "config": {"auto_map": AUTO_MAP, "model_type": "evil"}},
    ),
    "an auto_map alone": ({"hf_tokenizer_name": "x/y"}, {"tokenizer_config": {"auto_map": AUTO_MAP}}),
    "an auto_map further down": (
        {"hf_tokenizer_name": "x/y"}, {"tokenizer_config": {"init": [{"kwargs": {"auto_map": AUTO_MAP}}]}}
    ),
    "an option that names a place": (
        {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"subfolder": "../elsewhere"}}, {}
    ),
    "trust further down": (
        {"hf_tokenizer_name": "x/y", "tokenizer_kwargs": {"clean": {"trust_remote_code": True}}}, {}
    ),
    "a text tower of this folder": (
        {"hf_model_name": "this folder", "hf_tokenizer_name": "x/y"}, {"config": {"auto_map": AUTO_MAP}}
    ),
    "an auto_map in the config beside a tokenizer": (
        {"hf_tokenizer_name": "x/y"}, {"tokenizer_config": {}, "config": {"model_type": "bert", "auto_map": AUTO_MAP}}
    ),
    "an auto_map among special tokens": ({"hf_tokenizer_name": "x/y"}, {"special_tokens_map": {"auto_map": AUTO_MAP}}),
    "an auto_map for another version of transformers": (
        {"hf_tokenizer_name": "x/y"},
        {"config": {"configuration_files": ["config.4.0.0.json"]}, "config.4.0.0": {"auto_map": AUTO_MAP}},
    ),
    "an auto_map in a folder below": (
        {"hf_tokenizer_name": "x/y"},
        {"config": {"configuration_files": ["v/config.4.0.json"]}, "v/config.4.0": {"auto_map": AUTO_MAP}},
    ),
    "trust in the config": ({"hf_tokenizer_name": "x/y"}, {"config": {"text_config": {"trust_remote_code": True}}}),
    "pipelines in the config": ({"hf_tokenizer_name": "x/y"}, {"config": {"custom_pipelines": {"x": {"impl": "e.E"}}}}),
    "a pickled vocabulary": ({"hf_tokenizer_name": "x/y"}, {"vocab.pkl": b"cos\nsystem\n(S'touch proof'\ntR."}),
    "custom code": ({"custom_code": "evil.py"}, {}),
}  # fmt: skip

STUB = '''
"""A transformers that runs the code of a folder when it is told to, or asks nobody where the real one would ask."""
import importlib.util, json, pathlib

def _run(folder, trust_remote_code):
    for name in ("tokenizer_config.json", "config.json"):
        path = pathlib.Path(folder) / name
        if path.is_file() and "auto_map" in path.read_text() and trust_remote_code is None:
            raise SystemExit("asked the user whether code may run")
    if trust_remote_code:
        spec = importlib.util.spec_from_file_location("evil", pathlib.Path(folder) / "evil.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

class _Auto:
    @classmethod
    def from_pretrained(cls, folder, *args, trust_remote_code=None, **options):
        _run(folder, trust_remote_code)
        return _Tokenizer()
class _Tokenizer:
    def __call__(self, texts, **options):
        return type("Ids", (), {"input_ids": __import__("torch").zeros(len(texts), 24).long()})
    batch_encode_plus = __call__  # of open_clip below 3.3
AutoTokenizer = AutoConfig = AutoModel = _Auto
class PretrainedConfig: pass
'''


@pytest.fixture
def transformers(monkeypatch):
    """open_clip as it is where a stand-in for transformers is installed, which runs the code of a folder."""
    stub = types.ModuleType("transformers")
    exec(STUB, vars(stub))
    monkeypatch.setitem(sys.modules, "transformers", stub)
    for name in ("AutoTokenizer", "AutoConfig", "AutoModel", "PretrainedConfig"):
        monkeypatch.setattr(open_clip.hf_model, name, getattr(stub, name), raising=False)
    monkeypatch.setattr(open_clip.hf_model, "transformers", stub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def of_all_folders(tmp_path, monkeypatch):
    """The exit status of three commands about each folder."""
    monkeypatch.chdir(tmp_path)
    Path("d.json").write_text('{"owl": ["an owl"]}')
    status = []
    for i, (text, files) in enumerate(FOLDERS.values()):
        folder = str(model_folder(tmp_path / str(i) / "model", text, **files).relative_to(tmp_path))
        status.append(cli.main(["describe", "--check", "d.json", "--model", folder]))
        status.append(cli.main(["embed", "--model", folder, "--data", "birds", "--out", f"{folder}/x.npz"]))
        status.append(cli.main(["describe", "--check", "d.json", "--model", f"local-dir:{folder}"]))
    return status


def test_a_model_folder_runs_no_code_with_transformers_installed(transformers, tmp_path, monkeypatch, capsys):
    """With a stand-in for transformers, which does what the real one does with the code of a folder."""
    status = of_all_folders(tmp_path, monkeypatch)
    assert list(tmp_path.rglob("proof")) == []
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("clipviz: error: could not load ")] == []
    assert status == [2] * 3 * len(FOLDERS), lines


def test_the_stand_in_runs_the_code_of_a_folder_that_is_not_refused(transformers, tmp_path):
    """So that the test above can fail."""
    text, files = FOLDERS["trust, and an auto_map"]
    folder = model_folder(tmp_path / "model", text, **files)
    open_clip.get_tokenizer(f"local-dir:{folder}")
    assert (folder / "proof").exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_key_that_asks_for_code_is_named(name, tmp_path, monkeypatch):
    text, files = FOLDERS[name]
    folder = model_folder(tmp_path / "model", text, **files)
    monkeypatch.chdir(tmp_path)
    message = one_line(load_backbone, str(folder))
    words = ("trust_remote_code", "auto_map", "custom_code", "custom_pipelines", "subfolder", "vocab.pkl")
    assert any(word in message for word in words), message


def test_a_folder_elsewhere_and_a_file_are_no_configuration(tmp_path):
    """transformers would follow both."""
    elsewhere = model_folder(tmp_path / "elsewhere", config={"auto_map": AUTO_MAP})
    linked = model_folder(tmp_path / "linked", {"hf_tokenizer_name": "x/y"})
    (linked / "v").symlink_to(elsewhere)
    assert "v of" in one_line(load_backbone, str(linked))
    text = {"hf_tokenizer_name": "x/y", "hf_model_name": str(elsewhere / "config.json")}
    assert "names a file" in one_line(load_backbone, str(model_folder(tmp_path / "file", text)))


def test_keys_that_ask_for_nothing_are_no_trouble(transformers, tmp_path):
    """False keys, tokens of such names, a tower without transformers beside foreign files, a plain timm tower."""
    text = {"tokenizer_kwargs": {"clean": "lower"}}
    folder = model_folder(tmp_path / "a", text, config={"auto_map": AUTO_MAP}, tokenizer_config={"auto_map": {}})
    assert load_backbone(str(folder)).embed_text(["owl"]).shape == (1, 32)
    tokens = {name: {"auto_map": 5, "trust_remote_code": 6} for name in ("vocab", "added_tokens", "tokenizer")}
    folder = model_folder(tmp_path / "tokens", {"hf_tokenizer_name": "x/y"}, config={"auto_map": {}}, **tokens)
    assert cli_tokenizer(str(folder))(["owl"]).shape == (1, 24)
    for name in ("hf-hub:someone/tower", "local-dir:/somewhere"):
        elsewhere = model_folder(tmp_path / name.replace("/", "-"), vision={"timm_model_name": name})
        assert "names an image tower elsewhere" in one_line(load_backbone, str(elsewhere))


def test_a_model_of_the_hub_runs_no_code_either(tmp_path, monkeypatch):
    """A snapshot in the cache of the hub stands in for a download."""
    folders = {
        "evil/one": model_folder(tmp_path / "one", FOLDERS["trust in tokenizer_kwargs"][0]),
        "evil/two": model_folder(tmp_path / "two", {"hf_tokenizer_name": "evil/tokens"}),
        "evil/three": model_folder(tmp_path / "three", {"hf_model_name": "evil/tower", "hf_tokenizer_name": "a/b"}),
        "evil/four": model_folder(tmp_path / "four", {"hf_tokenizer_name": "evil/tower"}),
        "timm/ViT-B-16-SigLIP": model_folder(tmp_path / "siglip", config={"auto_map": AUTO_MAP}),
        "evil/tokens": model_folder(tmp_path / "tokens", tokenizer_config={"auto_map": AUTO_MAP}),
        "evil/tower": model_folder(tmp_path / "tower", config={"auto_map": AUTO_MAP}),
    }

    def cached(repo_id, filename, **options):
        path = folders.get(repo_id, tmp_path / "none") / filename
        if not path.is_file():
            raise FileNotFoundError(f"{repo_id} has no {filename}")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", cached)
    keys = {"one": "trust_remote_code", "two": "auto_map", "three": "auto_map", "four": "auto_map"}
    for name, key in {
        **{f"hf-hub:evil/{name}": key for name, key in keys.items()},
        "ViT-B-16-SigLIP": "auto_map",
    }.items():
        for load in (load_backbone, cli_tokenizer):
            assert key in one_line(load, name)


def cli_tokenizer(name):
    from clipviz.backbone import load_tokenizer

    return load_tokenizer(name)


def test_a_configuration_that_is_none_is_one_line(tmp_path):
    for content in ("[]", "{}", '{"model_cfg": 3}', '{"model_cfg": {"text_cfg": []}}', "[" * 5000, "\x00", '{"a": '):
        (tmp_path / "open_clip_config.json").write_text(content)
        one_line(load_backbone, str(tmp_path))
        one_line(cli_tokenizer, str(tmp_path))
