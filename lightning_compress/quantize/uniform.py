"""Evenly spaced codes, whose range is taken from the numbers themselves at each step."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lightning_compress.core import lookup
from lightning_compress.core.stored import Stored
from lightning_compress.quantize import affine, gradient, observers, ranges
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer, extremes, rows, spread

Cover = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


@final
class Uniform(WeightQuantizer):
    """Evenly spaced codes over the range of the weight as it is now (Jacob et al. 2018, arXiv 1712.05877).

    A scale serves each output channel, the whole tensor (`per_channel=False`), or each `group_size` input channels of
    an output channel. The range is that of `cover`: "minmax", "mse" or "percentile" (quantize/ranges.py) or a dotted
    path. `stochastic` rounds up or down at random in training, in proportion to the distance; `ewgs` is the delta of
    element-wise gradient scaling (arXiv 2104.00903), 0 for the straight-through gradient.

    Raises:
        ValueError: the number of bits, `group_size` with `per_channel=False`, or a negative `ewgs`.

    >>> Uniform(2, per_channel=False)(torch.tensor([[0.9, -0.2], [0.3, 0.6]]))
    tensor([[0.9000, -0.0000],
            [0.0000, 0.9000]])
    """

    def __init__(
        self,
        bits: int,
        *,
        per_channel: bool = True,
        symmetric: bool = True,
        group_size: int | None = None,
        cover: str | Cover = "minmax",
        stochastic: bool = False,
        ewgs: float = 0.0,
    ) -> None:
        super().__init__(bits, "symmetric" if symmetric else "affine")
        if group_size is not None and (group_size < 1 or not per_channel):
            raise ValueError(f"Uniform: group_size divides each channel, from 1 up; got {group_size=}, {per_channel=}")
        gradient.check_delta("Uniform", ewgs)
        self.axis, self.group_size = (0 if per_channel else None), group_size
        self.symmetric, self.stochastic, self.ewgs = symmetric, stochastic, ewgs
        self.cover: Cover = lookup.function(cover, ranges)
        #: Whether nothing can be clipped, so that rounding is all there is to do.
        self._whole = symmetric and self.cover is ranges.minmax and not stochastic

    @torch.no_grad()
    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for `weight`: 0-dim, 1-D along `axis`, or [rows, groups]."""
        low, high = self.cover(self._rows(weight.float()), self.high, self.symmetric)
        if self.symmetric:
            scale = affine.symmetric_scale(low, high, self.high)
            return scale, torch.zeros_like(scale)
        return affine.affine_scale(low, high, self.high)

    def _rows(self, weight: Tensor) -> Tensor:
        if self.group_size is None:
            return rows(weight, self.axis)
        columns = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
        spare = -weight.shape[1] % self.group_size  # zeros, which are in every range
        padded = torch.nn.functional.pad(columns, (0, 0, 0, spare))
        return padded.reshape(len(weight), -1, self.group_size * columns.shape[-1])

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as its codes stand for it."""
        narrow = self.qparams(weight)
        scale, zero = (spread(values, weight, self.axis, self.group_size) for values in narrow)
        if self._whole:
            value = affine.round_to_scale(weight, scale)
        else:
            noise = (torch.rand_like(weight) - 0.5) * scale if self.stochastic and self.training else 0.0
            value = affine.fake_quantize(weight + noise, scale, zero, self.low, self.high).to(weight.dtype)
        if not self.ewgs:
            return value
        low, high = ((end - zero) * scale for end in (self.low, self.high))
        return gradient.element_wise(value, weight, low, high, self.ewgs)

    def encode(self, stored: Stored) -> Stored:
        """The tensor as codes."""
        weight, groups = stored.value, None
        scale, zero = self.qparams(weight)
        wide = [spread(values, weight, self.axis, self.group_size) for values in (scale, zero)]
        codes = affine.codes(weight, wide[0], wide[1], self.low, self.high)
        if self.group_size is not None:
            groups = torch.full((scale.shape[1],), self.group_size)
            groups[-1] -= self.group_size * len(groups) - weight.shape[1]
        axis = None if groups is not None else self.axis
        options = {"bits": self.bits, "axis": axis, "symmetric": self.symmetric}
        return stored.coded(codes, scale, zero, groups=groups, **options)  # type: ignore[arg-type]


@final
class SeedAffine(WeightQuantizer):
    """`round((x - min) / (max - min) * (2^bits - 1))` over the whole tensor: the least weight is code 0.

    No code stands for zero exactly, unless the least or the greatest weight is zero: a mask below acts once more on
    top. The gradient goes straight through.

    >>> SeedAffine(1)(torch.tensor([-1.0, 0.0, 0.6, 2.0]))
    tensor([-1., -1.,  2.,  2.])
    """

    exact_zero = False

    def __init__(self, bits: int) -> None:
        super().__init__(bits, "affine")

    def _levels(self, weight: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes of `weight`, and what they (or the given `codes`) stand for."""
        low, width = weight.amin(), weight.amax() - weight.amin()
        own = ((weight - low) / affine.usable(width) * self.high).round()
        return own, (own if codes is None else codes) / self.high * width + low

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as its codes stand for it."""
        with torch.no_grad():
            _, value = self._levels(weight.float())
        return gradient.straight_through(value.to(weight.dtype), weight)

    def encode(self, stored: Stored) -> Stored:
        """The tensor as choices among 2^bits levels."""
        codes, levels = self._levels(stored.value, torch.arange(2.0**self.bits))
        return stored.chosen(codes, levels)


@final
class Observed(InputQuantizer):
    """Evenly spaced codes over a range that follows the batches (arXiv 1712.05877, section 3.1).

    `observer` says how: "moving_average" with `momentum`, or "min_max" (quantize/observers.py), or a dotted path.

    Raises:
        ValueError: the number of bits, no such observer, or a `momentum` outside [0, 1).

    >>> quantizer = Observed(2)
    >>> quantizer.start(torch.tensor([0.0, 3.0, 1.0]))
    >>> quantizer(torch.tensor([0.6, 9.0]))
    tensor([1., 3.])
    """

    observes: ClassVar[bool] = True
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, bits: int, *, observer: str | Callable[..., Tensor] = "moving_average", momentum: float = 0.95
    ) -> None:
        super().__init__(bits)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Observed: momentum is the share of the old range, in [0, 1); got {momentum}")
        self.observer, self.momentum = lookup.function(observer, observers), momentum
        self.register_buffer("range", torch.zeros(2))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0.0))

    @torch.no_grad()
    def note(self, x: Tensor) -> None:
        """Take down the minimum and the maximum of a batch."""
        self.seen[:2].copy_(extremes(x))

    @torch.no_grad()
    def start(self, range: Tensor) -> None:
        """Set the range and the scale that follows; the mean magnitude is of no use."""
        set_ranges([self], range[None, :2])

    @staticmethod
    @torch.no_grad()
    def follow(quantizers: Sequence[Any], seen: Tensor) -> None:
        """Let the ranges, and the scales with them, follow a batch, all at once: one by one they are felt."""
        first: Observed = quantizers[0]
        running = torch.stack([quantizer.range for quantizer in quantizers])
        set_ranges(quantizers, first.observer(running, seen[:, :2], first.momentum))

    def set_bits(self, bits: int) -> None:
        """Change the number of bits, and the scale with them, in place."""
        super().set_bits(bits)
        self.start(self.range)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are now."""
        return self.scale, self.zero_point

    def quantize(self, x: Tensor) -> Tensor:
        """The input as its codes stand for it; what was clipped has no gradient."""
        return affine.fake_quantize(x, self.scale, self.zero_point, self.low, self.high)


@torch.no_grad()
def set_ranges(quantizers: Sequence[Observed], found: Tensor) -> None:
    """Give each quantizer its row of `found` ([number, 2]: minimum, maximum) and the scale that follows."""
    tops = torch.stack([quantizer.high for quantizer in quantizers])
    scales, zeros = affine.affine_scale(found[:, 0], found[:, 1], tops)
    for name, values in (("range", found), ("scale", scales), ("zero_point", zeros)):
        torch._foreach_copy_([getattr(quantizer, name) for quantizer in quantizers], list(values.unbind()))
