import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core.stored import Stored, along
from lightning_compress.quantize import affine
from lightning_compress.quantize.uniform import Observed, SeedAffine, Uniform, set_ranges

CASES = list(itertools.product(range(2, 9), [True, False], [True, False]))


def weight(*shape: int) -> Tensor:
    return torch.randn(*(shape or (6, 4, 3)), generator=torch.Generator().manual_seed(3)) + 0.2


@pytest.mark.parametrize(("bits", "per_channel", "symmetric"), CASES)
def test_codes_are_within_half_a_step_and_the_range_is_used(bits: int, per_channel: bool, symmetric: bool) -> None:
    quantizer, w = Uniform(bits, per_channel=per_channel, symmetric=symmetric), weight()
    out = quantizer(w)
    scale, zero = quantizer.qparams(w)
    assert scale.shape == zero.shape == ((6,) if per_channel else ())
    wide = along(scale, quantizer.axis, 3)
    # On the grid, within half a step (a whole one at the ends of an affine range).
    torch.testing.assert_close(out / wide, (out / wide).round(), atol=1e-4, rtol=0)
    assert ((out - w).abs() <= (0.5001 if symmetric else 1.0001) * wide).all()
    if symmetric:
        rows = (w.flatten(1), out.flatten(1)) if per_channel else (w.flatten()[None], out.flatten()[None])
        torch.testing.assert_close(rows[1].abs().amax(1), rows[0].abs().amax(1))


@pytest.mark.parametrize("symmetric", [True, False])
def test_per_channel_is_per_tensor_on_each_channel(symmetric: bool) -> None:
    w = weight()
    whole = Uniform(4, symmetric=symmetric)(w)
    each = torch.stack([Uniform(4, per_channel=False, symmetric=symmetric)(row) for row in w])
    assert torch.equal(whole, each)


@pytest.mark.parametrize("cover", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3, 3), (5, 7, 2)])
def test_a_group_is_a_tensor_of_its_own(shape: tuple[int, ...], symmetric: bool, cover: str) -> None:
    w = weight(*shape)
    quantizer = Uniform(3, group_size=3, symmetric=symmetric, cover=cover)
    out = quantizer(w)
    for row, group in itertools.product(range(5), range(3)):
        part = (slice(row, row + 1), slice(3 * group, 3 * group + 3))
        alone = Uniform(3, per_channel=False, symmetric=symmetric, cover=cover)(w[part])
        torch.testing.assert_close(out[part], alone)
    stored = quantizer.store(Stored(w))
    assert torch.equal(stored.value, out)
    assert stored.groups is not None
    assert stored.groups.tolist() == [3, 3, shape[1] - 6]
    assert stored.scale is not None
    assert stored.scale.shape == (5, 3)
    assert stored.axis is None
    assert torch.equal(stored.take(1, torch.tensor([0, 4, 6])).value, out[:, [0, 4, 6]])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_values_and_gradients_are_torchs(per_channel: bool, symmetric: bool, bits: int) -> None:
    w, upstream = weight(8, 50), torch.randn(8, 50)
    rows = w if per_channel else w.reshape(1, -1)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale, zero, low = rows.abs().amax(1) / top, torch.zeros(len(rows)), -top
    else:
        top, low = 2**bits - 1, 0
        scale = (rows.amax(1) - rows.amin(1)) / top
        zero = (-rows.amin(1) / scale).round()
    tie = ((rows / scale[:, None]).abs() % 1 - 0.5).abs() < 1e-3  # torch multiplies by 1 / scale
    inner = (rows < rows.amax(1, keepdim=True)) & (rows > rows.amin(1, keepdim=True))
    rows = torch.where(tie & inner, rows * 0.99, rows)
    ours, theirs = (x.clone().requires_grad_() for x in (rows.view_as(w), rows))
    out = Uniform(bits, per_channel=per_channel, symmetric=symmetric)(ours)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero.int(), 0, low, top)
    torch.testing.assert_close(out, expected.view_as(w))
    torch.autograd.backward(out, upstream)
    torch.autograd.backward(expected.view_as(w), upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad.view_as(w))


@pytest.mark.parametrize("cover", ["mse", "percentile"])
def test_what_lies_outside_the_range_is_clipped_and_has_no_gradient(cover: str) -> None:
    w = torch.cat([torch.randn(4, 2000, generator=torch.Generator().manual_seed(0)), torch.full((4, 1), 30.0)], dim=1)
    w.requires_grad_()
    quantizer = Uniform(3, cover=cover)
    out = quantizer(w)
    scale, zero = quantizer.qparams(w)
    assert (3 * scale < 10).all()
    reference = w.detach().clone().requires_grad_()
    expected = torch.fake_quantize_per_channel_affine(reference, scale, zero.int(), 0, -3, 3)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-6)
    out.sum().backward()
    torch.autograd.backward(expected.sum())
    assert w.grad is not None
    assert not w.grad[:, -1].any()
    assert reference.grad is not None
    assert (w.grad - reference.grad).count_nonzero() < 0.001 * w.numel()  # ties may fall to the other side


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_gradient_passes_straight_through(per_channel: bool, symmetric: bool) -> None:
    w = weight().requires_grad_()
    upstream = torch.randn(6, 4, 3)
    torch.autograd.backward(Uniform(3, per_channel=per_channel, symmetric=symmetric)(w), upstream)
    assert w.grad is not None
    # An affine zero point is rounded, which may clip the very end of the range; nothing else may be lost.
    assert (w.grad != upstream).sum() <= (0 if symmetric else 6)


def test_element_wise_scaling_has_the_codes_for_its_range() -> None:
    w = weight(3, 50).requires_grad_()
    quantizer, upstream, delta = Uniform(3, ewgs=0.5), torch.randn(3, 50), 0.5
    out = quantizer(w)
    torch.autograd.backward(out, upstream)
    scale, _ = quantizer.qparams(w)
    shares = [(value.detach() / scale[:, None] + 3) / 6 for value in (w, out)]
    torch.testing.assert_close(w.grad, upstream * (1 + delta * upstream.sign() * (shares[0] - shares[1])))


@pytest.mark.parametrize("symmetric", [True, False])
def test_stochastic_rounding_is_right_on_average_in_training_only(symmetric: bool) -> None:
    quantizer, w = Uniform(3, stochastic=True, symmetric=symmetric), weight(4, 6)
    w[1, 2] = 0.0
    nearest = Uniform(3, symmetric=symmetric)(w)
    assert torch.equal(quantizer.eval()(w), nearest)
    assert torch.equal(quantizer.train().store(Stored(w)).value, nearest)
    scale, zero = (values[:, None] for values in quantizer.qparams(w))
    drawn = torch.stack([quantizer(w) for _ in range(4000)])
    codes = drawn / scale + zero
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    low, high = (0, 7) if not symmetric else (-3, 3)
    assert low <= int(codes.round().min()) <= int(codes.round().max()) <= high
    assert not drawn[:, 1, 2].any()
    inside = (w / scale + zero > low) & (w / scale + zero < high)
    off = ((drawn.mean(0) - w) / scale)[inside].abs()
    assert off.max() < 5 * 0.5 / 4000**0.5
    assert (drawn.std(0) > 0).any()
    weight_ = w.clone().requires_grad_()
    quantizer(weight_).sum().backward()
    assert (weight_.grad == 1).float().mean() > 0.8  # type: ignore[union-attr]


def test_as_a_parametrization_the_latent_weight_trains() -> None:
    layer: Any = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Uniform(2))
    before = layer.parametrizations.weight.original.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.parametrizations.weight.original.detach(), before - 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "from 1 up; got group_size=0"),
        ({"group_size": 4, "per_channel": False}, "group_size divides each channel"),
        ({"cover": "minmx"}, "did you mean 'minmax'"),
        ({"ewgs": -1.0}, "Uniform: ewgs is a delta from 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Uniform(4, **options)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_seed_affine_is_its_formula(bits: int) -> None:
    w, steps = weight().requires_grad_(), 2**bits - 1
    array = w.detach().numpy().astype(np.float64)
    codes = np.round((array - array.min()) / (array.max() - array.min()) * steps)
    expected = codes / steps * (array.max() - array.min()) + array.min()
    quantizer = SeedAffine(bits)
    out = quantizer(w)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-6)
    upstream = torch.randn(w.shape)
    torch.autograd.backward(out, upstream)
    assert torch.equal(w.grad, upstream)  # type: ignore[arg-type]
    stored = quantizer.store(Stored(w.detach()))
    assert stored.codes is not None
    assert np.array_equal(stored.codes.numpy(), codes)
    assert stored.levels is not None
    assert len(stored.levels) == 2**bits
    assert stored.levels[0] == w.amin()


def test_set_ranges_gives_each_its_own_scale() -> None:
    quantizers = [Observed(2), Observed(8)]
    set_ranges(quantizers, torch.tensor([[-1.0, 2.0], [0.0, 51.0]]))
    assert [float(q.scale) for q in quantizers] == pytest.approx([1.0, 0.2])
    assert [float(q.zero_point) for q in quantizers] == [1.0, 0.0]
    x = torch.tensor([-9.0, -0.6, 0.4, 1.6, 9.0])
    assert quantizers[0](x).tolist() == [-1.0, -1.0, 0.0, 2.0, 2.0]
    torch.testing.assert_close(quantizers[1](x), torch.tensor([0.0, 0.0, 0.4, 1.6, 9.0]))


def test_ranges_follow_batches_all_at_once() -> None:
    quantizers = [Observed(8, momentum=0.5), Observed(8, momentum=0.5)]
    set_ranges(quantizers, torch.tensor([[-1.0, 2.0], [0.0, 4.0]]))
    Observed.follow(quantizers, torch.tensor([[-2.0, 3.0, 9.0], [-1.0, 1.0, 9.0]]))
    assert [q.range.tolist() for q in quantizers] == [[-1.5, 2.5], [-0.5, 2.5]]
    assert float(quantizers[0].scale) == pytest.approx(4 / 255)


def test_observed_is_torchs_fake_quantize() -> None:
    quantizer = Observed(8).eval()
    quantizer.start(torch.tensor([-1.0, 2.0, 0.5]))
    x = torch.linspace(-2, 3, 997)
    expected = torch.fake_quantize_per_tensor_affine(x, float(quantizer.scale), int(quantizer.zero_point), 0, 255)
    off = (quantizer(x) - expected).abs()
    assert (off > 1e-6).float().mean() < 0.01  # ties may fall to the other side
    assert off.max() <= quantizer.scale * 1.001


def test_the_scale_follows_the_bits_at_once() -> None:
    quantizer = Observed(8)
    quantizer.start(torch.tensor([-1.0, 2.0, 0.5]))
    quantizer.set_bits(2)
    x = torch.linspace(-2, 3, 100)
    scale, zero = affine.affine_scale(torch.tensor(-1.0), torch.tensor(2.0), 3)
    assert torch.equal(quantizer(x), affine.fake_quantize(x, scale, zero, 0 * scale, 3 * torch.ones(())))
