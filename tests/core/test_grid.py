import pytest
import torch
from torch import Tensor

from lightning_compress.core.grid import arithmetic_bits, whole
from lightning_compress.core.stored import Stored
from lightning_compress.quantize.levels import powers, sums_of_powers


@pytest.mark.parametrize("step", [1.0, 0.1, 1 / 3, 1e-20, 7e10])
@pytest.mark.parametrize("numbers", [[0], [-1, 0, 1], [3, 5], [-127, 0, 64], [2, 3, 97]])
def test_multiples_of_any_step_are_found(numbers: list[int], step: float) -> None:
    found = whole(torch.tensor(numbers) * torch.tensor(step), most=127)
    assert found is not None
    assert found[0].tolist() == numbers
    if any(numbers):
        assert float(found[1]) == pytest.approx(step, rel=1e-6)


def test_the_step_is_the_coarsest() -> None:
    found = whole(torch.tensor([[-6.0, 0.0], [9.0, 3.0]]), most=127)
    assert found is not None
    assert found[0].tolist() == [[-2, 0], [3, 1]]
    assert float(found[1]) == 3.0


@pytest.mark.parametrize("levels", [[0.01, 1.0, 0.7777], [128.0, 1.0], [1.0, 1.0 + 1e-5]])
def test_levels_that_need_larger_numbers_have_none(levels: list[float]) -> None:
    assert whole(torch.tensor(levels), most=127) is None


def test_levels_of_the_papers() -> None:
    for bits in (2, 3, 4):  # at 5 bits the magnitudes are too many to fit 7 bits
        magnitudes = sums_of_powers(bits)
        found = whole(magnitudes, most=127)
        assert found is not None
        assert torch.allclose(found[0] * found[1], magnitudes, rtol=3e-7, atol=0)
    assert whole(powers(3), most=127) is not None  # 1/64 to 1
    assert whole(powers(4), most=127) is None  # 1/16,384 to 1


@pytest.mark.parametrize(
    ("levels", "masked", "bits"),
    [
        ([-1.0, 1.0], False, 1),
        ([-1.0, 1.0], True, 2),
        ([-1.0, 0.0, 1.0], True, 2),
        ([-1.0, -1 / 3, 1 / 3, 1.0], False, 2),
        ([-31.0, 4.0, 5.0, 31.0], False, 6),
        ([-0.35, 0.0, 0.2711], False, 32),
        ([0.0, 2.0**-14, 1.0], False, 32),
        ([0.3], False, 1),
    ],
)
def test_bits_of_the_grid_below_the_levels(levels: list[float], masked: bool, bits: int) -> None:
    values: Tensor = torch.tensor(levels)
    stored = Stored(torch.zeros(len(levels))).chosen(torch.arange(len(levels)), values)
    if masked:
        stored = stored.masked(torch.arange(len(levels)) > 0)
    assert arithmetic_bits(stored) == bits


def test_codes_have_their_own_bits() -> None:
    plain = Stored(torch.zeros(2))
    assert arithmetic_bits(plain) == 32
    assert arithmetic_bits(plain.coded(torch.tensor([1, 2]), torch.tensor(0.3), bits=5)) == 5
