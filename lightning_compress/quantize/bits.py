"""How many bits each layer has: a number or a schedule for all, or one for each pattern of names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_compress.core import select
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.weight import Weight
from lightning_compress.quantize.sensitivity import Sensitivity

Bits = int | Schedule | Mapping[str, int | Schedule | None] | Sensitivity | None


def check(name: str, bits: Bits, make: Callable[[int], Any]) -> None:
    """See that a quantizer can be made with the bits that there will be at the begin and the end.

    Raises:
        ValueError: it cannot; `name` is the argument that the message speaks of.

    >>> check("weight_bits", {"conv": 4, "": None}, int)
    """
    values: Sequence[Any] = [bits]
    if isinstance(bits, Mapping | Sensitivity):
        values = bits.choices if isinstance(bits, Sensitivity) else list(bits.values())
    for value in values:
        if value is None:
            continue
        for progress in (0.0, 1.0):
            try:
                make(at(as_schedule(value), progress))
            except ValueError as error:
                raise ValueError(f"Quantize: {name}: {error}; write null for float") from error


def at(schedule: Schedule, progress: float) -> int:
    """Bits at `progress`: the schedule's value, rounded.

    >>> at(as_schedule(4), 0.5)
    4
    """
    return round(schedule(progress))


def of_layers(name: str, bits: Bits, layers: Sequence[str]) -> dict[str, Schedule]:
    """The schedule of each of `layers` that has bits; of a mapping, the first pattern found in the layer's name counts.

    Bits that are still to be chosen are the most that they can be.

    Raises:
        ValueError: a layer that no pattern is found in, or a pattern that counts for no layer.

    >>> sorted(of_layers("weight_bits", {"fc": None, "": 4}, ["conv", "fc"]))
    ['conv']
    """
    if isinstance(bits, Sensitivity):
        bits = max(bits.choices)
    if not isinstance(bits, Mapping):
        return {} if bits is None else dict.fromkeys(layers, as_schedule(bits))
    found = select.by_pattern(bits, layers, owner=f"Quantize: {name}")
    return {layer: as_schedule(value) for layer, value in found.items() if value is not None}


def at_ends(bits: int | None, chosen: Mapping[str, Weight], every: Mapping[str, Weight]) -> dict[str, int]:
    """The `bits` of the first and the last of `every` weight, and of the layers that read by them, where chosen.

    Raises:
        ValueError: there are bits for the ends, and neither is among the weights that are `chosen`.

    >>> net = nn.Sequential(nn.LSTM(2, 3), nn.Linear(3, 1))
    >>> weights = select.weights(net, owner="Quantize")
    >>> at_ends(8, weights, weights)
    {'0.weight_ih_l0': 8, '0': 8, '1': 8}
    """
    names = list(every)
    ends = [name for name in dict.fromkeys((names[0], names[-1])) if name in chosen]
    if bits and not ends:
        raise ValueError(f"Quantize: ends={bits}, but select and exclude leave out {names[0]} and {names[-1]}")
    named = [each for name in ends for each in (name, *select.readers([chosen[name]]))]
    return dict.fromkeys(named, bits) if bits else {}


def change(quantizer: Any, wanted: int) -> list[nn.Parameter]:
    """Give a quantizer so many bits; returns those of its learnables that have other values by that.

    >>> from lightning_compress.quantize.learned import LSQInput
    >>> quantizer = LSQInput(8)
    >>> change(quantizer, 4) == [quantizer.scale], change(quantizer, 4)
    (True, [])
    """
    own: list[nn.Parameter] = quantizer.learnables()
    before = [parameter.detach().clone() for parameter in own]
    quantizer.set_bits(wanted)
    return [parameter for parameter, old in zip(own, before, strict=True) if not torch.equal(parameter, old)]
