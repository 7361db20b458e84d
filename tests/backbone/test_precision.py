"""bf16-mixed is a matter of the image tower: what leaves it, the weights and all the rest stay float32."""

from __future__ import annotations

import pytest
import torch
from tiny import ToyDataset, clusters, make_tiny_backbone, microclip

from clipviz.backbone import Backbone
from clipviz.cli import main as cli
from clipviz.cli.inputs import load_model
from clipviz.data.sources.feature_files import write_features
from clipviz.methods.base import AdaptConfig
from clipviz.parallel import ONE
from clipviz.training.run import Run

CONFIG = AdaptConfig(epochs=1, batch_size=8, lr=1e-3)


def mixed(backbone: Backbone) -> Backbone:
    backbone.precision = "bf16-mixed"
    return backbone


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_tower_computes_in_bfloat16_and_its_outputs_are_float32(images):
    backbone = mixed(make_tiny_backbone())
    seen = []
    handle = backbone.visual.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    tokens, embedding, text = backbone.tokens(images), backbone.embed(images), backbone.embed_text(["a bird"])
    handle.remove()
    assert seen == [torch.bfloat16] * 2
    assert {tokens.cls.dtype, tokens.patches.dtype, embedding.dtype, text.dtype} == {torch.float32}
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(4))
    exact = make_tiny_backbone()
    assert (exact.embed(images) * embedding).sum(-1).min() > 0.999
    assert not torch.equal(exact.embed(images), embedding)
    torch.testing.assert_close(tokens.patches, exact.tokens(images).patches, atol=0.1, rtol=0)
    assert torch.equal(text, exact.embed_text(["a bird"]))


def test_a_method_trains_float32_weights_near_to_those_of_float32():
    exact, method = (microclip(backbone) for backbone in (make_tiny_backbone(), mixed(make_tiny_backbone())))
    before = method.w_value.detach().clone()
    for each in (exact, method):
        run = Run(each, ToyDataset(8), CONFIG)
        run.fit()
    assert run.trace.meta["precision"] == "bf16-mixed"
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert not torch.equal(method.w_value, before)
    assert not torch.equal(method.w_value, exact.w_value)
    torch.testing.assert_close(method.w_value, exact.w_value, atol=2.1e-3, rtol=0)  # one step is at most lr each way


def test_a_run_goes_on_in_the_precision_it_had(toy, tmp_path):
    Run(microclip(mixed(make_tiny_backbone())), toy, CONFIG, folder=tmp_path).fit()
    with pytest.raises(ValueError, match="precision was 'bf16-mixed', now it is '32'"):
        Run(microclip(make_tiny_backbone()), toy, CONFIG, folder=tmp_path).restore()
    assert Run(microclip(mixed(make_tiny_backbone())), toy, CONFIG, folder=tmp_path).restore()


def test_the_command_line_passes_it_on_and_refuses_it_for_embeddings(tmp_path, capsys):
    args = cli.build_parser().parse_args(["adapt", "dpa", "--data", "x", "--out", "y", "--precision", "bf16-mixed"])
    backbone = load_model("birds", None, args, ONE)
    assert backbone.precision == backbone.trainable_copy().precision == "bf16-mixed"
    write_features(tmp_path / "rows.npz", clusters())
    arguments = ["adapt", "dpa", "--data", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "--precision", "bf16-mixed"]) == 2
    assert "holds embeddings, so --precision bf16-mixed has no effect" in capsys.readouterr().err
