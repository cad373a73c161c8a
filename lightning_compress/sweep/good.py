"""Which results are good: whole fronts, and of the next one the rows that together dominate the most."""

import moocore  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_EPSILON = 1e-12


def good(losses: Array, count: int) -> NDArray[np.int64]:
    """Indices of the `count` best rows of `losses` (smaller is better): whole fronts, then a subset of the next one.

    >>> good(np.array([[0.0, 2.0], [2.0, 0.0], [1.9, 1.9], [3.0, 3.0]]), 2).tolist()
    [0, 1]
    """
    ranks = np.asarray(moocore.pareto_rank(losses))
    ranks -= ranks.min()
    ends = np.cumsum(np.bincount(ranks))
    last = int(np.searchsorted(ends, count))
    whole = np.flatnonzero(ranks < last)
    border = np.flatnonzero(ranks == last)
    if len(whole) + len(border) <= count:
        return np.concatenate([whole, border])
    return np.concatenate([whole, border[_spread(losses[border], count - len(whole))]])


def _spread(points: Array, count: int) -> list[int]:
    """Rows that together dominate the most, greedily (doi 10.1162/EVCO_a_00188).

    What a row adds only shrinks as others are chosen, so an old number bounds the new one and few are computed anew.
    """
    worst = points.max(axis=0)
    reference = np.maximum(1.1 * worst, 0.9 * worst)
    reference[reference == 0] = _EPSILON
    volume = moocore.Hypervolume(ref=reference)
    alone = np.prod(reference - points, axis=1)
    bounds, taken = alone.copy(), np.empty((count, points.shape[1]))
    chosen: list[int] = []
    for step in range(count):
        exact = set() if step else set(range(len(points)))
        top = int(bounds.argmax())
        while top not in exact:
            bounds[top] = alone[top] - volume(np.maximum(taken[:step], points[top]))
            exact.add(top)
            top = int(bounds.argmax())
        chosen.append(top)
        taken[step] = points[top]
        np.minimum(bounds, alone - np.prod(reference - np.maximum(points, points[top]), axis=1), out=bounds)
        bounds[chosen] = -np.inf
    return chosen
