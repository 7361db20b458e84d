from __future__ import annotations

import gc

import open_clip
import pytest
import torch
from tiny import ToyDataset
from torch import Tensor, nn
from towers import hook_count, make_backbone

from clipviz.backbone import Backbone
from clipviz.methods import METHODS
from clipviz.methods.base import Method
from clipviz.saliency import capture_attention
from clipviz.training.run import Run


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def attributes_of(model: nn.Module) -> list[set[str]]:
    return [set(vars(module)) for module in model.modules()]


def test_output_equals_plain_open_clip_and_rows_sum_to_one(tiny_backbone: Backbone, images: Tensor) -> None:
    plain = tiny_backbone.model.encode_image(images)
    with capture_attention(tiny_backbone) as attention:
        swapped = tiny_backbone.model.encode_image(images)
    torch.testing.assert_close(swapped, plain, atol=1e-5, rtol=0)
    assert {layer: tuple(a.shape) for layer, a in attention.items()} == {0: (3, 4, 17, 17), 1: (3, 4, 17, 17)}
    torch.testing.assert_close(attention[1].sum(-1), torch.ones(3, 4, 17))


def test_equals_the_weights_pytorch_itself_would_return(tiny_backbone: Backbone, images: Tensor) -> None:
    returned: list[Tensor] = []
    module = tiny_backbone.visual.transformer.resblocks[1].attn
    ask = module.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "need_weights": True, "average_attn_weights": False}),
        with_kwargs=True,
    )
    read = module.register_forward_hook(lambda m, args, output: returned.append(output[1]))
    tiny_backbone.embed(images)
    ask.remove()
    read.remove()
    with capture_attention(tiny_backbone, [1]) as attention:
        tiny_backbone.embed(images)
    torch.testing.assert_close(attention[1], returned[0], atol=1e-6, rtol=0)


def test_real_architecture_in_eval_and_train_mode() -> None:
    config = open_clip.get_model_config("ViT-B-32")
    tower = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for training in (False, True):
            tower.train(training)
            plain = tower(images)
            with capture_attention(tower) as attention:
                swapped = tower(images)
            torch.testing.assert_close(swapped, plain, atol=1e-5, rtol=0)
            assert len(attention) == 12
            assert attention[11].shape == (2, 12, 50, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"block_type": "custom"},
        {"qk_norm": True},
        {"scale_heads": True},
        {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
        {"ls_init_value": 0.1},
    ],
)
def test_custom_blocks(options: dict[str, object], images: Tensor) -> None:
    backbone = make_backbone(**options)
    for parameter in backbone.visual.parameters():  # normalizations and scales that do something
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    plain = backbone.model.encode_image(images)
    with capture_attention(backbone) as attention:
        swapped = backbone.model.encode_image(images)
    torch.testing.assert_close(swapped, plain, atol=1e-5, rtol=0)
    assert attention[1].shape == (3, 4, 17, 17)


def test_text_tower_keeps_its_causal_mask(tiny_backbone: Backbone) -> None:
    ids = tiny_backbone.tokenizer(["a photo of a bird"])
    plain = tiny_backbone.model.encode_text(ids)
    with capture_attention(tiny_backbone, tower="text") as attention:
        swapped = tiny_backbone.model.encode_text(ids)
    torch.testing.assert_close(swapped, plain, atol=1e-5, rtol=0)
    assert (attention[0].triu(1) == 0).all()
    assert (attention[0][0, 0, 5, :6] > 0).all()


def test_sequence_first_blocks(images: Tensor) -> None:
    plain = make_backbone().visual
    other = open_clip.transformer.Transformer(width=64, layers=2, heads=4, batch_first=False)
    other.load_state_dict(plain.transformer.state_dict())
    tokens = torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(0))
    holder = nn.Module()
    holder.transformer = other
    with capture_attention(holder) as attention:
        swapped = other(tokens)
    torch.testing.assert_close(swapped, plain.transformer(tokens), atol=1e-5, rtol=0)
    assert attention[0].shape == (3, 4, 17, 17)


def test_gradient_flows_to_the_weights_and_through_them(tiny_backbone: Backbone, images: Tensor) -> None:
    pixels = images.clone().requires_grad_(True)
    (plain,) = torch.autograd.grad(tiny_backbone.embed(pixels)[:, 0].sum(), pixels)
    with capture_attention(tiny_backbone) as attention:
        score = tiny_backbone.embed(pixels)[:, 0].sum()
    gradients = torch.autograd.grad(score, [attention[0], attention[1], pixels])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    torch.testing.assert_close(gradients[2], plain, atol=1e-5, rtol=1e-4)


def test_restored_exactly(microclip: Method, images: Tensor) -> None:
    before, attributes, hooks = state_of(microclip), attributes_of(microclip), hook_count(microclip)
    plain = microclip.backbone.embed(images)
    with capture_attention(microclip) as attention:
        microclip.backbone.embed(images)
    assert len(attention) == 2
    assert attributes_of(microclip) == attributes
    assert hook_count(microclip) == hooks
    assert state_of(microclip).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state_of(microclip).items())
    assert torch.equal(microclip.backbone.embed(images), plain)
    assert len(attention) == 2  # nothing more was written after the end


def test_restored_after_an_exception(tiny_backbone: Backbone) -> None:
    attributes = attributes_of(tiny_backbone)
    with pytest.raises(ValueError, match="tiny needs images"), capture_attention(tiny_backbone):
        tiny_backbone.embed(torch.rand(1, 3, 31, 31))
    assert attributes_of(tiny_backbone) == attributes


def test_only_the_layers_asked_for(tiny_backbone: Backbone, images: Tensor) -> None:
    with capture_attention(tiny_backbone, [-1]) as attention:
        assert "forward" not in vars(tiny_backbone.visual.transformer.resblocks[0].attn)
        tiny_backbone.embed(images)
    assert list(attention) == [1]


def test_a_thousand_calls_do_not_grow(tiny_backbone: Backbone) -> None:
    transformer = tiny_backbone.visual.transformer
    tokens = torch.rand(1, 5, 64, requires_grad=True)

    def tensors() -> tuple[int, int]:
        gc.collect()
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
        return len(alive), sum(thing.numel() for thing in alive)

    def look(times: int) -> None:
        for _ in range(times):
            with capture_attention(tiny_backbone) as attention:
                transformer.resblocks[0](tokens)
            assert attention[0].requires_grad

    look(2)
    before = tensors()
    look(1000)
    assert tensors() == before
    with capture_attention(tiny_backbone) as attention:
        for _ in range(1000):
            transformer.resblocks[0](tokens)
        assert list(attention) == [0]
    del attention
    assert tensors() == before


def test_refusals_say_why_and_change_nothing(tiny_backbone: Backbone, resnet: Backbone) -> None:
    with pytest.raises(ValueError, match="open_clip's transformer blocks, got a ModifiedResNet"):
        capture_attention(resnet).__enter__()
    with pytest.raises(ValueError, match="scaled cosine"):
        capture_attention(make_backbone(scaled_cosine_attn=True)).__enter__()
    with pytest.raises(ValueError, match="layer 2 does not exist: the tower has 2"):
        capture_attention(tiny_backbone, [0, 2]).__enter__()
    with capture_attention(tiny_backbone, [0]), pytest.raises(ValueError, match="already been replaced"):
        capture_attention(tiny_backbone).__enter__()
    assert "forward" not in vars(tiny_backbone.visual.transformer.resblocks[0].attn)


def test_refuses_checkpointing_and_patch_dropout() -> None:
    backbone = make_backbone(patch_dropout=0.5)
    backbone.model.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match=r"set_grad_checkpointing\(False\)"):
        capture_attention(backbone).__enter__()
    backbone.model.set_grad_checkpointing(False)
    backbone.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        capture_attention(backbone).__enter__()
    backbone.eval()
    with capture_attention(backbone) as attention:
        backbone.embed(torch.rand(1, 3, 32, 32))
    assert attention[0].shape == (1, 4, 17, 17)


def test_refuses_cross_attention_in_use(tiny_backbone: Backbone) -> None:
    module = tiny_backbone.visual.transformer.resblocks[0].attn
    x, y = torch.rand(2, 1, 5, 64)
    with capture_attention(tiny_backbone), pytest.raises(ValueError, match="self-attention"):
        module(x, y, y)


def test_the_gallery_of_a_tower_without_attention_has_no_map(resnet: Backbone) -> None:
    data = ToyDataset(20)
    arrays = Run(METHODS["zero_shot"](resnet, data.prompts), data, eval_dataset=data).fit().arrays
    assert len(arrays["gallery/images"])
    assert "gallery/cls_attention" not in arrays
