import struct
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.export.quantizers import Quantizers


def fixed(scale: float = 0.5) -> FixedQuantizer:
    return FixedQuantizer(torch.tensor(scale), torch.tensor(3), 0, 15)


def net() -> nn.Sequential:
    """A rectifier whose rounded output two layers read, and a layer with a rounding of its own."""
    made = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    shared = fixed()
    surgery.put_on_output(made[0], shared)
    surgery.put_on_input(made[1], shared)
    surgery.put_on_input(made[2], shared)
    surgery.put_on_input(made[3], fixed(0.25))
    return made


def test_one_that_is_shared_has_one_row() -> None:
    rows = Quantizers.of(net()).rows()
    assert [(row, float(scale)) for row, scale in rows] == [
        (["0", 0, 15, 3, ["1", "2"]], 0.5),
        (["3", 0, 15, 3], 0.25),
    ]


def test_there_and_back() -> None:
    model, found = net(), Quantizers()
    names = [found.add(row, struct.pack("<f", scale)) for row, scale in Quantizers.of(model).rows()]
    assert names == ["0.output_quantizer.scale", "3.input_quantizer.scale"]
    bare = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    found.put_on(bare)
    bare.load_state_dict(model.state_dict())
    inputs = 9 * torch.randn(50, 2)
    assert torch.equal(bare(inputs), model(inputs))
    assert bare[0].output_quantizer is bare[1].input_quantizer is bare[2].input_quantizer
    assert bare[0].output_quantizer is not found.outputs["0"], "a file may be rebuilt twice"


@pytest.mark.parametrize(
    "row",
    [
        ["a", 0, 15, 3, ["b"], 0],
        ["a", 0, 15, 3, "b"],
        ["a", 0, 15, 3, [1]],
        [1, 0, 15, 3],
        ["a", 0, 15, 3.0],
        ["a", 0, 2**70, 3],
        ["a", 0, 15, True],
        ["a", 0, 15, 99, []],
        ["a", 0, 15, 3, ["b", "b"]],
        ["a", 0, 15],
    ],
)
def test_rows_that_lie_are_refused(row: list[Any]) -> None:
    with pytest.raises(ValueError):
        Quantizers().add(row, struct.pack("<f", 0.5))


def test_a_scale_that_lies_is_refused() -> None:
    with pytest.raises(ValueError, match="finite scale"):
        Quantizers().add(["a", 0, 15, 3], struct.pack("<f", float("nan")))


def test_an_input_with_two_is_refused() -> None:
    found = Quantizers()
    found.add(["0", 0, 15, 3, ["1"]], struct.pack("<f", 0.5))
    with pytest.raises(ValueError, match="the input of '1' has two quantizers"):
        found.add(["1", 0, 15, 3], struct.pack("<f", 0.5))
