"""Any model, any ratios, any channels: what is cut puts out what was masked."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_compress.models.lenet import LeNet5
from lightning_compress.models.mlp import MLP
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.models.vgg_cifar import VGGCIFAR
from lightning_compress.prune.channels import Channel
from tests.prune import graphs, removing

IMAGE = (2, 3, 8, 8)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lambda: LeNet5(width=0.5), (2, 1, 28, 28)),
    "mlp": (lambda: MLP([40, 24], in_features=64, num_classes=5), (2, 1, 8, 8)),
    "small_conv": (lambda: SmallConv(in_channels=3), IMAGE),
    "resnet20-A": (lambda: ResNetCIFAR(20), IMAGE),
    "resnet20-B": (lambda: ResNetCIFAR(20, shortcut="B"), IMAGE),
    "resnet56-A": (lambda: ResNetCIFAR(56), IMAGE),
    "resnet56-B": (lambda: ResNetCIFAR(56, shortcut="B"), IMAGE),
    "vgg16": (lambda: VGGCIFAR(16, image_size=8, width=0.25), IMAGE),
    "dense": (graphs.Dense, IMAGE),
    "excited": (graphs.Excited, IMAGE),
    "shuffled": (graphs.Shuffled, IMAGE),
    "attention": (graphs.Encoder, (2, 6, 24)),
    "unet": (graphs.UNet, IMAGE),
}
FAST = {"resnet20-A", "lenet", "dense", "excited", "shuffled", "attention", "unet"}
DRAWS = [(name, draw) for draw in range(16) for name in NETS]  # 208


@pytest.mark.parametrize(
    ("name", "draw"),
    [pytest.param(*row, marks=[] if row[0] in FAST and row[1] == 0 else pytest.mark.slow) for row in DRAWS],
)
def test_what_is_cut_is_what_was_masked(name: str, draw: int) -> None:
    build, shape = NETS[name]
    torch.manual_seed(draw)
    example = torch.randn(shape)
    model = removing.lived(build())
    params = sum(p.numel() for p in model.parameters())
    kinds = [False, True] if name == "attention" else [False]
    patterns = [Channel(model, example, removing.layers(model), heads=heads) for heads in kinds]
    for pattern in patterns:
        pattern.apply(removing.random_keep(pattern, draw))
    compact = removing.cut(patterns[0], model, example, patterns[0].keep())
    compact = patterns[-1].finalize(compact) if len(patterns) > 1 else compact
    removing.check(build(), model, compact, example)
    assert sum(p.numel() for p in compact.model.parameters()) < params
    trained = compact.model.train().requires_grad_(True)
    trained(example).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained.parameters())
