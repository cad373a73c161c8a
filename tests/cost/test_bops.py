import pytest

from lightning_compress.cost.bops import bops, relative_bops

MACS = {"conv": 1000, "fc": 10}


def test_by_hand() -> None:
    assert bops(MACS, {}, {}) == 1010 * 32 * 32
    assert bops(MACS, {"conv": 4}, {"conv": 8}) == 1000 * 4 * 8 + 10 * 32 * 32
    assert bops(MACS, {"conv": 4, "fc": 8}, {"fc": 8}) == 1000 * 4 * 32 + 10 * 8 * 8


def test_relative_to_float() -> None:
    assert relative_bops(MACS, {}, {}) == 1
    everywhere = dict.fromkeys(MACS, 4)
    assert relative_bops(MACS, everywhere, everywhere) == 16 / 1024


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [({"conf": 8}, {}), ({}, {"conf": 8})])
def test_refuses_bits_of_an_unknown_layer(weight_bits: dict[str, int], activation_bits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"bits given for 'conf'.*did you mean 'conv'"):
        bops(MACS, weight_bits, activation_bits)
