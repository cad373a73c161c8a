from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.mask import Mask
from lightning_compress.core.weight import Weight
from lightning_compress.prune import patterns
from lightning_compress.prune.patterns import InPlace, masked_weight, side_by_side


def build() -> tuple[Any, InPlace]:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv1d(1, 2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -4.0], [3.0, 2.0]]))
    return net, patterns.unstructured(net, None, {"0": Weight.of(net[0]), "2": Weight.of(net[2])})


def test_view_and_keep_by_hand() -> None:
    net, pattern = build()
    assert pattern.view()["0"].tolist() == [[1.0], [-4.0], [3.0], [2.0]]
    assert pattern.view()["2"].shape == (6, 1)
    keep = {"0": torch.tensor([False, True, True, False]), "2": torch.ones(6, dtype=torch.bool)}
    pattern.apply(keep)
    assert net[0].weight.tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert pattern.view(lambda weight: torch.ones_like(weight.value))["0"].tolist() == [[1.0]] * 4
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
    assert torch.equal(masked_weight(Weight.of(layer)), weight)
    assert not masked_weight(Weight.of(layer)).requires_grad


def test_blocks_by_hand() -> None:
    """A 3 x 5 matrix in blocks of 2 x 2: those of the last row and column are smaller."""
    layer = nn.Linear(5, 3)
    pattern = patterns.block(layer, None, {"": Weight.of(layer)}, rows=2, columns=2)
    matrix = torch.arange(1.0, 16.0).view(3, 5)
    assert pattern.view(lambda _: matrix)[""].tolist() == [
        [1.0, 2.0, 6.0, 7.0],
        [3.0, 4.0, 8.0, 9.0],
        [5.0, 0.0, 10.0, 0.0],
        [11.0, 12.0, 0.0, 0.0],
        [13.0, 14.0, 0.0, 0.0],
        [15.0, 0.0, 0.0, 0.0],
    ]
    keep = torch.tensor([True, False, False, True, False, True])
    pattern.apply({"": keep})
    assert (layer.weight != 0).int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 1]]
    assert torch.equal(pattern.keep()[""], keep)


@pytest.mark.parametrize("build", [lambda: nn.Linear(12, 10), lambda: nn.Conv2d(4, 6, 3), lambda: nn.Conv1d(8, 3, 2)])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("row", patterns.row),
        ("4x1", partial(patterns.block, rows=4, columns=1)),
        ("3x5", partial(patterns.block, rows=3, columns=5)),
        ("groups", partial(patterns.in_groups, size=4)),
    ],
)
def test_what_is_kept_is_what_shows_in_the_weight(name: str, make: Any, build: Any) -> None:
    layer = build()
    weight = layer.weight.detach().clone()
    pattern: InPlace = make(layer, None, {"": Weight.of(layer)})
    view = pattern.view()[""].clone()
    assert view.count_nonzero() == weight.numel()  # each entry once, and nothing but zeros at the ends
    assert torch.equal(view[view != 0].sort().values, weight.flatten().sort().values)
    keep = torch.rand(len(view)) < 0.5
    pattern.apply({"": keep})
    assert torch.equal(pattern.keep()[""], keep)
    assert torch.equal(pattern.view()[""], view * keep[:, None])
    if name == "row":
        assert torch.equal(layer.weight.flatten(1).any(1), keep)


def test_groups_run_along_the_inputs() -> None:
    layer: Any = nn.Conv2d(8, 2, 3)
    pattern = patterns.in_groups(layer, None, {"": Weight.of(layer)}, size=4)
    keep = torch.zeros(2 * 9 * 8, dtype=torch.bool)
    keep[4:8] = True  # of the first output, at the first place, inputs 4 to 7
    pattern.apply({"": keep})
    assert layer.weight.nonzero().tolist() == [[0, i, 0, 0] for i in range(4, 8)]


def test_inputs_that_do_not_divide_are_refused_by_name() -> None:
    layers = {"a.0": Weight.of(nn.Conv2d(3, 8, 3)), "b": Weight.of(nn.Linear(8, 4))}
    with pytest.raises(ValueError, match=r"of a\.0 there are 3; write exclude=\['\^a\\\\\.0\$'\]"):
        patterns.in_groups(nn.Identity(), None, layers, size=4)


def test_side_by_side_pads_what_is_short() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = side_by_side(rows, torch.tensor([2, 0, 2]), 3)
    assert found.flatten(1).tolist() == [[3.0, 4.0, 0.0, 0.0], [0.0] * 4, [1.0, 2.0, 5.0, 6.0]]
