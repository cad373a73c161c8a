"""Whether float levels are whole multiples of one step, so that integers can do the arithmetic."""

import torch
from torch import Tensor

from lightning_compress.core.stored import Stored

# Levels are rounded to float32, and so is the product with the step: some units in the last place of the largest.
_ROUNDING = 2.0**-22
_FLOAT_BITS = 32


def whole(levels: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """Whole numbers (int64, of the shape of `levels`) and a step, 0-dim, with `levels == numbers * step` in float32.

    The step is the coarsest there is; None where the largest number would have to be beyond `most`.

    >>> whole(torch.tensor([-0.75, 0.0, 0.25]), most=127)
    (tensor([-3,  0,  1]), tensor(0.2500))
    >>> whole(torch.tensor([1.0, 2.0**0.5]), most=127) is None
    True
    """
    top = levels.abs().max().double()
    if top == 0:
        return torch.zeros_like(levels, dtype=torch.int64), torch.ones(())
    tops = torch.arange(1, most + 1, dtype=torch.float64)
    numbers = levels.double().flatten() / top * tops[:, None]
    fits = ((numbers - numbers.round()).abs().amax(1) <= tops * _ROUNDING).nonzero()
    if not len(fits):
        return None
    first = int(fits[0])
    return numbers[first].round().long().reshape(levels.shape), (top / tops[first]).float()


def arithmetic_bits(stored: Stored) -> int:
    """Bits of a weight as the arithmetic sees it: those of its codes, or of the evenly spaced grid its levels lie on.

    Levels on no grid of at most 8 bits are 32-bit floats to whoever multiplies by them, however few bits choose one.

    >>> arithmetic_bits(Stored(torch.zeros(3)).chosen(torch.tensor([0, 1, 2]), torch.tensor([-1.0, 0.0, 1.0])))
    2
    >>> arithmetic_bits(Stored(torch.zeros(3)).chosen(torch.tensor([0, 1, 2]), torch.tensor([-1.0, 0.0, 1.3333])))
    32
    """
    if stored.levels is None:
        return stored.bits
    levels = stored.levels.flatten()
    if stored.mask is not None and not bool(stored.mask.all()):
        levels = torch.cat([levels, torch.zeros(1)])
    found = whole(levels - levels.min(), most=255)
    return _FLOAT_BITS if found is None else max(1, int(found[0].max()).bit_length())
