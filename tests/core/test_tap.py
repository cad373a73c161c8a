import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import surgery
from lightning_compress.core.tap import Taps


def test_outputs_of_the_named_modules_with_their_graph() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    taps = Taps(net, ["0", "1"])
    x = torch.randn(4, 2)
    net(x)
    torch.testing.assert_close(taps.features["0"], x @ net[0].weight.T + net[0].bias)
    torch.testing.assert_close(taps.features["1"], taps.features["0"].clamp(min=0))
    assert taps.features["1"].requires_grad


def test_close_stops_it() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 3))
    taps = Taps(net, ["0"])
    taps.close()
    net(torch.ones(1, 2))
    assert taps.features == {}


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no module 'layer' to tap; did you mean 'layer1'"):
        Taps(nn.ModuleDict({"layer1": nn.ReLU(), "head": nn.ReLU()}), ["layer"])


def test_a_tapped_model_can_be_copied_and_the_plain_copy_does_not_write_into_the_features() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 3))
    taps = Taps(net, ["0"])
    net(torch.ones(1, 2))
    seen = taps.features["0"]
    copy.deepcopy(net)  # the features are not leaves, which cannot be copied
    surgery.plain(net)(torch.zeros(1, 2))
    assert taps.features["0"] is seen
    net(torch.zeros(1, 2))
    assert taps.features["0"] is not seen
