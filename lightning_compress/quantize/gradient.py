"""Gradients where rounding has none: what the backward pass of a quantizer puts in their place."""

from typing import Any

import torch
from torch import Tensor


def _summed(grad: Tensor, shape: torch.Size) -> Tensor:
    """`grad` summed over what was broadcast from `shape`, in float32."""
    if grad.shape == shape:
        return grad
    if not shape:
        return grad.sum(dtype=torch.float32)
    dims = [dim for dim, size in enumerate(shape) if size == 1 and grad.shape[dim] != 1]
    return grad.sum(dim=dims, keepdim=True, dtype=torch.float32)


class _Surrogate(torch.autograd.Function):
    """A value, and the gradients that the inputs get for it: upstream times a factor each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor | None) -> Tensor:
        inputs, factors = tensors[:count], tensors[count:]
        ctx.like = [(t.shape, t.dtype) for t in inputs if t is not None]
        ctx.given = [factor is not None for factor in factors]
        ctx.save_for_backward(*[factor for factor in factors if factor is not None])
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        factors, found = iter(ctx.saved_tensors), []
        for (shape, dtype), given in zip(ctx.like, ctx.given, strict=True):
            grad = grads[0] * next(factors) if given else grads[0]
            found.append(_summed(grad, shape).to(dtype))
        return None, None, *found, *[None] * len(ctx.given)


def surrogate(value: Tensor, *terms: tuple[Tensor, Tensor | None]) -> Tensor:
    """`value` (no graph of its own) with a gradient of upstream times factor for each `(input, factor)` of `terms`.

    Inputs have the shape of `value` or broadcast to it, where their gradient is summed; a factor of None is one.

    >>> x = torch.tensor([0.4, 2.0], requires_grad=True)
    >>> surrogate(x.detach().round(), (x, torch.tensor([1.0, 0.5]))).sum().backward()
    >>> x.grad
    tensor([1.0000, 0.5000])
    """
    inputs, factors = zip(*terms, strict=True)
    return _Surrogate.apply(value, len(terms), *inputs, *factors)  # type: ignore[no-any-return, no-untyped-call]


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` with the gradient of `x` (Bengio et al. 2013, arXiv 1308.3432).

    >>> x = torch.tensor(0.4, requires_grad=True)
    >>> straight_through(x.detach().round(), x).backward()
    >>> x.grad
    tensor(1.)
    """
    return surrogate(value, (x, None))


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """`x` with its gradient times `factor` (0-dim): how LSQ slows its steps (arXiv 1902.08153, section 2.2).

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> scaled(x, torch.tensor(0.5)).backward()
    >>> x.grad
    tensor(0.5000)
    """
    return surrogate(x.detach(), (x, factor))


def check_delta(owner: str, delta: float) -> None:
    """See that a delta of element-wise gradient scaling is none, or adds to gradients that point the right way.

    Raises:
        ValueError: it is negative.
    """
    if delta < 0:
        raise ValueError(f"{owner}: ewgs is a delta from 0 (straight through) up; got {delta}")


class _ElementWise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, error: Tensor, delta: float) -> Tensor:
        ctx.save_for_backward(error)
        ctx.delta = delta
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (error,) = ctx.saved_tensors
        # g * (1 + delta * sign(g) * error), without the sign.
        return grads[0] + ctx.delta * grads[0].abs() * error, None, None


def element_wise(value: Tensor, x: Tensor, low: Tensor, high: Tensor, delta: float) -> Tensor:
    """`value`, the quantized `x`, with the gradient g * (1 + delta * sign(g) * (x_n - x_q)) of EWGS (arXiv 2104.00903).

    x_n and x_q are `x`, clipped to [`low`, `high`], and `value` as shares of that range; both ends broadcast.

    >>> q = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> element_wise(q, torch.tensor([1.4, 0.6]), torch.tensor(0.0), torch.tensor(2.0), 0.5).sum().backward()
    >>> q.grad
    tensor([1.1000, 0.9000])
    """
    with torch.no_grad():
        error = (torch.clamp(x.float(), low, high) - value) / (high - low)
    return _ElementWise.apply(value, error.to(x.dtype), delta)  # type: ignore[no-any-return, no-untyped-call]
