"""How much is to go: one of the settings of `Prune` that say so, as schedules of what goes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning_compress.core.schedule import Schedule, as_schedule

#: Settings that are a share of what the whole model costs, of which this much stays.
BUDGETS = ("macs", "params", "latency")


def asked(**given: Any) -> tuple[str, dict[str, Schedule]]:
    """Which of the settings is `given`, and its schedules by the regular expression of the layers that they are for.

    A budget's schedule is turned round: like a sparsity it says what goes.

    Raises:
        ValueError: none or several, or a value out of range.

    >>> by, amounts = asked(sparsity=None, macs=0.48)
    >>> by, amounts[""](1.0)
    ('macs', 0.52)
    """
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"Prune needs sparsity or threshold, or a budget ({', '.join(BUDGETS)}), one of them; got {given or 'none'}"
        )
    ((by, value),) = given.items()
    if isinstance(value, Mapping) and by != "sparsity":
        raise ValueError(f"Prune: {by} is one number or schedule for all layers; got the mapping {dict(value)}")
    schedules = {key: as_schedule(one) for key, one in (value if isinstance(value, Mapping) else {"": value}).items()}
    for schedule in schedules.values():
        for progress in (0.0, 1.0):
            _check(by, schedule(progress))
    return by, {key: partial(_gone, one) for key, one in schedules.items()} if by in BUDGETS else schedules


def _gone(stays: Schedule, progress: float) -> float:
    return 1.0 - stays(progress)


def _check(by: str, amount: float) -> None:
    if by == "threshold" and amount < 0:
        raise ValueError(f"Prune: threshold counts standard deviations, from 0 up; got {amount}")
    if by == "sparsity" and not 0.0 <= amount < 1.0:
        raise ValueError(f"Prune: sparsity is the share removed, in [0, 1); got {amount}")
    if by in BUDGETS and not 0.0 < amount <= 1.0:
        raise ValueError(f"Prune: {by} is the share that stays, in (0, 1]; got {amount}")
