"""Bits for each layer by how much the loss feels them: Hessian traces, and the best choice within a budget."""

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import select, surgery
from lightning_compress.core.curvature import derivable, diagonals
from lightning_compress.core.inputs import call
from lightning_compress.core.task import named_loss
from lightning_compress.core.weight import Weight
from lightning_compress.cost.bops import FLOAT_BITS
from lightning_compress.cost.macs import macs, macs_share, multiplied_bits
from lightning_compress.quantize.base import WeightQuantizer

Table = Mapping[str, Mapping[int, float]]


def traces(loss: Tensor, leaves: Sequence[Tensor], probes: int, generator: torch.Generator) -> list[float]:
    """Estimated trace of the Hessian of `loss` (0-dim, with its graph) in each of `leaves`, by Hutchinson's method.

    The mean of v . Hv over `probes` random vectors v of signs, drawn for all leaves at once: what one leaf adds to
    another's has a mean of zero (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852, equation 8). On a diagonal Hessian, as
    here, each probe is exact.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> traces((x**3).sum(), [x], 1, torch.Generator())
    [18.0]
    """
    return [float(diagonal.sum()) for diagonal in diagonals(loss, leaves, probes, generator)]


def errors(quantizer: WeightQuantizer, weight: Tensor, choices: Iterable[int]) -> dict[int, float]:
    """Squared error that each number of bits makes in the whole of `weight`.

    >>> from lightning_compress.quantize.uniform import Uniform
    >>> errors(Uniform(8), torch.tensor([[1.0, 0.25]]), [2])
    {2: 0.0625}
    """
    found = {}
    for bits in choices:
        twin = copy.deepcopy(quantizer).eval()
        twin.active = True
        twin.set_bits(bits)
        twin.start(weight)
        with torch.no_grad():
            found[bits] = float((twin(weight) - weight).square().sum())
    return found


def allocate(losses: Table, costs: Table, budget: float) -> dict[str, int]:
    """For each name one of its choices, so that the losses' sum is least while the costs' sum is within `budget`.

    Exact: sums of the first names are kept unless others cost no more and lose no more. The cheaper of equals wins.

    Raises:
        ValueError: the cheapest choices together are beyond the budget.

    >>> allocate({"a": {2: 9.0, 4: 1.0}, "b": {2: 2.0, 4: 0.0}}, {"a": {2: 2, 4: 4}, "b": {2: 2, 4: 4}}, 6)
    {'a': 4, 'b': 2}
    """
    least = [min(costs[name].values()) for name in losses]
    if sum(least) > budget:
        raise ValueError(f"the fewest bits everywhere cost {sum(least):.6g}, beyond the budget of {budget:.6g}")
    front: list[tuple[float, float, tuple[Any, ...]]] = [(0, 0.0, ())]
    for place, (name, choices) in enumerate(losses.items()):
        room = budget - sum(least[place + 1 :])
        sums = [
            (cost + costs[name][bits], lost + loss, (chosen, bits))
            for (cost, lost, chosen), (bits, loss) in itertools.product(front, choices.items())
            if cost + costs[name][bits] <= room
        ]
        front, best = [], float("inf")
        for entry in sorted(sums, key=lambda entry: entry[:2]):
            if entry[1] < best:
                front.append(entry)
                best = entry[1]
    found: dict[str, int] = {}
    chosen = front[-1][2]
    for name in reversed(list(losses)):
        chosen, found[name] = chosen
    return {name: found[name] for name in losses}


@final
class Sensitivity:
    """`weight_bits` of `Quantize` that are chosen before training, layer by layer (HAWQ-V2, arXiv 1911.03852).

    A layer with b bits loses the mean eigenvalue of its Hessian (its trace by its size; as zero where the estimate is
    negative) times the squared error of its weights; the sum over the layers is made least, by `choices` of bits,
    within `relative_bops` (a share of 32-bit weights and inputs, all layers counted) or `weight_bytes` (of the
    quantized layers' codes). The Hessian is that of `loss(outputs, targets)`, in eval mode, on `batches` batches with
    `probes` random vectors each. It says something of trained weights: give the run start weights, or a phase before.

    Raises:
        ValueError: both or none of the budgets, or a number out of range.

    >>> Sensitivity(relative_bops=0.02).choices
    (2, 4, 8)
    """

    def __init__(
        self,
        *,
        relative_bops: float | None = None,
        weight_bytes: float | None = None,
        choices: Sequence[int] = (2, 4, 8),
        loss: str | Callable[..., Tensor] = "cross_entropy",
        batches: int = 2,
        probes: int = 16,
        seed: int = 0,
    ) -> None:
        if (relative_bops is None) == (weight_bytes is None):
            raise ValueError(f"Sensitivity needs one budget; got {relative_bops=}, {weight_bytes=}")
        if not choices or batches < 1 or probes < 1:
            raise ValueError(f"Sensitivity needs choices, batches and probes; got {choices=}, {batches=}, {probes=}")
        self.relative_bops, self.weight_bytes = relative_bops, weight_bytes
        self.choices = tuple(choices)
        self.loss = named_loss(loss, owner="Sensitivity: loss")
        self.batches, self.probes, self.seed = batches, probes, seed

    def choose(
        self,
        model: nn.Module,
        quantizers: Mapping[str, WeightQuantizer],
        batches: Iterable[Any],
        *,
        given: Mapping[str, int],
        reads: Mapping[str, int],
    ) -> dict[str, int]:
        """Bits for the weights of each layer in `quantizers`, which must not be active.

        `given` has the bits of the weights of layers that have no choice, `reads` those of inputs; the others are
        floats.

        Raises:
            ValueError: no batch, or a budget that cannot be met.
        """
        places = select.weights(model, owner="Sensitivity")
        weights = {name: places[name].below(quantizer) for name, quantizer in quantizers.items()}
        shown = list(itertools.islice(batches, self.batches))
        if not shown:
            raise ValueError("Sensitivity: no batch to look at; expected the training data to yield at least one")
        felt = self._felt(model, quantizers, weights, shown)
        losses = {}
        for name, quantizer in quantizers.items():
            found = errors(quantizer, weights[name], [given[name]] if name in given else self.choices)
            losses[name] = {bits: felt[name] * error for bits, error in found.items()}
        try:
            chosen = allocate(losses, *self._costs(model, shown[0][0], losses, places, reads))
        except ValueError as why:
            raise ValueError(f"Sensitivity: {why}; write a larger one, or smaller choices than {self.choices}") from why
        logging.getLogger(__name__).info("bits of weights by sensitivity: %s", chosen)
        return chosen

    def _felt(
        self,
        model: nn.Module,
        quantizers: Mapping[str, WeightQuantizer],
        weights: Mapping[str, Tensor],
        shown: Sequence[Any],
    ) -> dict[str, float]:
        """Mean eigenvalue of the Hessian in what comes to each quantizer."""
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        handles = [q.register_forward_hook(_Instead(leaves[name])) for name, q in quantizers.items()]
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros(len(leaves), dtype=torch.float64)
        try:
            with torch.enable_grad(), surgery.evaluating(model), derivable(model):
                for inputs, targets, *_ in shown:
                    loss = self.loss(call(model, inputs), targets)
                    total += torch.tensor(traces(loss, list(leaves.values()), self.probes, generator))
        finally:
            for handle in handles:
                handle.remove()
        means = (total / len(shown)).clamp_min(0.0).tolist()
        return {name: mean / weight.numel() for mean, (name, weight) in zip(means, weights.items(), strict=True)}

    def _costs(
        self,
        model: nn.Module,
        inputs: Any,
        losses: Table,
        weights: Mapping[str, Weight],
        reads: Mapping[str, int],
    ) -> tuple[dict[str, dict[int, float]], float]:
        """What each choice costs, and what there is to spend: in bits, or in bit operations."""
        if self.relative_bops is None:
            assert self.weight_bytes is not None
            sizes: dict[str, float] = {name: weights[name].latent.numel() for name in losses}
            budget = 8.0 * self.weight_bytes
        else:
            counts = macs(model, inputs)
            spent = {
                name: sum(
                    counts[place.layer] * macs_share(place) * multiplied_bits(place, reads.get(place.layer, FLOAT_BITS))
                    for place in weight.places
                )
                for name, weight in weights.items()
            }
            sizes = {name: spent[name] for name in losses}
            held = {place.layer for weight in weights.values() for place in weight.places}
            fixed = sum(FLOAT_BITS * count for name, count in counts.items() if name not in held)
            budget = self.relative_bops * FLOAT_BITS**2 * sum(counts.values())
            budget -= FLOAT_BITS * (fixed + sum(spent.values()) - sum(sizes.values()))
        return {name: {bits: sizes[name] * bits for bits in losses[name]} for name in losses}, budget


@final
class _Instead:
    """A forward hook that puts out the same leaf each time."""

    def __init__(self, leaf: Tensor) -> None:
        self.leaf = leaf

    def __call__(self, _module: nn.Module, _args: object, _output: Tensor) -> Tensor:
        return self.leaf
