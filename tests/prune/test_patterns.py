from typing import Any

import torch
from torch import nn

from lightning_compress.core.mask import Mask
from lightning_compress.prune.patterns import Unstructured, masked_weight
from lightning_compress.prune.scores import magnitude


def build() -> tuple[Any, Unstructured]:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv1d(1, 2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -4.0], [3.0, 2.0]]))
    return net, Unstructured(net, None, {"0": net[0], "2": net[2]})


def test_scores_and_keep_by_hand() -> None:
    net, pattern = build()
    assert pattern.scores(magnitude)["0"].tolist() == [1.0, 4.0, 3.0, 2.0]
    assert pattern.scores(magnitude)["2"].shape == (6,)
    keep = {"0": torch.tensor([False, True, True, False]), "2": torch.ones(6, dtype=torch.bool)}
    pattern.apply(keep)
    assert net[0].weight.tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert pattern.scores(magnitude)["0"].tolist() == [-torch.inf, 4.0, 3.0, -torch.inf]
    assert {name: kept.tolist() for name, kept in pattern.keep().items()} == {n: k.tolist() for n, k in keep.items()}


def test_apply_never_gives_back() -> None:
    net, pattern = build()
    everything = pattern.keep()
    pattern.apply(everything | {"0": torch.tensor([False, True, True, True])})
    pattern.apply(everything | {"0": torch.tensor([True, False, True, True])})
    assert pattern.keep()["0"].tolist() == [False, False, True, True]
    assert net[0].weight[0].tolist() == [0.0, 0.0]


def test_masked_weight_sees_all_masks_and_nothing_else() -> None:
    layer = nn.Linear(2, 2)
    Mask.on(layer, "weight", (2, 2)).mask[0, 0] = 0
    Mask.on(layer, "weight", (2, 1)).mask[1] = 0
    weight = layer.weight.detach().clone()
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert torch.equal(masked_weight(layer), weight)
    assert not masked_weight(layer).requires_grad
