import pytest
import torch
from torch import nn

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.vgg_cifar import VGGCIFAR

# Channels of each convolution, as the papers print them.
VGG16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def test_vgg16_of_li_2017() -> None:
    net = VGGCIFAR(16)
    convs = sum(9 * a * b + 2 * b for a, b in zip([3, *VGG16], VGG16, strict=False))
    assert num_params(net) == convs + (512 * 512 + 512 + 2 * 512) + (512 * 10 + 10) == 14_987_722
    assert round(num_params(net) / 1e6, 2) == 14.99
    assert round(sum(macs(net, torch.zeros(1, 3, 32, 32)).values()) / 1e6, 1) == 313.5


def test_without_hidden_layer_has_the_size_of_liu_2019() -> None:
    assert round(num_params(VGGCIFAR(16, hidden=None)) / 1e6, 2) == 14.72


def test_vgg7_has_the_size_of_the_literature_on_few_bits() -> None:
    net = VGGCIFAR(7, hidden=1024)
    channels = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert channels == [128, 128, 256, 256, 512, 512]
    assert round(num_params(net) / 1e6, 2) == 12.98
    assert round(sum(macs(net, torch.zeros(1, 3, 32, 32)).values()) / 1e6) == 616


@pytest.mark.parametrize(("depth", "params"), [(8, 3_965_028), (13, 9_462_180)])
def test_networks_of_tian_2020_end_at_four_by_four_pixels(depth: int, params: int) -> None:
    net = VGGCIFAR(depth, hidden=None, pooled=3, num_classes=100)
    biases = sum(module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d))
    assert num_params(net) + biases == params  # theirs have one, in front of a batch norm
    assert net.features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
def test_depth_counts_convolutions_and_linear_layers(depth: int) -> None:
    net = VGGCIFAR(depth, width=0.1)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    # The original has three linear layers, the CIFAR form one or two.
    assert len(convs) == depth - 3


@pytest.mark.parametrize("image_size", [8, 16, 28, 32, 64])
def test_takes_other_image_sizes(image_size: int) -> None:
    net = VGGCIFAR(11, in_channels=1, image_size=image_size, width=0.1)
    assert net(torch.zeros(2, 1, image_size, image_size)).shape == (2, 10)


def test_five_poolings_at_32_pixels() -> None:
    pools = [name for name, module in VGGCIFAR(11, width=0.1).named_modules() if isinstance(module, nn.MaxPool2d)]
    assert pools == [f"features.pool{i}" for i in (1, 2, 3, 4, 5)]


def test_refuses_an_unknown_depth() -> None:
    with pytest.raises(ValueError, match="one of 7, 8, 11, 13, 16, 19, got 15"):
        VGGCIFAR(15)
