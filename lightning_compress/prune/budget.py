"""To a budget: the sparsity at which a cost meets a target, and costs of what is kept without running the model."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from lightning_compress.core import edits, surgery
from lightning_compress.cost.macs import macs
from lightning_compress.prune.groups import Group, Keep

_HALVINGS = 30


def sparsity_for(choose: Callable[[float], Keep], cost: Callable[[Keep], float], target: float) -> float:
    """The smallest sparsity at which `cost` of what `choose(sparsity)` keeps is at most `target`, by bisection.

    `cost` must not rise with the sparsity; it moves in steps of whole channels, so it may end below the target.

    Raises:
        ValueError: no sparsity below 1 gets there.

    >>> choose = lambda sparsity: {"a": torch.arange(10) >= round(10 * sparsity)}
    >>> round(sparsity_for(choose, lambda keep: float(keep["a"].sum()), 4.0), 2)
    0.55
    """
    low, high = 0.0, 1.0 - 2.0**-_HALVINGS
    least, most = cost(choose(high)), cost(choose(low))
    if least > target:
        raise ValueError(
            f"a budget of {target:.6g} cannot be met: the cost is {most:.6g} as it is and {least:.6g} with all pruned "
            "that may go; write a larger budget, or let more layers be pruned"
        )
    if most <= target:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(choose(middle)) <= target else (middle, high)
    return high


@final
class Cost:
    """What is left of a sum of products of channel counts, for the units that are kept: a few matrix products.

    `sizes` has for each tensor of a plain `model` what it costs whole; that shrinks with each dimension that groups run
    through.
    """

    def __init__(self, model: nn.Module, found: dict[str, Group], sizes: dict[str, float]) -> None:
        self._roots = list(found)
        units = sum(group.size for group in found.values())
        names = list(sizes)
        number = {name: at for at, name in enumerate(names)}
        self._size = torch.tensor([float(sizes[name]) for name in names], dtype=torch.float64)
        # The share of dimensions 0 and 1 of each tensor that goes with each unit.
        self._share = torch.zeros(2, len(names), units, dtype=torch.float64)
        first = 0
        for group in found.values():
            for member in group.members:
                for name, dim in edits.cuts(model, {"layer": member.layer, "side": member.side}).items():
                    if name in number:
                        share = 1.0 / model.get_parameter(name).shape[dim]
                        self._share[dim, number[name]].index_add_(
                            0, first + member.root, torch.full(member.root.shape, share, dtype=torch.float64)
                        )
            first += group.size

    def __call__(self, keep: Keep) -> float:
        """The cost of what `keep` leaves of every group."""
        gone = ~torch.cat([keep[root].cpu() for root in self._roots])
        left = 1.0 - self._share @ gone.to(torch.float64)
        return float(self._size @ (left[0] * left[1]))


def macs_cost(model: nn.Module, example: Any, found: dict[str, Group]) -> Cost:
    """Multiply-accumulates as `cost.macs` counts them, after the removal of units of these groups.

    >>> from lightning_compress.prune.groups import groups
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3)
    >>> macs_cost(net, x, groups(net, x, ["0"]))({"0": torch.tensor([True, False, True, True])})
    15.0
    """
    plain = surgery.plain(model)
    return Cost(plain, found, {surgery.dotted(name, "weight"): count for name, count in macs(plain, example).items()})


def params_cost(model: nn.Module, found: dict[str, Group]) -> Cost:
    """Parameters, after the removal of units of these groups; times bytes of each for a size.

    >>> from lightning_compress.prune.groups import groups
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3)
    >>> params_cost(net, groups(net, x, ["0"]))({"0": torch.tensor([True, False, True, True])})
    20.0
    """
    plain = surgery.plain(model)
    return Cost(plain, found, {name: parameter.numel() for name, parameter in plain.named_parameters()})
