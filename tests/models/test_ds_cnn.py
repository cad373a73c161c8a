from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import nn

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.ds_cnn import DSCNN


def _places(net: nn.Module, inputs: torch.Tensor) -> list[int]:
    """Output elements of every convolution."""
    found: list[int] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, outputs: found.append(outputs.numel()))
    net(inputs)
    return found


@pytest.mark.parametrize(
    ("size", "weights", "million_macs", "kilobytes", "million_operations"),
    [("S", 22_604, 2.657, 38.6, 5.4), ("M", 135_032, 9.816, 189, 19.8), ("L", 410_700, 28.328, 498, 56.9)],
)
def test_published_memory_and_operations(
    size: Literal["S", "M", "L"], weights: int, million_macs: float, kilobytes: float, million_operations: float
) -> None:
    # "Hello Edge", table 5: bytes of 8-bit weights with batch norm folded into biases and of the two largest feature
    # maps that follow one another; operations are multiplications, additions and the biases' additions.
    net, inputs = DSCNN(size, num_classes=12).eval(), torch.zeros(1, 1, 49, 10)
    scales = sum(module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert num_params(net) - scales == weights
    counted = sum(macs(net, inputs).values())
    assert counted / 1e6 == pytest.approx(million_macs, abs=5e-4)
    places = _places(net, inputs)
    maps = max(one + other for one, other in pairwise(places))
    digits = 1 if size == "S" else 0
    assert round((weights + maps) / 1e3, digits) == kilobytes
    assert round((2 * counted + sum(places)) / 1e6, 1) == million_operations


@pytest.mark.parametrize(("frames", "bins"), [(49, 10), (98, 40), (8, 8), (1, 1)])
def test_any_number_of_frames_and_bins(frames: int, bins: int) -> None:
    net = DSCNN("M", num_classes=3, width=0.1).eval()
    shape = net.relu(net.bn(net.conv(net.pad(torch.zeros(2, 1, frames, bins))))).shape
    assert shape[2:] == ((frames + 1) // 2, bins)
    assert net(torch.zeros(2, 1, frames, bins)).shape == (2, 3)


def test_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="sizes S, M, L, got 'XL'"):
        DSCNN("XL")  # type: ignore[arg-type]
