from typing import Any

import pytest

from lightning_compress.core.schedule import Linear
from lightning_compress.quantize import bits
from lightning_compress.quantize.uniform import Uniform

LAYERS = ["stem", "layer1.conv", "layer2.conv", "fc"]


def at_half(found: dict[str, Any]) -> dict[str, int]:
    return {name: bits.at(schedule, 0.5) for name, schedule in found.items()}


def test_one_number_is_for_all_and_none_for_nobody() -> None:
    assert at_half(bits.of_layers("weight_bits", 4, LAYERS)) == dict.fromkeys(LAYERS, 4)
    assert bits.of_layers("weight_bits", None, LAYERS) == {}


def test_the_first_pattern_that_is_found_counts() -> None:
    given: dict[str, Any] = {"^stem": 8, r"layer\d": Linear(first=8, last=2), "fc": None, "": 3}
    assert at_half(bits.of_layers("weight_bits", given, LAYERS)) == {"stem": 8, "layer1.conv": 5, "layer2.conv": 5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"conv": 4},
            "weight_bits says nothing of 'stem', only of conv: add .* or at the end '' for the rest",
        ),
        ({"cnov": 4, "": 8}, "pattern 'cnov' counts for no layer.*they are stem, layer1.conv, layer2.conv, fc"),
    ],
)
def test_what_does_not_fit_the_layers(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bits.of_layers("weight_bits", given, LAYERS)


@pytest.mark.parametrize("given", [1, 9, Linear(first=8, last=1), {"a": 4, "b": 1}])
def test_every_number_is_checked_before_there_are_layers(given: Any) -> None:
    with pytest.raises(ValueError, match=r"Quantize: weight_bits: .* bits.*got [19]; write null for float"):
        bits.check("weight_bits", given, Uniform)
    bits.check("weight_bits", {"a": None, "b": 2, "c": Linear(first=8, last=2)}, Uniform)
