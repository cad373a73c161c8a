"""The task loss's derivatives in what masks cover, on given batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch import distributed as dist
from torch.func import functional_call

from lightning_compress.core.curvature import diagonals, products
from lightning_compress.core.inputs import arguments
from lightning_compress.core.mask import Mask
from lightning_compress.core.weight import Weight
from lightning_compress.prune.patterns import Gated, Pattern, masked_weight, weights_of

Loss = Callable[[Any, Any], Tensor]
Batches = Sequence[tuple[Any, Any]]

#: What `slopes` knows.
KINDS = ("gradient", "squared_gradient", "hessian_gradient", "hessian")
_PROBES = 16


def mean_of_ranks(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all ranks, in place, so that they decide alike.

    >>> mean_of_ranks(torch.ones(2))
    tensor([1., 1.])
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


@final
class _TaskLoss:
    """The task loss of a batch with leaves in place of the masked `weights`, and masks that are full."""

    def __init__(self, model: nn.Module, weights: Sequence[Weight], loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.leaves = [masked_weight(weight).clone().requires_grad_() for weight in weights]
        names = {module: name for name, module in model.named_modules()}
        self.state: dict[str, Tensor] = {}
        for weight, leaf in zip(weights, self.leaves, strict=True):
            for _, module, attribute in weight.places:
                steps: Any = module.parametrizations[attribute]  # type: ignore[index]
                self.state[f"{names[steps]}.original"] = leaf
            for step in weight.steps:
                if isinstance(step, Mask):  # one that is there twice has one name
                    self.state[f"{names[step]}.mask"] = torch.ones_like(step.mask)

    def __call__(self, inputs: Any, targets: Any) -> Tensor:
        # A mask that is in a stack twice looks like two tied ones, and would not be put back.
        return self.loss(functional_call(self.model, self.state, *arguments(inputs), tie_weights=False), targets)


def squared_change(model: nn.Module, pattern: Pattern, loss: Loss, batches: Batches) -> dict[str, Tensor]:
    """The square of each batch's slope as a unit begins to fade, the mean over batches and ranks: [units, 1]."""
    names = list(pattern.keep())
    if isinstance(pattern, Gated):
        rows = _through_masks(model, pattern, loss, batches)
    else:
        rows = _through_weights(model, pattern, loss, batches)
    means = _mean([row[name].square().unsqueeze(1) for name in names] for row in rows)
    return dict(zip(names, means, strict=True))


def _through_weights(model: nn.Module, pattern: Pattern, loss: Loss, batches: Batches) -> Iterator[dict[str, Tensor]]:
    tensors, weights = weights_of(pattern), pattern.view()
    task_loss = _TaskLoss(model, tensors, loss)
    for batch in batches:
        slopes = torch.autograd.grad(task_loss(*batch), task_loss.leaves, materialize_grads=True)
        gradient = pattern.view(dict(zip(tensors, slopes, strict=True)).__getitem__)
        yield {name: (weight * gradient[name]).sum(1) for name, weight in weights.items()}


def _through_masks(model: nn.Module, pattern: Gated, loss: Loss, batches: Batches) -> Iterator[dict[str, Tensor]]:
    gates = pattern.gates()
    names = {module: name for name, module in model.named_modules()}
    masks = list(dict.fromkeys(mask for found in gates.values() for mask, _, _ in found))
    leaves = [torch.ones_like(mask.mask).requires_grad_() for mask in masks]
    state = {f"{names[mask]}.mask": leaf for mask, leaf in zip(masks, leaves, strict=True)}
    for inputs, targets in batches:
        value = loss(functional_call(model, state, *arguments(inputs), tie_weights=False), targets)
        slope = dict(zip(masks, torch.autograd.grad(value, leaves, materialize_grads=True), strict=True))
        yield {name: _summed(found, slope) for name, found in gates.items()}


def _summed(gates: Sequence[tuple[Mask, Tensor, Tensor]], slope: Mapping[Mask, Tensor]) -> Tensor:
    total = next(iter(slope.values())).new_zeros(1 + max(int(units.max()) for _, _, units in gates))
    for mask, places, units in gates:
        total.index_add_(0, units.to(total.device), slope[mask].flatten()[places.to(total.device)])
    return total


def slopes(
    model: nn.Module,
    weights: Sequence[Weight],
    loss: Loss,
    kinds: Sequence[str],
    batches: Batches,
    generator: Generator,
) -> dict[str, list[Tensor]]:
    """Each of `kinds` in each of the masked `weights`, the mean over batches and ranks."""
    task_loss = _TaskLoss(model, weights, loss)
    leaves, found = task_loss.leaves, {}
    if set(kinds) & {"gradient", "squared_gradient", "hessian_gradient"}:
        rows = (torch.autograd.grad(task_loss(*batch), leaves, materialize_grads=True) for batch in batches)
        both = _mean([*slope, *(part.square() for part in slope)] for slope in rows)
        found["gradient"], found["squared_gradient"] = both[: len(leaves)], both[len(leaves) :]
    if "hessian_gradient" in kinds:
        vector = found["gradient"]
        found["hessian_gradient"] = _mean(next(products(task_loss(*batch), leaves, [vector])) for batch in batches)
    if "hessian" in kinds:
        found["hessian"] = _mean(diagonals(task_loss(*batch), leaves, _PROBES, generator) for batch in batches)
    return {kind: found[kind] for kind in kinds}


def _mean(rows: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    columns: list[Tensor] = []
    count = 0
    for row in rows:
        columns = [a.add_(b) for a, b in zip(columns, row, strict=True)] if count else [part.clone() for part in row]
        count += 1
    return [mean_of_ranks(column.div_(count)).detach() for column in columns]
