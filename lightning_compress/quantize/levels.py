"""Weights on levels that are powers of two, or sums of a few: a product with one is a shift, or a few shifts."""

from typing import final

import torch
from torch import Tensor

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import affine, gradient
from lightning_compress.quantize.base import WeightQuantizer, put
from lightning_compress.quantize.learned import positive

#: A buffer for the magnitudes of as many bits as there may be, so that bits can change.
_MOST_BITS = 6


def powers(bits: int) -> Tensor:
    """The 2^bits magnitudes 0, 1, 1/2, 1/4, ... in rising order.

    >>> powers(2)
    tensor([0.0000, 0.2500, 0.5000, 1.0000])
    """
    return torch.cat([torch.zeros(1), 2.0 ** torch.arange(2 - 2**bits, 1.0)])


def sums_of_powers(bits: int) -> Tensor:
    """The 2^bits sums of powers of two of APoT (Li et al. 2020, arXiv 1909.13144, section 2.2), the largest made 1.

    Each sum has a term from each of `bits // 2` sets of three powers and zero, and of an odd number of bits one from a
    last set of one power and zero; the powers go around the sets, the last set's after two rounds.

    >>> sums_of_powers(2)
    tensor([0.0000, 0.2500, 0.5000, 1.0000])
    """
    pairs, odd = divmod(bits, 2)
    sets: list[list[int]] = [[] for _ in range(pairs + odd)]
    order = [*range(pairs), *range(pairs), *[pairs] * odd, *range(pairs)]
    for exponent, number in enumerate(order):
        sets[number].append(exponent + 1)
    sums = torch.zeros(1)
    for exponents in sets:
        terms = torch.tensor([0.0, *(2.0**-exponent for exponent in exponents)])
        sums = (sums[:, None] + terms).flatten()
    return sums.sort().values / sums.max()


@final
class PowersOfTwo(WeightQuantizer):
    """Weights at a learned bound alpha times plus or minus a power of two, or a sum of powers (APoT, 1909.13144).

    Weights beyond alpha are clipped. As in the paper, the latent weight has the upstream gradient everywhere, and
    alpha, inside, that of the rounding error as a share of alpha, the sign outside; with `additive=False` the levels
    are single powers. `normalize` takes the weight's mean away and divides by its deviation first (section 2.3), for
    layers that a batch norm follows; alpha then starts at 3, without it at three deviations.

    >>> quantizer = PowersOfTwo(3)
    >>> quantizer.start(torch.tensor([-1.0, 1.0]))
    >>> (quantizer(torch.tensor([-9.0, 0.1, 0.9, 1.9])) / quantizer.alpha).tolist()
    [-1.0, 0.0, 0.25, 0.5]
    """

    fewest, most = 2, _MOST_BITS
    alpha: Tensor
    magnitudes: Tensor
    between: Tensor

    def __init__(self, bits: int, *, additive: bool = True, normalize: bool = False) -> None:
        super().__init__(bits, "symmetric")
        self.additive, self.normalize = additive, normalize
        self.exact_zero = not normalize
        number = 2 ** (self.most - 1)
        self.register_buffer("magnitudes", torch.ones(number))
        self.register_buffer("between", torch.full((number - 1,), torch.inf))
        self.set_bits(bits)

    def set_bits(self, bits: int) -> None:
        """Change the number of bits, in place."""
        super().set_bits(bits)
        found = sums_of_powers(bits - 1) if self.additive else powers(bits - 1)
        self.magnitudes.fill_(1.0)[: len(found)] = found
        self.between.fill_(torch.inf)[: len(found) - 1] = (found[1:] + found[:-1]) / 2

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Make alpha, or set it anew."""
        deviation = weight.float().flatten().std(correction=0)
        put(self, "alpha", 3.0 * (torch.ones_like(deviation) if self.normalize else affine.usable(deviation)))

    def _normal(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight that is quantized, and the deviation it was divided by."""
        if not self.normalize:
            return weight, torch.ones_like(self.alpha)
        deviation = affine.usable(weight.flatten().std())
        return (weight - weight.flatten().mean()) / deviation, deviation

    def _index(self, place: Tensor) -> Tensor:
        """Which magnitude is nearest."""
        return torch.bucketize(place.abs().contiguous(), self.between)

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as it will be deployed."""
        alpha = positive(self.alpha)
        with torch.no_grad():
            normal, deviation = self._normal(weight.float())
            place = normal / alpha
            level = self.magnitudes[self._index(place)] * place.sign()
            outside = (place.abs() - 1.0).sign_().clamp_(min=0.0)
            slope = level - (1.0 - outside) * place
            value = (level * alpha).to(weight.dtype)
        through = (1.0 / deviation).to(weight.dtype) if self.normalize else None
        return gradient.surrogate(value, (weight, through), (alpha, slope.to(weight.dtype)))

    def encode(self, stored: Stored) -> Stored:
        """The tensor as choices among the levels, times alpha."""
        alpha = positive(self.alpha)
        place = self._normal(stored.value)[0] / alpha
        found = self.magnitudes[: 2 ** (self.bits - 1)]
        levels = torch.cat([-found[1:].flip(0), found])
        codes = self._index(place) * place.sign() + (len(found) - 1)
        return stored.chosen(codes, levels, alpha)
