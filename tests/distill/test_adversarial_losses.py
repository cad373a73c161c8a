import pytest
import torch
from scipy.special import log_expit

from lightning_compress.distill.adversarial_losses import least_squares, non_saturating

SCORES = torch.tensor([-3.0, 0.0, 0.5, 40.0])


def test_non_saturating_is_the_cross_entropy_of_a_sigmoid() -> None:
    assert float(non_saturating(SCORES, True)) == pytest.approx(-log_expit(SCORES.numpy()).mean())
    assert float(non_saturating(SCORES, False)) == pytest.approx(-log_expit(-SCORES.numpy()).mean())
    assert float(non_saturating(torch.tensor([-1e4]), True)) == 1e4  # no overflow


def test_where_the_discriminator_wins_the_student_still_has_a_slope() -> None:
    scores = torch.tensor([-20.0], requires_grad=True)
    (slope,) = torch.autograd.grad(non_saturating(scores, True), scores)
    assert float(slope) == pytest.approx(-1.0)


def test_least_squares_by_hand() -> None:
    scores = torch.tensor([2.0, 0.0])
    assert float(least_squares(scores, True)) == 0.5 * (1 + 1) / 2
    assert float(least_squares(scores, False)) == 0.5 * (9 + 1) / 2
