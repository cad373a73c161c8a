"""Schedules: plain callables from progress in [0, 1] to a value, shared by sparsity, bits, temperature and weights.

Every class here is a frozen description of one curve. Between `begin` and `end` it goes from `first` to
`last`; before and after it is flat, so one object fits a run of any length.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[float], float]

# So that a moment such as 1/3 + 1/3 is met by the step that is 2/3 of the way, whatever the last bit says.
_ROUNDING = 1e-9


def _fraction(progress: float, begin: float, end: float) -> float:
    """Share of the window [begin, end] that lies behind `progress`."""
    if progress >= end:
        return 1.0
    return 0.0 if progress <= begin else (progress - begin) / (end - begin)


@dataclass(frozen=True)
class _Window:
    first: float = 0.0
    last: float = 1.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= begin <= end <= 1, got begin={self.begin}, end={self.end}: "
                "both are shares of the run, not epochs"
            )

    def _between(self, share: float) -> float:
        # This form meets both ends exactly; first + (last - first) * share may miss `last` by a rounding.
        return self.first * (1.0 - share) + self.last * share


@final
@dataclass(frozen=True)
class Constant:
    """The same value all along.

    >>> Constant(4.0)(0.3)
    4.0
    """

    value: float

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        return self.value


@final
@dataclass(frozen=True)
class Linear(_Window):
    """A straight line from `first` to `last` between `begin` and `end`.

    >>> Linear(first=0.0, last=0.8, begin=0.0, end=0.5)(0.25)
    0.4
    """

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        return self._between(_fraction(progress, self.begin, self.end))


@final
@dataclass(frozen=True)
class Cosine(_Window):
    """Half a cosine from `first` to `last` (SGDR, arXiv 1608.03983).

    >>> round(Cosine(first=1.0, last=0.0)(0.5), 6)
    0.5
    """

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        share = _fraction(progress, self.begin, self.end)
        return self._between(0.5 * (1.0 - math.cos(math.pi * share)))


@final
@dataclass(frozen=True)
class Polynomial(_Window):
    """Fast at first, flat at the end: `last + (first - last) * (1 - t) ** exponent`.

    Exponent 3 is the cubic ramp of Zhu and Gupta (arXiv 1710.01878), any other that of TFMOT's PolynomialDecay.

    >>> round(Polynomial(first=0.0, last=0.8)(0.5), 6)
    0.7
    """

    exponent: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exponent <= 0:
            raise ValueError(f"Polynomial needs exponent > 0, got {self.exponent}; 1 is a line, 3 is the cubic ramp")

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        share = _fraction(progress, self.begin, self.end)
        return self._between(1.0 - math.pow(1.0 - share, self.exponent))


@final
@dataclass(frozen=True)
class OneShot:
    """A jump from `first` to `last` at one moment.

    >>> OneShot(last=0.5, at=0.2)(0.1), OneShot(last=0.5, at=0.2)(0.2)
    (0.0, 0.5)
    """

    last: float = 1.0
    at: float = 0.0
    first: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.at <= 1.0:
            raise ValueError(f"OneShot needs 0 <= at <= 1, got at={self.at}: it is a share of the run, not an epoch")

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        return self.last if progress >= self.at else self.first


@final
@dataclass(frozen=True)
class Steps:
    """A staircase: `values[i]` from `at[i - 1]` on, `values[0]` before the first.

    >>> Steps(values=[1.0, 0.1, 0.01], at=[0.5, 0.75])(0.6)
    0.1
    """

    values: Sequence[float]
    at: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at) + 1 or list(self.at) != sorted(self.at):
            raise ValueError(
                "Steps needs one value more than moments, and moments in rising order, "
                f"got values={list(self.values)}, at={list(self.at)}"
            )
        if not all(0.0 <= moment <= 1.0 for moment in self.at):
            raise ValueError(f"Steps needs moments in [0, 1], got at={list(self.at)}: shares of the run, not epochs")

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        return self.values[sum(progress >= moment for moment in self.at)]


@final
@dataclass(frozen=True)
class Rounds:
    """The share removed by `rounds` moves, each of `rate` of what was left: 1 - (1 - rate)^k after the k-th.

    The first move is at `first_at`, the rest follow at equal distances and leave as long a stretch behind the last. By
    default all stretches are alike, the one before the first move too (lottery tickets, arXiv 1803.03635).

    >>> thirds = Rounds(rate=0.2, rounds=2)
    >>> [round(thirds(progress), 2) for progress in (0.0, 0.4, 0.7, 1.0)]
    [0.0, 0.2, 0.36, 0.36]
    """

    rate: float = 0.2
    rounds: int = 5
    first_at: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0 or self.rounds < 1:
            raise ValueError(
                "Rounds needs a rate between 0 and 1, the share of what is left that each move removes, and at least "
                f"one round; got rate={self.rate}, rounds={self.rounds}"
            )
        if self.first_at is not None and not 0.0 <= self.first_at < 1.0:
            raise ValueError(
                f"Rounds needs 0 <= first_at < 1, got first_at={self.first_at}: it is a share of the run, not an epoch"
            )

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        first = 1.0 / (self.rounds + 1) if self.first_at is None else self.first_at
        apart = (1.0 - first) / self.rounds
        moves = sum(progress >= first + apart * move - _ROUNDING for move in range(self.rounds))
        return 1.0 - (1.0 - self.rate) ** moves


@final
@dataclass(frozen=True)
class Repeat:
    """The whole of `schedule`, `times` times over: with `Rounds`, learning rates go back when weights are removed.

    As a schedule of learning rates it is learning rate rewinding (arXiv 2003.02389), with `times` one more than rounds.

    >>> saw = Repeat(Linear(first=1.0, last=0.0), times=2)
    >>> saw(0.25), saw(0.5), saw(0.75), saw(1.0)
    (0.5, 1.0, 0.5, 0.0)
    """

    schedule: Schedule
    times: int

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"Repeat needs times of at least 1, got {self.times}")

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        share = progress * self.times
        begun = min(math.floor(share + _ROUNDING), self.times - 1)
        return self.schedule(max(0.0, share - begun))


def as_schedule(value: float | Schedule) -> Schedule:
    """A number becomes a `Constant`; a schedule stays what it is.

    >>> as_schedule(2)(0.9)
    2.0
    """
    return value if callable(value) else Constant(float(value))


def learning_rate(optimizer: Optimizer, total_steps: int, *, schedule: Schedule) -> LambdaLR:
    """A scheduler that multiplies each group's learning rate by `schedule(step / total_steps)`.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> learning_rate(sgd, 10, schedule=Linear(first=1.0, last=0.0)).get_last_lr()
    [0.1]
    """
    return LambdaLR(optimizer, lambda step: schedule(min(1.0, step / max(1, total_steps))))
