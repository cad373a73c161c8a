import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from lightning_compress.distill.logits import kl


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_against_scipy(temperature: float) -> None:
    student, teacher = torch.randn(7, 5).double() * 3, torch.randn(7, 5).double() * 3
    p, q = (softmax(logits.numpy() / temperature, axis=1) for logits in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum(1).mean()  # KL(teacher || student), mean over the batch
    assert float(kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(kl(teacher, student, temperature)) != pytest.approx(expected, rel=1e-4)


def test_two_classes_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(kl(student, teacher, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_gradient_is_the_closed_form() -> None:
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    kl(student, teacher, 3.0).backward()  # type: ignore[no-untyped-call]
    expected = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())


def test_gradient_tends_to_half_the_squared_distance_of_centred_logits() -> None:
    # Hinton 2015, equation 4: for large T the gradient is (z - v) / N, T dropped out thanks to T squared.
    student, teacher = torch.randn(3, 8), torch.randn(3, 8)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    for temperature in (100.0, 400.0):
        leaf = student.clone().requires_grad_()
        kl(leaf, teacher, temperature).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(leaf.grad, centred / 8 / 3, rtol=0.05, atol=2e-3)


def test_zero_only_for_equal_distributions_and_never_negative() -> None:
    logits = torch.randn(5, 4)
    assert float(kl(logits + 7.0, logits, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(kl(logits.flip(1), logits, 2.0)) > 0


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher = torch.randn(5, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    assert torch.equal(kl(student, teacher, 4.0), kl(student.float(), teacher.float(), 4.0))
    assert torch.isfinite(kl(torch.tensor([[1000.0, -1000.0]]), torch.tensor([[-1000.0, 1000.0]]), 1.0))
