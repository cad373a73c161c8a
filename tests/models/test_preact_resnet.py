import pytest
import torch
from torch import nn

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.preact_resnet import PreActBlock, PreActResNet
from lightning_compress.models.resnet_cifar import ResNetCIFAR


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_as_large_as_the_network_that_activates_after_the_sum(depth: int) -> None:
    assert num_params(PreActResNet(depth)) == num_params(ResNetCIFAR(depth))


@pytest.mark.parametrize(
    ("depth", "widen", "params", "millions"),
    [(16, 1, 0.175, 26.7), (16, 2, 0.692, 101.1), (40, 1, 0.564, 83.3), (40, 2, 2.244, 327.6)],
)
def test_published_sizes_of_wide_networks(depth: int, widen: int, params: float, millions: float) -> None:
    net = PreActResNet(depth, widen=widen, shortcut="conv")
    assert round(num_params(net) / 1e6, 3) == params
    assert round(sum(macs(net, torch.zeros(1, 3, 32, 32)).values()) / 1e6, 1) == millions


@pytest.mark.parametrize(("depth", "widen", "params"), [(16, 2, 703_284), (40, 1, 569_780), (40, 2, 2_255_156)])
def test_sizes_for_a_hundred_classes(depth: int, widen: int, params: int) -> None:
    assert num_params(PreActResNet(depth, widen=widen, shortcut="conv", num_classes=100)) == params


def test_a_wide_network_has_a_convolution_on_the_shortcut_of_each_stage() -> None:
    net = PreActResNet(10, widen=2, shortcut="conv")
    shortcuts = [
        name for name, module in net.named_modules() if name.endswith("shortcut") and type(module) is nn.Conv2d
    ]
    assert shortcuts == ["layer1.0.shortcut", "layer2.0.shortcut", "layer3.0.shortcut"]


@pytest.mark.parametrize("shortcut", ["pool", "conv"])
def test_the_shortcut_takes_the_inputs_or_what_is_made_of_them(shortcut: str) -> None:
    block = PreActBlock(4, 8, stride=2, shortcut=shortcut).eval()  # type: ignore[arg-type]
    nn.init.zeros_(block.conv2.weight)
    inputs = -torch.ones(1, 4, 6, 6)
    outputs = block(inputs)
    assert outputs.shape == (1, 8, 3, 3)
    if shortcut == "conv":
        assert not outputs.any()  # the ReLU lets nothing through
    else:
        assert outputs[0, :, 0, 0].tolist() == [0, 0, -1, -1, -1, -1, 0, 0]


def test_refuses_depths_shortcuts_and_widths_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2 .* or 6n \+ 4 .* got 18"):
        PreActResNet(18)
    with pytest.raises(ValueError, match=r"shortcut must be 'pool' .* got 'A'"):
        PreActResNet(20, shortcut="A")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="widen must be 1 or more, got 0"):
        PreActResNet(16, widen=0)
