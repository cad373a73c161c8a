"""How loss terms of several kinds are weighed against one another and the task loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch import distributed as dist

#: Batches from one look at the gradients to the next, and how much each look counts beside those before.
_EVERY, _SHARE = 10, 0.25


@final
@dataclass(frozen=True)
class Term:
    """A loss before it is weighed, the weight that it is to have, and the student's tensors that it was made of."""

    loss: Tensor
    weight: float
    outputs: list[Tensor]


class Balance(nn.Module):
    """Weighs the terms called `names` as they say: "fixed". What learns other weights overrides this.

    >>> balance = Balance(["distill"])
    >>> balance(Term(torch.tensor(1.0), 0.1, []), {"distill": Term(torch.tensor(2.0), 0.9, [])})
    {'distill': tensor(1.8000)}
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    @property
    def task(self) -> float | Tensor:
        """Factor on the task loss, asked for after the terms."""
        return 1.0

    def forward(self, task: Term, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        """The terms, weighed, in the order of `names`; maybe another one."""
        return {name: term.weight * term.loss for name, term in terms.items()}

    def figures(self) -> dict[str, float]:
        """The weights in use, for the log."""
        return {}


@final
class Uncertainty(Balance):
    """A learned log-variance `s` for each loss `L` (Kendall et al. 2018, arXiv 1705.07115): `exp(-s) * L + s / 2`.

    The task loss counts among them. That is the paper's form for classification; the one for regression, which halves
    `L`, has the same minimum with `s` less by log 2. A term's own weight multiplies both parts, so that at the minimum,
    `exp(-s) = 1 / (2 L)`, it counts as if each `L` had been divided by its size. From there `s` starts, by the first
    batch: the paper's 0 is far off where a loss is large. The halves of all `s` are the term `balance`.

    Raises:
        ValueError: after a step, a loss below zero: its weight would grow without bound.

    >>> balance = Uncertainty(["distill"])
    >>> terms = balance(Term(torch.tensor(1.0), 1.0, []), {"distill": Term(torch.tensor(8.0), 1.0, [])})
    >>> round(balance.task.item(), 4), round(terms["distill"].item(), 4)
    (0.5, 0.5)
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.log_variance = nn.Parameter(torch.zeros(1 + len(names)))  # the task loss's first
        self._begun = False
        self._last: tuple[Tensor, Tensor] | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """Whether a first batch was seen."""
        return {"begun": self._begun}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        self._begun = state["begun"]

    @property
    def task(self) -> Tensor:
        """Factor on the task loss."""
        return (-self.log_variance[0]).exp()

    def forward(self, task: Term, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        """The terms, weighed, and `balance`."""
        both = [task, *terms.values()]
        losses = torch.stack([term.loss.detach().float() for term in both])
        if not self._begun:
            sizes = _summed(losses.clone()) / _ranks()
            self.log_variance.data.copy_(torch.where(sizes > 0.0, (2.0 * sizes).log(), 0.0))
            self._begun = True
        wanted = losses.new_tensor([term.weight for term in both])
        weights = wanted * (-self.log_variance).exp()
        self._last = (weights.detach(), losses)
        found = {name: weight * term.loss for weight, (name, term) in zip(weights[1:], terms.items(), strict=True)}
        return {**found, "balance": (wanted * self.log_variance).sum() / 2.0}

    def figures(self) -> dict[str, float]:
        """The weights in use."""
        if self._last is None:
            return {}
        weights, losses = torch.stack(self._last).tolist()
        for name, loss in zip(("task", *self.names), losses, strict=True):
            if loss < 0.0:
                raise ValueError(
                    f"Distill: balance=uncertainty takes losses of 0 or more, and the term {name!r} is {loss:.3g}; "
                    "write balance=gradient_norm or balance=fixed"
                )
        return _named(("task", *self.names), weights)


@final
class GradientNorm(Balance):
    """Divides each term by the norm of its gradient and multiplies it by that of the task loss's, at the same place.

    The place is what the term looks at: the student's outputs, or the features of a hint. Both gradients go on from
    there alike, so the layers below feel the term as much as the labels, times its own weight. With all norms equal it
    is where GradNorm (Chen et al. 2018, arXiv 1711.02257) settles with `alpha` 0, without that method's learned weights
    and the one layer that all losses share; Esser et al. 2021 (arXiv 2012.09841) divide so too. The squares of the
    norms are looked at in every tenth batch and averaged over the last few looks. Where the labels teach no more, the
    terms fade with them. Inside a compiled network there are no gradients to look at: hints need speed.compile=false.

    Raises:
        ValueError: the task loss does not depend on what a term looks at.

    >>> outputs = torch.ones(2, requires_grad=True)
    >>> terms = {"distill": Term(8.0 * outputs.sum(), 1.0, [outputs])}
    >>> GradientNorm(["distill"])(Term(2.0 * outputs.sum(), 1.0, []), terms)["distill"].item()  # a quarter of 16
    4.0
    """

    squares: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        # Mean squares of norms, [2, terms]: of the task loss's gradient where the term looks, and of the term's own.
        self.register_buffer("squares", torch.zeros(2, len(names)))
        self._batches = 0
        self._last: Tensor | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """How many batches were seen."""
        return {"batches": self._batches}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        self._batches = state["batches"]

    def forward(self, task: Term, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        """The terms, weighed."""
        if self._batches % _EVERY == 0:
            self._look(task.loss, terms)
        self._batches += 1
        of_task, own = self.squares
        factors = torch.where(own > 0.0, (of_task / own).sqrt(), 1.0)
        weights = factors * factors.new_tensor([term.weight for term in terms.values()])
        self._last = torch.cat([factors.new_tensor([task.weight]), weights])
        return {name: weight * term.loss for weight, (name, term) in zip(weights, terms.items(), strict=True)}

    def _look(self, task_loss: Tensor, terms: Mapping[str, Term]) -> None:
        places = [[output for output in term.outputs if output.requires_grad] for term in terms.values()]
        # Once for all: the way down to the first place leads through the others.
        slopes = iter(_slopes(task_loss, [output for outputs in places for output in outputs]))
        found = []
        for (name, term), outputs in zip(terms.items(), places, strict=True):
            of_task = [next(slopes) for _ in outputs]
            if outputs and all(slope is None for slope in of_task):
                raise ValueError(
                    f"Distill: balance=gradient_norm compares gradients where a term looks, and the task loss has none "
                    f"where {name!r} does: name a module that the outputs are made of, and of a compiled network write "
                    "speed.compile=false; or write balance=uncertainty"
                )
            found.append(torch.stack([_square(of_task, task_loss), _square(_slopes(term.loss, outputs), task_loss)]))
        squares = _summed(torch.stack(found, dim=1)) / _ranks() ** 2  # as of a mean over the batches of all ranks
        mixed = torch.where(self.squares > 0.0, self.squares.lerp(squares, _SHARE), squares)
        # In half precision a gradient may overflow, or vanish: such a look is none.
        usable = ((squares > 0.0) & squares.isfinite()).all(dim=0)
        self.squares.copy_(torch.where(usable, mixed, self.squares))

    def figures(self) -> dict[str, float]:
        """The weights in use."""
        return {} if self._last is None else _named(("task", *self.names), self._last.tolist())


#: What `Distill` knows by name.
BALANCES = {"fixed": Balance, "uncertainty": Uncertainty, "gradient_norm": GradientNorm}


def _named(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    return {f"balance/{name}": weight for name, weight in zip(names, weights, strict=True)}


def _slopes(loss: Tensor, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not outputs or not loss.requires_grad:
        return [None] * len(outputs)
    return torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)


def _square(slopes: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """The squared norm of all together, in float32."""
    parts = [torch.linalg.vector_norm(slope, dtype=torch.float32).square() for slope in slopes if slope is not None]
    return torch.stack(parts).sum() if parts else like.new_zeros((), dtype=torch.float32)


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _summed(tensor: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if _ranks() > 1:
        dist.all_reduce(tensor)
    return tensor
