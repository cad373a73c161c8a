from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from lightning_compress.prune import scores

W = torch.tensor([[1.0, -2.0], [0.5, 0.25], [-3.0, 0.0]])
G = torch.tensor([[2.0, 1.0], [-4.0, 4.0], [1.0, 7.0]])


@pytest.mark.parametrize(
    ("name", "evidence", "expected"),
    [
        ("magnitude", {}, [3.0, 0.75, 3.0]),
        ("squared", {}, [5.0, 0.3125, 9.0]),
        ("group", {"reading": torch.tensor([[2.0], [0.0], [-1.0]])}, [9.0, 0.3125, 10.0]),
        ("snip", {"gradient": G}, [4.0, 3.0, 3.0]),  # |1*2| + |-2*1|
        ("taylor", {"squared_change": torch.tensor([[4.0], [0.0], [2.0]])}, [4.0, 0.0, 2.0]),
        ("grasp", {"hessian_gradient": G}, [0.0, -1.0, -3.0]),
        ("movement", {"movement": -G}, [-3.0, 0.0, -8.0]),
        ("fisher", {"squared_gradient": G.square()}, [4.0, 2.5, 4.5]),  # (4*1 + 1*4) / 2
        ("obd", {"hessian": G}, [3.0, -0.375, 4.5]),  # (2*1 + 1*4) / 2, (-4/4 + 4/16) / 2
        ("batchnorm", {"norm": torch.tensor([[0.5], [-2.0], [0.0]])}, [0.5, 2.0, 0.0]),
    ],
)
def test_by_hand(name: str, evidence: dict[str, Tensor], expected: list[float]) -> None:
    assert getattr(scores, name)(W, **evidence).tolist() == expected


@pytest.mark.parametrize(("name", "norm"), [("magnitude", 1), ("squared", 2)])
def test_sums_are_the_norms_of_filters(name: str, norm: int) -> None:
    weight = torch.randn(5, 18)
    score: Tensor = getattr(scores, name)(weight)
    torch.testing.assert_close(score, weight.abs().pow(norm).sum(1))


def test_both_rank_single_weights_alike_and_not_channels() -> None:
    weight = torch.tensor([[2.0, 2.0], [3.0, -0.5]])
    single = weight.reshape(-1, 1)
    assert torch.equal(scores.magnitude(single).argsort(), scores.squared(single).argsort())
    assert scores.magnitude(weight).argmax() == 0
    assert scores.squared(weight).argmax() == 1


def test_lamp_is_the_definition() -> None:
    """arXiv 2010.07611, equation 3: the square over the sum of the squares from its place in the order on."""
    weight = torch.randn(50, 1)
    u = np.sort(weight.abs().flatten().numpy().astype(np.float64))
    expected = {float(value): value**2 / (u[place:] ** 2).sum() for place, value in enumerate(u)}
    found = scores.lamp(weight)
    torch.testing.assert_close(found, torch.tensor([expected[float(w.abs())] for w in weight[:, 0]]).float())
    assert found.max() == 1.0
    assert scores.lamp(torch.zeros(3, 1)).tolist() == [0.0] * 3


def test_fpgm_is_the_sum_of_scipys_distances() -> None:
    weight = torch.randn(9, 20)
    expected = torch.from_numpy(cdist(weight.numpy(), weight.numpy()).sum(1)).float()
    torch.testing.assert_close(scores.fpgm(weight), expected)
    with pytest.raises(ValueError, match="a layer has 10001; write pattern=channel or row"):
        scores.fpgm(torch.zeros(10_001, 1))


def test_hrank_is_numpys_mean_rank() -> None:
    ranks = torch.randint(0, 5, (4, 6))
    maps = torch.stack([torch.stack([torch.randn(5, int(r)) @ torch.randn(int(r), 7) for r in row]) for row in ranks])
    expected = np.linalg.matrix_rank(maps.numpy()).mean(1)
    assert scores.hrank(torch.ones(4, 1), maps).tolist() == pytest.approx(expected.tolist())
    assert len(set(expected)) > 1


def test_apoz_counts_zeros() -> None:
    maps = torch.zeros(2, 3, 2, 2)
    maps[1, 0, 0] = torch.tensor([-1.0, 2.0])
    assert scores.apoz(torch.ones(2, 1), maps).tolist() == pytest.approx([0.0, 2 / 12])


def test_random_is_the_generators() -> None:
    draws: list[Any] = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(scores.random(torch.zeros(100, 2)))
    assert torch.equal(*draws)
    assert len(draws[0].unique()) == 100
