import pytest
import torch
from torch.nn import functional as F

from lightning_compress.core.task import classification


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_smoothed_cross_entropy_by_hand(smoothing: float) -> None:
    logits, targets = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    wanted = F.one_hot(targets, 4) * (1 - smoothing) + smoothing / 4
    expected = -(wanted * torch.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(classification(4, smoothing).loss(logits, targets), expected)


def test_accuracy_is_the_share_of_samples() -> None:
    task = classification(3)
    metrics = task.metrics()
    # Classes of different size: a mean over classes would be (1 + 0 + 1/2) / 3.
    metrics.update(torch.eye(3)[[0, 0, 0, 1, 2, 1]], torch.tensor([0, 0, 0, 2, 2, 2]))
    assert float(metrics.compute()[task.objective]) == pytest.approx(4 / 6)
    assert task.maximize


def test_metrics_are_fresh_each_time() -> None:
    task = classification(3)
    assert task.metrics() is not task.metrics()


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes >= 2, got 1"):
        classification(1)
