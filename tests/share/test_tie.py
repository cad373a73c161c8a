from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor
from lightning_compress.cost.macs import macs
from lightning_compress.cost.record import layer_table
from lightning_compress.quantize.method import Quantize
from lightning_compress.share.tie import Tie

EXAMPLE = torch.randn(4, 3, 6, 6)


def net() -> Any:
    torch.manual_seed(0)
    block = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(*block, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))


@pytest.mark.parametrize("init", ["mean", "first"])
def test_layers_begin_as_their_mean_or_as_the_first(init: str) -> None:
    before, model = net(), net()
    Tie(["^[03]$"], init=init).attach(model, None)
    for name in ("weight", "bias"):
        first, second = (getattr(before[place], name) for place in (0, 3))
        torch.testing.assert_close(getattr(model[3], name), (first + second) / 2 if init == "mean" else first)


def test_it_is_stored_and_counted_once_and_computed_twice() -> None:
    compressor, model = Compressor([Tie(["^[03]$"]), Quantize(8, 8)]), net()
    model = compressor.attach(model, EXAMPLE)
    compressor.prepare(model, [(EXAMPLE,)])
    compressor.update(model)
    found = compressor.finalize(model, EXAMPLE)
    assert not [name for name in found.stored if name.startswith("3.")]
    rows = {row.name: row for row in layer_table(found.model, found.stored, EXAMPLE, dict.fromkeys(found.stored, 7))}
    assert rows["0"].macs == macs(net(), EXAMPLE)["0"] * 2
    assert sum(row.macs for row in rows.values()) == sum(macs(net(), EXAMPLE).values())
    assert sum(row.bytes for row in rows.values()) == 7 * len(found.stored)
    assert {"1", "4"} <= rows.keys()  # norms are not folded into what they share
    again: Any = edits.replay(net(), found.edits)
    assert again[0] is again[3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": "^[03]$"}, "groups is a list of patterns"),
        ({"groups": []}, "groups is a list of patterns"),
        ({"groups": ["^0$"]}, "'.0.' names one layer, '0'; a group has at least two"),
        ({"groups": ["^[03]$", "3|6"]}, "are in another group too"),
        ({"groups": ["^[06]$"]}, "cannot tie '6'.*alike in all but their values"),
        ({"groups": ["^[03]$"], "init": "last"}, "init must be one of mean, first; got 'last'"),
        ({"groups": ["x"]}, "Tie matched no layer"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tie(**options).attach(net(), None)
