import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core.stored import Stored, along
from lightning_compress.prune.mask import Mask
from lightning_compress.quantize import affine
from lightning_compress.quantize.quantizers import InputQuantizer, WeightQuantizer, set_ranges

CASES = list(itertools.product(range(2, 9), [0, 1, None], [True, False]))


def weight(*shape: int) -> Tensor:
    return torch.randn(*(shape or (6, 4, 3)), generator=torch.Generator().manual_seed(3)) + 0.2


@pytest.mark.parametrize(("bits", "axis", "symmetric"), CASES)
def test_weight_quantizer_properties(bits: int, axis: int | None, symmetric: bool) -> None:
    quantizer, w = WeightQuantizer(bits, axis=axis, symmetric=symmetric), weight()
    assert quantizer.bits == bits
    out = quantizer(w)
    scale, zero = quantizer.qparams(w)
    assert scale.shape == zero.shape == (() if axis is None else (w.shape[axis],))
    wide = along(scale, axis, 3)
    # On the grid, within half a step (a whole one at the ends of an affine range), at most 2^bits values a channel.
    torch.testing.assert_close(out / wide, (out / wide).round(), atol=1e-4, rtol=0)
    assert ((out - w).abs() <= (0.5001 if symmetric else 1.0001) * wide).all()
    rows = out.flatten()[None] if axis is None else out.movedim(axis, 0).flatten(1)
    latent = w.flatten()[None] if axis is None else w.movedim(axis, 0).flatten(1)
    for row, before in zip(rows, latent, strict=True):
        assert len(row.unique()) <= 2**bits - symmetric
        assert (row[before.argsort()].diff() >= 0).all()  # monotone
        if symmetric:
            torch.testing.assert_close(row.abs().max(), before.abs().max())
    torch.testing.assert_close(quantizer(out), out, atol=1e-6, rtol=1e-6)  # idempotent
    assert not quantizer(torch.where(w > 0.5, w, 0.0))[w <= 0.5].any()  # exact zero


@pytest.mark.parametrize(("bits", "axis", "symmetric"), CASES)
def test_store_is_the_forward_bit_for_bit(bits: int, axis: int | None, symmetric: bool) -> None:
    quantizer, w = WeightQuantizer(bits, axis=axis, symmetric=symmetric), weight()
    w[2] = 0.0  # a dead channel
    mask = Mask(w.shape)
    mask.mask.copy_(w.abs() > 0.3)
    stored = quantizer.store(mask.store(Stored(w)))
    assert torch.equal(stored.value, quantizer(mask(w)))
    assert torch.equal(stored.dequantize(), stored.value)
    assert stored.codes is not None
    low, high = affine.code_range(bits, symmetric=symmetric)
    assert low <= int(stored.codes.min())
    assert int(stored.codes.max()) <= high
    assert (stored.bits, stored.axis, stored.symmetric) == (bits, axis, symmetric)
    assert not stored.value[mask.mask == 0].any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_per_channel_is_per_tensor_on_each_channel(symmetric: bool) -> None:
    w = weight()
    whole = WeightQuantizer(4, axis=0, symmetric=symmetric)(w)
    each = torch.stack([WeightQuantizer(4, axis=None, symmetric=symmetric)(row) for row in w])
    assert torch.equal(whole, each)


def test_against_torch_per_channel() -> None:
    w = weight(8, 5)
    scale = w.abs().amax(1) / 7
    w = torch.where(((w / scale[:, None]).abs() % 1 - 0.5).abs() < 1e-3, w * 0.99, w)
    expected = torch.fake_quantize_per_channel_affine(w, w.abs().amax(1) / 7, torch.zeros(8).int(), 0, -7, 7)
    torch.testing.assert_close(WeightQuantizer(4)(w), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, None])
def test_the_gradient_passes_straight_through(axis: int | None, symmetric: bool) -> None:
    w = weight().requires_grad_()
    upstream = torch.randn(6, 4, 3)
    torch.autograd.backward(WeightQuantizer(3, axis=axis, symmetric=symmetric)(w), upstream)
    assert w.grad is not None
    # An affine zero point is rounded, which may clip the very end of the range; nothing else may be lost.
    assert (w.grad != upstream).sum() <= (0 if symmetric else 6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, None])
def test_bfloat16_weights(axis: int | None, symmetric: bool) -> None:
    quantizer, w = WeightQuantizer(8, axis=axis, symmetric=symmetric), weight().bfloat16()
    out = quantizer(w)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantizer(w.float()).bfloat16())


def test_bits_change_in_place() -> None:
    quantizer, w = WeightQuantizer(8), weight()
    low, state = quantizer.low, quantizer.state_dict()
    quantizer.set_bits(3)
    assert quantizer.low is low
    assert torch.equal(quantizer(w), WeightQuantizer(3)(w))
    quantizer.load_state_dict(WeightQuantizer(5).state_dict())
    assert quantizer.bits == 5
    assert set(state) == {"low", "high"}


def test_off_means_untouched() -> None:
    quantizer, w = WeightQuantizer(2), weight()
    quantizer.active = False
    assert quantizer(w) is w
    stored = Stored(w)
    assert quantizer.store(stored) is stored


def test_as_a_parametrization_the_latent_weight_trains() -> None:
    layer: Any = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", WeightQuantizer(2))
    before = layer.parametrizations.weight.original.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.parametrizations.weight.original.detach(), before - 0.1)


def test_input_quantizer_notes_the_range_only_in_training() -> None:
    quantizer = InputQuantizer(8)
    x = torch.tensor([[-1.0, 3.0], [0.5, 2.0]])
    quantizer.eval()(x)
    assert quantizer.seen.tolist() == [0.0, 0.0]
    quantizer.train()(x)
    assert quantizer.seen.tolist() == [-1.0, 3.0]
    quantizer.observing = False
    quantizer(10 * x)
    assert quantizer.seen.tolist() == [-1.0, 3.0]
    quantizer.active = False
    assert quantizer(x) is x


def test_set_ranges_gives_each_its_own_scale() -> None:
    quantizers = [InputQuantizer(2), InputQuantizer(8)]
    set_ranges(quantizers, torch.tensor([[-1.0, 2.0], [0.0, 51.0]]))
    assert [float(q.scale) for q in quantizers] == pytest.approx([1.0, 0.2])
    assert [float(q.zero_point) for q in quantizers] == [1.0, 0.0]
    x = torch.tensor([-9.0, -0.6, 0.4, 1.6, 9.0])
    assert quantizers[0](x).tolist() == [-1.0, -1.0, 0.0, 2.0, 2.0]
    torch.testing.assert_close(quantizers[1](x), torch.tensor([0.0, 0.0, 0.4, 1.6, 9.0]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fixed_is_the_same_function_bit_for_bit(bits: int) -> None:
    quantizer = InputQuantizer(bits)
    set_ranges([quantizer], torch.tensor([[-1.3, 2.7]]))
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    fixed = quantizer.fixed()
    assert torch.equal(fixed(x), quantizer.eval()(x))
    assert (fixed.bits, fixed.low, fixed.high) == (bits, 0, 2**bits - 1)


def test_input_quantizer_is_torchs_fake_quantize() -> None:
    quantizer = InputQuantizer(8).eval()
    set_ranges([quantizer], torch.tensor([[-1.0, 2.0]]))
    x = torch.linspace(-2, 3, 997)
    expected = torch.fake_quantize_per_tensor_affine(x, float(quantizer.scale), int(quantizer.zero_point), 0, 255)
    off = (quantizer(x) - expected).abs()
    assert (off > 1e-6).float().mean() < 0.01  # ties may fall to the other side
    assert off.max() <= quantizer.scale * 1.001
