"""Backbone: open_clip's own numbers, the value path written out once more, and models that cannot be loaded."""

from __future__ import annotations

import json
import logging
import pickle
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY, ToyDataset, make_tiny_backbone

from clipviz.backbone import Backbone, load_backbone
from clipviz.methods import METHODS
from clipviz.methods.microclip import MicroCLIP
from clipviz.prompts import ClassPrompts


def images(n=3, size=32, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def normalized(x):
    return x / x.norm(dim=-1, keepdim=True)


def birds_like(**vision):
    """A small ViT of the shape of the bundled model, every parameter random (biases and scales too)."""
    torch.manual_seed(1)
    shape = {"image_size": 64, "layers": 3, "width": 96, "head_width": 24, "patch_size": 8, **vision}
    model = open_clip.CLIP(**{**TINY, "embed_dim": 48, "vision_cfg": shape, "text_cfg": dict(TINY["text_cfg"])})
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if "ln" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    return Backbone(model, tokenizer, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "birds-like").requires_grad_(False).eval()


def test_a_tower_for_images_that_are_not_square_is_refused():
    with pytest.raises(ValueError, match="'birds-like' reads images of 64 x 32 pixels; use a model of square ones"):
        METHODS["zero_shot"](birds_like(image_size=(64, 32)), ClassPrompts(("cat",))).logits(images(size=64))


# ------------------------------------------------------------------------------------------------- embeddings


def test_embeddings_are_open_clips_own():
    backbone = birds_like()
    x = images(size=64)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3)))
    with torch.no_grad():
        expected = backbone.model.encode_image((x - mean) / std, normalize=True)
        torch.testing.assert_close(backbone.embed(x), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(backbone.tokens(x).cls, expected, atol=1e-6, rtol=0)


def test_without_gradients_a_large_batch_passes_in_pieces_unless_somebody_watches(monkeypatch):
    backbone, x = birds_like(), images(n=7, size=64)
    seen, asked = [], []
    count = backbone.visual._embeds
    with torch.no_grad(), backbone.collected() as collected:
        whole = backbone.tokens(x)
        monkeypatch.setattr("clipviz.backbone.model.PIECE_TOKENS", 3 * 65)  # three images
        monkeypatch.setattr(backbone.visual, "_embeds", lambda pixels: asked.append(len(pixels)) or count(pixels))
        pieces = backbone.tokens(x)
        torch.testing.assert_close(pieces.cls, whole.cls, atol=1e-6, rtol=0)
        torch.testing.assert_close(pieces.patches, whole.patches, atol=1e-5, rtol=0)
        assert asked == [3, 2, 2]
        assert backbone.block_inputs(x).shape == (7, 65, 96)
        handle = backbone.visual.transformer.resblocks[1].register_forward_hook(lambda *of: seen.append(len(of[-1])))
        backbone.embed(x)
        handle.remove()
    assert seen == [7]
    assert [len(rows) for rows in collected] == [7, 7, 7, 7]
    backbone.embed(x)
    assert asked[-1] == 7, "with gradients in one pass"


def test_texts_are_embedded_once_for_all_copies_until_the_text_tower_changes(monkeypatch):
    backbone, asked = make_tiny_backbone(), []
    encode = backbone.model.encode_text
    monkeypatch.setattr(backbone.model, "encode_text", lambda ids: asked.append(len(ids)) or encode(ids))
    first = backbone.embed_text(["an owl", "a wren"])
    assert torch.equal(backbone.trainable_copy().embed_text(["an owl", "a wren"]), first)
    raw = backbone.embed_text(["an owl", "a wren"], unit=False)
    torch.testing.assert_close(raw / raw.norm(dim=-1, keepdim=True), first)
    assert asked == [2]
    raw.zero_()  # the caller's own
    assert torch.equal(backbone.embed_text(("an owl", "a wren")), first)
    backbone.embed_text(["a wren"])
    assert asked == [2, 1]
    with torch.no_grad():
        backbone.model.ln_final.weight[::2].neg_()
    changed = backbone.embed_text(["an owl", "a wren"])
    assert asked == [2, 1, 2]
    assert not torch.allclose(changed, first, atol=0.1)


def test_only_so_many_texts_are_remembered_the_last_ones(monkeypatch):
    monkeypatch.setattr("clipviz.backbone.model.MOST_TEXTS", 4)
    backbone, asked = make_tiny_backbone(), []
    encode = backbone.model.encode_text
    monkeypatch.setattr(backbone.model, "encode_text", lambda ids: asked.append(len(ids)) or encode(ids))
    for texts in (["a", "b"], ["c", "d"], ["e"], ["c", "d"], ["a", "b"], list("fghij"), list("fghij")):
        backbone.embed_text(texts)
    assert asked == [2, 2, 1, 2, 5, 5]


def test_tokens_are_shared_only_of_one_tensor_inside_and_without_gradients(tiny_backbone):
    x = images()
    with torch.no_grad(), tiny_backbone.shared_tokens():
        first = tiny_backbone.tokens(x)
        assert tiny_backbone.tokens(x) is first
        assert tiny_backbone.embed(x) is first.cls
        again = tiny_backbone.tokens(x.clone())
        assert again is not first
        torch.testing.assert_close(again, first, atol=0, rtol=0)
        same = x.clone()
        before = tiny_backbone.embed(same)
        assert not torch.equal(tiny_backbone.embed(same.mul_(0.5)), before), "changed in place, it is another image"
        with torch.inference_mode():
            made = images()
            assert not torch.equal(tiny_backbone.embed(made), tiny_backbone.embed(made.mul_(0.5)))
        with torch.enable_grad():
            assert tiny_backbone.tokens(x.requires_grad_()).cls.requires_grad
    with torch.no_grad():
        assert tiny_backbone.tokens(x) is not tiny_backbone.tokens(x)
        assert tiny_backbone.embed(x) is not tiny_backbone.embed(x)


def test_text_embeddings_are_open_clips_own_in_any_batch_size(tiny_backbone):
    texts = ["a red bird", "an owl", "a very long sentence " * 20, "naïve café", ""]
    ids = tiny_backbone.tokenizer(texts)
    with torch.no_grad():
        expected = tiny_backbone.model.encode_text(ids, normalize=True)
    for batch_size in (1, 2, 100):
        torch.testing.assert_close(tiny_backbone.embed_text(texts, batch_size), expected, atol=1e-6, rtol=0)


def test_facts_are_read_from_the_model(tiny_backbone):
    assert (tiny_backbone.image_size, tiny_backbone.embed_dim, tiny_backbone.width) == (32, 32, 64)
    scale = tiny_backbone.model.logit_scale.exp().item()
    assert tiny_backbone.logit_scale == pytest.approx(scale)
    assert scale != 100.0


# ------------------------------------------------------------------------------------------------- patch tokens


def value_path_by_hand(backbone, x):
    """Patch tokens of the last block's value path, from the weights and nothing of clipviz.

    v = x + out_proj(W_v LN_1(x) + b_v);  v <- v + MLP(LN_2(v));  LN_post(v), CLS row dropped.
    """
    visual = backbone.model.visual
    captured = []
    handle = visual.transformer.resblocks[-1].ln_1.register_forward_pre_hook(lambda m, a: captured.append(a[0]))
    visual((x - backbone.mean) / backbone.std)
    handle.remove()
    weights = dict(visual.transformer.resblocks[-1].named_parameters())

    def layer_norm(v, weight, bias):
        centered = v - v.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def gelu(v):
        return 0.5 * v * (1 + torch.erf(v / 2**0.5))

    tokens = captured[0]
    width = tokens.shape[-1]
    w_v = weights["attn.in_proj_weight"][2 * width : 3 * width]
    b_v = weights["attn.in_proj_bias"][2 * width : 3 * width]
    value = layer_norm(tokens, weights["ln_1.weight"], weights["ln_1.bias"]) @ w_v.T + b_v
    v = tokens + value @ weights["attn.out_proj.weight"].T + weights["attn.out_proj.bias"]
    hidden = layer_norm(v, weights["ln_2.weight"], weights["ln_2.bias"])
    hidden = gelu(hidden @ weights["mlp.c_fc.weight"].T + weights["mlp.c_fc.bias"])
    v = v + hidden @ weights["mlp.c_proj.weight"].T + weights["mlp.c_proj.bias"]
    return layer_norm(v, visual.ln_post.weight, visual.ln_post.bias)[:, 1:]


def test_patch_tokens_are_the_value_path_of_the_last_block():
    backbone = birds_like()
    x = images(size=64)
    with torch.no_grad():
        tokens = backbone.tokens(x)
        expected = value_path_by_hand(backbone, x)
    assert tokens.grid == (8, 8)
    torch.testing.assert_close(tokens.patches, expected, atol=1e-5, rtol=0)


def test_a_patch_token_depends_on_no_other_patch_of_the_last_block():
    """With one block only, a patch token is a function of its own pixels: changing one patch changes one token."""
    backbone = birds_like(layers=1)
    x, changed = images(1, 64), images(1, 64)
    changed[0, :, 8:16, 24:32] = 0.0  # row 1, column 3 of the grid
    with torch.no_grad():
        difference = (backbone.tokens(x).patches - backbone.tokens(changed).patches).abs().amax(-1)[0]
    assert difference.argmax().item() == 1 * 8 + 3
    assert (difference > 1e-4).sum() == 1


def test_gradients_reach_the_layer_norms_through_both_paths():
    backbone = birds_like()
    x = images(2, 64)
    parameter = backbone.visual.transformer.resblocks[-1].ln_1.weight.requires_grad_(True)
    (cls_gradient,) = torch.autograd.grad(backbone.tokens(x).cls.square().cumsum(-1).sum(), parameter)
    (patch_gradient,) = torch.autograd.grad(backbone.tokens(x).patches.square().cumsum(-1).sum(), parameter)
    assert cls_gradient.abs().sum() > 1e-6
    assert patch_gradient.abs().sum() > 1e-6
    (expected,) = torch.autograd.grad(value_path_by_hand(backbone, x).square().cumsum(-1).sum(), parameter)
    torch.testing.assert_close(patch_gradient, expected, atol=1e-2, rtol=1e-3)


def test_projection_is_the_towers_own(tiny_backbone):
    tokens = torch.randn(2, 5, 64)
    expected = torch.einsum("bnw,we->bne", tokens, tiny_backbone.visual.proj)
    torch.testing.assert_close(tiny_backbone.project(tokens), expected)


# ------------------------------------------------------------------------------------------------- leaving no trace


def fingerprints(model):
    """Hooks and instance-level replacements of every module."""
    return {
        name: (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
            sorted(key for key in module.__dict__ if callable(module.__dict__[key])),
        )
        for name, module in model.named_modules()
    }


def test_nothing_stays_on_the_model_after_use_and_after_an_error():
    backbone = make_tiny_backbone()
    before = fingerprints(backbone.model)
    backbone.tokens(images())
    backbone.embed(images())
    assert fingerprints(backbone.model) == before

    def broken(*args, **kwargs):
        raise ArithmeticError("inside the tower")

    handle = backbone.visual.transformer.resblocks[-1].mlp.register_forward_hook(broken)
    during = fingerprints(backbone.model)
    for call in (backbone.tokens, backbone.embed):
        with pytest.raises(ArithmeticError, match="inside the tower"):
            call(images())
        assert fingerprints(backbone.model) == during
    handle.remove()
    assert fingerprints(backbone.model) == before


def test_hooks_of_others_see_the_whole_block():
    """Whoever looks at the last block gets open_clip's own computation, all rows of it, and the result is the same."""
    backbone = make_tiny_backbone()
    x = images()
    with torch.no_grad():
        alone = backbone.tokens(x)
    seen = []
    block = backbone.visual.transformer.resblocks[-1]
    handle = block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        watched = backbone.tokens(x)
    handle.remove()
    assert seen == [(3, 17, 64)]
    torch.testing.assert_close(watched.cls, alone.cls, atol=1e-6, rtol=0)
    torch.testing.assert_close(watched.patches, alone.patches, atol=1e-5, rtol=0)


def test_a_trainable_copy_shares_text_and_owns_its_tower():
    backbone = make_tiny_backbone()
    copy = backbone.trainable_copy()
    assert copy.model.transformer is backbone.model.transformer
    before = backbone.embed(images())
    with torch.no_grad():
        for parameter in copy.visual.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(backbone.embed(images()), before, atol=0, rtol=0)
    assert not torch.allclose(copy.embed(images()), before)
    assert copy.fingerprint() != backbone.fingerprint()
    assert backbone.trainable_copy().fingerprint() == backbone.fingerprint()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 64, 64), (1, 3, 32, 16)])
def test_images_of_another_shape_are_refused(tiny_backbone, shape):
    for call in (tiny_backbone.embed, tiny_backbone.tokens):
        with pytest.raises(ValueError, match=r"tiny needs images \(B, 3, 32, 32\) in \[0, 1\], B >= 1, got"):
            call(torch.zeros(shape))


def test_bytes_are_no_images_and_double_precision_is_welcome(tiny_backbone):
    pixels = (255 * images()).byte()
    for call in (
        tiny_backbone.embed,
        tiny_backbone.tokens,
        METHODS["dpa"](tiny_backbone, ToyDataset(3).prompts).logits,
    ):
        with pytest.raises(ValueError, match=r"in \[0, 1\], B >= 1, got uint8 \(3, 3, 32, 32\)"):
            call(pixels)
    torch.testing.assert_close(tiny_backbone.embed(images().double()), tiny_backbone.embed(images()))
    with pytest.raises(ValueError, match="got Image"):
        METHODS["dpa"](tiny_backbone, ToyDataset(3).prompts).logits(ToyDataset(1).image(0))


def test_one_sentence_is_no_list_of_letters(tiny_backbone):
    for wrong in ("an owl", ["an owl", 5]):
        with pytest.raises(ValueError, match="wanted a list of sentences, got "):
            tiny_backbone.embed_text(wrong)


def test_a_precision_that_is_not_known_is_refused_instead_of_taken_for_bfloat16():
    for wrong in (32, "16", "bf16"):
        with pytest.raises(ValueError, match=r"unknown precision .* Choose from '32', 'bf16-mixed'"):
            load_backbone("birds", precision=wrong)


# ------------------------------------------------------------------------------------------------- other towers


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=dict(TINY["text_cfg"]))
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    return Backbone(model, tokenizer, (0.5,) * 3, (0.25,) * 3, "RN-tiny").requires_grad_(False).eval()


def test_a_resnet_gives_embeddings_and_refuses_patches(resnet):
    x = images()
    with torch.no_grad():
        expected = resnet.model.encode_image((x - resnet.mean) / resnet.std, normalize=True)
        torch.testing.assert_close(resnet.embed(x), expected, atol=1e-6, rtol=0)
    assert not resnet.has_patches
    assert resnet.embed_dim == 32
    for purpose, refused in (
        ("tokens", lambda: resnet.tokens(x)),
        ("patch width", lambda: resnet.width),
        ("microclip", lambda: MicroCLIP(resnet, ClassPrompts(("a", "b")))),
    ):
        with pytest.raises(ValueError, match=rf"{purpose} needs the patch tokens of a ViT.*ModifiedResNet.*zero_shot"):
            refused()


@pytest.mark.parametrize("vision", [{"pool_type": "avg"}, {"attentional_pool": True}])
def test_a_vit_without_cls_refuses_patches(vision):
    backbone = birds_like(attn_pooler_heads=4, **vision)
    assert not backbone.has_patches
    x = images(size=64)
    with torch.no_grad():
        expected = backbone.model.encode_image((x - backbone.mean) / backbone.std, normalize=True)
        torch.testing.assert_close(backbone.embed(x), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="needs the patch tokens"):
        backbone.tokens(x)


# ------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    """Two tiny architectures known to open_clip, and a folder with good and bad files of weights."""
    folder = tmp_path_factory.mktemp("weights")
    configs = folder / "configs"
    configs.mkdir()
    (configs / "tiny-vit.json").write_text(json.dumps(TINY))
    (configs / "tiny-vit-wide.json").write_text(json.dumps({**TINY, "embed_dim": 48}))
    open_clip.add_model_config(configs)
    model = make_tiny_backbone().model
    save_file(model.state_dict(), folder / "good.safetensors")
    torch.save(model.state_dict(), folder / "good.pt")
    torch.save(model, folder / "pickled.pt")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.pt").write_text("<html>404</html>")
    torch.save({}, folder / "nothing.pt")
    torch.save([1, 2], folder / "list.pt")
    state = model.state_dict()
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, folder / "prefix.pt")
    save_file({f"clip.{name}": tensor for name, tensor in state.items()}, folder / "prefix.safetensors")
    torch.save({"model": state}, folder / "nested.pt")
    torch.save(state | {"logit_bias": torch.ones(())}, folder / "siglip.pt")
    torch.save(state | {"positional_embedding": torch.ones(77, 8)}, folder / "narrow.pt")
    (folder / "tensors.pt").write_bytes(whole)
    (folder / "today.pt").write_bytes(pickle.dumps(Path("x"), protocol=4))
    return folder


@pytest.mark.parametrize("file", ["good.safetensors", "good.pt"])
def test_a_local_file_gives_its_weights(architectures, tiny_backbone, file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = load_backbone("tiny-vit", str(architectures / file))
    assert backbone.fingerprint() == tiny_backbone.fingerprint()
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.image_size == 32


def test_weights_are_drawn_at_random_only_where_no_file_has_them(architectures, monkeypatch):
    drawn, normal = [], torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda self, *args, **more: drawn.append(1) or normal(self, *args, **more)
    )
    load_backbone("tiny-vit", str(architectures / "good.safetensors"))
    load_backbone("birds")
    assert not drawn
    with pytest.warns(UserWarning, match="has random weights"):
        backbone = load_backbone("tiny-vit")
    assert drawn
    assert backbone.model.token_embedding.weight.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.safetensors", r"no such weights file: '.*missing.safetensors'.*tiny-vit has no pretrained tags"),
        ("truncated.safetensors", "damaged, or not a file of weights.*incomplete metadata"),
        ("empty.safetensors", "damaged, or not a file of weights"),
        ("pickled.pt", "is pickled and holds more than tensors, and is not opened"),
        ("today.pt", "is pickled and holds more than tensors, and is not opened"),
        ("text.pt", r"damaged, or not a file of weights \(.*no pickle.*\); copy or download it again"),
        ("tensors.pt", r"damaged, or not a file of weights \(.*; safetensors need the ending .safetensors\)"),
        ("prefix.pt", r"has 'model.* in the place of 'posi.*; save them without 'model\.' before their names"),
        ("prefix.safetensors", r"save them without 'clip\.' before their names"),
        (
            "nested.pt",
            r"the file has 'model' in the place of 'positional_embedding'\); name the architecture that they belong to",
        ),
        ("siglip.pt", r"do not fit this architecture .*; name the architecture that they belong to"),
        ("narrow.pt", r"do not fit this architecture .*; name the architecture that they belong to"),
        ("nothing.pt", "could not load model 'tiny-vit' with weights"),
        ("list.pt", "could not load model 'tiny-vit' with weights"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason_in_one_line(architectures, file, message):
    with pytest.raises(ValueError, match=message) as error:
        load_backbone("tiny-vit", architectures / file)  # a path will do as well
    assert "\n" not in str(error.value)


def test_weights_of_another_width_are_refused(architectures):
    with pytest.raises(
        ValueError, match=r"size mismatch for .*: \d+( x \d+)* in the file, \d+( x \d+)* in the ar"
    ) as error:
        load_backbone("tiny-vit-wide", str(architectures / "good.safetensors"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("VIT-B-23",), r"unknown model 'VIT-B-23'; did you mean 'ViT-B-32'"),
        (("bird",), "did you mean 'birds'"),
        (("ViT-B-32", "opnai"), "unknown pretrained tag for ViT-B-32 'opnai'; did you mean 'openai'"),
        (("birds", "openai"), "'birds' has its own weights"),
        (("local-dir:/no/such/place",), "could not load model 'local-dir:/no/such/place'"),
    ],
)
def test_names_that_cannot_be_loaded_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(*arguments)


def test_a_folder_of_weights_is_a_model_and_one_without_weights_is_refused(architectures, tiny_backbone, tmp_path):
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    with pytest.raises(ValueError, match="could not load model"):
        load_backbone(str(tmp_path))
    save_file(tiny_backbone.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    backbone = load_backbone(str(tmp_path))
    assert backbone.fingerprint() == tiny_backbone.fingerprint()
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="has its own weights"):
        load_backbone(str(tmp_path), "openai")


def test_random_weights_give_one_warning_of_our_own(architectures):
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    with pytest.warns(UserWarning, match="'tiny-vit' has random weights") as caught:
        backbone = load_backbone("tiny-vit")
    assert len(caught) == 1
    assert (list(root.handlers), list(root.filters)) == before
    assert backbone.image_size == 32


def test_a_model_that_is_loaded_within_inference_mode_can_be_used_anywhere():
    with torch.inference_mode():
        backbone = load_backbone("birds")
        backbone.embed_text(["a bird"])
    assert not any(tensor.is_inference() for tensor in (*backbone.parameters(), *backbone.buffers()))


def test_the_bundled_model_is_an_ordinary_one():
    backbone = load_backbone("birds")
    assert backbone.name == "birds"
    assert backbone.image_size == 64
    assert backbone.has_patches
    assert backbone.mean.flatten().tolist() == [0.5] * 3
