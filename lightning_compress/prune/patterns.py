"""The shape of what is removed together: units.

A pattern puts its masks on the model, shows its units and turns the units to keep into masks:
`pattern(model, example, layers) -> object` with `view(read)`, `apply(keep)`, `keep()` and `finalize(compact)`.
The patterns here leave their zeros in place; `prune/channels.py` has those that are removed for real.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core import select
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact
from lightning_compress.core.weight import Weight

Weights = Mapping[str, Weight]


def masked_latent(weight: Weight) -> Tensor:
    """A latent weight under all its masks, before quantizers and the like."""
    value = weight.latent
    for step in weight.steps:
        if isinstance(step, Mask):
            value = step(value)
    return value


@torch.no_grad()
def masked_weight(weight: Weight) -> Tensor:
    """The same with no way back to what is trained."""
    return masked_latent(weight).detach()


class Pattern(Protocol):
    """What `Prune` asks of a pattern; units are counted under the name of a layer or weight."""

    def view(self, read: Callable[[Weight], Tensor] = masked_weight) -> dict[str, Tensor]:
        """Each unit's entries, [units, size], of what `read` gives for a weight: a tensor of its shape."""
        ...

    def apply(self, keep: dict[str, Tensor]) -> None:
        """Tighten the masks by bool tensors [units]: what is gone stays gone."""
        ...

    def keep(self) -> dict[str, Tensor]:
        """The units that the masks keep now, bool [units]."""
        ...

    def finalize(self, compact: Compact) -> Compact:
        """Remove physically what can be removed."""
        ...


def weights_of(pattern: Pattern) -> list[Weight]:
    """The weights that make up the units."""
    found: dict[Weight, None] = {}

    def read(weight: Weight) -> Tensor:
        found[weight] = None
        return masked_weight(weight)

    pattern.view(read)
    return list(found)


@runtime_checkable
class OfChannels(Protocol):
    """What a pattern of channels can show besides."""

    def norms(self, read: Callable[[Weight], Tensor] = masked_weight) -> dict[str, Tensor]:
        """The scales that batch norms have for each channel, [channels, norms]."""
        ...

    def reading(self) -> dict[str, Tensor]:
        """The weights by which layers behind read each channel, [channels, size]."""
        ...

    def readers(self) -> dict[str, "Reader"]:
        """A layer that reads all the channels, for each name."""
        ...


@runtime_checkable
class Gated(Pattern, Protocol):
    """A pattern whose units are more than weights: their biases and norms are masked with them."""

    def gates(self) -> dict[str, list[tuple[Mask, Tensor, Tensor]]]:
        """The masks under each name, each with places in it (as if flat) and the units that those belong to."""
        ...


class Reader(Protocol):
    """A layer whose input's channel `index[i]` is, or is part of, the unit `root[i]`."""

    layer: str
    index: Tensor
    root: Tensor


def side_by_side(rows: Tensor, place: Tensor, size: int) -> Tensor:
    """Rows [n, ...] beside each other under the unit in 0..`size`-1 that `place` [n] says: [size, most, ...].

    Where a unit has fewer rows than another it has zeros.

    >>> side_by_side(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([0, 1, 0]), 2)
    tensor([[5., 7.],
            [6., 0.]])
    """
    place = place.to(rows.device)
    if torch.equal(place, torch.arange(size, device=rows.device)):
        return rows.unsqueeze(1)
    order = place.argsort(stable=True)
    count = place.bincount(minlength=size)
    first = count.cumsum(0) - count
    nth = torch.arange(len(place), device=rows.device) - first[place[order]]
    out = rows.new_zeros(size, int(count.max()), *rows.shape[1:])
    out[place[order], nth] = rows[order]
    return out


@final
class InPlace:
    """Units within single weights, whose zeros stay in place and are coded away in the packed file.

    `split` lays a tensor of a weight's shape out as [units, size]; `join` makes of one number for each unit a tensor
    that broadcasts to that shape.

    >>> layer = nn.Linear(2, 2)
    >>> pattern = row(layer, None, {"": Weight.of(layer)})
    >>> pattern.apply({"": torch.tensor([True, False])})
    >>> (pattern.view()[""] == 0).tolist()
    [[False, False], [True, True]]
    """

    def __init__(
        self, weights: Weights, split: Callable[[Tensor], Tensor], join: Callable[[Tensor, torch.Size], Tensor]
    ) -> None:
        self._weights, self._split, self._join = weights, split, join
        self._masks = {
            name: Mask(tuple(weight.latent.shape)).to(weight.latent.device) for name, weight in weights.items()
        }
        for name, weight in weights.items():
            weight.put(self._masks[name])

    def view(self, read: Callable[[Weight], Tensor] = masked_weight) -> dict[str, Tensor]:
        """Each unit's entries, [units, size], of what `read` gives for its weight."""
        return {name: self._split(read(weight)) for name, weight in self._weights.items()}

    def apply(self, keep: dict[str, Tensor]) -> None:
        """Tighten the masks: what is gone stays gone."""
        for name, mask in self._masks.items():
            mask.mask.mul_(self._join(keep[name].view(torch.uint8), mask.mask.shape))  # bools take three times as long

    def keep(self) -> dict[str, Tensor]:
        """The units that the masks keep now."""
        return {name: self._split(mask.mask)[:, 0].bool() for name, mask in self._masks.items()}

    def finalize(self, compact: Compact) -> Compact:
        """Nothing to remove: zeros in place have no shape."""
        return compact


def unstructured(model: nn.Module, example: Any, weights: Weights) -> InPlace:
    """Single weights.

    >>> layer = nn.Linear(3, 2)
    >>> unstructured(layer, None, {"": Weight.of(layer)}).view()[""].shape
    torch.Size([6, 1])
    """
    return InPlace(weights, lambda weight: weight.reshape(-1, 1), lambda keep, shape: keep.reshape(shape))


def row(model: nn.Module, example: Any, weights: Weights) -> InPlace:
    """All weights of one output; its bias and batch norm stay.

    >>> layer = nn.Conv1d(3, 2, 5)
    >>> row(layer, None, {"": Weight.of(layer)}).view()[""].shape
    torch.Size([2, 15])
    """
    return InPlace(
        weights, lambda weight: weight.flatten(1), lambda keep, shape: keep.reshape(-1, *[1] * (len(shape) - 1))
    )


def block(model: nn.Module, example: Any, weights: Weights, *, rows: int, columns: int) -> InPlace:
    """Blocks of `rows` x `columns` of the weight as a matrix, [outputs, everything else]; smaller ones at its ends.

    >>> layer = nn.Linear(6, 4)
    >>> block(layer, None, {"": Weight.of(layer)}, rows=4, columns=1).view()[""].shape
    torch.Size([6, 4])
    """

    def split(weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        flat = F.pad(flat, (0, -flat.shape[1] % columns, 0, -flat.shape[0] % rows))
        tiled = flat.reshape(flat.shape[0] // rows, rows, flat.shape[1] // columns, columns)
        return tiled.transpose(1, 2).reshape(-1, rows * columns)

    def join(keep: Tensor, shape: torch.Size) -> Tensor:
        height, width = shape[0], shape[1:].numel()
        wide = keep.reshape(-(-height // rows), -1).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return wide[:height, :width].reshape(shape)

    return InPlace(weights, split, join)


def in_groups(model: nn.Module, example: Any, weights: Weights, *, size: int) -> InPlace:
    """Single weights in the order in which `size` of them that follow each other form a group of N:M sparsity.

    Groups run along the inputs (a conv's input channels, at each place of its kernel), as sparse tensor cores want.

    Raises:
        ValueError: layers whose number of inputs is no multiple of `size`.

    >>> layer = nn.Conv1d(4, 1, 2)
    >>> order = in_groups(layer, None, {"": Weight.of(layer)}, size=4).view(lambda _: torch.arange(8.0).view(1, 4, 2))
    >>> order[""].flatten().tolist()
    [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]
    """
    odd = {name: own.latent.shape[1] for name, own in weights.items() if own.latent.shape[1] % size}
    if odd:
        raise ValueError(
            f"Prune: groups of {size} run along a layer's inputs, and of {', '.join(odd)} there are "
            f"{', '.join(map(str, odd.values()))}; write exclude={[select.exactly(name) for name in odd]}"
        )

    def join(keep: Tensor, shape: torch.Size) -> Tensor:
        return keep.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)

    return InPlace(weights, lambda weight: weight.movedim(1, -1).reshape(-1, 1), join)
