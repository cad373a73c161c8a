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


def clip_(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip in place, with ends that broadcast: one end at a time, as a CPU has fast kernels for these only.

    >>> clip_(torch.tensor([-9.0, 9.0]), torch.tensor(-1.0), torch.tensor(2.0))
    tensor([-1.,  2.])
    """
    return values.clamp_min_(low).clamp_max_(high)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where nothing was clipped (straight through).

    What was clipped is worked out once more in the backward pass, from the input that the layer before keeps anyway.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        bottom, top = low - zero_point, high - zero_point
        ctx.save_for_backward(x, scale, bottom, top)
        return clip_((x.float() / scale).round_(), bottom, top).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, scale, bottom, top = ctx.saved_tensors
        raw = (x.float() / scale).round_()
        beyond = raw.clamp_min(bottom).clamp_max_(top).sub_(raw).to(grads[0].dtype)
        if not torch.compiler.is_compiling():
            # In one pass the gradient where this is between the ends, so 0, and nothing elsewhere.
            return torch.ops.aten.hardtanh_backward(grads[0], beyond, -0.5, 0.5), None, None, None, None
        # Whole numbers, so this is 1 where something was clipped. Inductor would keep a comparison from the forward
        # pass as a bool tensor, by stores that it does not vectorise on a CPU.
        outside = beyond.abs_().clamp_(max=1.0)
        return torch.addcmul(grads[0], grads[0], outside, value=-1.0), None, None, None, None


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
