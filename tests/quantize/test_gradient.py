import pytest
import torch
from torch import Tensor

from lightning_compress.quantize import gradient


def test_a_gradient_is_summed_over_what_was_broadcast() -> None:
    value, upstream, factor = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    inputs = [torch.zeros(shape, requires_grad=True) for shape in ((), (3, 1), (1, 4), (3, 4), (4,))]
    for tensor in inputs[:4]:
        out = gradient.surrogate(value, (tensor, factor))
        assert torch.equal(out, value)
        torch.autograd.backward(out, upstream)
        # What autograd makes of a product with a broadcast tensor is the same sum.
        twin = torch.zeros_like(tensor, requires_grad=True)
        torch.autograd.backward((twin * factor), upstream)
        torch.testing.assert_close(tensor.grad, twin.grad)


def test_several_inputs_have_a_gradient_each_and_none_where_none_is_asked() -> None:
    x, scale = torch.zeros(5, requires_grad=True), torch.tensor(2.0)
    factor = torch.arange(5.0)
    torch.autograd.backward(gradient.surrogate(torch.ones(5), (x, None), (scale, factor)), factor)
    assert torch.equal(x.grad, factor)  # type: ignore[arg-type]
    assert scale.grad is None


def test_gradients_keep_the_dtype_of_their_input() -> None:
    x = torch.zeros(600, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    ones = torch.ones(600, dtype=torch.bfloat16)
    torch.autograd.backward(gradient.surrogate(ones, (x, ones), (scale, ones)).sum())
    assert x.grad is not None
    assert scale.grad is not None
    assert (x.grad.dtype, scale.grad.dtype) == (torch.bfloat16, torch.float32)
    assert float(scale.grad) == 600.0  # in bfloat16 the sum would stop at 256


def test_straight_through_and_scaled() -> None:
    x = torch.randn(7, requires_grad=True)
    upstream = torch.randn(7)
    torch.autograd.backward(gradient.straight_through(x.detach().round(), x), upstream)
    assert torch.equal(x.grad, upstream)  # type: ignore[arg-type]
    step = torch.tensor(3.0, requires_grad=True)
    out = gradient.scaled(step, torch.tensor(0.25))
    assert float(out.detach()) == 3.0
    torch.autograd.backward(5 * out)
    assert float(step.grad) == 1.25  # type: ignore[arg-type]


def ewgs(upstream: Tensor, x_n: Tensor, x_q: Tensor, delta: float) -> Tensor:
    """Equation 3 of arXiv 2104.00903."""
    return upstream * (1 + delta * torch.sign(upstream) * (x_n - x_q))


@pytest.mark.parametrize("delta", [0.0, 0.001, 0.2, 1.5])
def test_element_wise_scaling_is_the_formula_of_the_paper(delta: float) -> None:
    low, high = -0.5, 1.5
    x = torch.randn(200)
    bits = 3
    x_n = ((x - low) / (high - low)).clamp(0, 1)
    x_q = (x_n * (2**bits - 1)).round() / (2**bits - 1)
    value = (x_q * (high - low) + low).requires_grad_()
    upstream = torch.randn(200)
    upstream[:5] = 0.0
    out = gradient.element_wise(value, x, torch.tensor(low), torch.tensor(high), delta)
    assert torch.equal(out, value)
    torch.autograd.backward(out, upstream)
    torch.testing.assert_close(value.grad, ewgs(upstream, x_n, x_q, delta))


def test_a_negative_delta_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LSQ: ewgs is a delta from 0 \(straight through\) up; got -0.1"):
        gradient.check_delta("LSQ", -0.1)
