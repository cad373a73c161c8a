import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import entropy, pearsonr, zscore

from lightning_compress.distill import logits
from lightning_compress.distill.asking import asked
from lightning_compress.distill.logits import dist, dkd, kl, kl_standardized, kl_unscaled, mse, soft_cross_entropy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_against_scipy(temperature: float) -> None:
    student, teacher = torch.randn(7, 5).double() * 3, torch.randn(7, 5).double() * 3
    p, q = (softmax(given.numpy() / temperature, axis=1) for given in (teacher, student))
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
    given = torch.randn(5, 4)
    assert float(kl(given + 7.0, given, 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(kl(given.flip(1), given, 2.0)) > 0


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher = torch.randn(5, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    assert torch.equal(kl(student, teacher, 4.0), kl(student.float(), teacher.float(), 4.0))
    assert torch.isfinite(kl(torch.tensor([[1000.0, -1000.0]]), torch.tensor([[-1000.0, 1000.0]]), 1.0))


def _pair(classes: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(7, classes) * 3, torch.randn(7, classes) * 3, torch.arange(7) % classes


def _softmaxes(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    return softmax(student.numpy() / temperature, axis=1), softmax(teacher.numpy() / temperature, axis=1)


def test_unscaled_lacks_the_square_of_the_temperature() -> None:
    student, teacher, _ = _pair()
    q, p = _softmaxes(student, teacher, 5.0)
    assert float(kl_unscaled(student, teacher, 5.0)) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-5)


def test_soft_cross_entropy_is_kl_and_the_teachers_entropy() -> None:
    student, teacher, _ = _pair()
    _, p = _softmaxes(student, teacher, 3.0)
    expected = float(kl(student, teacher, 3.0)) + 9.0 * entropy(p, axis=1).mean()
    assert float(soft_cross_entropy(student, teacher, 3.0)) == pytest.approx(expected, rel=1e-5)


def test_mse_against_numpy() -> None:
    student, teacher, _ = _pair()
    assert float(mse(student, teacher)) == pytest.approx(np.square(student.numpy() - teacher.numpy()).mean(), rel=1e-6)


def test_standardized_is_kl_of_z_scores() -> None:
    student, teacher, _ = _pair()
    scores = [zscore(given.double().numpy(), axis=1, ddof=1) for given in (teacher, student)]
    p, q = (softmax(score / 2.0, axis=1) for score in scores)
    expected = 4.0 * entropy(p, q, axis=1).mean()
    assert float(kl_standardized(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_dkd_by_the_papers_formula() -> None:
    student, teacher, targets = _pair()
    q, p = _softmaxes(student, teacher, 4.0)
    of_target, of_others = [], []
    for i, label in enumerate(targets):
        both = [[row[i][label], 1 - row[i][label]] for row in (p, q)]
        rest = [np.delete(row[i], label) / (1 - row[i][label]) for row in (p, q)]
        of_target.append(entropy(*both))
        of_others.append(entropy(*rest))
    expected = 16.0 * (0.7 * np.mean(of_target) + 5.0 * np.mean(of_others))
    assert float(dkd(student, teacher, 4.0, targets, alpha=0.7, beta=5.0)) == pytest.approx(expected, rel=1e-4)


def test_dkd_with_what_the_teacher_leaves_to_others_is_kl() -> None:
    # Equation 5 of the paper; one sample, as `beta` is one number.
    student, teacher = torch.randn(1, 6) * 3, torch.randn(1, 6) * 3
    rest = 1.0 - float((teacher / 2.0).softmax(1)[0, 4])
    found = dkd(student, teacher, 2.0, torch.tensor([4]), alpha=1.0, beta=rest)
    torch.testing.assert_close(found, kl(student, teacher, 2.0))


def test_dist_against_pearson() -> None:
    student, teacher, _ = _pair()
    q, p = _softmaxes(student, teacher, 4.0)
    between = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    within = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    expected = 16.0 * (2.0 * between + 3.0 * within)
    assert float(dist(student, teacher, 4.0, gamma=3.0)) == pytest.approx(expected, rel=1e-4)


LOSSES = {
    name: found
    for name, found in vars(logits).items()
    if callable(found) and getattr(found, "__module__", "") == logits.__name__ and not name.startswith("_")
}


def _call(name: str, student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    offered = {"temperature": 2.0, "targets": targets}
    found: torch.Tensor = LOSSES[name](
        student, teacher, **{k: offered[k] for k in asked(LOSSES[name], offered, {}, owner="test")}
    )
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_each_is_a_differentiable_scalar_that_training_makes_small(name: str) -> None:
    student, teacher, targets = _pair()
    student.requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = _call(name, student, teacher, targets)
        assert loss.shape == ()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    least = float(_call(name, teacher, teacher, targets))
    assert losses[-1] - least < 0.02 * (losses[0] - least)


@pytest.mark.parametrize("name", LOSSES)
def test_each_takes_half_precision_and_large_logits(name: str) -> None:
    student, teacher, targets = (given.bfloat16() if given.is_floating_point() else given for given in _pair())
    assert torch.equal(_call(name, student, teacher, targets), _call(name, student.float(), teacher.float(), targets))
    large = (100 * student).requires_grad_()
    loss = _call(name, large, -100 * teacher, targets)
    torch.autograd.backward(loss)
    assert loss.isfinite()
    assert large.grad is not None
    assert large.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("places", [(4,), (2, 3)])
def test_tokens_and_pixels_are_samples_of_their_own(name: str, places: tuple[int, ...]) -> None:
    student, teacher = torch.randn(5, 6, *places), torch.randn(5, 6, *places)
    targets = torch.randint(6, (5, *places))
    rows = [given.movedim(1, -1).reshape(-1, 6) for given in (student, teacher)]
    torch.testing.assert_close(_call(name, student, teacher, targets), _call(name, *rows, targets.reshape(-1)))
