import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_compress.quantize import affine

SMALLEST = torch.finfo(torch.float32).tiny


def grid(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`x` without values within a rounding of a tie, where torch multiplies by 1 / scale and we divide."""
    place = (x / scale + zero).double()
    return torch.where((place - place.floor() - 0.5).abs() < 1e-3, x + 0.1 * scale, x)


def test_code_ranges() -> None:
    assert [affine.code_range(b, "symmetric") for b in (2, 3, 8)] == [(-1, 1), (-3, 3), (-127, 127)]
    assert [affine.code_range(b, "signed") for b in (2, 3, 8)] == [(-2, 1), (-4, 3), (-128, 127)]
    assert [affine.code_range(b, "affine") for b in (1, 2, 3, 8)] == [(0, 1), (0, 3), (0, 7), (0, 255)]


@pytest.mark.parametrize(
    ("bits", "kind", "least"), [(1, "symmetric", 2), (1, "signed", 2), (0, "affine", 1), (9, "affine", 1)]
)
def test_code_range_refuses(bits: int, kind: affine.Kind, least: int) -> None:
    with pytest.raises(ValueError, match=f"expected {least} to 8 bits for {kind} codes, got {bits}"):
        affine.code_range(bits, kind)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_tensor_forward_and_gradient_are_those_of_torch(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    low, high = affine.code_range(bits, "symmetric" if symmetric else "affine")
    scale = torch.tensor(0.037)
    zero = torch.tensor(0.0 if symmetric else float(round(0.3 * high)))
    width = 3.0 * (high - low) * float(scale)  # some lie outside and are clipped
    x = grid((torch.rand(50, 20, generator=generator) - 0.5) * width, scale, zero)
    upstream = torch.randn(50, 20, generator=generator)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    a = affine.fake_quantize(ours, scale, zero, torch.tensor(float(low)), torch.tensor(float(high)))
    b = torch.fake_quantize_per_tensor_affine(theirs, float(scale), int(zero), low, high)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    torch.autograd.backward(a, upstream)
    torch.autograd.backward(b, upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < int((ours.grad == 0).sum()) < x.numel()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_forward_and_gradient_are_those_of_torch(bits: int, axis: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    low, high = affine.code_range(bits, "affine")
    scale = torch.rand(6, generator=generator) + 0.01
    zero = torch.randint(0, high, (6,), generator=generator).float()
    wide = (scale.view(-1, 1), zero.view(-1, 1)) if axis == 0 else (scale, zero)
    x = grid(torch.randn(6, 6, generator=generator) * high * scale.mean(), *wide)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    a = affine.fake_quantize(ours, *wide, torch.tensor(float(low)), torch.tensor(float(high)))
    b = torch.fake_quantize_per_channel_affine(theirs, scale, zero.int(), axis, low, high)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-6)
    torch.autograd.backward(a.sum())
    torch.autograd.backward(b.sum())
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_the_backward_pass_needs_nothing_of_the_inputs_size_but_the_input() -> None:
    x, one = torch.randn(64, requires_grad=True), torch.tensor(1.0)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        affine.fake_quantize(x, 0.1 * one, 2 * one, 0 * one, 7 * one)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() > 1] == [x.data_ptr()]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_gradient_is_the_eager_one(dtype: torch.dtype) -> None:
    one = torch.tensor(1.0)
    ends = 0.25 * one, 3 * one, 0 * one, 7 * one
    upstream = torch.randn(4, 8, 2, 2).to(dtype, memory_format=torch.channels_last)
    found = []
    for call in (affine.fake_quantize, torch.compile(affine.fake_quantize, backend="aot_eager", fullgraph=True)):
        x = torch.linspace(-2, 2, 128).view(4, 8, 2, 2).to(dtype).requires_grad_()
        torch.autograd.backward(call(x, *ends), upstream)
        assert x.grad is not None
        found.append(x.grad)
    assert torch.equal(*found)
    assert 0 < int((found[0] == 0).sum()) < found[0].numel()


def test_round_half_to_even_by_hand() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 3.6])
    one = torch.tensor(1.0)
    assert affine.codes(x, one, 0 * one, -3, 3).tolist() == [0, 2, 2, 0, -2, 3]
    assert affine.fake_quantize(x, one, one, 0 * one, 7 * one).tolist() == [0, 2, 2, 0, -1, 4]
    assert affine.round_to_scale(x, one).tolist() == np.round(x.numpy()).tolist()


def test_round_to_scale_is_fake_quantize_where_nothing_is_clipped() -> None:
    x = torch.randn(40, 3, requires_grad=True)
    scale = affine.symmetric_scale(x.detach().amin(), x.detach().amax(), 7)
    one = torch.ones(())
    a, b = affine.round_to_scale(x, scale), affine.fake_quantize(x, scale, 0 * one, -7 * one, 7 * one)
    assert torch.equal(a, b)
    (gradient,) = torch.autograd.grad(a.sum(), x)
    assert torch.equal(gradient, torch.ones(40, 3))


def test_symmetric_scale_by_hand() -> None:
    low, high = torch.tensor([-2.0, -0.5, 0.0, 1.0]), torch.tensor([1.0, 4.0, 0.0, 2.0])
    assert affine.symmetric_scale(low, high, 4).tolist() == [0.5, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(-1.0, 2.0, 1.0, 1.0), (0.0, 3.0, 1.0, 0.0), (-3.0, 0.0, 1.0, 3.0), (1.0, 6.0, 2.0, 0.0), (-6.0, -3.0, 2.0, 3.0)],
)
def test_affine_scale_by_hand(low: float, high: float, scale: float, zero: float) -> None:
    got = affine.affine_scale(torch.tensor(low), torch.tensor(high), 3)
    assert [float(value) for value in got] == [scale, zero]


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_is_exact_and_the_zero_point_is_a_code(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    ends = torch.randn(500, 2, generator=generator).sort(dim=1).values * 10.0 ** torch.randint(-6, 6, (500, 1))
    _, top = affine.code_range(bits, "affine")
    scale, zero = affine.affine_scale(ends[:, 0], ends[:, 1], top)
    assert ((zero >= 0) & (zero <= top) & (zero == zero.round())).all()
    high = torch.tensor(float(top))
    assert not affine.fake_quantize(torch.zeros(500), scale, zero, 0 * high, high).any()
    for x in (ends[:, 0], ends[:, 1]):  # the ends are at most a half step off (and another half from the zero point)
        assert ((affine.fake_quantize(x, scale, zero, 0 * high, high) - x).abs() <= 1.001 * scale).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-44, 1e-40, SMALLEST])
def test_ranges_too_small_to_divide_by(value: float) -> None:
    low, high = torch.tensor(-value), torch.tensor(value)
    x = torch.tensor([-value, 0.0, value])
    one = torch.ones(())
    for scale, zero in ((affine.symmetric_scale(low, high, 127), 0 * one), affine.affine_scale(low, high, 127)):
        assert scale >= SMALLEST
        out = affine.fake_quantize(x, scale, zero, -127 * one, 127 * one)
        assert torch.isfinite(out).all()
        assert (out - x).abs().max() <= SMALLEST


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = (torch.rand(500) * 10 - 5).to(dtype)
    scale, one = torch.tensor(0.0471), torch.ones(())
    expected = ((x.float() / scale).round().clamp(-127, 127) * scale).to(dtype)
    for out in (affine.fake_quantize(x, scale, 0 * one, -127 * one, 127 * one), affine.round_to_scale(x, scale)):
        assert out.dtype == dtype
        assert torch.equal(out, expected)


def test_quantizing_does_not_touch_its_input() -> None:
    x = torch.randn(5)
    before = x.clone()
    one = torch.ones(())
    affine.fake_quantize(x, one, one, 0 * one, 7 * one)
    affine.round_to_scale(x, one)
    assert torch.equal(x, before)
