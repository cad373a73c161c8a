"""Losses on features with parameters of their own: classes made of the two shapes, called as functions are.

`Loss(student_shape, teacher_shape, **options)` is a module whose `forward(student, teacher, ...)` gives a scalar and
asks for what else it needs by the names of its parameters, as in `features.py`. What learns from the teacher's features
before training has `prepare(features)`, where `features()` goes through all of them once. Nothing of this is deployed.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.distill.adapters import check_shapes, pointwise, same_size

_LEAK, _SMALLEST = 0.1, 1e-5


@final
class VID(nn.Module):
    """Negative log-likelihood of the teacher given the student, as a Gaussian (Ahn 2019, arXiv 1904.05835).

    Its mean is what three 1x1 layers make of the student's features; each of the teacher's channels has a variance of
    its own, `variance` at first. Up to a constant, the mean over all.

    >>> VID((8, 16, 4, 4), (8, 32, 4, 4))(torch.ones(8, 16, 4, 4), torch.ones(8, 32, 4, 4)).shape
    torch.Size([])
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], *, variance: float = 5.0) -> None:
        super().__init__()
        check_shapes(student, teacher)
        width, middle = teacher[1], (*teacher[:2], *student[2:])
        self.mean = nn.Sequential(
            pointwise(student, width, bias=False),
            nn.ReLU(),
            pointwise(middle, width, bias=False),
            nn.ReLU(),
            pointwise(middle, width, bias=False),
        )
        start = torch.tensor(variance - _SMALLEST).expm1().log()  # softplus of it and the smallest are `variance`
        self.spread = nn.Parameter(start.repeat(width).view(1, width, *[1] * (len(teacher) - 2)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss; the larger map is averaged to the smaller."""
        student, teacher = same_size(student, teacher)
        variance = F.softplus(self.spread) + _SMALLEST
        squares: Tensor = (self.mean(student) - teacher).square()
        return 0.5 * (squares / variance + variance.log()).mean()


@final
class FactorTransfer(nn.Module):
    """Mean difference of factors of norm 1, as a translator makes them of the student's maps (FT: arXiv 1802.04977).

    The teacher's come from a paraphraser: the narrow middle of an autoencoder, `rate` of its channels wide, that learns
    to give the teacher's features back in `passes` over the data before training, by Adam at `lr`, and stays then.

    >>> loss = FactorTransfer((8, 16, 4, 4), (8, 32, 4, 4))
    >>> loss(torch.ones(8, 16, 4, 4), torch.ones(8, 32, 4, 4)).shape
    torch.Size([])
    """

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        *,
        rate: float = 0.5,
        passes: int = 1,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_shapes(student, teacher)
        if len(teacher) != 4:
            raise ValueError(f"factors are of maps [batch, channels, rows, columns]; got {list(teacher)}")
        width, factors = teacher[1], max(1, round(rate * teacher[1]))
        self.passes, self.lr = passes, lr
        self.paraphraser = _convolutions(width, width, factors, factors)
        self.back = _convolutions(factors, factors, width, width)
        self.translator = _convolutions(student[1], student[1], factors, factors, norm=True)
        self._frozen().requires_grad_(False)

    def _frozen(self) -> nn.ModuleList:
        return nn.ModuleList([self.paraphraser, self.back])

    def prepare(self, features: Callable[[], Iterator[Tensor]]) -> None:
        """Train the paraphraser to give the teacher's features back."""
        learner = torch.optim.Adam(self._frozen().requires_grad_().parameters(), lr=self.lr)
        with torch.enable_grad():
            for _ in range(self.passes):
                for maps in features():
                    learner.zero_grad()
                    torch.autograd.backward(F.mse_loss(self.back(self.paraphraser(maps)), maps))
                    learner.step()
        learner.zero_grad()
        self._frozen().requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss; the larger map is averaged to the smaller."""
        student, teacher = same_size(student, teacher)
        one, other = self.translator(student), self.paraphraser(teacher)
        return F.l1_loss(F.normalize(one.flatten(1), dim=1), F.normalize(other.flatten(1), dim=1))


def _convolutions(*widths: int, norm: bool = False) -> nn.Sequential:
    layers: list[Any] = []
    for before, after in itertools.pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1),
            *([nn.BatchNorm2d(after)] if norm else []),
            nn.LeakyReLU(_LEAK),
        ]
    return nn.Sequential(*layers)
