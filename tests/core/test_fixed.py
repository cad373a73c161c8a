import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_compress.core.fixed import FixedQuantizer


def tensor(value: float) -> Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize(("scale", "zero", "low", "high"), [(0.1, 0, 0, 255), (0.37, 7, 0, 15), (0.02, -3, -128, 127)])
def test_agrees_with_torch_fake_quantize(scale: float, zero: int, low: int, high: int) -> None:
    inputs = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    got = FixedQuantizer(tensor(scale), torch.tensor(zero), low, high)(inputs)
    expected = torch.fake_quantize_per_tensor_affine(inputs, scale, zero, low, high)
    # torch multiplies by 1 / scale: an input at the border of two codes may fall to the other side.
    assert ((got - expected).abs() < 1e-5).float().mean() > 0.999


def test_each_code_is_hit_and_is_exact() -> None:
    fixed = FixedQuantizer(tensor(0.3), torch.tensor(5), 0, 15)
    grid = (np.arange(-40, 41).clip(-5, 10)).astype(np.float32) * np.float32(0.3)
    got = fixed(torch.arange(-40, 41) * torch.tensor(0.3))
    assert np.array_equal(got.numpy(), grid)
    assert fixed(torch.zeros(1)).item() == 0.0


def test_rounds_half_to_even() -> None:
    fixed = FixedQuantizer(tensor(1.0), torch.tensor(0), 0, 15)
    assert fixed(torch.tensor([0.5, 1.5, 2.5])).tolist() == [0.0, 2.0, 2.0]


def test_scale_and_zero_point_are_state() -> None:
    fixed = FixedQuantizer(tensor(0.25), torch.tensor(3), 0, 15)
    assert {name: value.item() for name, value in fixed.state_dict().items()} == {"scale": 0.25, "zero_point": 3}
    assert fixed.bits == 4


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="one finite scale > 0"):
        FixedQuantizer(tensor(scale), torch.tensor(0), 0, 15)


@pytest.mark.parametrize(("zero", "low", "high"), [(16, 0, 15), (-1, 0, 15), (0, 0, 0)])
def test_zero_must_be_on_the_grid(zero: int, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="zero point between them"):
        FixedQuantizer(tensor(1.0), torch.tensor(zero), low, high)
