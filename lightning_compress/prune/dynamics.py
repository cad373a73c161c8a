"""What happens around the moves of the masks: weights that go back, or masked ones that go on learning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lightning_compress.core import moments
from lightning_compress.core.mask import Mask
from lightning_compress.core.schedule import Schedule
from lightning_compress.prune.patterns import Pattern, weights_of

#: Scores of the units of each name by a function of `prune/scores.py`.
Rank = Callable[[Callable[..., Tensor]], dict[str, Tensor]]


@final
@dataclass(frozen=True)
class Site:
    """Where `Prune` works: its model, the pattern, called `name`, that it put there, and how much is removed when."""

    model: nn.Module
    pattern: Pattern
    name: Any
    amounts: Sequence[Schedule]
    #: The pattern's masks, each with the parametrizations that it is one of.
    masks: Sequence[tuple[Any, Mask]]


def masks_in(model: nn.Module) -> list[tuple[Any, Mask]]:
    """Every mask in `model`, with the parametrizations that it is one of.

    >>> masks_in(nn.Linear(2, 2))
    []
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.utils.parametrize.ParametrizationList)]
    return [(steps, step) for steps in stacks for step in steps if isinstance(step, Mask)]


class Dynamics(nn.Module):
    """The plain ones, and the base of all: masks tighten, and what they leave trains on.

    >>> Dynamics().settled(0.0)
    True
    """

    #: Scores that are ranked by besides that of `Prune`.
    scores: tuple[Callable[..., Tensor], ...] = ()

    def attach(self, site: Site) -> None:
        """Take what there is to act on, before the first step.

        Raises:
            ValueError: the pattern or the schedule does not fit.
        """
        self._site = (site,)  # a tuple, as the model is no submodule of a method

    @property
    def site(self) -> Site:
        """What `attach` was given."""
        return self._site[0]

    def watch(self, progress: float) -> None:
        """See the model after each optimizer step, before the masks may move."""

    def due(self, progress: float, changed: bool, tick: bool) -> bool:
        """Whether to move: `changed` says that the schedule asks for it, `tick` that `every` steps have passed."""
        return changed

    def move(self, keep: dict[str, Tensor], progress: float) -> None:
        """Move the masks to `keep`."""
        self.site.pattern.apply(keep)

    def stir(self, rank: Rank, progress: float) -> dict[str, float]:
        """Act every so many steps at which the masks did not move; returns figures worth logging."""
        return {}

    def renewed(self) -> list[nn.Parameter]:
        """As `Method.renewed`."""
        return []

    def revived(self) -> list[tuple[nn.Parameter, Tensor]]:
        """As `Method.revived`."""
        return []

    def settled(self, progress: float) -> bool:
        """Whether what it does should have happened by now, once masks have moved."""
        return True

    def missing_effect(self) -> str | None:
        """Why it has not happened."""
        return None


@final
class Rewind(Dynamics):
    """At each move of the masks the whole network goes back to where it was at progress `to`; optimizers forget it.

    That is all its own parameters and buffers, batch norms' statistics too, as in Renda 2020 (arXiv 2003.02389), but
    not what other methods learn beside them. `to` 0 is the start of the phase: lottery tickets (arXiv 1803.03635);
    later is the rewinding of arXiv 1903.01611. The schedule is a staircase, such as `Rounds`, and `every` had better be
    1: each move begins a training anew. With `shuffle` the entries of each tensor go back in random order, which is
    another draw from the same distribution whatever that was: the control of the lottery tickets.

    Raises:
        ValueError: `to` is no share of the phase.

    >>> Rewind(to=0.1).to_progress
    0.1
    """

    def __init__(self, to: float = 0.0, *, shuffle: bool = False) -> None:
        super().__init__()
        if not 0.0 <= to < 1.0:
            raise ValueError(f"Rewind needs 0 <= to < 1, got to={to}: it is a share of the phase, not an epoch")
        self.to_progress, self.shuffle = to, shuffle
        self._snapshot: dict[str, Tensor] = {}
        self._renewed: list[nn.Parameter] = []
        self._moved = False

    def get_extra_state(self) -> dict[str, Any]:
        """What the network goes back to, and whether it has."""
        return {"snapshot": dict(self._snapshot), "moved": self._moved}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        self._snapshot, self._moved = dict(state["snapshot"]), state["moved"]

    def attach(self, site: Site) -> None:
        """See that no mask moves before there is something to go back to."""
        super().attach(site)
        early = max(amount(self.to_progress) for amount in site.amounts)
        if early > 0:
            raise ValueError(
                f"Rewind: there has to be training between to={self.to_progress} and the first move, and the schedule "
                f"asks for {early:.4g} by then; let it begin later, as Rounds does"
            )

    @torch.no_grad()
    def watch(self, progress: float) -> None:
        """Note where the network is, when it is time."""
        self._renewed = []
        if not self._snapshot and progress >= self.to_progress:
            now = moments.latents(self.site.model)
            self._snapshot = {name: _of_first_rank(tensor.clone()) for name, tensor in now.items()}

    @torch.no_grad()
    def move(self, keep: dict[str, Tensor], progress: float) -> None:
        """Move the masks, then the weights back."""
        self.site.pattern.apply(keep)
        for name, tensor in moments.latents(self.site.model).items():
            earlier = self._snapshot[name].to(tensor.device)
            if isinstance(tensor, nn.Parameter):
                self._renewed.append(tensor)
                self._moved = self._moved or not torch.equal(tensor, earlier)
            tensor.copy_(_shuffled(earlier) if self.shuffle else earlier)

    def renewed(self) -> list[nn.Parameter]:
        """All of the network's parameters, when they went back."""
        return self._renewed

    def missing_effect(self) -> str | None:
        """No weight was elsewhere when it went back."""
        if self._moved:
            return None
        return (
            f"Rewind found every weight where it was at to={self.to_progress}: no training lies before the first move"
        )


def _shuffled(tensor: Tensor) -> Tensor:
    """The entries in an order that torch's global generator draws."""
    order = _of_first_rank(torch.randperm(tensor.numel()).to(tensor.device))
    return tensor.flatten()[order].view(tensor.shape)


def _of_first_rank(tensor: Tensor) -> Tensor:
    """Each rank has statistics of its own, and draws of its own; they have to go on alike."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, src=0)
    return tensor


@final
class Soft(Dynamics):
    """Until progress `until`, units that lose are set to zero every `every` steps and go on learning; then they go.

    Each move ranks all units afresh, so that one may return: soft filter pruning (He 2018, arXiv 1808.06866), which
    goes on to the end. Weights are zeroed; biases and norms, without which a channel could not learn, only at the end.

    Raises:
        ValueError: `until` is no share of the phase.

    >>> Soft(until=0.8).settled(0.5)
    False
    """

    def __init__(self, until: float = 0.9) -> None:
        super().__init__()
        if not 0.0 < until <= 1.0:
            raise ValueError(f"Soft needs 0 < until <= 1, got until={until}: it is a share of the phase, not an epoch")
        self.until = until
        self._hard = False

    def get_extra_state(self) -> dict[str, Any]:
        """Whether the masks are shut."""
        return {"hard": self._hard}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        self._hard = state["hard"]

    def attach(self, site: Site) -> None:
        """See that the schedule has arrived when the masks shut."""
        super().attach(site)
        for amount in site.amounts:
            if amount(self.until) != amount(1.0):
                raise ValueError(
                    f"Soft: masks shut at until={self.until}, and the schedule asks for {amount(self.until):.4g} then "
                    f"but {amount(1.0):.4g} at its end; let it end by {self.until}"
                )

    def due(self, progress: float, changed: bool, tick: bool) -> bool:
        """Every so many steps, and a last time."""
        return not self._hard and (tick or progress >= self.until)

    @torch.no_grad()
    def move(self, keep: dict[str, Tensor], progress: float) -> None:
        """Zero what loses; leave the masks open but the last time."""
        self.site.pattern.apply(keep)
        self._hard = progress >= self.until
        if self._hard:
            return
        weights = [weight.latent for weight in weights_of(self.site.pattern)]
        for steps, mask in self.site.masks:
            if any(steps.original is weight for weight in weights):
                steps.original.mul_(mask.mask)
            mask.mask.fill_(1.0)

    def settled(self, progress: float) -> bool:
        """Masks are shut from `until` on."""
        return progress >= self.until
