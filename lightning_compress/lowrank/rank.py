"""How large the ranks of a layer's other form are."""

from collections.abc import Callable
from functools import cache
from typing import final

import torch
from torch import Tensor

from lightning_compress.core import decompose, forms

# A share of the energy that rounding takes off must not cost a rank.
_ROUNDING = 1e-12


@final
class Spectrum:
    """The energy (squares) of a weight [out, in, ...], and how large ranks of `form` must be to keep a share of it.

    The smallest rank for which the squared singular values up to it make up the share: of the matrix that the form
    factorizes, for "tucker" of both unfoldings. "cp" has none, so there the share is what a decomposition keeps.

    >>> spectrum = Spectrum(torch.diag(torch.tensor([3.0, 4.0, 0.0])), "svd")
    >>> spectrum.ranks(0.6), spectrum.ranks(0.7), spectrum.ranks(1.0)
    ((1,), (2,), (2,))
    """

    def __init__(self, weight: Tensor, form: str) -> None:
        self._weight = weight.detach().double().cpu()
        self._full = forms.full_ranks(weight.shape, form)
        self._values = [_squares(matrix) for matrix in _matrices(self._weight, form)]
        self._kept = cache(self._cp_kept)

    def ranks(self, share: float) -> tuple[int, ...]:
        """The smallest ranks that keep `share` of the energy, in [0, 1]."""
        if not self._values:
            return (_smallest(self._full[0], lambda rank: self._kept(rank) >= share - _ROUNDING),)
        found = [int((values.cumsum(0) < (share - _ROUNDING) * values.sum()).sum()) + 1 for values in self._values]
        return tuple(min(rank, most) for rank, most in zip(found, self._full, strict=True))

    def _cp_kept(self, rank: int) -> float:
        error = self._weight - decompose.cp_sum(decompose.cp_factors(self._weight, rank))
        return 1.0 - float(error.square().sum() / self._weight.square().sum())


def _squares(matrix: Tensor) -> Tensor:
    """The squared singular values, the largest first; from the product, as matrices here are long or wide."""
    product = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    found: Tensor = torch.linalg.eigvalsh(product)
    return found.flip(0).clamp_min(0.0)


def _matrices(weight: Tensor, form: str) -> list[Tensor]:
    if form == "tucker":
        return [decompose.unfold(weight, 1), decompose.unfold(weight, 0)]
    if form == "spatial":
        return [weight.transpose(1, 2).flatten(2).flatten(0, 1)]
    return [] if form == "cp" else [weight.flatten(1)]


def _smallest(most: int, enough: Callable[[int], bool]) -> int:
    """The smallest number from 1 to `most` that is enough, where each larger one is too."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def largest_share(cost: Callable[[float], float], budget: float) -> float | None:
    """The largest share of the energy in [0, 1] at which `cost`, which grows with it, is within the budget.

    None where even the smallest ranks cost more.

    >>> largest_share(lambda share: 100 * share, 25.0)
    0.25
    """
    if cost(0.0) > budget:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low
