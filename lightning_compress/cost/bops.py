"""Bit operations: multiply-accumulates weighted by the bits of both operands."""

import difflib
from collections.abc import Mapping

FLOAT_BITS = 32


def bops(macs_per_layer: Mapping[str, int], weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]) -> int:
    """Sum MACs x weight bits x activation bits over the layers; a layer without an entry has 32 bits.

    van Baalen et al., "Bayesian Bits", NeurIPS 2020, arXiv 2005.07093.

    Raises:
        ValueError: when bits are given for a layer that has no MACs entry.

    >>> bops({"conv": 100, "fc": 10}, {"conv": 4}, {"conv": 8})
    13440
    """
    for name in (*weight_bits, *activation_bits):
        if name not in macs_per_layer:
            near = difflib.get_close_matches(name, list(macs_per_layer), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(macs_per_layer)}"
            raise ValueError(f"bits given for {name!r}, which has no multiply-accumulates: {hint}")
    return sum(
        count * weight_bits.get(name, FLOAT_BITS) * activation_bits.get(name, FLOAT_BITS)
        for name, count in macs_per_layer.items()
    )


def relative_bops(
    macs_per_layer: Mapping[str, int], weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]
) -> float:
    """BOPs as a share of those with 32-bit weights and activations, in (0, 1].

    >>> relative_bops({"conv": 100}, {"conv": 8}, {"conv": 8})
    0.0625
    """
    return bops(macs_per_layer, weight_bits, activation_bits) / bops(macs_per_layer, {}, {})
