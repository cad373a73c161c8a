"""When to go on training: trials are compared at rungs, the best share goes on, the others are paused.

Asynchronous successive halving (arXiv 1810.05934) for several objectives (arXiv 2106.12639). A paused trial keeps its
checkpoint and is promoted once it ranks high enough among those that came after it. Nothing here reads or writes, and
what the rule says depends on the calls made so far only, so replaying them restores it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import moocore  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ranking = Literal["hypervolume", "crowding"]
RANKINGS: tuple[Ranking, ...] = ("hypervolume", "crowding")
_REFERENCE = 1.1
_NOTHING = 1e-9
_PREDICTS = 0.5
_FEWEST = 5


def ladder(*, ramp: int, grace: int, eta: int, horizon: int) -> tuple[int, ...]:
    """Epochs after which trials are compared: `ramp + grace * eta**k`, in a full training of `horizon` epochs.

    `ramp` is the length of the compression's schedules, before whose end accuracy says little. After the first rung
    only those count that have `eta` times as many epochs still to reach: a later one saves too little.

    >>> ladder(ramp=0, grace=3, eta=3, horizon=52)
    (3, 9)
    """
    levels = [grace] if ramp + grace < horizon else []
    while levels and levels[-1] * eta**2 <= horizon - ramp:
        levels.append(levels[-1] * eta)
    return tuple(ramp + level for level in levels)


@final
class Rule:
    """Says which trials go on after each of the epochs `levels`; `directions` has max or min for each value.

    At a rung that n trials have reached, n // `eta` may go on, so the first `eta` - 1 wait. `ranking` says which:
    "hypervolume" the one that adds most dominated hypervolume to those that went on before, none where none adds any,
    so that what improves nothing is not paid for; "crowding" the best n // `eta` front by front, within a front those
    with the widest gap to their neighbours (NSGA-II, doi 10.1109/4235.996017), beside those that went on when they were
    among the best. Of equal trials the earlier one is better. With one objective both mean the best n // `eta`.

    Raises:
        ValueError: levels that do not rise, an unknown direction or ranking, `eta` below 2.

    >>> rule = Rule((3, 9), ("max", "min"), eta=2)
    >>> rule.report(0, 3, (0.8, 100.0)), rule.report(1, 3, (0.9, 90.0))
    (False, True)
    >>> rule.report(2, 3, (0.95, 95.0)), rule.report(3, 3, (0.7, 110.0)), rule.promotable()
    (False, False, [(2, 3)])
    """

    def __init__(
        self, levels: Sequence[int], directions: Sequence[str], *, eta: int = 3, ranking: Ranking = "hypervolume"
    ) -> None:
        if list(levels) != sorted(set(levels)) or any(level < 1 for level in levels):
            raise ValueError(f"levels must be rising epochs from 1 on, got {tuple(levels)}")
        if not directions or set(directions) - {"max", "min"}:
            raise ValueError(f"directions must be max or min, one for each value, got {tuple(directions)}")
        if eta < 2:
            raise ValueError(f"eta must be at least 2: one trial in eta goes on; got {eta}")
        if ranking not in RANKINGS:
            raise ValueError(f"ranking must be {' or '.join(RANKINGS)}, got {ranking!r}")
        self._signs = np.array([-1.0 if direction == "max" else 1.0 for direction in directions])
        # One objective has no front to widen: under "hypervolume" nothing but a new best would go on.
        self._eta, self._ranking = eta, ranking if len(self._signs) > 1 else "crowding"
        self._losses: dict[int, dict[int, Array]] = {level: {} for level in levels}
        self._passed: dict[int, set[int]] = {level: set() for level in levels}

    def report(self, trial: int, level: int, values: Sequence[float]) -> bool:
        """Take what a trial has at a rung and say whether it goes on at once; if not it is paused.

        Raises:
            ValueError: an unknown level, a trial that reported there before, or values that are not finite numbers.
        """
        if level not in self._losses:
            raise ValueError(f"trial {trial}: no rung at epoch {level}, only at {', '.join(map(str, self._losses))}")
        if trial in self._losses[level]:
            raise ValueError(f"trial {trial} reported at epoch {level} before")
        losses = np.asarray(values, float)
        if losses.shape != self._signs.shape or not np.isfinite(losses).all():
            raise ValueError(
                f"trial {trial}: expected {len(self._signs)} finite values at epoch {level}, got {tuple(values)}"
            )
        self._losses[level][trial] = losses * self._signs
        go = trial in self._next(level)
        if go:
            self._passed[level].add(trial)
        return go

    def promotable(self) -> list[tuple[int, int]]:
        """Paused trials that may go on by now and their rung, highest rung first, then best first.

        Promote the first one and ask again: what the others are worth depends on it.
        """
        return [(trial, level) for level in reversed(self._losses) for trial in self._next(level)]

    def promoted(self, trial: int, level: int) -> None:
        """Take note that a trial paused at a rung goes on, whether or not it was promotable.

        Raises:
            ValueError: it is not paused there.
        """
        if trial not in self._losses.get(level, {}) or trial in self._passed[level]:
            raise ValueError(f"trial {trial} is not paused at epoch {level}")
        self._passed[level].add(trial)

    def _next(self, level: int) -> list[int]:
        """Trials paused at a rung that may go on, best first."""
        reported, passed = self._losses[level], self._passed[level]
        count = len(reported) // self._eta
        if count == 0 or (self._ranking == "hypervolume" and len(passed) >= count):
            return []
        trials = list(reported)
        losses = np.stack(list(reported.values()))
        if self._ranking == "crowding":
            return [trials[row] for row in by_crowding(losses, count) if trials[row] not in passed]
        taken = np.array([trial in passed for trial in trials])
        return [trials[row] for row in by_hypervolume(losses, taken, count - len(passed))]


def by_crowding(losses: Array, count: int) -> list[int]:
    """Rows of the `count` best of `losses` [trials, values] (smaller is better), the best first.

    Values are compared in shares of what they span here, so their units do not matter.

    >>> by_crowding(np.array([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]]), 3)
    [1, 2, 0]
    """
    # Where the numbers of fronts begin is moocore's affair.
    fronts = np.asarray(moocore.pareto_rank(losses))
    chosen: list[int] = []
    for front in np.unique(fronts):
        rows = np.flatnonzero(fronts == front)
        # A copy fills no gap, wherever it lies.
        distances = np.full(len(rows), -1.0)
        first = np.sort(np.unique(losses[rows], axis=0, return_index=True)[1])
        distances[first] = crowding(losses[rows[first]])
        chosen += rows[np.argsort(-distances, kind="stable")].tolist()
        if len(chosen) >= count:
            break
    return chosen[:count]


def by_hypervolume(losses: Array, taken: NDArray[np.bool_], count: int) -> list[int]:
    """At most `count` rows of `losses` [trials, values], each adding most volume to those `taken` and those before.

    The greedy subset of doi 10.1162/EVCO_a_00188, with values in shares of what they span here and the reference point
    a tenth beyond the worst. Rows that add nothing are left out.

    >>> by_hypervolume(np.array([[0.0, 1.0], [0.1, 0.1], [0.5, 0.5], [1.0, 0.0]]), np.zeros(4, bool), 4)
    [1, 0, 3]
    """
    span = np.ptp(losses, axis=0)
    scaled = (losses - losses.min(axis=0)) / np.where(span > 0, span, 1.0)
    volume = moocore.Hypervolume(ref=[_REFERENCE] * losses.shape[1])
    base = scaled[taken]
    reached = volume(base) if len(base) else 0.0
    left = np.flatnonzero(~taken).tolist()
    chosen: list[int] = []
    while left and len(chosen) < count:
        volumes = [volume(np.vstack([base, scaled[row]])) for row in left]
        best = int(np.argmax(volumes))
        if volumes[best] <= reached + _NOTHING:
            break
        reached = volumes[best]
        chosen.append(left.pop(best))
        base = np.vstack([base, scaled[chosen[-1]]])
    return chosen


def crowding(points: Array) -> Array:
    """Crowding distance of the rows of `points` [n, values]: infinite at both ends of a value, larger where few are.

    Deb et al., doi 10.1109/4235.996017, with the gaps in shares of the span.

    >>> crowding(np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0]])).tolist()
    [inf, 2.0, inf]
    """
    distances = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        # Where all agree, none is at an end.
        if span > 0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
            distances[[order[0], order[-1]]] = math.inf
    return distances


@final
@dataclass(frozen=True)
class Prediction:
    """How well the rung after `level` epochs foretells the end: Spearman's rank correlations over `trials` trials.

    `values` has one for each objective, `fronts` is that of the fronts that trials lie on; None where all agree.
    """

    level: int
    trials: int
    values: tuple[float | None, ...]
    fronts: float | None

    def warning(self, names: Sequence[str]) -> str:
        """What to tell the user about objectives called `names`; empty where nothing speaks against the rung.

        Of fewer than 5 trials nothing is said.
        """
        found = zip([*names, "rank by fronts"], [*self.values, self.fronts], strict=True)
        weak = [f"{name} {value:.2f}" for name, value in found if value is not None and value < _PREDICTS]
        if not weak or self.trials < _FEWEST:
            return ""
        return (
            f"after {self.level} epochs trials rank otherwise than at the end (rank correlation {', '.join(weak)}, "
            f"{self.trials} trials): a longer grace, or a ramp that covers the schedules, would stop better"
        )


def predicts(
    level: int,
    there: Mapping[int, Sequence[float]],
    at_end: Mapping[int, Sequence[float]],
    directions: Sequence[str],
) -> Prediction:
    """Compare what trials had at a rung with what they have `at_end`; those that are in both count.

    Trials that went on were chosen by the rung, so this says too little rather than too much.

    >>> there, at_end = {0: [0.5], 1: [0.6], 2: [0.7], 3: [0.1]}, {0: [0.8], 1: [0.7], 2: [0.9]}
    >>> predicts(3, there, at_end, ["max"])
    Prediction(level=3, trials=3, values=(0.5,), fronts=0.5)
    """
    both = [trial for trial in there if trial in at_end]
    if len(both) < 2:
        return Prediction(level, len(both), (None,) * len(directions), None)
    signs = [-1.0 if direction == "max" else 1.0 for direction in directions]
    early, late = (np.array([points[trial] for trial in both], float) * signs for points in (there, at_end))
    values = tuple(spearman(one, other) for one, other in zip(early.T, late.T, strict=True))
    fronts = spearman(*(np.asarray(moocore.pareto_rank(losses), float) for losses in (early, late)))
    return Prediction(level, len(both), values, fronts)


def spearman(one: Array, other: Array) -> float | None:
    """Rank correlation, equal numbers sharing their mean rank; None where all numbers of a side agree.

    >>> spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([3.0, 4.0, 4.0, 5.0]))
    1.0
    """
    first, second = _ranks(one), _ranks(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return round(float(np.corrcoef(first, second)[0, 1]), 12)


def _ranks(numbers: Array) -> Array:
    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    mean: Array = np.cumsum(count) - (count - 1) / 2
    return mean[place]
