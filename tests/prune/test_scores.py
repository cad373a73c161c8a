import pytest
import torch
from torch import Tensor

from lightning_compress.prune import scores


@pytest.mark.parametrize(("name", "norm"), [("magnitude", 1), ("squared", 2)])
def test_sums_are_the_norms_of_filters(name: str, norm: int) -> None:
    weight = torch.randn(5, 3, 2, 2)
    score: Tensor = getattr(scores, name)(weight)
    assert score.shape == weight.shape
    expected = torch.linalg.vector_norm(weight.flatten(1), ord=norm, dim=1) ** norm
    torch.testing.assert_close(score.flatten(1).sum(1), expected)


def test_both_rank_single_weights_alike_and_not_channels() -> None:
    weight = torch.tensor([[2.0, 2.0], [3.0, -0.5]])
    assert torch.equal(scores.magnitude(weight).flatten().argsort(), scores.squared(weight).flatten().argsort())
    assert scores.magnitude(weight).sum(1).argmax() == 0
    assert scores.squared(weight).sum(1).argmax() == 1
