import numpy as np
import pytest
import torch

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import lowbit
from lightning_compress.quantize.lowbit import TTQ, Binary, DoReFa, Ternary

WEIGHT = torch.tensor([[-0.9, 0.2, 0.05], [0.7, -0.3, 1.4]])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dorefa_weights_are_the_papers_formula(bits: int) -> None:
    w = torch.randn(12, 7)
    steps = 2**bits - 1
    bent = np.tanh(w.double().numpy())
    share = bent / (2 * np.abs(bent).max()) + 0.5
    expected = 2 * np.round(share * steps) / steps - 1
    np.testing.assert_allclose(DoReFa(bits)(w).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_dorefa_has_the_gradient_of_all_but_the_rounding(bits: int) -> None:
    w, upstream = torch.randn(12, 7).requires_grad_(), torch.randn(12, 7)
    torch.autograd.backward(DoReFa(bits)(w), upstream)
    smooth = w.detach().clone().requires_grad_()
    torch.autograd.backward((smooth.tanh() / smooth.tanh().abs().max()), upstream)
    torch.testing.assert_close(w.grad, smooth.grad)


def test_one_bit_dorefa_is_the_sign_times_the_mean_magnitude() -> None:
    w, upstream = WEIGHT.clone().requires_grad_(), torch.randn(2, 3)
    out = DoReFa(1)(w)
    torch.testing.assert_close(out, WEIGHT.sign() * WEIGHT.abs().mean())
    torch.autograd.backward(out, upstream)
    assert torch.equal(w.grad, upstream)  # type: ignore[arg-type]


def test_ternary_by_hand() -> None:
    # <|w|> = 3.55 / 6 = 0.59, the threshold 0.414: -0.9, 0.7 and 1.4 count, with a mean of 1.
    w = WEIGHT.clone().requires_grad_()
    out = Ternary(2)(w)
    torch.testing.assert_close(out.detach(), torch.tensor([[-1.0, 0, 0], [1.0, 0, 1.0]]))
    upstream = torch.randn(2, 3)
    torch.autograd.backward(out, upstream)
    assert torch.equal(w.grad, upstream)  # type: ignore[arg-type]
    # First channel: 0.268 and 0.9; second: 0.56, of which 0.7 and 1.4.
    each = torch.tensor([[-0.9, 0, 0], [1.05, 0, 1.05]])
    torch.testing.assert_close(Ternary(2, per_channel=True)(WEIGHT), each)
    stored = Ternary(2).store(Stored(WEIGHT))
    assert stored.codes is not None
    assert stored.codes.tolist() == [[-1, 0, 0], [1, 0, 1]]
    assert (stored.bits, stored.symmetric, stored.levels) == (2, True, None)


def test_ternary_is_near_the_best_of_all_thresholds() -> None:
    # Section 2.2 of arXiv 1605.04711: 0.7 <|w|> approximates the threshold of the least square error.
    w = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    errors = []
    for threshold in torch.linspace(0.1, 2.0, 96):
        codes = lowbit.ternary(w, threshold)
        scale = (w * codes).sum() / codes.abs().sum()
        errors.append(float((w - scale * codes).square().sum()))
    assert float((Ternary(2)(w) - w).square().sum()) < 1.02 * min(errors)


@pytest.mark.parametrize("quantizer", [Ternary(2), Binary(1, per_channel=False)])
def test_masked_zeros_do_not_move_threshold_and_scale(quantizer: Ternary | Binary) -> None:
    alone = quantizer(WEIGHT)
    padded = quantizer(torch.cat([WEIGHT, torch.zeros(8, 3)]))
    torch.testing.assert_close(padded[:2], alone)


def test_ttq_by_hand() -> None:
    w = WEIGHT.clone().requires_grad_()
    quantizer = TTQ(2, threshold=0.2)  # 0.28: all but 0.2 and 0.05
    quantizer.start(WEIGHT)
    assert float(quantizer.positive.detach()) == pytest.approx(1.05)
    assert float(quantizer.negative.detach()) == pytest.approx(0.6)
    with torch.no_grad():
        quantizer.positive.fill_(2.0)
        quantizer.negative.fill_(0.5)
    out = quantizer(w)
    assert out.tolist() == [[-0.5, 0.0, 0.0], [2.0, -0.5, 2.0]]
    upstream = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    torch.autograd.backward(out, upstream)
    # Equation 8 of arXiv 1612.01064: Wn g, g, Wp g; and equation 7, with the sign of -Wn.
    assert w.grad.tolist() == [[0.5, 2.0, 3.0], [8.0, 2.5, 12.0]]  # type: ignore[union-attr]
    assert float(quantizer.positive.grad) == 4.0 + 6.0  # type: ignore[arg-type]
    assert float(quantizer.negative.grad) == -(1.0 + 5.0)  # type: ignore[arg-type]
    stored = quantizer.store(Stored(WEIGHT))
    assert stored.levels is not None
    assert stored.levels.tolist() == [-0.5, 0.0, 2.0]


def test_ttq_refuses_a_threshold_that_leaves_nothing() -> None:
    with pytest.raises(ValueError, match=r"threshold is a share of the greatest weight, in \[0, 1\); got 1.0"):
        TTQ(2, threshold=1.0)


@pytest.mark.parametrize("straight", [True, False])
def test_binary_by_hand(straight: bool) -> None:
    w = WEIGHT.clone().requires_grad_()
    out = Binary(1, straight=straight)(w)
    scale = torch.tensor([[1.15 / 3], [2.4 / 3]])
    torch.testing.assert_close(out.detach(), WEIGHT.sign() * scale)
    upstream = torch.randn(2, 3)
    torch.autograd.backward(out, upstream)
    # Section 3.1 of arXiv 1603.05279: 1/n + a where |w| <= 1; the last weight is 1.4.
    inside = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    factor = torch.ones(2, 3) if straight else 1 / 3 + scale * inside
    torch.testing.assert_close(w.grad, upstream * factor)
    stored = Binary(1).store(Stored(WEIGHT))
    assert (stored.bits, stored.axis) == (1, 0)


def test_the_binary_scale_is_the_best_one() -> None:
    w = torch.randn(1, 500)
    best = float((Binary(1)(w) - w).square().sum())
    for factor in (0.95, 1.05):
        assert float((factor * Binary(1)(w) - w).square().sum()) > best
