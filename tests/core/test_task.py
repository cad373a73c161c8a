import math

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.text import Perplexity

from lightning_compress.core.task import by_kind, classification, named_loss, next_token


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


HEADS = {"parity": 2, "digit": 4}


def test_heads_add_up_their_losses_whatever_the_order_of_the_outputs() -> None:
    logits = {"parity": torch.randn(5, 2), "digit": torch.randn(5, 4)}
    targets = torch.tensor([[3, 1], [0, 0], [2, 0], [1, 1], [3, 1]])  # digit, parity: as the names are ordered
    expected = sum(
        -torch.log_softmax(logits[head], 1)[torch.arange(5), targets[:, column]].mean()
        for column, head in enumerate(["digit", "parity"])
    )
    torch.testing.assert_close(classification(HEADS).loss(logits, targets), expected)
    torch.testing.assert_close(named_loss("cross_entropy", owner="A test")(logits, targets), expected)


def test_accuracy_of_heads_is_their_mean_and_each_ones_own() -> None:
    task = classification(HEADS)
    metrics = task.metrics()
    # Both right on all of the first batch: metrics that agree so far must not be taken for one.
    metrics.update({"parity": torch.eye(2), "digit": torch.eye(4)[:2]}, torch.tensor([[0, 0], [1, 1]]))
    metrics.update({"parity": torch.eye(2), "digit": torch.eye(4)[:2]}, torch.tensor([[3, 0], [3, 0]]))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == {"accuracy": 5 / 8, "accuracy/digit": 2 / 4, "accuracy/parity": 3 / 4}
    assert (task.objective, task.maximize) == ("accuracy", True)


def test_a_head_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes >= 2, got 1 for parity"):
        classification({"digit": 10, "parity": 1})


def test_perplexity_by_hand_counts_every_token_alike() -> None:
    task = next_token(label_smoothing=0.1)
    metrics = task.metrics()
    # Probabilities of the right token: 1/2 and 1/4 in the first batch, 1/8 in the second, of one token.
    metrics.update(torch.tensor([[[0.5, 0.25], [0.5, 0.75]]]).log(), torch.zeros(1, 2, dtype=torch.int64))
    metrics.update(torch.tensor([[[0.125], [0.875]]]).log(), torch.zeros(1, 1, dtype=torch.int64))
    expected = math.exp(-(math.log(1 / 2) + math.log(1 / 4) + math.log(1 / 8)) / 3)
    assert float(metrics.compute()["perplexity"]) == pytest.approx(expected) == pytest.approx(4.0)
    assert (task.objective, task.maximize) == ("perplexity", False)


def test_perplexity_is_that_of_torchmetrics_and_exp_of_the_loss() -> None:
    task, theirs = by_kind("next_token", 7), Perplexity()
    logits, targets = torch.randn(3, 7, 5), torch.randint(7, (3, 5))
    (ours,) = task.metrics().values()
    ours.update(logits, targets)
    theirs.update(logits.transpose(1, 2), targets)  # which has classes last
    torch.testing.assert_close(ours.compute(), theirs.compute())
    torch.testing.assert_close(ours.compute(), task.loss(logits, targets).exp())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="classification or next_token, got 'regression'"):
        by_kind("regression", 3)
