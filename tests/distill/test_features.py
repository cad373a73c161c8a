import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.distill.features import (
    attention,
    boundary,
    flow,
    hint,
    margin,
    neuron_selectivity,
    similarity,
)


def maps(channels: int = 3, size: int = 4) -> Tensor:
    return torch.randn(5, channels, size, size)


def unit(row: np.ndarray) -> np.ndarray:
    return np.asarray(row / np.linalg.norm(row))


def test_hint_against_numpy() -> None:
    student, teacher = maps(), maps()
    assert float(hint(student, teacher)) == pytest.approx(np.square((student - teacher).numpy()).mean(), rel=1e-5)


def test_attention_against_numpy_with_the_larger_map_averaged() -> None:
    student, teacher = maps(3, 8), maps(6, 4)
    small = student.numpy().reshape(5, 3, 4, 2, 4, 2).mean((3, 5))
    pairs = zip(small, teacher.numpy(), strict=True)
    expected = np.mean([np.square(unit((a**2).sum(0)) - unit((b**2).sum(0))) for a, b in pairs])
    assert float(attention(student, teacher)) == pytest.approx(expected, rel=1e-4)
    assert float(attention(-teacher, teacher)) == 0.0  # sizes count, not signs
    cubes = unit((np.abs(small[0]) ** 3).sum(0)) - unit((np.abs(teacher[0].numpy()) ** 3).sum(0))
    assert float(attention(student[:1], teacher[:1], power=3)) == pytest.approx(np.square(cubes).mean(), rel=1e-4)


def test_neuron_selectivity_is_the_kernels_mean_over_all_pairs_of_channels() -> None:
    student, teacher = maps(3), maps(6)

    def kernel(one: Tensor, other: Tensor) -> float:
        return float(
            np.mean([np.dot(unit(a.ravel()), unit(b.ravel())) ** 2 for a in one.numpy() for b in other.numpy()])
        )

    pairs = list(zip(student, teacher, strict=True))
    expected = np.mean([kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs])
    assert float(neuron_selectivity(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_similarity_against_numpy() -> None:
    student, teacher = maps(3), maps(6, 2)
    grams = [(rows := given.numpy().reshape(5, -1)) @ rows.T for given in (student, teacher)]
    one, other = (np.stack([unit(row) for row in gram]) for gram in grams)
    assert float(similarity(student, teacher)) == pytest.approx(np.square(one - other).sum() / 25, rel=1e-4)


def test_flow_by_sums_over_positions() -> None:
    student, teacher = [maps(3, 8), maps(4, 4), maps(2, 4)], [maps(3, 4), maps(4, 4), maps(2, 2)]

    def product(first: Tensor, second: Tensor) -> np.ndarray:
        size = min(first.shape[2], second.shape[2])
        one, other = (F.adaptive_avg_pool2d(given, size).numpy() for given in (first, second))
        found = np.zeros((5, one.shape[1], other.shape[1]))
        for x in range(size):
            for y in range(size):
                found += one[:, :, None, x, y] * other[:, None, :, x, y] / size**2
        return found

    expected = sum(np.square(product(*student[i : i + 2]) - product(*teacher[i : i + 2])).mean() for i in range(2))
    assert float(flow(student, teacher)) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ValueError, match="name two modules or more"):
        flow(student[:1], teacher[:1])


def test_boundary_by_the_papers_cases() -> None:
    student, teacher = maps(), maps()
    expected = 0.0
    for s, t in zip(student.ravel().tolist(), teacher.ravel().tolist(), strict=True):
        if t > 0 and s <= 0.5:
            expected += (s - 0.5) ** 2
        if t <= 0 and s > -0.5:
            expected += (s + 0.5) ** 2
    assert float(boundary(student, teacher, distance=0.5)) == pytest.approx(expected / 5, rel=1e-4)


def test_margin_by_the_papers_cases() -> None:
    student, teacher, margins = maps(), maps(), torch.tensor([-0.2, -0.5, -1.0])
    expected = 0.0
    for place in np.ndindex(5, 3, 4, 4):
        s, t = float(student[place]), max(float(teacher[place]), float(margins[place[1]]))
        expected += 0.0 if s <= t <= 0 else (s - t) ** 2
    assert float(margin(student, teacher, margins)) == pytest.approx(expected / 5, rel=1e-4)
