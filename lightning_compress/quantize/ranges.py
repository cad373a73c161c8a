"""Which range of a tensor the codes cover: `cover(rows, top, symmetric) -> (low, high)`, one range for each row.

`rows` is [..., numbers] in float32, `top` (0-dim) the highest code; a symmetric range is (-high, high).
"""

import torch
from torch import Tensor

from lightning_compress.quantize import affine

#: Shares of the full range that `mse` tries.
_SHARES = [(20 - step) / 20 for step in range(17)]
#: Share of the numbers that `percentile` covers.
_COVERED = 0.999


def minmax(rows: Tensor, top: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """All of it.

    >>> minmax(torch.tensor([-1.0, 3.0]), torch.tensor(7.0), False)
    (tensor(-1.), tensor(3.))
    """
    if symmetric:
        high = rows.abs().amax(-1)
        return -high, high
    return rows.amin(-1), rows.amax(-1)


def percentile(rows: Tensor, top: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """All but the outermost thousandth of the numbers, at either end or, of a symmetric range, in magnitude.

    >>> percentile(torch.arange(1001.0), torch.tensor(7.0), True)
    (tensor(-999.), tensor(999.))
    """
    number = rows.shape[-1]
    if symmetric:
        high = rows.abs().kthvalue(max(1, round(_COVERED * number)), dim=-1).values
        return -high, high
    spare = number - max(1, round(_COVERED * number))
    return rows.kthvalue(1 + spare, dim=-1).values, rows.kthvalue(number - spare, dim=-1).values


def mse(rows: Tensor, top: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The share of the full range, out of 17, whose codes are nearest to the numbers in the mean square.

    >>> low, high = mse(torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1.6])]), torch.tensor(7.0), True)
    >>> high < 1.1
    tensor(True)
    """
    low, high = minmax(rows, top, symmetric)
    best = torch.full_like(high, torch.inf)
    found = torch.ones_like(high)
    for share in _SHARES:
        if symmetric:
            scale = affine.symmetric_scale(low * share, high * share, top)
            zero, lowest = torch.zeros_like(scale), -top
        else:
            scale, zero = affine.affine_scale(low * share, high * share, top)
            lowest = torch.zeros_like(top)
        wide, zero = scale[..., None], zero[..., None]
        error = ((affine.codes(rows, wide, zero, lowest, top) - zero) * wide - rows).square().sum(-1)
        found = torch.where(error < best, share, found)
        best = torch.minimum(best, error)
    return low * found, high * found
