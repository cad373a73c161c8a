"""Which range of an input the codes cover, from what calibration saw: `choose(seen, top) -> (low, high)`.

`top` is the number of codes less one. Ranges of inputs that are never negative begin at 0; the others are narrowed by
the same factor at both ends, so that zero stays where it is.
"""

import torch
from torch import Tensor

from lightning_compress.quantize import affine
from lightning_compress.quantize.seen import Seen

#: Share of the batches before in the moving average: that of PyTorch's QAT observers is 0.99, for many more batches.
_MOMENTUM = 0.9
#: Share of the numbers that `percentile` covers at either end.
_COVERED = 0.9999
#: How many narrower ranges `mse` and `entropy` try.
_TRIED = 128


def min_max(seen: Seen, top: int) -> tuple[float, float]:
    """All that was seen.

    >>> min_max(Seen(torch.tensor([[0.0, 2.0], [-1.0, 1.0]]), torch.ones(4), -1.0, 2.0), 255)
    (-1.0, 2.0)
    """
    return float(seen.batches[:, 0].min()), float(seen.batches[:, 1].max())


def moving_average(seen: Seen, top: int) -> tuple[float, float]:
    """Exponential moving average of the batches' ranges, from the first on (Jacob et al., arXiv 1712.05877).

    >>> low, high = moving_average(Seen(torch.tensor([[0.0, 2.0], [0.0, 3.0]]), torch.ones(4), 0.0, 3.0), 255)
    >>> low, round(high, 6)
    (0.0, 2.1)
    """
    running = seen.batches[0]
    for batch in seen.batches[1:]:
        running = _MOMENTUM * running + (1.0 - _MOMENTUM) * batch
    return float(running[0]), float(running[1])


def percentile(seen: Seen, top: int) -> tuple[float, float]:
    """All but the outermost ten-thousandth of the numbers at either end, up to one bin.

    >>> percentile(Seen(torch.zeros(1, 2), torch.tensor([0.0, 99999.0, 0.0, 1.0]), 0.0, 4.0), 255)
    (1.0, 2.0)
    """
    share = seen.counts.cumsum(0) / seen.counts.sum()
    first = int((share > 1.0 - _COVERED).nonzero()[0])
    last = int((share >= _COVERED).nonzero()[0])
    return seen.low + first * seen.width, seen.low + (last + 1) * seen.width


def mse(seen: Seen, top: int) -> tuple[float, float]:
    """The range whose codes are nearest to the numbers in the mean square, each number at the middle of its bin.

    >>> few = torch.tensor([1e5] * 16 + [0.0] * 15 + [1.0], dtype=torch.float64)
    >>> mse(Seen(torch.zeros(1, 2), few, 0.0, 2.0), 7)[1] < 1.1
    True
    """
    shares = torch.arange(1, _TRIED + 1, dtype=torch.float64)[:, None] / _TRIED
    scale, zero = affine.affine_scale(shares * seen.low, shares * seen.high, top)
    x = seen.centres
    error = ((affine.codes(x, scale, zero, 0, top) - zero) * scale - x).square() @ seen.counts
    share = float(shares[error.argmin()])
    return share * seen.low, share * seen.high


def entropy(seen: Seen, top: int) -> tuple[float, float]:
    """The range that loses least information: TensorRT's calibration (Migacz, GTC 2017, "8-bit inference").

    What is beyond a candidate's range is counted in its outermost bins; the least divergence of Kullback and Leibler
    between that and what `_merged` leaves of the bins wins. The bin of zero counts as the next one does, as in NVIDIA's
    pytorch-quantization: zero is exact in any range, and after ReLU its bin would outweigh all others.

    >>> few = torch.tensor([1e5, 9e4, 8e4, 7e4] * 4 + [0.0] * 15 + [1.0])
    >>> entropy(Seen(torch.zeros(1, 2), few, 0.0, 2.0), 7)
    (0.0, 1.0)
    """
    counts, bins = seen.counts.clone(), len(seen.counts)
    zero = -seen.low / seen.width
    at = min(int(zero), bins - 1)
    counts[at] = counts[at + 1 if at + 1 < bins else at - 1]
    best, found = torch.inf, (seen.low, seen.high)
    for step in range(1, _TRIED + 1):
        share = step / _TRIED
        first, last = round(zero * (1.0 - share)), round(zero + (bins - zero) * share)
        if last - first <= top:
            continue
        inside = counts[first:last]
        whole = inside.clone()
        whole[0] += counts[:first].sum()
        whole[-1] += counts[last:].sum()
        loss = _divergence(whole, _merged(inside, top + 1))
        if loss < best:
            best, found = loss, (seen.low + first * seen.width, seen.low + last * seen.width)
    return found


def _merged(counts: Tensor, levels: int) -> Tensor:
    """Counts [bins] merged into so many neighbourhoods, each spread again evenly over its bins that were not empty.

    >>> _merged(torch.tensor([1.0, 0.0, 2.0, 3.0, 5.0, 3.0, 1.0, 7.0]), 2)
    tensor([2., 0., 2., 2., 4., 4., 4., 4.])
    """
    level = torch.arange(len(counts)) * levels // len(counts)
    used = (counts > 0).to(counts.dtype)
    sums, numbers = (torch.zeros(levels, dtype=counts.dtype).index_add_(0, level, x) for x in (counts, used))
    return (sums / numbers.clamp(min=1.0))[level] * used


def _divergence(p: Tensor, q: Tensor) -> float:
    """Kullback and Leibler's, of counts that are made to sum to one; infinite where `q` lacks what `p` has.

    >>> round(_divergence(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0])), 4)
    0.1438
    """
    p, q = p / p.sum(), q / q.sum()
    terms = torch.where(p > 0, p * (p / q).log(), 0.0)
    return float(terms.sum())
