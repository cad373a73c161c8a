"""To a budget: the sparsity at which a cost meets a target, and costs of what is kept without running the model."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.prune.allocate import top
from lightning_compress.prune.blocks import NAME, Block
from lightning_compress.prune.channels import Channel
from lightning_compress.prune.groups import Group, Keep
from lightning_compress.prune.patterns import Pattern, masked_weight

#: Milliseconds by the first two sizes of the weight of each layer.
Price = Callable[[Mapping[str, tuple[int, int]]], float]
#: That of a plain model, for inputs like an example.
Pricing = Callable[[nn.Module, Any], Price]

_HALVINGS = 30
# Runtimes have kernels for multiples of 4 channels, and few for less: so far it pays to look.
_REACH = 4


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

    def __init__(self, model: nn.Module, found: dict[str, Group], sizes: Mapping[str, float]) -> None:
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
        left = self.left(keep)
        return float(self._size @ (left[0] * left[1]))

    def left(self, keep: Keep) -> Tensor:
        """The share that is left of dimensions 0 and 1 of each tensor, [2, tensors]."""
        gone = ~torch.cat([keep[root].cpu() for root in self._roots])
        return 1.0 - self._share @ gone.to(torch.float64)


def macs_cost(model: nn.Module, example: Any, found: dict[str, Group]) -> Cost:
    """Multiply-accumulates as `cost.macs` counts them, after the removal of units of these groups.

    >>> from lightning_compress.prune.groups import groups
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3)
    >>> macs_cost(net, x, groups(net, x, ["0"]))({"0": torch.tensor([True, False, True, True])})
    15.0
    """
    plain = surgery.plain(model)
    own = {name for name, module in plain.named_modules() if isinstance(module, nn.MultiheadAttention)}
    counts = macs(plain, example).items()
    sizes: dict[str, float] = {
        surgery.dotted(name, "in_proj_weight" if name in own else "weight"): count for name, count in counts
    }
    return Cost(plain, found, sizes)


def params_cost(model: nn.Module, found: dict[str, Group]) -> Cost:
    """Parameters, after the removal of units of these groups; times bytes of each for a size.

    >>> from lightning_compress.prune.groups import groups
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3)
    >>> params_cost(net, groups(net, x, ["0"]))({"0": torch.tensor([True, False, True, True])})
    20.0
    """
    plain = surgery.plain(model)
    return Cost(plain, found, {name: parameter.numel() for name, parameter in plain.named_parameters()})


def latency_cost(model: nn.Module, example: Any, found: dict[str, Group], pricing: Pricing) -> Callable[[Keep], float]:
    """Milliseconds of the network in floats, after the removal of units of these groups.

    Raises:
        ValueError: what `pricing` raises.
    """
    plain = surgery.plain(model)
    price = pricing(plain, example)
    layers = dict.fromkeys(member.layer for group in found.values() for member in group.members)
    shapes = {name: getattr(plain.get_submodule(name), "weight", torch.empty(0)).shape for name in layers}
    sizes = {name: shape[:2] for name, shape in shapes.items() if len(shape) > 1}
    counts = Cost(plain, found, {surgery.dotted(name, "weight"): 1.0 for name in sizes})
    whole = torch.tensor(list(sizes.values()), dtype=torch.float64).T

    def cost(keep: Keep) -> float:
        outs, ins = (counts.left(keep) * whole).round().long().tolist()
        return price(dict(zip(sizes, zip(outs, ins, strict=True), strict=True)))

    return cost


@final
class _Apart:
    """What is left of `total` when each unit takes so much with it, whatever becomes of the others."""

    def __init__(self, total: float, units: dict[str, Tensor]) -> None:
        self._total, self._units = total, units
        self._sum = sum(float(own.sum()) for own in units.values())
        self._room = (1 + len(units)) / 2 * max(float(own.max()) for own in units.values())

    def __call__(self, keep: Keep) -> float:
        gone = ((~kept).double() @ self._units[name].to(kept.device) for name, kept in keep.items())
        return self._total - float(sum(gone))

    def near(self, choose: Callable[[float], Keep], target: float) -> Keep | None:
        """What fits where the same share of the units costs the same share everywhere: found at once, or None."""
        sparsity = (self._total - target + self._room) / self._sum  # room for what is rounded under each name
        if 0.0 <= sparsity < 1.0:
            keep = choose(sparsity)
            if target - 1e-3 * self._total <= self(keep) <= target:
                return keep
        return None


def _entries(units: Tensor) -> Tensor:
    return units.double().sum(1)


def _blocks_cost(by: str, model: nn.Module, example: Any, pattern: Block) -> _Apart:
    plain = surgery.plain(model)
    if by == "params":
        whole, own = num_params(plain), [num_params(plain.get_submodule(name)) for name in pattern.names]
    else:
        counts = macs(plain, example)
        whole = sum(counts.values())
        own = [sum(n for layer, n in counts.items() if layer.startswith(f"{name}.")) for name in pattern.names]
    return _Apart(whole, {NAME: torch.tensor(own, dtype=torch.float64)})


def _cost(
    by: str, model: nn.Module, example: Any, pattern: Pattern, pricing: Pricing | None
) -> Callable[[Keep], float]:
    """What the units of a pattern cost.

    Raises:
        ValueError: they have no such cost.
    """
    if isinstance(pattern, Block) and by != "latency":
        return _blocks_cost(by, model, example, pattern)
    if isinstance(pattern, Channel):
        if by == "params":
            return params_cost(model, pattern.groups)
        if by == "macs":
            return macs_cost(model, example, pattern.groups)
        if pricing is None:
            raise ValueError(
                "Prune: latency comes from a table: give measure.table=FILE, or in Python "
                "price=lightning_compress.run.priced.ByChannels(FILE)"
            )
        return latency_cost(model, example, pattern.groups, pricing)
    if by == "params":
        ones = pattern.view(lambda weight: torch.ones_like(masked_weight(weight)))
        return _Apart(num_params(surgery.plain(model)), {name: _entries(units) for name, units in ones.items()})
    others = " (or block)" if by == "macs" else ""
    raise ValueError(
        f"Prune: {by} is saved by what is removed for real: write pattern=channel or pattern=head{others}; zeros in "
        "place save params"
    )


@final
class Budget:
    """What a pattern may keep of a model so that a cost, "macs", "params" or "latency", is at most a share of it.

    Raises:
        ValueError: the pattern's units have no such cost.
    """

    def __init__(self, by: str, model: nn.Module, example: Any, pattern: Pattern, pricing: Pricing | None) -> None:
        self._cost, self._pattern = _cost(by, model, example, pattern, pricing), pattern
        self.whole = self._cost(pattern.keep())

    def met(self, choose: Callable[[float], Keep], share: float, ranked: Keep, multiple: int, *, last: float) -> Keep:
        """What to keep of what is kept now: what `choose(sparsity)` does and no more than `share` of the cost.

        Where that is no more than the `last` share that will be asked for, and later moves could not help it, room that
        is left goes to units, `multiple` at a time, by their scores `ranked` within each name: first where they cost
        nothing (a count that runtimes are fast at), then where they cost least.

        Raises:
            ValueError: the budget cannot be met.
        """
        now, target = self._pattern.keep(), share * self.whole * (1.0 + 1e-9)

        def chosen(sparsity: float) -> Keep:
            return {name: kept & now[name] for name, kept in choose(sparsity).items()}

        # A search would take longer than the steps between two moves where units are single weights.
        near = self._cost.near(chosen, target) if isinstance(self._cost, _Apart) else None
        keep = near or chosen(sparsity_for(chosen, self._cost, target))
        if not isinstance(self._pattern, Channel | Block) or self._cost(keep) > last * self.whole:
            return keep
        return self._filled(keep, now, target, ranked, multiple)

    def _filled(self, keep: Keep, now: Keep, target: float, ranked: Keep, multiple: int) -> Keep:
        while True:
            cost, found = self._cost(keep), []
            for name, steps in product(keep, range(1, _REACH + 1)):
                count = int(keep[name].sum())
                more = min(count + steps * multiple, int(now[name].sum()))
                if more > count:
                    wider = {**keep, name: top(ranked[name], more)}
                    extra = self._cost(wider) - cost
                    if cost + extra <= target:
                        found.append(((extra > 0, extra / (more - count)), wider))
            if not found:
                return keep
            keep = min(found, key=lambda one: one[0])[1]
