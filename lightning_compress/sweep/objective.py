"""What is good: objectives of a result, the front, and the volume it dominates. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import moocore  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

_REFERENCE = 1.1


class Measured(Protocol):
    """What has numbers by flat name: a `run.result.Result`."""

    def get(self, name: str) -> float:
        """The number called `name`, as `val/accuracy`."""


def values(result: Measured, objectives: Iterable[str]) -> tuple[float, ...]:
    """The objectives of a result, in the order of `objectives`.

    Raises:
        ValueError: the result has no number of that name; the message lists those there are.

    >>> values({"val/accuracy": 0.9, "cost/packed_bytes": 800.0}, {"cost/packed_bytes": "min"})
    (800.0,)
    """
    try:
        return tuple(float(result.get(name)) for name in objectives)
    except KeyError as error:
        raise ValueError(f"objectives: {error.args[0]}") from error


def front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Indices of the points that no other point beats; of equal points the first.

    >>> front([(0.9, 10.0), (0.8, 20.0), (0.8, 5.0), (0.9, 10.0)], ["max", "min"])
    [0, 2]
    """
    if not points:
        return []
    kept = moocore.is_nondominated(np.asarray(points, float), maximise=_maximise(directions), keep_weakly=False)
    return [int(index) for index in np.flatnonzero(kept)]


def dominates(one: Sequence[float], other: Sequence[float], directions: Sequence[str]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better.

    >>> dominates((0.9, 5.0), (0.9, 6.0), ["max", "min"])
    True
    """
    sign = np.where(_maximise(directions), -1.0, 1.0)
    gap = (np.asarray(one, float) - np.asarray(other, float)) * sign
    return bool((gap <= 0).all() and (gap < 0).any())


@final
@dataclass(frozen=True)
class Hypervolume:
    """Share in [0, 1] of the box between `ideal` and the reference point that a front dominates.

    Each objective is scaled linearly: `ideal` to 0, `nadir` to 1; the reference point is `reference` on every axis.
    """

    value: float
    ideal: tuple[float, ...]
    nadir: tuple[float, ...]
    reference: float = _REFERENCE


def hypervolume(
    points: Sequence[Sequence[float]], directions: Sequence[str], *, among: Sequence[Sequence[float]]
) -> Hypervolume:
    """Normalised hypervolume of `points`; the bounds are the best and the worst of each objective in `among`.

    An objective on which all of `among` agree is scaled to 0 (Zitzler et al., doi 10.1109/TEVC.2003.810758).

    >>> hypervolume([(1.0, 0.0)], ["max", "min"], among=[(1.0, 0.0), (0.0, 4.0)]).value
    1.0
    """
    maximise = _maximise(directions)
    bounds = np.asarray(among, float)
    best = np.where(maximise, bounds.max(0), bounds.min(0))
    worst = np.where(maximise, bounds.min(0), bounds.max(0))
    scale = np.where(worst == best, 1.0, worst - best)
    scaled: NDArray[np.float64] = (np.asarray(points, float) - best) / scale
    volume = moocore.hypervolume(scaled, ref=[_REFERENCE] * len(best)) / _REFERENCE ** len(best)
    return Hypervolume(float(volume), tuple(best.tolist()), tuple(worst.tolist()))


def _maximise(directions: Sequence[str]) -> list[bool]:
    return [direction == "max" for direction in directions]
