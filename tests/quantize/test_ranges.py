import numpy as np
import pytest
import torch

from lightning_compress.quantize import ranges

TOP = torch.tensor(7.0)


def test_minmax() -> None:
    x = torch.tensor([[-3.0, 1.0], [0.5, 2.0]])
    low, high = ranges.minmax(x, TOP, False)
    assert (low.tolist(), high.tolist()) == ([-3.0, 0.5], [1.0, 2.0])
    low, high = ranges.minmax(x, TOP, True)
    assert (low.tolist(), high.tolist()) == ([-3.0, -2.0], [3.0, 2.0])


@pytest.mark.parametrize("number", [5000, 10001])
def test_percentile_is_that_of_numpy_up_to_one_rank(number: int) -> None:
    x = torch.randn(2, number)
    low, high = ranges.percentile(x, TOP, False)
    for row, a, b in zip(x.numpy(), low.tolist(), high.tolist(), strict=True):
        ordered = np.sort(row)
        assert ordered[np.searchsorted(ordered, a) - 1] <= np.quantile(row, 0.001) <= a
        assert b <= np.quantile(row, 0.999) <= ordered[np.searchsorted(ordered, b) + 1]
    low, high = ranges.percentile(x, TOP, True)
    assert torch.equal(low, -high)
    for row, b in zip(x.abs().numpy(), high.tolist(), strict=True):
        assert b <= np.quantile(row, 0.999) <= np.sort(row)[np.searchsorted(np.sort(row), b) + 1]


def test_percentile_of_few_numbers_is_all_of_them() -> None:
    low, high = ranges.percentile(torch.tensor([3.0]), TOP, False)
    assert (float(low), float(high)) == (3.0, 3.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_the_best_of_the_shares_by_brute_force(bits: int, symmetric: bool) -> None:
    x = torch.randn(3, 400) * torch.rand(3, 400) + 0.1
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    low, high = ranges.mse(x, torch.tensor(float(top)), symmetric)
    for row, a, b in zip(x.double().numpy(), low.tolist(), high.tolist(), strict=True):
        errors = {}
        for share in np.arange(0.2, 1.001, 0.05):
            ends = np.array([-np.abs(row).max(), np.abs(row).max()] if symmetric else [row.min(), row.max()]) * share
            scale = ends[1] / top if symmetric else (ends[1] - ends[0]) / top
            zero = 0 if symmetric else np.round(-ends[0] / scale)
            codes = np.clip(np.round(row / scale) + zero, -top if symmetric else 0, top)
            errors[tuple(ends)] = ((codes - zero) * scale - row) ** 2
        best = min(errors, key=lambda ends: errors[ends].sum())
        assert (a, b) == pytest.approx(best, rel=1e-5)


def test_mse_keeps_the_whole_of_an_even_spread() -> None:
    x = torch.linspace(-1, 1, 15)
    assert [float(end) for end in ranges.mse(x, TOP, True)] == [-1.0, 1.0]
