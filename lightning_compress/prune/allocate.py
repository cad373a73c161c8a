"""Which units go at a given sparsity: `allocate(scores, sparsity, multiple) -> keep`, by name.

`scores` maps a name to a 1-D tensor of unit scores, -inf for units that are gone already; `keep` maps it to a bool
tensor of the same length. The number of units kept under each name is rounded up to a `multiple` and is at least one
multiple.
"""

import math

import torch
from torch import Tensor

Scores = dict[str, Tensor]


def num_kept(size: int, sparsity: float, multiple: int = 1) -> int:
    """How many of `size` units stay at `sparsity`: rounded, then up to a multiple, never more than there are.

    >>> num_kept(10, 0.75), num_kept(64, 0.6, multiple=16), num_kept(4, 1.0)
    (2, 32, 1)
    """
    # The rounding guards against 10 * (1 - 0.9) = 0.9999..., which would keep nothing.
    wanted = size - round(size * sparsity)
    return min(size, max(1, math.ceil(wanted / multiple)) * multiple)


def _top(score: Tensor, count: int) -> Tensor:
    keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    keep[torch.topk(score, count, sorted=False).indices] = True
    return keep


def uniform(scores: Scores, sparsity: float, multiple: int = 1) -> Scores:
    """The same sparsity under every name.

    >>> uniform({"a": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)
    {'a': tensor([ True, False, False,  True])}
    """
    return {name: _top(score, num_kept(score.numel(), sparsity, multiple)) for name, score in scores.items()}


def overall(scores: Scores, sparsity: float, multiple: int = 1) -> Scores:
    """One ranking over all names: `sparsity` is reached in total, each name keeps at least one multiple.

    >>> overall({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5)["b"]
    tensor([True, True])
    """
    joined = torch.cat(list(scores.values()))
    ranked = _top(joined, num_kept(joined.numel(), sparsity))
    counts = [int(part.sum()) for part in torch.split(ranked, [score.numel() for score in scores.values()])]
    return {
        name: _top(score, num_kept(score.numel(), 1.0 - count / score.numel(), multiple))
        for (name, score), count in zip(scores.items(), counts, strict=True)
    }


def above(scores: Scores, quality: float) -> Scores:
    """Han's threshold form: a unit goes where its score is below `quality` standard deviations of its tensor's weights.

    The scores are magnitudes, so the variance of the weights is the mean of their squares (Han 2015 takes the weights'
    mean as zero), with those that are gone as zeros. The largest unit under each name always stays.

    >>> above({"a": torch.tensor([0.1, 1.0, 1.0])}, 0.5)
    {'a': tensor([False,  True,  True])}
    """
    keep = {name: score >= quality * score.clamp(min=0.0).square().mean().sqrt() for name, score in scores.items()}
    for name, score in scores.items():
        keep[name][score.argmax()] = True
    return keep
