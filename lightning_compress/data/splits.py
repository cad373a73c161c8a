"""Seeded, stratified splits of a labelled set: pure functions from labels to positions."""

from itertools import pairwise

import torch
from torch import Tensor


def train_val(labels: Tensor, *, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the train and validation part, every class in both in proportion.

    `labels` is int64 `[N]`; the results are sorted int64 positions that partition `0..N-1`.

    Raises:
        ValueError: if the fraction is not inside (0, 1) or a class has fewer than 2 samples.

    >>> train, val = train_val(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), val_fraction=0.25, seed=0)
    >>> len(train), len(val)
    (6, 2)
    """
    train, val = _partition(labels, [val_fraction], seed)
    return train, val


def train_val_test(
    labels: Tensor, *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the train, validation and test part, every class in all three in proportion.

    Both fractions are of the whole set. Another `val_fraction` leaves the test part as it is.

    Raises:
        ValueError: if a fraction or their sum is not inside (0, 1) or a class has fewer than 3 samples.

    >>> parts = train_val_test(torch.arange(100) % 2, val_fraction=0.2, test_fraction=0.1, seed=0)
    >>> [len(part) for part in parts]
    [70, 20, 10]
    """
    train, test, val = _partition(labels, [test_fraction, val_fraction], seed)
    return train, val, test


def held_out(
    labels: Tensor, *, val_fraction: float, test_fraction: float | None, seed: int, limit: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Positions of the train, the validation and, with a `test_fraction`, the test part; `limit` samples to train on.

    Raises:
        ValueError: as above, or `limit` is not between 1 and the number of train samples.

    >>> train, val, test = held_out(torch.arange(100) % 2, val_fraction=0.2, test_fraction=None, seed=0, limit=8)
    >>> len(train), len(val), test
    (8, 20, None)
    """
    test: Tensor | None = None
    if test_fraction is None:
        train, val = train_val(labels, val_fraction=val_fraction, seed=seed)
    else:
        train, val, test = train_val_test(labels, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    if limit is not None:
        if not 0 < limit <= len(train):
            raise ValueError(f"limit must be between 1 and the {len(train)} train samples, got {limit}")
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        train = train[drawn[:limit].sort().values]
    return train, val, test


def _partition(labels: Tensor, fractions: list[float], seed: int) -> list[Tensor]:
    """Positions of what remains, then of each held-out fraction."""
    if not (all(0 < fraction < 1 for fraction in fractions) and sum(fractions) < 1):
        raise ValueError(f"held-out fractions must be above 0 and sum to less than 1, got {fractions}")
    counts = torch.bincount(labels)
    held = [_allocate(counts, round(fraction * len(labels))) for fraction in fractions]
    short = (counts > 0) & (counts <= torch.stack(held).sum(0))
    if short.any():
        label = int(short.nonzero()[0])
        raise ValueError(
            f"class {label} has {int(counts[label])} samples, too few for {len(fractions) + 1} parts with "
            f"held-out fractions {fractions}: give it more samples or hold out less"
        )
    rank = _rank_within_class(labels, counts, seed)
    edges = torch.stack([torch.zeros_like(counts), *held]).cumsum(0)[:, labels]
    parts = [((rank >= low) & (rank < high)).nonzero()[:, 0] for low, high in pairwise(edges)]
    return [(rank >= edges[-1]).nonzero()[:, 0], *parts]


def _allocate(counts: Tensor, total: int) -> Tensor:
    """Shares `total` among the classes in proportion, by largest remainder, at least one each."""
    quota = counts.double() * total / counts.sum()
    share = quota.floor()
    rest = total - int(share.sum())
    share[(quota - share).argsort(descending=True, stable=True)[:rest]] += 1
    return share.clamp(min=1).long()


def _rank_within_class(labels: Tensor, counts: Tensor, seed: int) -> Tensor:
    """Place of each sample in a random order of its own class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - first[labels[by_class]]
    return rank
