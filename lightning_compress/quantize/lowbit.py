"""Weights of few bits whose levels follow from the weight: DoReFa, ternary and binary networks."""

from typing import final

import torch
from torch import Tensor

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import affine, gradient
from lightning_compress.quantize.base import WeightQuantizer, mean_magnitude, put, rows, spread


def ternary(weight: Tensor, threshold: Tensor) -> Tensor:
    """-1, 0 or 1: the sign where the magnitude is above a threshold that broadcasts.

    >>> ternary(torch.tensor([-2.0, 0.5, 1.5]), torch.tensor(1.0))
    tensor([-1.,  0.,  1.])
    """
    # Signs and not comparisons, here and below: see affine.py on bool tensors.
    return (weight.abs() - threshold).sign().clamp(min=0.0) * weight.sign()


def sign(weight: Tensor) -> Tensor:
    """-1 or 1; 1 for zero.

    >>> sign(torch.tensor([-2.0, 0.0]))
    tensor([-1.,  1.])
    """
    found = weight.sign()
    return found + (1.0 - found.abs())


@final
class DoReFa(WeightQuantizer):
    """The weights of DoReFa-Net (Zhou et al. 2016, arXiv 1606.06160, equations 8 and 9), over the whole tensor.

    From 2 bits on `2 q(tanh(w) / (2 max |tanh(w)|) + 1/2) - 1`, where q rounds to multiples of 1 / (2^bits - 1) with
    a straight-through gradient; with 1 bit the sign times <|w|>. Zero is no level: a mask below acts once more on top.

    >>> DoReFa(2)(torch.tensor([-4.0, 0.1, 0.2, 4.0]))
    tensor([-1.0000,  0.3333,  0.3333,  1.0000])
    """

    exact_zero = False

    def __init__(self, bits: int) -> None:
        super().__init__(bits, "affine")

    def _binary(self, weight: Tensor) -> Tensor:
        return sign(weight) * affine.usable(mean_magnitude(weight.flatten()))

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as it will be deployed."""
        wide = weight.float()
        bent = torch.tanh(wide)
        share = bent / (2.0 * affine.usable(bent.abs().amax())) + 0.5
        with torch.no_grad():
            codes = (share * self.high).round() / self.high
            one_bit = self._binary(wide)
        many = 2.0 * gradient.straight_through(codes, share) - 1.0
        found = torch.where(self.high > 1, many, gradient.straight_through(one_bit, wide))
        return found.to(weight.dtype)

    def encode(self, stored: Stored) -> Stored:
        """The tensor as choices among 2^bits levels."""
        weight = stored.value
        if self.bits == 1:
            levels = torch.tensor([-1.0, 1.0])
            return stored.chosen(weight >= 0, levels, affine.usable(mean_magnitude(weight.flatten())))
        bent = torch.tanh(weight)
        share = bent / (2.0 * affine.usable(bent.abs().amax())) + 0.5
        levels = 2.0 * (torch.arange(2.0**self.bits) / self.high) - 1.0
        return stored.chosen((share * self.high).round(), levels)


@final
class Ternary(WeightQuantizer):
    """Ternary weight networks (Li et al. 2016, arXiv 1605.04711): -a, 0 or a.

    Weights above the threshold 0.7 <|w|> in magnitude count, and a is their mean magnitude, over the whole tensor or
    over each output channel. Zeros are left out of <|w|>, so that a mask does not move the threshold. The gradient
    goes straight through.

    >>> Ternary(2)(torch.tensor([-3.0, 0.5, 1.0, 2.0]))
    tensor([-2.5000,  0.0000,  0.0000,  2.5000])
    """

    fewest = most = 2

    def __init__(self, bits: int, *, per_channel: bool = False) -> None:
        super().__init__(bits, "symmetric")
        self.axis = 0 if per_channel else None

    def _parts(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and the scale or scales."""
        threshold = 0.7 * mean_magnitude(rows(weight, self.axis))
        codes = ternary(weight, spread(threshold, weight, self.axis))
        return codes, affine.usable(mean_magnitude(rows(weight * codes, self.axis)))

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as it will be deployed."""
        with torch.no_grad():
            codes, scale = self._parts(weight.float())
            value = codes * spread(scale, weight, self.axis)
        return gradient.straight_through(value.to(weight.dtype), weight)

    def encode(self, stored: Stored) -> Stored:
        """The tensor as codes -1, 0 and 1."""
        codes, scale = self._parts(stored.value)
        return stored.coded(codes, scale, bits=2, axis=self.axis)


@final
class TTQ(WeightQuantizer):
    """Trained ternary quantization (Zhu et al. 2017, arXiv 1612.01064): -Wn, 0 or Wp, two learned levels for a tensor.

    Weights beyond `threshold` times the greatest magnitude count. Wp and Wn have the gradients summed over their
    weights; a latent weight has the upstream gradient times the level it takes, times 1 where that is zero (equation
    8). Both start at the mean magnitude of their weights.

    Raises:
        ValueError: the number of bits, or a `threshold` outside [0, 1).

    >>> quantizer = TTQ(2)
    >>> quantizer.start(torch.tensor([-3.0, 0.1, 1.0, 2.0]))
    >>> quantizer(torch.tensor([-3.0, 0.1, 1.0, 2.0])).detach()
    tensor([-3.0000,  0.0000,  1.5000,  1.5000])
    """

    fewest = most = 2
    positive: Tensor
    negative: Tensor

    def __init__(self, bits: int, *, threshold: float = 0.05) -> None:
        super().__init__(bits, "symmetric")
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"TTQ: threshold is a share of the greatest weight, in [0, 1); got {threshold}")
        self.threshold = threshold

    def _codes(self, weight: Tensor) -> Tensor:
        return ternary(weight, self.threshold * weight.abs().amax())

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Make the two levels, or set them anew."""
        weight = weight.float()
        codes = self._codes(weight)
        for name, side in (("positive", codes.clamp(min=0.0)), ("negative", codes.clamp(max=0.0))):
            put(self, name, affine.usable(mean_magnitude((weight * side).flatten())))

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as it will be deployed."""
        with torch.no_grad():
            codes = self._codes(weight.float())
            above, below = codes.clamp(min=0.0), (-codes).clamp(min=0.0)
            value = above * self.positive - below * self.negative
            factor = value.abs() + 1.0 - codes.abs()
            value, above, below, factor = (part.to(weight.dtype) for part in (value, above, below, factor))
        return gradient.surrogate(value, (weight, factor), (self.positive, above), (self.negative, -below))

    def encode(self, stored: Stored) -> Stored:
        """The tensor as choices among -Wn, 0 and Wp."""
        levels = torch.stack([-self.negative, torch.zeros(()), self.positive])
        return stored.chosen(self._codes(stored.value) + 1.0, levels)


@final
class Binary(WeightQuantizer):
    """The binary weights of XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279): the sign times <|w|> of the channel.

    The gradient is that of section 3.1, upstream times (1/n + a where |w| <= 1), with n the weights that share the
    scale a; with `straight` it goes straight through. Zeros are left out of <|w|>, so that a mask does not shrink it.
    Zero is no level: a mask below acts once more on top.

    >>> Binary(1)(torch.tensor([[-3.0, 1.0], [0.5, 0.0]]))
    tensor([[-2.0000,  2.0000],
            [ 0.5000,  0.5000]])
    """

    exact_zero = False
    fewest = most = 1

    def __init__(self, bits: int, *, per_channel: bool = True, straight: bool = False) -> None:
        super().__init__(bits, "affine")
        self.axis, self.straight = (0 if per_channel else None), straight

    def _scale(self, weight: Tensor) -> Tensor:
        return affine.usable(mean_magnitude(rows(weight, self.axis)))

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as it will be deployed."""
        with torch.no_grad():
            wide = weight.float()
            scale = spread(self._scale(wide), weight, self.axis)
            value = (sign(wide) * scale).to(weight.dtype)
            share = 1.0 / rows(weight, self.axis).shape[-1]
            inside = 1.0 - (wide.abs() - 1.0).sign().clamp(min=0.0)
            factor = (inside * scale + share).to(weight.dtype)
        return gradient.surrogate(value, (weight, None if self.straight else factor))

    def encode(self, stored: Stored) -> Stored:
        """The tensor as choices between -1 and 1, times a scale."""
        return stored.chosen(stored.value >= 0, torch.tensor([-1.0, 1.0]), self._scale(stored.value), axis=self.axis)
