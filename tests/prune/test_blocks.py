from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.export import packed
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune.blocks import NAME, Block, removable
from lightning_compress.prune.channels import Channel
from lightning_compress.prune.scores import magnitude
from tests.prune import graphs, removing

IMAGE, WORDS = (2, 3, 8, 8), (2, 6, 24)


@pytest.mark.parametrize(
    ("build", "shape", "units"),
    [(lambda: ResNetCIFAR(14, width=0.5), IMAGE, 4), (graphs.Encoder, WORDS, 3)],
    ids=["resnet", "transformer"],
)
def test_a_dropped_block_is_a_masked_one(build: Any, shape: tuple[int, ...], units: int, tmp_path: Path) -> None:
    example = torch.randn(shape)
    model = removing.lived(build())
    pattern = Block(model, example, removing.layers(model))
    keep = {NAME: torch.arange(units) == 1}
    compact = removing.cut(pattern, model, example, keep)
    removing.check(build(), model, compact, example)
    packed.write(compact, tmp_path / "model.lcz")
    again = packed.rebuild(packed.read(tmp_path / "model.lcz"), build())
    assert torch.equal(again(example), compact.model(example))
    assert len(compact.edits) == units - 1
    assert torch.equal(pattern.keep()[NAME], keep[NAME])


def test_what_is_masked_is_what_the_branch_adds() -> None:
    model: Any = ResNetCIFAR(14)
    ends = removable(model, torch.randn(IMAGE), removing.layers(model))
    assert ends == {name: [f"{name}.conv2", f"{name}.bn2"] for name in ("layer1.0", "layer1.1", "layer2.1", "layer3.1")}
    pattern = Block(model, torch.randn(IMAGE), removing.layers(model))
    pattern.apply({NAME: torch.tensor([True, False, True, True])})
    second = model.layer1[1]
    assert not second.conv2.weight.any()
    assert not second.bn2.weight.any()
    assert not second.bn2.bias.any()
    assert not second.conv1.weight.any()
    assert second.bn1.weight.all()
    assert model.layer1[0].conv2.weight.all()
    model(torch.randn(4, 3, 8, 8)).sum().backward()  # the branch gets no gradient any more
    assert not second.conv1.parametrizations.weight.original.grad.any()


def test_a_block_is_scored_by_all_its_weights() -> None:
    model: Any = ResNetCIFAR(14)
    pattern = Block(model, torch.randn(IMAGE), removing.layers(model))
    scores = magnitude(pattern.view()[NAME])
    block = model.layer2[1]
    torch.testing.assert_close(
        scores[2], block.conv1.weight.detach().abs().sum() + block.conv2.weight.detach().abs().sum()
    )


def test_blocks_and_channels_go_together() -> None:
    example = torch.randn(IMAGE)
    model = removing.lived(ResNetCIFAR(14, shortcut="B", width=0.5))
    inner = {name: layer for name, layer in removing.layers(model).items() if name.endswith("conv1")}
    channel = Channel(model, example, inner)
    block = Block(model, example, removing.layers(model))
    channel.apply(removing.random_keep(channel, 0))
    block.apply({NAME: torch.tensor([True, False, True, False])})
    compact = block.finalize(channel.finalize(Compressor([]).finalize(model.eval(), example)))
    removing.check(ResNetCIFAR(14, shortcut="B", width=0.5), model, compact, example)


class Negative(nn.Module):
    """Looks like a residual block, but without its branch it is no identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = -x + self.conv(x)
        return out


@pytest.mark.parametrize("inner", [Negative(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())], ids=["negative", "plain"])
def test_what_is_no_identity_without_its_branch_stays(inner: nn.Module) -> None:
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(ValueError, match="no residual block may go"):
        Block(model, torch.randn(IMAGE), removing.layers(model))


def test_all_layers_of_a_block_must_be_selected() -> None:
    model = ResNetCIFAR(14)
    some = {name: layer for name, layer in removing.layers(model).items() if name != "layer1.0.conv1"}
    assert set(removable(model, torch.randn(IMAGE), some)) == {"layer1.1", "layer2.1", "layer3.1"}
