"""`Mutual`: networks that teach one another while all of them learn."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core.inputs import call
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.task import by_head, named_loss
from lightning_compress.distill.logits import kl

Heads = Mapping[str, Tensor]


@final
class Mutual(Method):
    """Deep mutual learning (Zhang et al. 2018, arXiv 1706.00384): `peers` are trained beside the student.

    Each network of the cohort adds to its loss on labels, `task_loss(outputs, targets)`, `weight` times the mean over
    the others of `KL(other's outputs || its own)`, softened by `temperature` (the paper's is 1); through the others'
    outputs nothing is learned. Of several heads the divergences are added up. Term `mutual` is the student's own;
    `peer1`, `peer2`, ... are the whole losses of the peers. `weight` and `temperature` are numbers or schedules of
    progress.

    All outputs are of the same weights, and one optimizer step moves all networks at once. In the paper they take
    turns: one is moved, shows its new outputs for the batch, then the next one is; that needs an optimizer and a second
    forward pass for each.

    Peers have the learning rate of the student's optimizer, are in the checkpoint and never in the deployed model. A
    clipped gradient is clipped by the norm over all networks.

    Raises:
        ValueError: no peers, one that shares parameters with another network, or a number out of range.

    >>> method = Mutual(nn.Linear(4, 3))
    >>> [tuple(p.shape) for p in method.param_groups()[0]["params"]]
    [(3, 4), (3,)]
    """

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(
        self,
        peers: nn.Module | Sequence[nn.Module],
        *,
        temperature: float | Schedule = 1.0,
        weight: float | Schedule = 1.0,
        task_loss: str | Callable[..., Tensor] = "cross_entropy",
    ) -> None:
        super().__init__()
        self.peers = nn.ModuleList([peers] if isinstance(peers, nn.Module) else peers).train().requires_grad_(True)
        if not self.peers:
            raise ValueError("Mutual: needs one peer at least, a network with outputs like the student's; got none")
        self.temperature, self.weight = as_schedule(temperature), as_schedule(weight)
        for progress in (0.0, 1.0):
            if self.temperature(progress) <= 0:
                raise ValueError(f"Mutual: temperature must be positive, got {self.temperature(progress):g}")
            if self.weight(progress) < 0:
                raise ValueError(f"Mutual: weight must be 0 or more, got {self.weight(progress):g}")
        self.task_loss = named_loss(task_loss, owner="Mutual: task_loss")
        self._last: tuple[Tensor, bool] | None = None

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Nothing changes, but all networks must be apart."""
        of_each = [{id(parameter) for parameter in network.parameters()} for network in (model, *self.peers)]
        if len(set().union(*of_each)) < sum(map(len, of_each)):
            raise ValueError("Mutual: the student and its peers share parameters; give each peer a network of its own")
        return model

    def param_groups(self) -> list[dict[str, Any]]:
        """All of the peers' parameters."""
        return [{"params": list(self.peers.parameters())}]

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The student's term, and the peers' losses."""
        temperature, weight = self.temperature(step.progress), self.weight(step.progress)
        cohort = [step.outputs, *(call(peer, step.inputs) for peer in self.peers)]
        heads = [by_head(outputs) for outputs in cohort]
        _check_alike(heads)
        apart = [_apart(number, heads, temperature) for number in range(len(heads))]
        self._last = (apart[0].detach(), apart[0].requires_grad)
        terms = {"mutual": weight * apart[0]}
        for number in range(1, len(cohort)):
            terms[f"peer{number}"] = self.task_loss(cohort[number], step.targets) + weight * apart[number]
        return terms

    def settled(self, progress: float) -> bool:
        """Whether the weight has been above zero."""
        return self._last is not None and self.weight(progress) > 0

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """A term without a gradient, or exactly zero."""
        assert self._last is not None
        value, differentiable = self._last
        if not differentiable:
            return "its loss carries no gradient: are the student's outputs detached?"
        if float(value) == 0.0:
            return "its loss is exactly zero: do the peers start from the student's own weights? Give each another seed"
        return None


def _check_alike(cohort: Sequence[Heads]) -> None:
    own, *others = ({name: tuple(head.shape) for name, head in heads.items()} for heads in cohort)
    for other in others:
        if other != own:
            raise ValueError(
                f"Mutual: all networks must put out the same shape, got {own.get('', own)} of the student and "
                f"{other.get('', other)} of a peer; were they built for different class counts?"
            )


def _apart(number: int, cohort: Sequence[Heads], temperature: float) -> Tensor:
    """How far one network's outputs are from each of the others', which stay where they are; the mean."""
    others = [heads for other, heads in enumerate(cohort) if other != number]
    terms = [kl(own, other[head].detach(), temperature) for other in others for head, own in cohort[number].items()]
    return reduce(torch.add, terms) / len(others)
