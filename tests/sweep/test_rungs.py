"""The stopping rule: hand-worked rungs, and ranks against brute force and SciPy."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lightning_compress.sweep import rungs
from lightning_compress.sweep.rungs import (
    Ranking,
    Rule,
    by_crowding,
    by_hypervolume,
    crowding,
    ladder,
    predicts,
    spearman,
)

Array = NDArray[np.float64]


def test_ladder_starts_after_the_ramp_and_leaves_eta_times_as_much() -> None:
    assert ladder(ramp=0, grace=3, eta=3, horizon=52) == (3, 9)
    assert ladder(ramp=0, grace=3, eta=3, horizon=81) == (3, 9, 27)
    assert ladder(ramp=4, grace=2, eta=2, horizon=20) == (6, 8, 12)
    assert ladder(ramp=0, grace=3, eta=3, horizon=27) == (3, 9)
    assert ladder(ramp=0, grace=3, eta=3, horizon=26) == (3,)


def test_ladder_has_its_first_rung_wherever_there_is_room() -> None:
    assert ladder(ramp=10, grace=1, eta=3, horizon=12) == (11,)
    assert ladder(ramp=10, grace=1, eta=3, horizon=11) == ()


def test_the_best_third_goes_on_and_the_first_two_wait() -> None:
    rule = Rule((3,), ["max"], eta=3, ranking="crowding")
    assert [rule.report(trial, 3, [value]) for trial, value in enumerate([0.5, 0.9, 0.7])] == [False, False, False]
    assert rule.promotable() == [(1, 3)]
    rule.promoted(1, 3)
    assert rule.promotable() == []
    assert not rule.report(3, 3, [0.8])
    assert rule.report(4, 3, [0.95])
    # Of six the best two are 0.95 and 0.9, which have both gone on.
    assert not rule.report(5, 3, [0.6])
    assert rule.promotable() == []
    # Of nine the best three: 0.8 comes after them.
    assert [rule.report(trial, 3, [0.1]) for trial in (6, 7, 8)] == [False, False, False]
    assert rule.promotable() == [(3, 3)]


def test_under_hypervolume_only_what_adds_some_goes_on() -> None:
    rule = Rule((3,), ["max", "min"], eta=2)
    assert rule.report(0, 3, [0.8, 100.0]) is False
    # Alone: on the scale of both, 0 dominates 1.1 * 0.1, and 1 as much: the earlier one goes on.
    assert rule.report(1, 3, [0.7, 50.0]) is False
    assert rule.promotable() == [(0, 3)]
    rule.promoted(0, 3)
    # There is room for one in two only, however good the next one is.
    assert rule.report(2, 3, [0.9, 40.0]) is False
    assert rule.promotable() == []
    assert rule.report(3, 3, [0.1, 90.0]) is False
    assert rule.promotable() == [(2, 3)]
    rule.promoted(2, 3)
    # Now there is room again, but 2 beats all that wait.
    for trial in (4, 5):
        assert rule.report(trial, 3, [0.85, 45.0]) is False
    assert rule.promotable() == []
    assert rule.report(6, 3, [0.2, 39.0]) is True


@pytest.mark.parametrize("ranking", rungs.RANKINGS)
def test_with_one_objective_the_best_share_goes_on(ranking: Ranking) -> None:
    rule = Rule((3,), ["max"], eta=2, ranking=ranking)
    assert [rule.report(trial, 3, [value]) for trial, value in enumerate([0.1, 0.9, 0.2, 0.8])] == [
        False,
        True,
        False,
        True,
    ]


def test_promotable_names_the_highest_rung_first() -> None:
    rule = Rule((1, 2), ["min"], eta=2, ranking="crowding")
    for trial in range(4):
        rule.report(trial, 1, [trial])
    assert rule.promotable() == [(0, 1), (1, 1)]
    rule.promoted(0, 1)
    rule.promoted(1, 1)
    assert rule.report(1, 2, [8.0]) is False
    assert rule.report(0, 2, [9.0]) is False
    rule.report(4, 1, [-1.0])
    rule.report(5, 1, [-2.0])
    assert rule.promotable() == [(1, 2)]


def test_crowding_keeps_both_ends_of_the_front() -> None:
    # Errors and bytes: 0, 2 and 3 are a front, 1 is beaten by 2; 2 is crowded.
    points = [(0.1, 9000.0), (0.3, 5000.0), (0.12, 4000.0), (0.9, 100.0)]
    rule = Rule((5,), ["min", "min"], eta=2, ranking="crowding")
    assert [rule.report(trial, 5, point) for trial, point in enumerate(points)] == [False, False, False, True]
    assert rule.promotable() == [(0, 5)]


def test_hypervolume_takes_the_knee_first() -> None:
    points = np.array([(0.0, 1.0), (0.1, 0.1), (1.0, 0.0)])
    none = np.zeros(3, bool)
    assert by_hypervolume(points, none, 1) == [1]
    # Reference (1.1, 1.1): next to the knee's 1.0 each end adds 0.01; of equal ones the earlier.
    assert by_hypervolume(points, none, 3) == [1, 0, 2]
    assert by_hypervolume(points, np.array([False, True, False]), 1) == [0]
    assert by_crowding(points, 2) == [0, 2]


def test_hypervolume_gains_by_counting_cells() -> None:
    """Points on a grid dominate whole cells, which can be counted."""
    rng = np.random.default_rng(5)
    for num_values in (1, 2, 3):
        losses = rng.integers(0, 11, (9, num_values)).astype(float)
        # Row 0 is the worst of all, the next ones are the best in one value each: together they span 0 to 10.
        losses[: num_values + 1] = 10.0
        losses[np.arange(num_values) + 1, np.arange(num_values)] = 0.0
        taken = np.arange(9) == 0
        corners = np.stack(np.meshgrid(*[np.arange(11)] * num_values, indexing="ij"), -1).reshape(-1, num_values)
        cells = [(losses[row] <= corners).all(1) for row in range(9)]
        covered = cells[0].copy()
        expected: list[int] = []
        while len(expected) < 3:
            gains = [-1 if row in (0, *expected) else int((cells[row] & ~covered).sum()) for row in range(9)]
            if max(gains) == 0:
                break
            expected.append(int(np.argmax(gains)))
            covered |= cells[expected[-1]]
        assert by_hypervolume(losses, taken, 3) == expected
    assert len(expected) == 3


@pytest.mark.parametrize("ranking", rungs.RANKINGS)
def test_rows_are_named_in_order_not_ranked_in_place(ranking: Ranking) -> None:
    """Sorted indices and ranks are inverse permutations: mixing them up decides by chance on unsorted rungs."""
    losses = np.array([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]])
    assert by_crowding(losses, 3) == [1, 2, 0]
    assert by_hypervolume(losses, np.zeros(3, bool), 3) == [1]
    rule = Rule((1,), ["min", "min"], eta=3, ranking=ranking)
    for trial, point in zip((30, 10, 20), losses, strict=True):
        rule.report(trial, 1, point.tolist())
    assert rule.promotable() == [(10, 1)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        chain = rng.permutation(7).astype(float)
        assert by_crowding(np.stack([chain, chain], 1), 7) == np.argsort(chain).tolist()


def _fronts(losses: Array) -> list[int]:
    """Peeling by definition: a row is on the first front that holds all that beat it."""
    left, fronts, front = set(range(len(losses))), [0] * len(losses), 0
    while left:
        top = {
            i for i in left if not any((losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left)
        }
        for i in top:
            fronts[i] = front
        left, front = left - top, front + 1
    return fronts


@pytest.mark.parametrize("num_values", [1, 2, 3, 4])
def test_fronts_come_in_order(num_values: int) -> None:
    rng = np.random.default_rng(num_values)
    for size in (1, 2, 5, 12):
        losses = rng.integers(0, 4, (size, num_values)).astype(float)
        order = by_crowding(losses, size)
        fronts = _fronts(losses)
        assert sorted(order) == list(range(size))
        assert [fronts[i] for i in order] == sorted(fronts)
        assert by_crowding(losses, (size + 1) // 2) == order[: (size + 1) // 2]


def test_crowding_by_its_definition() -> None:
    rng = np.random.default_rng(1)
    points = rng.random((9, 3))
    got = crowding(points)
    for i, point in enumerate(points):
        total = 0.0
        for j in range(3):
            below = [p[j] for p in points if p[j] < point[j]]
            above = [p[j] for p in points if p[j] > point[j]]
            total += (min(above) - max(below)) / float(np.ptp(points[:, j])) if below and above else math.inf
        assert got[i] == pytest.approx(total)


def test_units_and_directions_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    points = rng.random((12, 2))
    for ranking in rungs.RANKINGS:
        plain, scaled = (Rule((1,), d, eta=3, ranking=ranking) for d in (["min", "min"], ["max", "min"]))
        for trial, (error, size) in enumerate(points.tolist()):
            assert plain.report(trial, 1, [error, size]) == scaled.report(trial, 1, [100 - 100 * error, 4096 * size])
        assert plain.promotable() == scaled.promotable()


def test_equal_trials_rank_by_age() -> None:
    rules = {ranking: Rule((1,), ["max", "min"], eta=2, ranking=ranking) for ranking in rungs.RANKINGS}
    for rule in rules.values():
        assert [rule.report(trial, 1, [0.5, 10.0]) for trial in range(4)] == [False, False, False, False]
    assert rules["crowding"].promotable() == [(0, 1), (1, 1)]
    # A second one adds nothing.
    assert rules["hypervolume"].promotable() == [(0, 1)]


def test_a_copy_of_an_end_does_not_displace_another_point() -> None:
    points = np.array([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    assert by_crowding(points, 3) == [0, 2, 1]


def test_a_replay_of_the_calls_restores_the_rule() -> None:
    rng = np.random.default_rng(3)
    one, other = Rule((1, 3), ["max", "min"], eta=2), Rule((1, 3), ["max", "min"], eta=2)
    calls: list[tuple[int, int, list[float] | None]] = []
    for trial in range(20):
        calls.append((trial, 1, rng.random(2).tolist()))
        one.report(*calls[-1])  # type: ignore[arg-type]
        for name, level in one.promotable():
            one.promoted(name, level)
            calls.append((name, level, None))
            if level == 1:
                calls.append((name, 3, rng.random(2).tolist()))
                one.report(*calls[-1])  # type: ignore[arg-type]
    for name, level, values in calls:
        if values is None:
            other.promoted(name, level)
        else:
            other.report(name, level, values)
    assert vars(one).keys() == vars(other).keys()
    assert one.promotable() == other.promotable()
    assert one.report(99, 1, [0.9, 0.1]) == other.report(99, 1, [0.9, 0.1])


def test_wrong_calls_are_refused() -> None:
    rule = Rule((3, 9), ["max", "min"], eta=3)
    rule.report(0, 3, [0.5, 10.0])
    for values in ([math.nan, 1.0], [math.inf, 1.0], [0.5]):
        with pytest.raises(ValueError, match="expected 2 finite values at epoch 3"):
            rule.report(1, 3, values)
    with pytest.raises(ValueError, match="no rung at epoch 4, only at 3, 9"):
        rule.report(1, 4, [0.5, 1.0])
    with pytest.raises(ValueError, match="before"):
        rule.report(0, 3, [0.5, 10.0])
    with pytest.raises(ValueError, match="not paused"):
        rule.promoted(1, 3)
    rule.promoted(0, 3)
    with pytest.raises(ValueError, match="not paused"):
        rule.promoted(0, 3)
    # What was refused left nothing behind.
    assert rule.report(1, 3, [0.6, 10.0]) is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": (9, 3)}, "rising"),
        ({"levels": (0, 3)}, "rising"),
        ({"directions": ["maximize"]}, "max or min"),
        ({"directions": []}, "max or min"),
        ({"eta": 1}, "at least 2"),
        ({"ranking": "error"}, "hypervolume or crowding"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"levels": (3, 9), "directions": ["max"], "eta": 3, "ranking": "crowding"} | change
    with pytest.raises(ValueError, match=message):
        Rule(settings.pop("levels"), settings.pop("directions"), **settings)  # type: ignore[arg-type]


def test_spearman_against_scipy() -> None:
    rng = np.random.default_rng(4)
    for size in (2, 5, 30):
        one, other = rng.integers(0, 6, size).astype(float), rng.random(size)
        if np.ptp(one):
            assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(np.ones(4), np.arange(4.0)) is None


def test_a_rung_that_foretells_nothing_is_warned_of() -> None:
    there = {trial: [float(trial), 10.0 * trial] for trial in range(6)}
    at_end = {trial: [-float(trial), 10.0 * trial] for trial in range(1, 6)}
    found = predicts(1, there, at_end, ["max", "min"])
    assert (found.level, found.trials, found.values) == (1, 5, (-1.0, 1.0))
    warning = found.warning(["val/accuracy", "cost/packed_bytes"])
    assert "after 1 epochs" in warning
    assert "val/accuracy -1.00" in warning
    assert "packed_bytes" not in warning
    few = predicts(1, there, dict(itertools.islice(at_end.items(), 4)), ["max", "min"])
    assert few.values == (-1.0, 1.0)
    assert few.warning(["val/accuracy", "cost/packed_bytes"]) == ""
    assert predicts(1, there, {}, ["max", "min"]).values == (None, None)
