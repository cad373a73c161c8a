import math
from typing import Any

import pytest
import torch

from lightning_compress.core.schedule import (
    Constant,
    Cosine,
    Linear,
    OneShot,
    Polynomial,
    Repeat,
    Rounds,
    Schedule,
    Steps,
    as_schedule,
    learning_rate,
)

RAMPS: list[Schedule] = [
    Linear(first=0.1, last=0.9, begin=0.2, end=0.7),
    Cosine(first=0.1, last=0.9, begin=0.2, end=0.7),
    Polynomial(first=0.1, last=0.9, begin=0.2, end=0.7),
    Polynomial(first=0.1, last=0.9, begin=0.2, end=0.7, exponent=0.5),
]


def test_linear_by_hand() -> None:
    ramp = Linear(first=2.0, last=4.0, begin=0.25, end=0.75)
    assert [ramp(p) for p in (0.25, 0.375, 0.5, 0.75)] == [2.0, 2.5, 3.0, 4.0]


def test_cosine_by_hand() -> None:
    decay = Cosine(first=1.0, last=0.0)
    for progress in (0.0, 0.1, 0.25, 0.6, 1.0):  # SGDR, equation 5 with eta_min 0
        assert decay(progress) == pytest.approx(0.5 * (1 + math.cos(math.pi * progress)), abs=1e-12)


def tfmot_polynomial_decay(
    step: int, *, initial: float, final: float, begin_step: int, end_step: int, power: float
) -> float:
    """TFMOT, pruning_schedule.py, PolynomialDecay.__call__, in plain Python."""
    p = min(1.0, max(0.0, (step - begin_step) / (end_step - begin_step)))
    return (initial - final) * math.pow(1 - p, power) + final


@pytest.mark.parametrize("power", [1.0, 3.0, 2.5])
def test_polynomial_is_that_of_tfmot(power: float) -> None:
    ramp = Polynomial(first=0.2, last=0.9, begin=0.1, end=0.6, exponent=power)
    for step in range(0, 1001, 37):
        expected = tfmot_polynomial_decay(step, initial=0.2, final=0.9, begin_step=100, end_step=600, power=power)
        assert ramp(step / 1000) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ramp", RAMPS, ids=repr)
def test_flat_outside_the_window_and_exact_at_its_ends(ramp: Schedule) -> None:
    assert [ramp(p) for p in (0.0, 0.1, 0.2)] == [0.1] * 3
    assert [ramp(p) for p in (0.7, 0.8, 1.0)] == [0.9] * 3


@pytest.mark.parametrize("ramp", RAMPS, ids=repr)
def test_monotone_inside(ramp: Schedule) -> None:
    values = [ramp(p / 100) for p in range(101)]
    assert values == sorted(values)
    assert len(set(values)) == 51


@pytest.mark.parametrize("kind", [Linear, Cosine, Polynomial])
def test_an_empty_window_is_a_jump(kind: type[Linear]) -> None:
    jump = kind(first=0.0, last=1.0, begin=0.5, end=0.5)
    assert [jump(p) for p in (0.0, 0.49, 0.5, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert kind(first=0.0, last=1.0, begin=0.0, end=0.0)(0.0) == 1.0


@pytest.mark.parametrize(("begin", "end"), [(-0.1, 1.0), (0.6, 0.5), (0.0, 30.0)])
def test_window_must_be_shares_of_the_run(begin: float, end: float) -> None:
    with pytest.raises(ValueError, match="shares of the run, not epochs"):
        Linear(begin=begin, end=end)


def test_exponent_must_be_positive() -> None:
    with pytest.raises(ValueError, match="exponent > 0"):
        Polynomial(exponent=0.0)


def test_steps_and_one_shot_by_hand() -> None:
    stairs = Steps(values=[1.0, 0.1, 0.01], at=[0.5, 0.75])
    assert [stairs(p) for p in (0.0, 0.499, 0.5, 0.74, 0.75, 1.0)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    shot = OneShot(last=0.8, at=0.3)
    assert [shot(p) for p in (0.0, 0.29, 0.3, 1.0)] == [0.0, 0.0, 0.8, 0.8]


@pytest.mark.parametrize(("values", "at"), [([1.0], [0.5]), ([1.0, 0.5, 0.1], [0.6, 0.5]), ([1.0, 0.1], [100.0])])
def test_bad_steps(values: list[float], at: list[float]) -> None:
    with pytest.raises(ValueError, match="Steps needs"):
        Steps(values=values, at=at)


def test_one_shot_refuses_an_epoch() -> None:
    with pytest.raises(ValueError, match="not an epoch"):
        OneShot(at=20)


def test_as_schedule() -> None:
    assert as_schedule(3)(0.7) == 3.0
    assert as_schedule(RAMPS[0]) is RAMPS[0]
    assert Constant(0.5)(0.0) == Constant(0.5)(1.0) == 0.5


def test_learning_rate_factor_at_each_step() -> None:
    groups: list[dict[str, Any]] = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD([{**groups[0], "lr": 0.1}, groups[1]], lr=2.0)
    scheduler = learning_rate(optimizer, 4, schedule=Linear(first=1.0, last=0.0))
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]  # the last one: past the end stays at the end
    assert seen == [pytest.approx([0.1 * f, 2.0 * f]) for f in factors]


def test_learning_rate_is_cosine_annealing_of_torch() -> None:
    ours, theirs = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4) for _ in range(2))
    a = learning_rate(ours, 10, schedule=Cosine(first=1.0, last=0.0))
    b = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 10)
    for _ in range(10):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        for one in (ours, theirs, a, b):
            one.step()


@pytest.mark.parametrize(("first_at", "moments"), [(None, [0.25, 0.5, 0.75]), (0.4, [0.4, 0.6, 0.8])])
def test_rounds_move_at_equal_distances(first_at: float | None, moments: list[float]) -> None:
    rounds = Rounds(rate=0.2, rounds=3, first_at=first_at)
    for number, moment in enumerate(moments):
        assert rounds(moment - 0.01) == pytest.approx(1 - 0.8**number)
        assert rounds(moment) == pytest.approx(1 - 0.8 ** (number + 1))
    assert rounds(0.0) == 0.0
    assert rounds(1.0) == pytest.approx(0.488)


@pytest.mark.parametrize("rounds", [1, 2, 4, 5, 6, 12])
def test_learning_rates_begin_anew_at_the_step_at_which_rounds_move(rounds: int) -> None:
    removed, rate = Rounds(rate=0.5, rounds=rounds), Repeat(Linear(first=1.0, last=0.0), times=rounds + 1)
    steps = 7 * (rounds + 1)
    moves = [step for step in range(1, steps + 1) if removed(step / steps) != removed((step - 1) / steps)]
    tops = [step for step in range(1, steps + 1) if rate(step / steps) > rate((step - 1) / steps)]
    assert moves == tops == list(range(7, steps, 7))
    assert [rate(step / steps) for step in (0, *moves)] == pytest.approx([1.0] * (rounds + 1), abs=1e-6)
    assert rate(1.0) == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rounds(rate=1.0), "a rate between 0 and 1"),
        (lambda: Rounds(rounds=0), "at least one round"),
        (lambda: Rounds(first_at=1.0), "a share of the run, not an epoch"),
        (lambda: Repeat(Constant(1.0), times=0), "times of at least 1, got 0"),
    ],
)
def test_rounds_and_repeat_refuse(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
