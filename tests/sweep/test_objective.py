import itertools

import numpy as np
import pytest

from lightning_compress.sweep import objective

DIRECTIONS = ["max", "min", "min"]


def _beats(a: np.ndarray, b: np.ndarray) -> bool:
    """Brute force with accuracy turned round."""
    a, b = a * [-1, 1, 1], b * [-1, 1, 1]
    return bool(all(a <= b) and any(a < b))


@pytest.mark.parametrize("seed", range(5))
def test_front_is_what_nothing_beats(seed: int) -> None:
    # Few distinct values, so that ties and duplicates are common.
    points = np.random.default_rng(seed).integers(0, 4, (40, 3)).astype(float)
    expected = [
        i
        for i, point in enumerate(points)
        if not any(_beats(other, point) for other in points) and not any((points[j] == point).all() for j in range(i))
    ]
    assert objective.front(points.tolist(), DIRECTIONS) == expected
    for one, other in itertools.product(points[:12], points[:12]):
        assert objective.dominates(one.tolist(), other.tolist(), DIRECTIONS) == _beats(one, other)


def test_front_of_nothing_is_empty() -> None:
    assert objective.front([], DIRECTIONS) == []


def test_hypervolume_of_a_hand_worked_front() -> None:
    # Scaled: (0, 1) and (0.5, 0.5) under reference 1.1: 1.1 * 0.1 + 0.6 * 0.5 = 0.41 of 1.21.
    volume = objective.hypervolume(
        [(1.0, 20.0), (0.75, 15.0)], ["max", "min"], among=[(1.0, 20.0), (0.5, 10.0), (0.75, 15.0)]
    )
    assert volume.value == pytest.approx(0.41 / 1.21)
    assert volume.ideal == (1.0, 10.0)
    assert volume.nadir == (0.5, 20.0)


def test_hypervolume_matches_counting_random_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((15, 3))
    volume = objective.hypervolume(points.tolist(), DIRECTIONS, among=points.tolist())
    flipped = points * [-1, 1, 1]
    scaled = (flipped - flipped.min(0)) / (flipped.max(0) - flipped.min(0))
    darts = rng.random((100_000, 3)) * 1.1
    share = (darts[:, None] >= scaled[None]).all(2).any(1).mean()
    assert volume.value == pytest.approx(share, abs=0.006)


def test_an_objective_that_never_moves_does_not_divide_by_zero() -> None:
    assert objective.hypervolume([(1.0, 5.0)], ["max", "min"], among=[(1.0, 5.0), (0.0, 5.0)]).value == 1.0


def test_an_unknown_objective_names_those_there_are() -> None:
    class Numbers:
        def get(self, name: str) -> float:
            raise KeyError(f"no {name!r}; it has val/accuracy")

    with pytest.raises(ValueError, match=r"objectives: no 'val/accuracz'; it has val/accuracy"):
        objective.values(Numbers(), {"val/accuracz": "max"})
