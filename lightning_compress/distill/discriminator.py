"""The discriminator: tells a teacher's features from a student's, and learns to by an optimizer of its own."""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.optim import Optimizer

_LEAK = 0.2


@final
class Discriminator:
    """An MLP on features [batch, width]: a score, above zero for the teacher's, and one for each of `classes`.

    `widths` are the student's and the teacher's; where they differ, a linear adapter of the student's features is on
    the student's side and learns with it. Weights are drawn from `seed`, so that all ranks begin alike, and gradients
    are averaged over them, so that they stay alike. It is no module: what trains the student, gathers parameters or
    wraps them for DDP must not find it; its state is in `state`.

    >>> made = Discriminator((2, 3), hidden=(4,), optimizer=torch.optim.Adam, loss=lambda scores, real: scores.mean())
    >>> made.fooled(torch.ones(5, 2)).shape
    torch.Size([])
    """

    def __init__(
        self,
        widths: tuple[int, int],
        *,
        hidden: Sequence[int],
        optimizer: Callable[[Iterable[Any]], Optimizer],
        loss: Callable[[Tensor, bool], Tensor],
        classes: int = 0,
        doubt: float = 0.0,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        student, teacher = widths
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # alone: the generators of GPUs go on as they are
            network = _mlp([teacher, *hidden, 1 + classes])
            adapter: nn.Module = nn.Identity() if student == teacher else nn.Linear(student, teacher)
        self.network, self.adapter = network.to(device), adapter.to(device)
        for part in (self.network, self.adapter):
            part.requires_grad_(False)
        self._optimizers = {part: optimizer(part.parameters()) for part in self._learning()}
        self.loss, self.doubt = loss, doubt

    def _learning(self) -> list[nn.Module]:
        return [part for part in (self.adapter, self.network) if any(True for _ in part.parameters())]

    def state(self) -> dict[str, Any]:
        """A copy of weights and optimizers, for the checkpoint."""
        parts = [(part.state_dict(), self._optimizers[part].state_dict()) for part in self._learning()]
        return copy.deepcopy({"parts": parts})

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them from the checkpoint."""
        for part, (weights, gathered) in zip(self._learning(), state["parts"], strict=True):
            part.load_state_dict(weights)
            self._optimizers[part].load_state_dict(copy.deepcopy(gathered))  # it would keep the very tensors

    def fooled(self, student: Tensor, targets: Tensor | None = None) -> Tensor:
        """What a student pays for not being taken for the teacher, and for features of which the class cannot be told.

        Nothing of the discriminator gets a gradient from it.
        """
        scores, classes = self._judged(self._adapted(student))
        return self.loss(scores, True) + _misread(classes, targets)

    def learn(self, student: Tensor, teacher: Tensor, targets: Tensor | None = None, *, steps: int = 1) -> Tensor:
        """Learn from features of both; what was thought of them before: share told right, loss, moments of both.

        The moments are the mean and the mean square of each of the student's features, adapted, then the teacher's; all
        are means over the ranks.
        """
        before = self._told(student, teacher, targets)
        if self.adapter in self._optimizers:
            self._descend(self.adapter, lambda: self.fooled(student, targets))
        for _ in range(steps):
            self._descend(self.network, lambda: self._cost(student, teacher, targets)[0])
        return before

    def _adapted(self, student: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            adapted: Tensor = self.adapter(student)
        return adapted

    def _judged(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [batch] and what is put out for the classes [batch, classes]."""
        with torch.autocast(features.device.type, enabled=False):
            judged: Tensor = self.network(features)
        return judged[:, 0], judged[:, 1:]

    def _cost(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the discriminator pays, and its scores for the teacher and the student."""
        (real, real_classes), (fake, fake_classes) = (self._judged(f) for f in (teacher, self._adapted(student)))
        cost = self.loss(real, True) + (1.0 - self.doubt) * self.loss(fake, False)
        if self.doubt:
            cost = cost + self.doubt * self.loss(fake, True)
        return cost + _misread(real_classes, targets) + _misread(fake_classes, targets), real, fake

    @torch.no_grad()
    def _told(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        cost, real, fake = self._cost(student, teacher, targets)
        right = 0.5 * ((real > 0).float().mean() + (fake <= 0).float().mean())
        sides = (self._adapted(student), teacher)
        moments = [moment for side in sides for moment in (side.mean(0), side.square().mean(0))]
        return _over_ranks(torch.cat([torch.stack([right, cost]), *moments]))

    def _descend(self, part: nn.Module, cost: Callable[[], Tensor]) -> None:
        """One step of the part's optimizer; only here do its parameters take gradients."""
        parameters = list(part.parameters())
        with torch.enable_grad():
            part.requires_grad_(True)
            slopes = torch.autograd.grad(cost(), parameters)
            part.requires_grad_(False)
        flat = _over_ranks(torch.cat([slope.flatten() for slope in slopes]))
        for parameter, slope in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = slope.view_as(parameter)
        self._optimizers[part].step()
        self._optimizers[part].zero_grad()


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(_LEAK)]
    return nn.Sequential(*layers[:-1])


def _misread(classes: Tensor, targets: Tensor | None) -> Tensor:
    """Cross entropy of the classes that were read off; nothing where none are."""
    return classes.new_zeros(()) if targets is None else F.cross_entropy(classes, targets)


def _over_ranks(values: Tensor) -> Tensor:
    """The mean over the ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
