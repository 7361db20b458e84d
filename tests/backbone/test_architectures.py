"""Real architectures with random weights: open_clip's own numbers, and what each tower can be used for.

The image towers are the real ones, but of transformers only three layers, for memory and time; the text towers, which
are alike in all of them, are cut to one narrow layer. At full size, with their cost: `python -m
benchmarks.architectures`.
"""

from __future__ import annotations

import json
import sys
import warnings

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import TINY, ToyDataset, make_tiny_backbone

from benchmarks.architectures import plain_embeddings, plain_value_tokens
from clipviz.backbone import Backbone, load_backbone, load_tokenizer
from clipviz.backbone.script_archive import is_script_archive
from clipviz.events import StepFinished
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz.training.loop import adapt

VIT = "open_clip's ViT"
# name here -> the architecture it comes from, changes to its vision tower, what kind of tower it is, W
ARCHITECTURES = {
    "B-32": ("ViT-B-32", {"layers": 3}, VIT, 768),
    "B-32-quickgelu": ("ViT-B-32-quickgelu", {"layers": 3}, VIT, 768),
    "B-16": ("ViT-B-16", {"layers": 3}, VIT, 768),
    "L-14": ("ViT-L-14", {"layers": 3}, VIT, 1024),
    "RN50": ("RN50", {}, "ModifiedResNet", None),
    "custom-blocks": ("ViT-B-32", {"layers": 3, "block_type": "custom", "qk_norm": True}, "VisionTransformer", None),
    # named otherwise because open_clip takes a tokenizer of its own, with a download, wherever a name has SigLIP in it
    "timm-B-16": ("ViT-B-16-SigLIP", {}, "TimmModel", None),
    "MobileCLIP-S1": ("MobileCLIP-S1", {}, "TimmModel", None),
    "EVA02-B-16": ("EVA02-B-16", {}, "TimmModel", None),
}
TIMM_TRANSFORMERS = ("vit_base_patch16_siglip_224", "eva02_base_patch16_clip_224")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Make the architectures known to open_clip; the text towers read its built-in tokenizer."""
    folder = tmp_path_factory.mktemp("configs")
    for name, (origin, vision, _, _) in ARCHITECTURES.items():
        config = open_clip.get_model_config(origin)
        config["vision_cfg"].update(vision)
        text = config["text_cfg"]
        text.pop("hf_tokenizer_name", None)
        text.update(layers=1, width=64, heads=1, vocab_size=49408)
        (folder / f"test-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    create = timm.create_model

    def shallow(name, *args, **options):  # no config of open_clip's says how deep a tower of timm is
        return create(name, *args, **options, **({"depth": 3} if name in TIMM_TRANSFORMERS else {}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", shallow)
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request, configs):
    """(name, backbone): one at a time, each made once."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param, load_backbone(f"test-{request.param}")


def pictures(backbone, n=2):
    return torch.rand(n, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))


def test_embeddings_tokens_and_text_are_open_clips_own(loaded):
    name, backbone = loaded
    x = pictures(backbone)
    with torch.no_grad():
        expected = plain_embeddings(backbone, x)
        torch.testing.assert_close(backbone.embed(x), expected, atol=1e-5, rtol=0)
        ids = backbone.tokenizer(["an owl", "a wren"])
        text = backbone.model.encode_text(ids, normalize=True)
        torch.testing.assert_close(backbone.embed_text(["an owl", "a wren"]), text, atol=1e-5, rtol=0)
        if ARCHITECTURES[name][2] == VIT:
            tokens = backbone.tokens(x)
            torch.testing.assert_close(tokens.cls, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(tokens.patches, plain_value_tokens(backbone, x), atol=1e-5, rtol=0)
            assert tokens.patches.std() > 0.1
    assert expected.shape == (2, backbone.embed_dim)
    assert text.shape == (2, backbone.embed_dim)


def test_what_a_tower_can_do_is_known_without_an_image(loaded):
    name, backbone = loaded
    _, _, kind, width = ARCHITECTURES[name]
    assert backbone.has_patches == (kind == VIT)
    if kind == VIT:
        grid = backbone.visual.grid_size
        assert backbone.width == width
        assert grid[0] * backbone.visual.patch_size[0] == backbone.image_size
        return
    with pytest.raises(ValueError, match=rf"microclip needs the patch tokens .*a {kind}; use a ViT.*zero_shot"):
        METHODS["microclip"](backbone, ToyDataset(3).prompts)


# ------------------------------------------------------------------------------------------------- methods by tower


@pytest.fixture(scope="module")
def towers():
    """Small towers without patch tokens: a ResNet, and a ViT of timm with averaged patches instead of a CLS token."""
    text = dict(TINY["text_cfg"])
    torch.manual_seed(0)
    resnet = open_clip.CLIP(
        32, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}, dict(text), quick_gelu=False
    )
    timm = open_clip.CustomTextCLIP(
        32, {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}, dict(text)
    )
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    return {
        kind: Backbone(model, tokenizer, (0.5,) * 3, (0.25,) * 3, kind).requires_grad_(False).eval()
        for kind, model in (("resnet", resnet), ("timm", timm))
    }


@pytest.mark.parametrize("kind", ["resnet", "timm"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_on_such_a_tower_or_refuses_it_before_any_work(towers, name, kind):
    backbone, data = towers[kind], ToyDataset(8)
    config = AdaptConfig(epochs=1, batch_size=4, lr=1e-3)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    if name == "microclip":
        with pytest.raises(ValueError, match="use a ViT such as ViT-B-32"):
            METHODS[name](backbone, data.prompts)
        return
    method = METHODS[name](backbone, data.prompts)
    if method.trains and method.adapts_tower:
        assert any(parameter.requires_grad for parameter in method.backbone.visual.parameters())
    events = list(adapt(method, data, config, eval_dataset=data))
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert len(steps) == (2 if method.trains else len(steps))
    assert all(torch.isfinite(event.pseudo.probs).all() for event in steps)
    after = backbone.model.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


# ------------------------------------------------------------------------------------------------- files


class Archive(torch.nn.Module):
    """Nothing but the weights, by the names that they have in OpenAI's archives."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in {**state, "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}.items():
            *folders, leaf = name.split(".")
            module = self
            for folder in folders:
                if folder not in module._modules:
                    module.add_module(folder, torch.nn.Module())
                module = module._modules[folder]
            module.register_buffer(leaf, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A tiny model in the shape of OpenAI's, as state dict and as TorchScript archive, and two architectures for it."""
    folder = tmp_path_factory.mktemp("openai")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    for quick_gelu in (True, False):
        config = {"embed_dim": 32, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
        (folder / f"test-openai{'-quickgelu' if quick_gelu else ''}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(3)
    model = open_clip.create_model("test-openai-quickgelu").eval()
    for parameter in model.parameters():  # OpenAI's weights are in half precision
        parameter.data = parameter.data.half().float()
    torch.jit.script(Archive(model.state_dict())).save(str(folder / "archive.pt"))
    save_file(model.state_dict(), folder / "same.safetensors")
    return folder, model


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_an_archive_of_openai_gives_its_weights(quick):
    folder, model = quick
    assert is_script_archive(str(folder / "archive.pt"))
    from_archive = load_backbone("test-openai-quickgelu", str(folder / "archive.pt"))
    from_file = load_backbone("test-openai-quickgelu", str(folder / "same.safetensors"))
    x = pictures(from_archive)
    with torch.no_grad():
        torch.testing.assert_close(from_archive.embed(x), from_file.embed(x), atol=1e-6, rtol=0)
    assert from_archive.fingerprint() == from_file.fingerprint()
    assert from_archive.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_weights_that_look_like_openais_get_a_notice(quick, tmp_path):
    """Nothing but their rounding gives them away, and others round theirs, too."""
    folder, model = quick
    with pytest.warns(UserWarning, match=r"rounded to half precision, as OpenAI's are.*'test-openai-quickgelu'"):
        load_backbone("test-openai", str(folder / "same.safetensors"))
    other = {key: tensor * 1.0001 for key, tensor in model.state_dict().items()}
    save_file(other, tmp_path / "trained.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone("test-openai", str(tmp_path / "trained.safetensors"))
        load_backbone("test-openai-quickgelu", str(folder / "same.safetensors"))


def test_the_state_dict_of_an_archive_is_explained(quick, tmp_path):
    """As it comes out of OpenAI's archive, it has numbers in it that no architecture has."""
    state = {**quick[1].state_dict(), "input_resolution": torch.tensor(32)}
    torch.save(state, tmp_path / "clip.pt")
    for name in ("test-openai", "test-openai-quickgelu"):
        with pytest.raises(ValueError, match=r"state_dict of OpenAI's archive.*give the archive itself"):
            load_backbone(name, str(tmp_path / "clip.pt"))


def test_an_archive_that_does_not_fit_or_is_damaged_is_refused(quick, tmp_path, configs):
    archive = quick[0] / "archive.pt"
    with pytest.raises(ValueError, match="do not fit this architecture") as error:
        load_backbone("test-B-32-quickgelu", str(archive))
    assert "\n" not in str(error.value)
    (tmp_path / "cut.pt").write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"damaged, or no.* weights .*; copy or download \w+ again") as error:
        load_backbone("test-openai-quickgelu", str(tmp_path / "cut.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loaded", ["RN50", "timm-B-16"], indirect=True)  # one with buffers, one of timm's
def test_a_file_that_was_saved_gives_the_same_embeddings(loaded, tmp_path):
    name, backbone = loaded
    save_file({key: t.contiguous() for key, t in backbone.model.state_dict().items()}, tmp_path / "w.safetensors")
    again = load_backbone(f"test-{name}", str(tmp_path / "w.safetensors"))
    x = pictures(backbone, 1)
    with torch.no_grad():
        torch.testing.assert_close(again.embed(x), backbone.embed(x), atol=0, rtol=0)


# ------------------------------------------------------------------------------------------------- what is not there


@pytest.fixture
def offline(monkeypatch):
    """No name can be looked up, and nothing is in the cache."""

    def fail(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("ViT-B-32", "laion2b_s34b_b79k"),
            r"not on this machine .*the hub's laion/CLIP-ViT-B-32-laion2B-s34B-b79K\) and",
        ),
        (("ViT-B-32-quickgelu", "openai"), "get their file .* and give its path instead of the tag"),
        (("hf-hub:someone/some-clip",), "put its open_clip_config.json and open_clip_model.safetensors into a folder"),
    ],
)
def test_without_network_a_sentence_says_where_to_put_the_file(offline, arguments, message, capfd):
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(*arguments)
    assert "\n" not in str(error.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")  # neither retries nor logs of the hub


def test_a_model_of_this_machine_asks_nobody(monkeypatch, quick):
    def fail(*args, **options):
        raise AssertionError("no name needs to be looked up for a local file")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    load_backbone("birds")
    load_backbone("test-openai-quickgelu", str(quick[0] / "same.safetensors"))
    load_tokenizer("ViT-B-32")


def test_a_tokenizer_that_needs_a_package_says_which(monkeypatch, offline):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(ValueError, match="its tokenizer needs the package transformers: pip install transformers"):
            load("ViT-B-16-SigLIP")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            "We couldn't connect to 'the Hub' to load the files",
            r"its tokenizer is not on this machine .* the hub's timm/ViT-B-16-SigLIP \(tokenizer\.json, .*as the model",
        ),
        (
            "Couldn't instantiate the backend tokenizer from one of: \n(1) a `tokenizers` library",
            "put tokenizer.json and tokenizer_config.json there",
        ),
    ],
)
def test_a_tokenizer_that_is_not_here_says_where_to_put_it(monkeypatch, tmp_path, raised, message):
    """What transformers raises without a network, and for a folder that lacks its files."""

    def fail(name, **options):
        raise OSError(raised)

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    for arguments in (("ViT-B-16-SigLIP",), ("ViT-B-16-SigLIP", str(tmp_path / "w.safetensors"))):
        with pytest.raises(ValueError, match=message) as error:
            load_backbone(*arguments)
        assert "\n" not in str(error.value)


def test_a_folder_or_file_in_the_place_of_a_model_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"is not a model: it holds no open_clip_config\.json"):
        load_backbone(str(tmp_path))
    save_file(make_tiny_backbone().model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is a file; the model is an architecture such as ViT-B-32"):
        load_backbone(str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="unknown model 'foo:bar'"):
        load_backbone("foo:bar")
