import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import learned
from lightning_compress.quantize.learned import LSQ, PACT, LSQInput


def lsq_paper(v: np.ndarray, s: float, qn: int, qp: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, and derivatives to the step and to v, by equations 1 to 5 of arXiv 1902.08153, one number at a time."""
    value, ds, dv = (np.zeros_like(v) for _ in range(3))
    for i, x in np.ndenumerate(v):
        r = x / s
        value[i] = np.round(np.clip(r, -qn, qp)) * s
        ds[i] = -qn if r <= -qn else qp if r >= qp else np.round(r) - r
        dv[i] = float(-qn < r < qp)
    return value, ds, dv


def lsq_plus_paper(x: np.ndarray, s: float, beta: float, n: int, p: int) -> tuple[np.ndarray, ...]:
    """Value, and derivatives to step, offset and x, by equations 1, 5 and 6 of arXiv 2004.09576."""
    value, ds, db, dx = (np.zeros_like(x) for _ in range(4))
    for i, number in np.ndenumerate(x):
        r = (number - beta) / s
        value[i] = np.round(np.clip(r, n, p)) * s + beta
        ds[i] = n if r <= n else p if r >= p else np.round(r) - r
        db[i] = 0.0 if n < r < p else 1.0
        dx[i] = float(n < r < p)
    return value, ds, db, dx


def off_ties(x: Tensor, step: float) -> Tensor:
    place = (x / step).double()
    return torch.where((place - place.floor() - 0.5).abs() < 1e-3, x + 0.1 * step, x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_lsq_weights_are_the_papers_formula(bits: int) -> None:
    qn, qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    step = 0.8 / qp
    w = off_ties(torch.randn(30, 20), step).requires_grad_()
    quantizer = LSQ(bits)
    quantizer.start(w.detach())
    with torch.no_grad():
        quantizer.scale.fill_(step)
    upstream = torch.randn(30, 20)
    out = quantizer(w)
    torch.autograd.backward(out, upstream)
    value, ds, dv = lsq_paper(w.detach().double().numpy(), step, qn, qp)
    np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-6)
    np.testing.assert_allclose(w.grad.numpy(), upstream.numpy() * dv)  # type: ignore[union-attr]
    scaled = (upstream.double().numpy() * ds).sum() / np.sqrt(600 * qp)
    assert float(quantizer.scale.grad) == pytest.approx(scaled, rel=1e-4)  # type: ignore[arg-type]
    assert 0 < dv.sum() < dv.size


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [0, 1])
def test_learned_steps_are_torchs_own_but_between_the_last_code_and_half_a_step_beyond(bits: int, zero: int) -> None:
    high = 2**bits - 1
    scale = torch.tensor(0.07, requires_grad=True)
    low_codes = (torch.tensor(0.0), torch.tensor(float(high)))
    x = off_ties(torch.randn(500) * high * 0.05, 0.07)
    beyond = ((x / 0.07 + zero) - high).abs() < 0.6
    x = torch.where(beyond | ((x / 0.07 + zero).abs() < 0.6), 0.07, x).requires_grad_()
    twin, step = x.detach().clone().requires_grad_(), torch.tensor([0.07], requires_grad=True)
    offset = torch.tensor(-0.07 * zero, requires_grad=True)
    upstream = torch.randn(500)
    ours = learned.learned(x, scale, offset, *low_codes)
    point = torch.tensor([float(zero)], requires_grad=True)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(twin, step, point, 0, high, 1.0)
    torch.testing.assert_close(ours, theirs)
    torch.autograd.backward(ours, upstream)
    torch.autograd.backward(theirs, upstream)
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(offset.grad * -0.07, point.grad[0])  # type: ignore[operator, index]
    # torch counts a clipped input as (end - zero point) steps; LSQ+ keeps the offset apart from the step.
    clipped = (upstream * (twin.grad == 0)).sum() * zero
    torch.testing.assert_close(scale.grad - clipped, step.grad[0], atol=1e-3, rtol=1e-4)  # type: ignore[operator, index]


@pytest.mark.parametrize("init", ["mean", "three_sigma"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_step_starts_as_the_papers_say(per_channel: bool, init: str) -> None:
    w = torch.randn(5, 40) * torch.arange(1.0, 6.0)[:, None] + 0.3
    quantizer = LSQ(3, per_channel=per_channel, init=init)
    quantizer.start(w)
    rows = w.double().numpy() if per_channel else w.double().numpy().reshape(1, -1)
    if init == "mean":
        wanted = 2 * np.abs(rows).mean(1) / np.sqrt(3)
    else:
        mu, sigma = rows.mean(1), rows.std(1, ddof=1)
        wanted = np.maximum(np.abs(mu - 3 * sigma), np.abs(mu + 3 * sigma)) / 4
    np.testing.assert_allclose(quantizer.scale.detach().numpy(), wanted if per_channel else wanted[0], rtol=1e-5)
    before = quantizer.scale
    quantizer.start(2 * w)
    assert quantizer.scale is before  # the optimizer has it
    np.testing.assert_allclose(before.detach().numpy(), 2 * (wanted if per_channel else wanted[0]), rtol=1e-5)


def test_steps_of_channels_have_the_gradient_of_theirs() -> None:
    w, upstream = torch.randn(4, 30), torch.randn(4, 30)
    whole = LSQ(3, per_channel=True)
    whole.start(w)
    torch.autograd.backward(whole(w), upstream)
    for row in range(4):
        alone = LSQ(3)
        alone.start(w[row])
        alone(w[row]).backward(upstream[row])
        torch.testing.assert_close(whole.scale.grad[row], alone.scale.grad)  # type: ignore[index]


def test_a_change_of_bits_keeps_the_rule_of_the_start() -> None:
    w = torch.randn(40)
    quantizer, fresh = LSQ(8), LSQ(3)
    quantizer.start(w)
    fresh.start(w)
    quantizer.set_bits(3)
    torch.testing.assert_close(quantizer.scale, fresh.scale)


@pytest.mark.parametrize("value", [0.0, -0.4])
def test_a_step_that_is_no_step(value: float) -> None:
    quantizer = LSQ(3)
    quantizer.start(torch.randn(10))
    with torch.no_grad():
        quantizer.scale.fill_(value)
    out = quantizer(torch.randn(10))
    assert out.isfinite().all()
    x = torch.randn(10)
    assert torch.equal(quantizer.store(Stored(x)).value, quantizer(x).detach())


def test_lsq_codes_use_the_odd_value_below() -> None:
    quantizer = LSQ(2)
    quantizer.start(torch.tensor([0.5, -0.5]))
    stored = quantizer.store(Stored(torch.tensor([-9.0, -1.0, 0.0, 9.0])))
    assert stored.codes is not None
    assert stored.codes.tolist() == [0, 1, 2, 3]
    assert int(stored.zero_point) == 2  # type: ignore[arg-type]
    assert not stored.symmetric


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_inputs_are_the_papers_formula(bits: int, signed: bool) -> None:
    qn, qp = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    quantizer = LSQInput(bits)
    quantizer.start(torch.tensor([-1.0 if signed else 0.0, 2.0, 0.75]))
    step = float(quantizer.scale.detach())
    assert step == pytest.approx(2 * 0.75 / np.sqrt(qp))
    x = off_ties(torch.randn(8, 3, 5) * step * qp, step).requires_grad_()
    upstream = torch.randn(8, 3, 5)
    out = quantizer(x)
    torch.autograd.backward(out, upstream)
    value, ds, dv = lsq_paper(x.detach().double().numpy(), step, qn, qp)
    np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), upstream.numpy() * dv)  # type: ignore[union-attr]
    scaled = (upstream.double().numpy() * ds).sum() / np.sqrt(15 * qp)  # 15 features in a sample
    assert float(quantizer.scale.grad) == pytest.approx(scaled, rel=1e-3, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_plus_inputs_are_the_papers_formula_where_the_offset_is_a_whole_step(bits: int) -> None:
    quantizer, top = LSQInput(bits, offset=True), 2**bits - 1
    quantizer.start(torch.tensor([-1.0, 2.0, 0.75]))
    assert quantizer.offset is not None
    step = 3.0 / top
    assert float(quantizer.scale.detach()) == pytest.approx(step)
    assert float(quantizer.offset.detach()) == -1.0
    beta = -step * round(1.0 / step)
    with torch.no_grad():
        quantizer.offset.fill_(beta)
    x = off_ties(torch.randn(8, 15) * 2.0, step).requires_grad_()
    upstream = torch.randn(8, 15)
    out = quantizer(x)
    torch.autograd.backward(out, upstream)
    value, ds, db, dx = lsq_plus_paper(x.detach().double().numpy(), float(quantizer.scale.detach()), beta, 0, top)
    np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), upstream.numpy() * dx)  # type: ignore[union-attr]
    for parameter, slope in ((quantizer.scale, ds), (quantizer.offset, db)):
        scaled = (upstream.double().numpy() * slope).sum() / np.sqrt(15 * top)
        assert float(parameter.grad) == pytest.approx(scaled, rel=1e-3, abs=1e-5)  # type: ignore[arg-type]


def test_an_offset_between_two_steps_moves_the_grid_by_whole_steps() -> None:
    quantizer = LSQInput(3, offset=True).eval()
    quantizer.start(torch.tensor([-1.0, 2.0, 0.75]))
    with torch.no_grad():
        quantizer.offset.fill_(-0.9)  # type: ignore[union-attr]
        quantizer.scale.fill_(0.5)
    assert quantizer(torch.tensor([0.0, -9.0, 9.0])).tolist() == [0.0, -1.0, 2.5]


def test_calibration_of_an_offset_looks_for_the_least_error() -> None:
    quantizer = LSQInput(2, offset=True).train()
    x = torch.cat([torch.rand(1000), torch.tensor([8.0])])
    quantizer.note(x)
    assert quantizer.seen[1] < 4.0
    plain = LSQInput(2).train()
    plain.note(x)
    torch.testing.assert_close(plain.seen, torch.tensor([float(x.min()), 8.0, float(x.mean())]))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact_is_the_papers_formula(bits: int, signed: bool) -> None:
    quantizer = PACT(bits)
    quantizer.start(torch.tensor([-1.2 if signed else 0.0, 1.5, 0.5]))
    alpha, top = 1.5, (2 ** (bits - 1) - 1 if signed else 2**bits - 1)
    assert float(quantizer.alpha.detach()) == alpha
    x = off_ties(torch.randn(400) * 2, alpha / top).requires_grad_()
    upstream = torch.randn(400)
    out = quantizer(x)
    torch.autograd.backward(out, upstream)
    array = x.detach().double().numpy()
    low = -alpha if signed else 0.0
    clipped = np.clip(array, low, alpha)  # 0.5 (|x| - |x - alpha| + alpha) of equation 1, unless signed
    if not signed:
        np.testing.assert_allclose(clipped, 0.5 * (np.abs(array) - np.abs(array - alpha) + alpha), atol=1e-12)
    np.testing.assert_allclose(out.detach().numpy(), np.round(clipped * top / alpha) * alpha / top, atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), upstream.numpy() * ((array >= low) & (array < alpha)))  # type: ignore[union-attr]
    beyond = (array >= alpha).astype(float) - ((array < low) if signed else 0.0)
    assert float(quantizer.alpha.grad) == pytest.approx((upstream.numpy() * beyond).sum(), rel=1e-4)  # type: ignore[arg-type]


def test_pact_starts_where_it_is_told() -> None:
    quantizer = PACT(4, bound=10.0)
    quantizer.start(torch.tensor([0.0, 1.5, 0.5]))
    assert float(quantizer.alpha.detach()) == 10.0
    with pytest.raises(ValueError, match="bound must be more than 0, got 0"):
        PACT(4, bound=0.0)
    with pytest.raises(ValueError, match="bound must be more than 0, got -1"):
        PACT(4, bound=-1.0)


def test_signed_inputs_need_two_bits() -> None:
    for quantizer in (PACT(1), LSQInput(1)):
        quantizer.start(torch.tensor([0.0, 1.5, 0.5]))
        with pytest.raises(ValueError, match=r"expected 2 to 8 bits for \w+ codes, got 1"):
            quantizer.start(torch.tensor([-1.0, 1.5, 0.5]))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dorefa_activations_are_the_papers_formula(bits: int) -> None:
    quantizer, steps = PACT(bits, bound=1.0, trained=False), 2**bits - 1
    x = off_ties(torch.randn(300), 1 / steps).requires_grad_()
    out = quantizer(x)
    array = x.detach().double().numpy()
    np.testing.assert_allclose(out.detach().numpy(), np.round(np.clip(array, 0, 1) * steps) / steps, atol=1e-6)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), ((array >= 0) & (array <= 1)).astype(float))  # type: ignore[union-attr]
    assert quantizer.learnables() == []
