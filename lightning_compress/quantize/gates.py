"""Quantizers with 2, 4 or 8 bits, as learned gates have it (Bayesian Bits, arXiv 2005.07093)."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.stored import Stored, along
from lightning_compress.quantize import affine, gradient
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer, at_rest, put
from lightning_compress.quantize.learned import positive

_MOST = 8
_TEMPERATURE, _STRETCH = 2.0 / 3.0, (-0.1, 1.1)
#: A gate is shut where it is exactly zero with more than this probability.
_SHUT = 0.34
#: Where values are clipped, as a share of the range: at its very end, half a step would be rounded to one too many.
_INSIDE = 1.0 - 1e-6


def chance(logits: Tensor) -> Tensor:
    """Probability that a hard-concrete gate is not zero (Louizos et al. 2018, arXiv 1712.01312, equation 12).

    >>> chance(torch.tensor(0.0))
    tensor(0.8318)
    """
    return torch.sigmoid(logits - _TEMPERATURE * math.log(-_STRETCH[0] / _STRETCH[1]))


def residual(x: Tensor, step: Tensor, gates: Sequence[Tensor]) -> Tensor:
    """`x` rounded to a grid of `step`, plus what that left over, rounded to grids 5 and 85 times as fine, each gated.

    Equations 3 to 6 of arXiv 2005.07093 for 2, 4 and 8 bits: `x_2 + z_4 (e_4 + z_8 e_8)` with `gates` (z_4, z_8).

    >>> residual(torch.tensor(0.93), torch.tensor(1.0), (torch.tensor(1.0), torch.tensor(0.0)))
    tensor(1.)
    """
    total, rest, gate = torch.zeros_like(x), x, torch.ones_like(step)
    for finer, opened in zip((1.0, 5.0, 17.0), (gate, *gates), strict=True):
        step, gate = step / finer, gate * opened
        part = _round(rest / step) * step
        total, rest = total + gate * part, rest - part
    return total


def _round(x: Tensor) -> Tensor:
    return gradient.straight_through(x.detach().round(), x)


@final
class Gates(nn.Module):
    """Gates between 0 and 1 that are drawn at random, until they are fixed to be open or shut.

    >>> gates = Gates(2, initial=6.0)
    >>> gates.now()
    tensor([1., 1.])
    """

    open: Tensor

    def __init__(self, number: int, initial: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((number,), float(initial)))
        self.register_buffer("open", torch.ones(number))
        self.fixed = False

    def sample(self) -> Tensor:
        """A draw from the hard-concrete distribution (arXiv 2005.07093, equation 15), with its gradient."""
        noise = torch.logit(torch.rand_like(self.logits))
        drawn = torch.sigmoid((self.logits + noise) / _TEMPERATURE)
        low, high = _STRETCH
        return torch.clamp(drawn * (high - low) + low, 0.0, 1.0)

    @torch.no_grad()
    def now(self) -> Tensor:
        """Ones for gates that are open, zeros for those shut: as they were fixed, or would be now."""
        return self.open if self.fixed else (1.0 - chance(self.logits) < _SHUT).to(self.logits.dtype)

    def fix(self) -> None:
        """Leave the gates as they are from here on."""
        self.open.copy_(self.now())
        self.fixed = True


class _Grid:
    """What weights and inputs share: a learned range [-reach, reach] or [0, reach], and how finely it is divided."""

    finer: Gates
    reach: nn.Parameter
    low: Tensor
    training: bool

    def steps(self) -> Tensor:
        """Steps in the range: 3, 15 or 255, for 2, 4 or 8 bits."""
        four, eight = self.finer.now().unbind()
        return 3.0 * (1.0 + 4.0 * four) * (1.0 + 16.0 * four * eight)

    @property
    def bits(self) -> int:
        """Number of bits that the gates leave."""
        return round(float(self.steps())).bit_length()

    def set_bits(self, bits: int) -> None:
        """Nothing: the gates choose."""

    def clipped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (float32) in the range, and the width of the range."""
        reach = at_rest(positive(self.reach), [self.finer.logits])
        least = self.low.sign() * reach
        return torch.clamp(x.float(), least * _INSIDE, reach * _INSIDE), reach - least

    def coded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of `x` as floats, of as many bits as the gates leave, and the step between them."""
        inside, width = self.clipped(x)
        step = width / self.steps()
        return _round(inside / step), step

    def rounded(self, x: Tensor) -> Tensor:
        """`x` on the grid: in training on one drawn at random, until the gates are fixed."""
        if self.finer.fixed or not self.training:
            codes, step = self.coded(x)
            return codes * step
        inside, width = self.clipped(x)
        return residual(inside, width / 3.0, self.finer.sample().unbind())

    def chances(self) -> Tensor:
        """Expected bits that are paid for: 2, 4 more and 8 more, each where all gates before are open too."""
        four, eight = chance(self.finer.logits).unbind()
        return 2.0 + four * (4.0 + 8.0 * eight)


@final
class GatedWeight(_Grid, WeightQuantizer):
    """Weights with 2, 4 or 8 bits, and output channels that may go, as gates have it (arXiv 2005.07093, section 2).

    >>> quantizer = GatedWeight(8).eval()
    >>> quantizer.start(torch.tensor([[0.3, -1.275]]))
    >>> quantizer(torch.tensor([[0.3, -1.275]]))
    tensor([[ 0.3000, -1.2700]], grad_fn=<MulBackward0>)
    """

    def __init__(self, bits: int, *, prune: bool = True, initial: float = 6.0) -> None:
        super().__init__(bits, "symmetric")
        self.prune, self.initial = prune, initial
        self.finer = Gates(2, initial)
        self.channels: Gates | None = None

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Set the range, all of it, and make the gates of the output channels."""
        put(self, "reach", weight.float().abs().amax())
        if self.prune and self.channels is None:
            self.channels = Gates(len(weight), self.initial).to(weight.device)

    @torch.no_grad()
    def kept(self) -> Tensor | None:
        """Ones for output channels that stay; the last of them always does."""
        if self.channels is None:
            return None
        logits = self.channels.logits
        return torch.maximum(self.channels.now(), (logits == logits.amax()).to(logits.dtype))

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight on its grid, without the channels that are shut."""
        value = self.rounded(weight)
        if self.channels is not None:
            drawn = self.training and not self.channels.fixed
            kept = self.channels.sample() if drawn else at_rest(self._kept(), [self.channels.logits])
            value = value * along(kept, 0, weight.dim())
        return value.to(weight.dtype)

    def _kept(self) -> Tensor:
        kept = self.kept()
        assert kept is not None
        return kept

    def encode(self, stored: Stored) -> Stored:
        """The tensor as codes, zero in channels that are shut."""
        codes, step = self.coded(stored.value)
        kept = self.kept()
        if kept is not None:
            codes = codes * along(kept, 0, codes.dim())
        return stored.coded(codes, step, bits=self.bits)

    def cost(self) -> Tensor:
        """Expected bits that are paid for, of a channel."""
        return self.chances() * (1.0 if self.channels is None else chance(self.channels.logits).mean())


@final
class GatedInput(_Grid, InputQuantizer):
    """Inputs with 2, 4 or 8 bits, as gates have it (arXiv 2005.07093, section 2).

    >>> quantizer = GatedInput(8).eval()
    >>> quantizer.start(torch.tensor([0.0, 2.55, 1.0]))
    >>> quantizer.fixed()
    FixedQuantizer(8 bits, codes 0..255)
    """

    def __init__(self, bits: int, *, initial: float = 6.0) -> None:
        super().__init__(bits)
        self.finer = Gates(2, initial)
        self.reach = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def start(self, range: Tensor) -> None:
        """Set the range, and whether codes are signed."""
        self.range.copy_(range)
        self._set_codes(_MOST, "symmetric" if float(range[0]) < 0 else "affine")
        self.reach.copy_(range[:2].abs().amax())

    def quantize(self, x: Tensor) -> Tensor:
        """The input on its grid."""
        return self.rounded(x).to(x.dtype)

    def cost(self) -> Tensor:
        """Expected bits that are paid for."""
        return self.chances()

    @torch.no_grad()
    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are now."""
        _, step = self.coded(torch.zeros(()))
        return step, torch.zeros_like(step)

    def fixed(self) -> FixedQuantizer:
        """The quantizer as it is deployed."""
        grid = super().fixed()
        low, high = affine.code_range(self.bits, "symmetric" if grid.low < 0 else "affine")
        return FixedQuantizer(grid.scale, grid.zero_point, low, high)
