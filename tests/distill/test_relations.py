import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine, pdist
from torch import Tensor

from lightning_compress.distill.relations import angle, correlation, distance, pkt


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4), torch.randn(6, 2, 3, 3)


def rows(features: Tensor) -> np.ndarray:
    return features.double().flatten(1).numpy()


def huber(difference: np.ndarray) -> float:
    small = np.abs(difference) < 1.0
    return float(np.where(small, 0.5 * difference**2, np.abs(difference) - 0.5).mean())


def test_distance_against_scipy() -> None:
    student, teacher = pair()
    one, other = (pdist(rows(given)) for given in (student, teacher))
    assert float(distance(student, teacher)) == pytest.approx(huber(one / one.mean() - other / other.mean()), rel=1e-4)


def test_angle_over_all_triples() -> None:
    student, teacher = pair()

    def angles(given: np.ndarray) -> np.ndarray:
        found = np.zeros((6, 6, 6))
        for i, j, k in itertools.product(range(6), repeat=3):
            if i not in (j, k):
                found[i, j, k] = 1 - cosine(given[j] - given[i], given[k] - given[i])
        return found

    expected = huber(angles(rows(student)) - angles(rows(teacher)))
    assert float(angle(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_pkt_by_hand() -> None:
    student, teacher = pair()

    def near(given: np.ndarray) -> np.ndarray:
        found = np.array([[(2 - cosine(a, b)) / 2 for b in given] for a in given])
        return np.asarray(found / found.sum(1, keepdims=True))

    p, q = near(rows(teacher)), near(rows(student))
    assert float(pkt(student, teacher)) == pytest.approx((p * np.log(p / q)).mean(), rel=1e-3)


def test_correlation_is_a_gaussian_kernel_at_high_order() -> None:
    student, teacher = pair()

    def kernel(given: np.ndarray) -> np.ndarray:
        unit = given / np.linalg.norm(given, axis=1, keepdims=True)
        return np.array([[np.exp(-0.4 * np.square(a - b).sum()) for b in unit] for a in unit])

    expected = np.square(kernel(rows(student)) - kernel(rows(teacher))).mean()
    assert float(correlation(student, teacher, order=12)) == pytest.approx(expected, rel=1e-4)
    x = float(torch.cosine_similarity(student[:1], student[1:2]))
    y = float(torch.cosine_similarity(teacher[:1].flatten(1), teacher[1:2].flatten(1)))
    second = [np.exp(-0.8) * (1 + 0.8 * c + 0.32 * c**2) for c in (x, y)]
    found = float(correlation(student[:2], teacher[:2]))
    assert found == pytest.approx(0.5 * (second[0] - second[1]) ** 2, rel=1e-3)
