"""Uniform quantization: x is replaced by (clamp(round(x / scale) + zero_point) - zero_point) * scale.

The convention is that of Jacob et al. (CVPR 2018, arXiv 1712.05877): ranges always hold zero, so zero is exact.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

#: "symmetric" codes lie around zero without the odd one, "signed" ones with it, "affine" ones count from 0.
Kind = Literal["symmetric", "signed", "affine"]


def code_range(bits: int, kind: Kind) -> tuple[int, int]:
    """Lowest and highest code of so many bits.

    >>> code_range(4, "symmetric"), code_range(4, "signed"), code_range(4, "affine")
    ((-7, 7), (-8, 7), (0, 15))
    """
    least = 1 if kind == "affine" else 2
    if not least <= bits <= 8:
        raise ValueError(f"expected {least} to 8 bits for {kind} codes, got {bits}")
    if kind == "affine":
        return 0, 2**bits - 1
    top: int = 2 ** (bits - 1) - 1
    return (-top if kind == "symmetric" else -top - 1), top


def symmetric_scale(low: Tensor, high: Tensor, top: Tensor | int) -> Tensor:
    """Scale at which [low, high] fits in codes -top..top; any shape; 1 where the range is as good as empty.

    >>> symmetric_scale(torch.tensor(-1.0), torch.tensor(0.5), 127) * 127
    tensor(1.)
    """
    return usable(torch.maximum(-low, high) / top)


def usable(scale: Tensor) -> Tensor:
    """One where a scale is too small to divide by: a dead channel decays through the denormals to a scale of zero.

    >>> usable(torch.tensor([0.5, 1e-42]))
    tensor([0.5000, 1.0000])
    """
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def affine_scale(low: Tensor, high: Tensor, top: Tensor | int) -> tuple[Tensor, Tensor]:
    """Scale and whole-number zero point (float) at which [low, high], stretched to hold 0, fits in codes 0..top.

    >>> affine_scale(torch.tensor(-1.0), torch.tensor(2.0), 3)
    (tensor(1.), tensor(1.))
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = usable((high - low) / top)
    return scale, (-low / scale).round()


def codes(x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Whole-number codes of `x` as floats; `scale` and `zero_point` broadcast.

    >>> codes(torch.tensor([0.6, 9.0]), torch.tensor(1.0), torch.tensor(0.0), -7, 7)
    tensor([1., 7.])
    """
    return torch.clamp((x / scale).round() + zero_point, low, high)  # type: ignore[arg-type]


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where nothing was clipped (straight through)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        raw = (x.float() / scale).round_().add_(zero_point)
        clipped = torch.clamp(raw, low, high)
        # Codes are whole numbers, so this is 1 where nothing was clipped and 0 elsewhere. As a comparison it would be a
        # bool tensor, whose stores inductor does not vectorise on a CPU: 52 ms against 3 for relu and this together.
        ctx.save_for_backward((1.0 - (raw - clipped).abs_().clamp_(max=1.0)).to(x.dtype))
        return clipped.sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` as its codes stand for it, with the straight-through gradient; dtype and shape of `x`, computed in float32.

    `low` and `high` are 0-dim tensors, so that bits may change without a recompilation.

    >>> one = torch.tensor(1.0)
    >>> fake_quantize(torch.tensor([0.6, 9.0]), one, 0 * one, -7 * one, 7 * one)
    tensor([1., 7.])
    """
    return _FakeQuantize.apply(x, scale, zero_point, low, high)  # type: ignore[no-any-return, no-untyped-call]


class _Round(torch.autograd.Function):
    """Round to multiples of a scale, in float32; the gradient passes everywhere."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor) -> Tensor:
        return (x.float() / scale).round_().mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def round_to_scale(x: Tensor, scale: Tensor) -> Tensor:
    """What `fake_quantize` gives where nothing can be clipped and the zero point is 0, at a third of the cost.

    >>> round_to_scale(torch.tensor([0.6, -1.2]), torch.tensor(0.5))
    tensor([ 0.5000, -1.0000])
    """
    return _Round.apply(x, scale)  # type: ignore[no-any-return, no-untyped-call]
