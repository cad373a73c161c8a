"""Which units go at a given sparsity: `allocate(scores, sparsity, multiple) -> keep`, by name.

`scores` maps a name to a 1-D tensor of unit scores, -inf for units that are gone already; `keep` maps it to a bool
tensor of the same length. The number of units kept under each name is rounded up to a `multiple` and is at least one
multiple. An allocation that has a parameter `shapes` is told the shape of the weight of the layer of each name.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Scores = dict[str, Tensor]

# Below, torch.topk is as fast; the sample is small enough to sort at no cost and shows ranks to 1 % or so.
_MANY, _SAMPLE = 16_384, 8_192


def num_kept(size: int, sparsity: float, multiple: int = 1) -> int:
    """How many of `size` units stay at `sparsity`: rounded, then up to a multiple, never more than there are.

    >>> num_kept(10, 0.75), num_kept(64, 0.6, multiple=16), num_kept(4, 1.0)
    (2, 32, 1)
    """
    # The rounding guards against 10 * (1 - 0.9) = 0.9999..., which would keep nothing.
    return _rounded(size - round(size * sparsity), size, multiple)


def _rounded(count: int, size: int, multiple: int) -> int:
    return min(size, max(1, math.ceil(count / multiple)) * multiple)


def top(score: Tensor, count: int) -> Tensor:
    """The `count` largest entries of a 1-D `score`, as a bool tensor.

    >>> top(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor([ True, False,  True])
    """
    keep = _top_of_many(score, count) if score.device.type == "cpu" and score.numel() >= _MANY else None
    if keep is None:
        keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        keep[torch.topk(score, count, sorted=False).indices] = True
    return keep


def _top_of_many(score: Tensor, count: int) -> Tensor | None:
    """The same on a CPU, several times as fast, or None.

    A sample says between which two values the smallest of the largest lies, so that few entries have to be ranked.
    """
    values = score.numpy()
    sample = np.sort(values[:: len(values) // _SAMPLE | 1])
    rank = (1.0 - count / len(values)) * len(sample)
    # Three standard deviations of the rank in a random sample.
    room = 1 + 3.0 * math.sqrt(rank * (1.0 - rank / len(sample)))
    low = sample[max(0, int(rank - room))]
    high = sample[min(len(sample) - 1, int(rank + room))]
    near = values[np.flatnonzero((values > low) & (values <= high))]
    missing = count - int(np.count_nonzero(values > high))
    if not 0 < missing <= len(near):
        return None
    least = np.partition(near, len(near) - missing)[len(near) - missing]
    keep = values >= least
    if np.count_nonzero(keep) > count:
        keep = values > least
        keep[np.flatnonzero(values == least)[: count - int(np.count_nonzero(keep))]] = True
    return torch.from_numpy(keep)


def least_where_gone(scores: Scores, keep: Scores) -> Scores:
    """The scores with -inf where a unit is gone, so that it is never preferred to one that is not.

    >>> least_where_gone({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([True, False])})
    {'a': tensor([1., -inf])}
    """
    found = {}
    for name, kept in keep.items():
        # Nothing for what is kept, infinity for what is gone: on a CPU masked_fill takes ten times as long.
        gone = kept.view(torch.uint8).float().reciprocal_().sub_(1.0)
        found[name] = torch.sub(scores[name], gone, out=gone)
    return found


def given(scores: Scores, shares: Mapping[str, float], multiple: int = 1) -> Scores:
    """The sparsity of each name that `shares` gives it.

    >>> given({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, {"a": 0.5, "b": 0.0})["a"]
    tensor([ True, False])
    """
    return {name: top(score, num_kept(score.numel(), shares[name], multiple)) for name, score in scores.items()}


def uniform(scores: Scores, sparsity: float, multiple: int = 1) -> Scores:
    """The same sparsity under every name.

    >>> uniform({"a": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)
    {'a': tensor([ True, False, False,  True])}
    """
    return given(scores, dict.fromkeys(scores, sparsity), multiple)


def overall(scores: Scores, sparsity: float, multiple: int = 1) -> Scores:
    """One ranking over all names: `sparsity` is reached in total, each name keeps at least one multiple.

    >>> overall({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5)["b"]
    tensor([True, True])
    """
    joined = torch.cat(list(scores.values()))
    ranked = top(joined, num_kept(joined.numel(), sparsity))
    keep = {}
    for (name, score), part in zip(
        scores.items(), torch.split(ranked, [score.numel() for score in scores.values()]), strict=True
    ):
        count = int(part.sum())
        wanted = _rounded(count, score.numel(), multiple)
        keep[name] = part if wanted == count else top(score, wanted)
    return keep


def erdos_renyi(scores: Scores, sparsity: float, multiple: int = 1, *, shapes: Mapping[str, Sequence[int]]) -> Scores:
    """Densities in proportion to (n_in + n_out) / (n_in * n_out): small layers stay denser (SET, arXiv 1707.04780).

    A layer that would need more than it has stays whole, and the others make up for it, so that `sparsity` is reached
    in total (RigL, arXiv 1911.11134); to the unit, but where a multiple or the last unit of a layer forbids it.

    >>> wide, small = torch.rand(2000), torch.rand(20)
    >>> keep = erdos_renyi({"a": wide, "b": small}, 0.8, shapes={"a": (100, 20), "b": (4, 5)})
    >>> int(keep["a"].sum()), int(keep["b"].sum())
    (384, 20)
    """
    return _by_density(scores, {name: _raw(shape[:2]) for name, shape in shapes.items()}, sparsity, multiple)


def erdos_renyi_kernel(
    scores: Scores, sparsity: float, multiple: int = 1, *, shapes: Mapping[str, Sequence[int]]
) -> Scores:
    """`erdos_renyi` with the sizes of kernels in both sum and product (RigL: Evci 2020, arXiv 1911.11134).

    >>> keep = erdos_renyi_kernel({"a": torch.rand(90)}, 0.5, shapes={"a": (2, 5, 3, 3)})
    >>> int(keep["a"].sum())
    45
    """
    return _by_density(scores, {name: _raw(shape) for name, shape in shapes.items()}, sparsity, multiple)


def _raw(sizes: Sequence[int]) -> float:
    return sum(sizes) / math.prod(sizes)


def _by_density(scores: Scores, raw: Mapping[str, float], sparsity: float, multiple: int) -> Scores:
    sizes = {name: score.numel() for name, score in scores.items()}
    total = num_kept(sum(sizes.values()), sparsity)
    counts: dict[str, float] = {}
    part = {name: raw[name] * size for name, size in sizes.items()}
    while part:
        factor = (total - sum(counts.values())) / sum(part.values())
        whole = [name for name in part if part[name] * factor > sizes[name]]
        counts |= {name: float(sizes[name]) for name in whole} or {name: part[name] * factor for name in part}
        part = {name: part[name] for name in part if name not in counts}
    found = {name: math.floor(count + 1e-9) for name, count in counts.items()}
    # Whole units: those that lose most by rounding down get what is left.
    for name in sorted(counts, key=lambda name: found[name] - counts[name])[: total - sum(found.values())]:
        found[name] += 1
    return {name: top(score, _rounded(found[name], sizes[name], multiple)) for name, score in scores.items()}


def in_groups(scores: Scores, sparsity: float, multiple: int = 1, *, size: int) -> Scores:
    """The same sparsity in every group of `size` units that follow each other: N:M sparsity (arXiv 2104.08378).

    >>> in_groups({"a": torch.tensor([3.0, 1.0, 2.0, 0.0])}, 0.5, size=2)["a"]
    tensor([ True, False,  True, False])
    """
    keep = {}
    for name, score in scores.items():
        chosen = torch.topk(score.view(-1, size), num_kept(size, sparsity, multiple), sorted=False).indices
        keep[name] = torch.zeros_like(score, dtype=torch.bool).view(-1, size).scatter_(1, chosen, True).flatten()
    return keep


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
