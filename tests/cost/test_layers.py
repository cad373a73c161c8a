import torch
from torch import nn

from lightning_compress.core import edits
from lightning_compress.cost.layers import Prices, input_shapes
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(6, 6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.conv(self.conv(inputs)[..., ::2, :]))
        return found


def test_prices_are_what_the_built_model_costs() -> None:
    model, example = Twice(), torch.zeros(2, 3, 8, 6)
    prices = Prices(model, example, ["conv", "fc"])
    assert input_shapes(model, example, ["conv"]) == {"conv": [(1, 3, 8, 6), (1, 3, 4, 6)]}
    assert {name: cost[1] for name, cost in prices.whole.items()} == macs(model, example)
    before = num_params(model), sum(macs(model, example).values())
    ways = {"conv": ("tucker", (1, 2)), "fc": ("svd", (2,))}
    changed = edits.replay(model, [edits.factor(name, *how) for name, how in ways.items()])
    after = num_params(changed), sum(macs(changed, example).values())
    for place in (0, 1):
        change = sum(prices.of(name, *how)[place] - prices.whole[name][place] for name, how in ways.items())
        assert after[place] == before[place] + change
    assert prices.saves("conv", "tucker", (1, 2))
    assert not prices.saves("conv", "tucker", (3, 3))
