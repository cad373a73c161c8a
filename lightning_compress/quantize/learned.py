"""Evenly spaced codes whose step or range is learned: LSQ, LSQ+ and PACT."""

from typing import final

import torch
from torch import Tensor, nn

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import affine, gradient, ranges
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer, mean_magnitude, put, rows, spread

#: The least that a learned step or range can be: a step of zero cannot be divided by.
_LEAST = 1e-8


def positive(value: Tensor) -> Tensor:
    """A learned step as it is used.

    >>> positive(torch.tensor([-2.0, 0.0]))
    tensor([2.0000e+00, 1.0000e-08])
    """
    return value.abs().clamp_min(_LEAST)


def zero_of(offset: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The whole-number zero point (float) nearest to a learned offset, so that zero is exact."""
    return torch.clamp((-offset / scale).round(), low, high)


def learned(x: Tensor, scale: Tensor, offset: Tensor | None, low: Tensor, high: Tensor) -> Tensor:
    """`x` on the grid of a learned `scale` and `offset`, with the gradients of LSQ and LSQ+.

    With v = (x - offset) / scale between the ends `low` and `high` (0-dim codes), x has the gradient 1 inside and 0
    outside, scale has round(v) - v inside and the end outside (arXiv 1902.08153, equations 3 and 5), offset has 0
    inside and 1 outside (arXiv 2004.09576, equations 5 and 6). Scale and offset broadcast; computed in float32.

    >>> x, scale = torch.tensor([0.6, 9.0]), torch.tensor(0.5, requires_grad=True)
    >>> learned(x, scale, None, torch.tensor(-4.0), torch.tensor(3.0)).sum().backward()
    >>> scale.grad
    tensor(2.8000)
    """
    with torch.no_grad():
        place = x.float() / scale
        code = place.round()
        if offset is not None:
            zero = zero_of(offset, scale, low, high)
            code, place = code.add_(zero), place.add_(zero)
        code = affine.clip_(code, low, high)
        value = ((code if offset is None else code - zero) * scale).to(x.dtype)
        # A product and a sign and not two comparisons: see affine.py on bool tensors.
        inside = (place - low).mul_(high - place).sign_().clamp_(min=0.0)
        slope = torch.addcmul(code, inside, place, value=-1.0).to(x.dtype)
        inside = inside.to(x.dtype)
        outside = None if offset is None else 1.0 - inside
    terms = [(x, inside), (scale, slope)]
    return gradient.surrogate(value, *terms, *([] if offset is None else [(offset, outside)]))


@final
class LSQ(WeightQuantizer):
    """A learned step for weights (LSQ, Esser et al. 2020, arXiv 1902.08153), codes -2^(bits-1) to 2^(bits-1) - 1.

    The step starts at 2 <|w|> / sqrt(Qp), or with `init="three_sigma"` at max(|mu - 3 s|, |mu + 3 s|) / 2^(bits-1)
    as in LSQ+ (arXiv 2004.09576, section 3.3), and its gradient is scaled by 1 / sqrt(N Qp), with N the weights that
    share it: the tensor's, or a channel's with `per_channel`. `ewgs` is the delta of element-wise gradient scaling
    (arXiv 2104.00903). Where the number of bits changes, the step keeps the ratio that the first rule gives.

    Raises:
        ValueError: the number of bits, no such `init`, or a negative `ewgs`.

    >>> quantizer = LSQ(2)
    >>> quantizer.start(torch.tensor([0.5, -0.5]))
    >>> quantizer(torch.tensor([0.4, -9.0, 0.6])).tolist()
    [0.0, -2.0, 1.0]
    """

    scale: Tensor

    def __init__(self, bits: int, *, per_channel: bool = False, init: str = "mean", ewgs: float = 0.0) -> None:
        super().__init__(bits, "signed")
        if init not in ("mean", "three_sigma"):
            raise ValueError(f"LSQ: init must be mean or three_sigma; got {init!r}")
        gradient.check_delta("LSQ", ewgs)
        self.axis, self.init, self.ewgs = (0 if per_channel else None), init, ewgs

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Make the step, or set it anew."""
        values = rows(weight.float(), self.axis)
        if self.init == "mean":
            scale = 2.0 * mean_magnitude(values) / self.high.sqrt()
        else:
            mean, reach = values.mean(-1), 3.0 * values.std(-1)
            scale = torch.maximum((mean - reach).abs(), (mean + reach).abs()) / (self.high + 1.0)
        put(self, "scale", affine.usable(scale))

    @torch.no_grad()
    def set_bits(self, bits: int) -> None:
        """Change the number of bits, and the step with them, in place."""
        before = self.high.clone()
        super().set_bits(bits)
        self.scale.mul_((before / self.high).sqrt())

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as its codes stand for it."""
        shared = weight.numel() if self.axis is None else weight.numel() // weight.shape[self.axis]
        scale = gradient.scaled(self.scale, (shared * self.high).rsqrt())
        wide = spread(positive(scale), weight, self.axis)
        value = learned(weight, wide, None, self.low, self.high)
        if not self.ewgs:
            return value
        return gradient.element_wise(value, weight, self.low * wide, self.high * wide, self.ewgs)

    def encode(self, stored: Stored) -> Stored:
        """The tensor as codes from 0 on, with the zero point in their middle."""
        scale = positive(self.scale)
        wide = spread(scale, stored.value, self.axis)
        codes = affine.codes(stored.value, wide, torch.zeros_like(wide), self.low, self.high) - self.low
        zero = torch.full_like(scale, -float(self.low))
        return stored.coded(codes, scale, zero, bits=self.bits, axis=self.axis, symmetric=False)


@final
class LSQInput(InputQuantizer):
    """A learned step, and with `offset` a learned offset, for inputs (LSQ, arXiv 1902.08153; LSQ+, arXiv 2004.09576).

    Without `offset`, codes count from 0 where the inputs seen are never negative and are signed elsewhere; the step
    starts at 2 <|x|> / sqrt(Qp). With it, step and offset start from the range with the least square error, and the
    offset moves the grid by whole steps, so that zero stays exact. Gradients are scaled by 1 / sqrt(N Qp), with N the
    features of a sample. `ewgs` is the delta of element-wise gradient scaling (arXiv 2104.00903).

    >>> quantizer = LSQInput(2)
    >>> quantizer.start(torch.tensor([0.0, 2.0, 0.75]))
    >>> quantizer(torch.tensor([-1.0, 1.0, 9.0])).detach()
    tensor([0.0000, 0.8660, 2.5981])
    """

    def __init__(self, bits: int, *, offset: bool = False, ewgs: float = 0.0) -> None:
        super().__init__(bits)
        gradient.check_delta("LSQInput", ewgs)
        self.ewgs = ewgs
        self.signed = "affine" if offset else "signed"
        self.scale = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(())) if offset else None

    @torch.no_grad()
    def note(self, x: Tensor) -> None:
        """Take down the range of a batch; with an offset, the one with the least square error."""
        super().note(x)
        if self.offset is not None:
            low, high = ranges.mse(x.float().flatten(), self.high, False)
            self.seen[:2].copy_(torch.stack([low, high]))

    @torch.no_grad()
    def start(self, range: Tensor) -> None:
        """Set step and offset from what was seen."""
        super().start(range)
        if self.offset is None:
            self.scale.copy_(affine.usable(2.0 * range[2] / self.high.sqrt()))
            return
        scale, _ = affine.affine_scale(range[0], range[1], self.high)
        self.scale.copy_(scale)
        self.offset.copy_(range[0].clamp(max=0.0))

    @torch.no_grad()
    def set_bits(self, bits: int) -> None:
        """Change the number of bits, and the step with them, in place; with an offset, the range stays."""
        before = self.high.clone()
        super().set_bits(bits)
        ratio = before / self.high
        self.scale.mul_(ratio.sqrt() if self.offset is None else ratio)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are now."""
        scale = positive(self.scale)
        if self.offset is None:
            return scale, torch.zeros_like(scale)
        return scale, zero_of(self.offset, scale, self.low, self.high)

    def quantize(self, x: Tensor) -> Tensor:
        """The input as its codes stand for it."""
        slower = (x[0].numel() * self.high).rsqrt()
        scale = positive(gradient.scaled(self.scale, slower))
        offset = None if self.offset is None else gradient.scaled(self.offset, slower)
        value = learned(x, scale, offset, self.low, self.high)
        if not self.ewgs:
            return value
        _, zero = self.qparams()
        return gradient.element_wise(value, x, (self.low - zero) * scale, (self.high - zero) * scale, self.ewgs)


@final
class PACT(InputQuantizer):
    """Inputs clipped at a learned bound alpha, then evenly spaced (PACT, Choi et al. 2018, arXiv 1805.06085).

    The gradient of alpha is 1 where the input is clipped, 0 elsewhere. Inputs that are sometimes negative are clipped
    to [-alpha, alpha]. `bound` is where alpha starts, None for the largest magnitude seen in calibration, which is
    too little in an untrained network whose batch norms have seen nothing; the paper's L2 term on alpha is the weight
    decay of its parameter group. With `trained=False` and `bound=1` it is the
    activation of DoReFa-Net (arXiv 1606.06160, equation 11).

    Raises:
        ValueError: the number of bits (signed inputs need 2), or a `bound` that is not positive.

    >>> PACT(2, bound=3.0)(torch.tensor([-1.0, 0.6, 9.0])).tolist()
    [0.0, 1.0, 3.0]
    """

    alpha: Tensor

    def __init__(self, bits: int, *, bound: float | None = None, trained: bool = True) -> None:
        super().__init__(bits)
        if bound is not None and bound <= 0:
            raise ValueError(f"PACT: bound must be more than 0, got {bound}; null starts at the largest input seen")
        self.bound = bound
        self.signed = "symmetric"
        alpha = torch.tensor(float(bound or 1.0))
        if trained:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)

    @torch.no_grad()
    def start(self, range: Tensor) -> None:
        """Set alpha, and whether codes are signed."""
        super().start(range)
        if self.bound is None:
            self.alpha.copy_(range[:2].abs().amax().clamp_min(_LEAST))

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are now."""
        scale = positive(self.alpha) / self.high
        return scale, torch.zeros_like(scale)

    def quantize(self, x: Tensor) -> Tensor:
        """The input as its codes stand for it."""
        with torch.no_grad():
            wide, (scale, _) = x.float(), self.qparams()
            value = affine.clip_((wide / scale).round_(), self.low, self.high).mul_(scale).to(x.dtype)
            alpha, side = positive(self.alpha), self.low / self.high
            outside = (wide - side * alpha).mul_(wide - alpha).sign_().clamp_(min=0.0)
            beyond = torch.clamp(wide.sign(), min=side).mul_(outside).to(x.dtype)
            inside = (1.0 - outside).to(x.dtype)
        if not self.alpha.requires_grad:
            return gradient.surrogate(value, (x, inside))
        return gradient.surrogate(value, (x, inside), (positive(self.alpha), beyond))
