import json
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import edits, moments
from lightning_compress.core.mask import Mask


def net() -> Any:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1, bias=False))


def test_kept_channels_keep_their_momentum_by_hand() -> None:
    gathered: moments.Moments = {
        "0.weight": {"momentum_buffer": torch.arange(6.0).view(3, 2, 1, 1)},
        "0.bias": {"momentum_buffer": torch.tensor([10.0, 11.0, 12.0])},
        "1.weight": {"exp_avg": torch.tensor([20.0, 21.0, 22.0]), "step": torch.tensor(7.0)},
        "2.weight": {"exp_avg": torch.arange(30.0, 36.0).view(2, 3, 1, 1), "step": torch.tensor(7.0)},
    }
    index = torch.tensor([0, 2])
    made = [edits.keep("0", "out", index), edits.keep("1", "out", index), edits.keep("2", "in", index)]
    base = net()
    left = moments.cut(gathered, base, json.loads(json.dumps(made)))
    assert left["0.weight"]["momentum_buffer"].flatten().tolist() == [0, 1, 4, 5]
    assert left["0.bias"]["momentum_buffer"].tolist() == [10, 12]
    assert left["1.weight"]["exp_avg"].tolist() == [20, 22]
    assert left["1.weight"]["step"] == 7
    assert left["2.weight"]["exp_avg"].view(2, 2).tolist() == [[30, 32], [33, 35]]
    assert base[0].out_channels == 3
    assert gathered["0.bias"]["momentum_buffer"].tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("edit", "left"),
    [
        (edits.fold("1", "0"), {"2.weight"}),  # the conv has other weights now
        (edits.drop("1"), {"0.weight", "0.bias", "2.weight"}),
    ],
)
def test_what_is_gone_or_has_new_values_starts_afresh(edit: dict[str, Any], left: set[str]) -> None:
    gathered: moments.Moments = {name: {"step": 1} for name, _ in net().named_parameters()}
    assert moments.cut(gathered, net(), [edit]).keys() == left


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.AdamW], ids=["sgd", "adamw"]
)
def test_an_optimizer_that_goes_on_steps_as_the_old_one_would(make: Any) -> None:
    torch.manual_seed(0)
    first, x = net(), torch.randn(4, 2, 3, 3)
    Mask.on(first[0], "weight", (3, 1, 1, 1))
    optimizer = make(first.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        first(x).square().sum().backward()
        optimizer.step()
    gathered = moments.of(optimizer, first)
    assert gathered.keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}
    second = net()
    values = {name.replace("parametrizations.weight.original", "weight"): v for name, v in first.state_dict().items()}
    second.load_state_dict(values, strict=False)
    # Other parameters before these, in another group: places say nothing, names do.
    new = make([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": list(second.parameters())}])
    moments.give(gathered, new, second)
    for model, used in ((first, optimizer), (second, new)):
        used.zero_grad()
        model(x).square().sum().backward()
        used.step()
    assert torch.equal(first[0].parametrizations.weight.original, second[0].weight)
    assert torch.equal(first[2].weight, second[2].weight)
