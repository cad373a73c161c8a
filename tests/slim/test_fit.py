from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress.slim.fit import LeastSquares


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "bias": False, "dilation": 2},
        {"padding": 1, "padding_mode": "reflect", "groups": 2},
        {"kernel_size": 1},
        {"memory_format": torch.channels_last, "groups": 2},
    ],
    ids=str,
)
def test_it_is_lstsq_on_unfolded_inputs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layout: Any = {"memory_format": options.get("memory_format", torch.contiguous_format)}
    settings = {key: value for key, value in options.items() if key not in layout}
    conv = nn.Conv2d(4, 6, **{"kernel_size": 3, **settings}).to(**layout)
    inputs = torch.randn(3, 4, 8, 7).to(**layout)
    targets = torch.randn(conv(inputs).shape)
    squares = LeastSquares(conv)
    for part in zip(inputs.chunk(3), targets.chunk(3), strict=True):
        squares.add(*part)
    squares.solve()
    best = 0.0
    for group, wanted in zip(inputs.chunk(conv.groups, 1), targets.chunk(conv.groups, 1), strict=True):
        pad = conv._reversed_padding_repeated_twice
        padded = F.pad(group, pad, mode="reflect" if conv.padding_mode == "reflect" else "constant")
        rows = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride).transpose(1, 2).flatten(0, 1)
        rows = rows if conv.bias is None else torch.cat([rows, torch.ones(len(rows), 1)], 1)
        columns = wanted.permute(0, 2, 3, 1).flatten(0, 2).double()
        found = torch.linalg.lstsq(rows.double(), columns).solution
        best += float((rows.double() @ found - columns).square().sum())
    assert float((conv(inputs) - targets).detach().square().sum()) == pytest.approx(best, rel=1e-5)


def test_with_no_information_the_layer_stays_as_it_is() -> None:
    conv = nn.Conv2d(3, 2, 1)
    before = conv.weight.detach().clone()
    squares = LeastSquares(conv)
    squares.add(torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 4, 4))
    squares.solve()
    torch.testing.assert_close(conv.weight.detach(), before)
    assert conv.bias is not None
    torch.testing.assert_close(conv.bias.detach(), torch.ones(2), rtol=1e-4, atol=0)
