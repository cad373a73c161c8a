import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassStatScores

from lightning_compress.core.errors import Errors, best_shift, wrong_with


def answers(seed: int, number: int = 500, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (number,), generator=generator)
    logits = 3 * F.one_hot(labels, classes).float() + 1.5 * torch.randn(number, classes, generator=generator)
    logits[:, 3] -= 2.3  # as of a class that was never shown
    return logits, labels


def test_errors_are_those_of_torchmetrics() -> None:
    logits, labels = answers(0)
    found = Errors(apart=3)({"test": (logits, labels)})
    scores = MulticlassStatScores(5, average=None)(logits, labels)
    misses = scores[:, 3]  # true and false positives, true and false negatives, by class
    assert found == {"test/errors": int(misses.sum()), "test/errors_of_3": int(misses[3])}


def test_a_class_that_was_never_shown_is_raised_by_what_validation_says() -> None:
    val, test = answers(1), answers(2)
    found = Errors(apart=3, raised=[3])({"val": val, "test": test})
    assert found["shift"] == pytest.approx(2.3, abs=0.8)
    assert found["val/errors_shifted"] == min(int(wrong_with(*val, [3], step / 10).sum()) for step in range(200))
    assert found["test/errors_shifted"] == int(wrong_with(*test, [3], found["shift"]).sum()) < found["test/errors"]
    assert found["test/errors_of_3_shifted"] < found["test/errors_of_3"]


def test_the_middle_of_the_best_shifts() -> None:
    # Right from 0.6 to 1.9: then the other sample goes wrong.
    logits, labels = torch.tensor([[1.0, 0.45], [2.0, 0.05]]), torch.tensor([1, 0])
    assert best_shift(logits, labels, [1]) == 1.3
