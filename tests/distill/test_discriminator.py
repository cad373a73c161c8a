from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_expit, log_softmax
from torch import Tensor, nn

from lightning_compress.distill.adversarial_losses import least_squares, non_saturating
from lightning_compress.distill.discriminator import Discriminator

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def made(widths: tuple[int, int] = (2, 2), **options: Any) -> Discriminator:
    settings: dict[str, Any] = {"hidden": (16,), "optimizer": SGD, "loss": non_saturating}
    return Discriminator(widths, **settings | options)


def weights(discriminator: Discriminator) -> list[Tensor]:
    parts = (discriminator.adapter, discriminator.network)
    return [parameter.detach().clone() for part in parts for parameter in part.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("doubt", [0.0, 0.25])
def test_what_both_sides_pay_by_hand(doubt: float) -> None:
    """The formulas of arXiv 1709.00513, of a discriminator that is one linear layer, in numpy."""
    discriminator = made((2, 3), hidden=(), classes=4, doubt=doubt)
    student, teacher = torch.randn(5, 2), torch.randn(5, 3)
    targets = torch.tensor([0, 3, 1, 1, 2])
    adapter, network = (part.double().numpy() for part in (weights(discriminator)[0], weights(discriminator)[2]))
    biases = weights(discriminator)[1].numpy(), weights(discriminator)[3].numpy()
    fake = (student.numpy() @ adapter.T + biases[0]) @ network.T + biases[1]
    real = teacher.numpy() @ network.T + biases[1]

    def misread(outputs: Any) -> float:
        return float(-log_softmax(outputs[:, 1:], axis=1)[np.arange(5), targets.numpy()].mean())

    fooled = -log_expit(fake[:, 0]).mean()
    found = float(discriminator.fooled(student, targets))
    assert found == pytest.approx(fooled + misread(fake), rel=1e-5)
    told = discriminator.learn(student, teacher, targets)
    pays = -log_expit(real[:, 0]).mean() - (1 - doubt) * log_expit(-fake[:, 0]).mean() + doubt * fooled
    assert float(told[1]) == pytest.approx(pays + misread(fake) + misread(real), rel=1e-5)
    right = ((real[:, 0] > 0).mean() + (fake[:, 0] <= 0).mean()) / 2
    assert float(told[0]) == pytest.approx(right)


def test_a_step_is_one_of_torchs_own() -> None:
    discriminator = made()
    twin = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    twin.load_state_dict(discriminator.network.state_dict())
    optimizer = SGD(twin.parameters())
    for _ in range(3):
        student, teacher = torch.randn(6, 2), torch.randn(6, 2) + 1.0
        scores = torch.cat([twin(teacher), twin(student)])
        labels = torch.cat([torch.ones(6, 1), torch.zeros(6, 1)])
        optimizer.zero_grad()
        (2.0 * nn.functional.binary_cross_entropy_with_logits(scores, labels)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        discriminator.learn(student, teacher)
    for ours, theirs in zip(discriminator.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, check_stride=False)


def test_it_stays_as_it_is_while_the_student_learns_and_the_other_way_round() -> None:
    discriminator = made((3, 2))
    before = weights(discriminator)
    student = torch.randn(6, 3, requires_grad=True)
    torch.autograd.backward(discriminator.fooled(student))
    assert student.grad is not None
    assert student.grad.any()
    assert same(weights(discriminator), before)
    student.grad = None
    discriminator.learn(student, torch.randn(6, 2))
    assert student.grad is None
    assert not any(torch.equal(*pair) for pair in zip(weights(discriminator), before, strict=True))
    parameters = [*discriminator.network.parameters(), *discriminator.adapter.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in parameters)


def test_seeds_decide_and_the_students_random_numbers_go_on() -> None:
    state = torch.get_rng_state()
    assert same(weights(made()), weights(made()))
    assert not same(weights(made()), weights(made(seed=1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_its_state_is_a_copy_and_goes_on_bit_by_bit() -> None:
    first, second = (made((3, 2), seed=seed, optimizer=torch.optim.Adam) for seed in (0, 1))
    batches = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(4)]
    for batch in batches[:2]:
        first.learn(*batch, steps=2)
    state = first.state()
    for batch in batches[2:]:
        first.learn(*batch, steps=2)
    second.load_state(state)
    second.learn(*batches[0])
    second.load_state(state)  # which has not moved with what took it
    for batch in batches[2:]:
        second.learn(*batch, steps=2)
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("loss", [non_saturating, least_squares])
def test_it_separates_two_distributions_and_a_student_closes_the_gap(loss: Any) -> None:
    discriminator = made(loss=loss, optimizer=partial(torch.optim.Adam, lr=0.02))
    shift = torch.tensor([2.0, -1.0])
    for _ in range(40):
        told = discriminator.learn(torch.randn(64, 2), torch.randn(64, 2) + shift)
    assert float(told[0]) > 0.8  # Bayes: the normal distribution's 0.87 at half the distance
    place = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([place], lr=0.05)
    places, right = [], []
    for _ in range(120):
        student = torch.randn(64, 2) + place
        optimizer.zero_grad()
        torch.autograd.backward(discriminator.fooled(student))
        optimizer.step()
        told = discriminator.learn(student.detach(), torch.randn(64, 2) + shift)
        places.append(place.detach().clone())
        right.append(told[0])
    # Both go on circling about where nothing can be told: the mean over the second half.
    torch.testing.assert_close(torch.stack(places[60:]).mean(0), shift, rtol=0.0, atol=0.3)
    assert 0.4 < float(torch.stack(right[60:]).mean()) < 0.6
