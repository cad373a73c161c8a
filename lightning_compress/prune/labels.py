"""Labels on tensors: what each value stands and falls with, and which of them turned out to be one."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


@final
@dataclass(frozen=True)
class Links:
    """Labels of the entries of each (layer, side), 1-D int64; equal ones go together, 0 never goes.

    The sides are those of `edits.keep`. `heads` are the labels of channels that an attention product is made over.
    """

    places: dict[tuple[str, str], Tensor]
    heads: set[int]


@final
class Labels:
    """Labels of the values under way; 0 stays for ever.

    >>> labels, x = Labels(), torch.zeros(2, 2)
    >>> own = labels.fresh(2, x)
    >>> labels.put(x, own.expand(2, 2))
    >>> labels.record("fc", "in", labels.channels(x, 1))
    >>> labels.same(own[:1], own[1:])
    >>> labels.links().places
    {('fc', 'in'): tensor([1, 1])}
    """

    def __init__(self) -> None:
        self.places: dict[tuple[str, str], Tensor] = {}
        self.heads: list[Tensor] = []
        #: Channels that a reshape split into [parts, channels of a part].
        self.splits: list[Tensor] = []
        self._of: dict[int, tuple[Tensor, Tensor]] = {}  # the values are held, so that no id is used twice
        self._pairs: list[Tensor] = []
        self._next = 1

    def of(self, value: Tensor) -> Tensor:
        """Labels of the entries of a tensor, of its shape."""
        if id(value) in self._of:
            return self._of[id(value)][1]
        return torch.zeros((), dtype=torch.int64, device=value.device).expand(value.shape)

    def has(self, value: Tensor) -> bool:
        """Whether the tensor was given labels."""
        return id(value) in self._of

    def put(self, value: Tensor, labels: Tensor) -> None:
        """Say what the labels of a tensor are."""
        assert labels.shape == value.shape, (labels.shape, value.shape)
        self._of[id(value)] = value, labels

    def fresh(self, count: int, like: Tensor) -> Tensor:
        """So many new labels, 1-D, on the device of `like`."""
        self._next += count
        return torch.arange(self._next - count, self._next, device=like.device)

    def same(self, left: Tensor, right: Tensor) -> None:
        """Note labels that are one, entry by entry."""
        left, right = torch.broadcast_tensors(left, right)  # type: ignore[no-untyped-call]
        for dim in range(left.dim()):
            if left.stride(dim) == 0 and right.stride(dim) == 0 and left.shape[dim] > 1:
                left, right = left.narrow(dim, 0, 1), right.narrow(dim, 0, 1)
        pairs = torch.unique(left.reshape(-1) * self._next + right.reshape(-1)).cpu()  # far faster than unique columns
        found = torch.stack([pairs // self._next, pairs % self._next])
        self._pairs.append(found[:, found[0] != found[1]])

    def keep_for_ever(self, *values: Any) -> None:
        """Bind all labels of these values to 0."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and self.has(value):
                labels = self.of(value)
                self.same(labels, labels.new_zeros(()))

    def channels(self, value: Tensor, dim: int) -> Tensor:
        """The label of each channel along `dim`; where the entries of one differ, all are kept for ever."""
        labels = self.of(value)
        if not all(constant(labels, other) for other in range(value.dim()) if other != dim % value.dim()):
            self.keep_for_ever(value)
        return labels.movedim(dim, 0).flatten(1)[:, 0] if labels.dim() > 1 else labels

    def record(self, layer: str, side: str, labels: Tensor) -> None:
        """Note the labels of a side of a layer; those of its other calls are the same."""
        self.same(self.places.setdefault((layer, side), labels), labels)

    def own(self, layer: str, count: int, like: Tensor) -> Tensor:
        """The labels of what a layer writes, the same at each call."""
        if (layer, "out") not in self.places:
            self.places[layer, "out"] = self.fresh(count, like)
        return self.places[layer, "out"]

    def emit(self, value: Tensor, channels: Tensor, dim: int) -> None:
        """Give a tensor the labels of its channels along `dim`."""
        shape = [1] * value.dim()
        shape[dim] = -1
        self.put(value, channels.view(shape).expand(value.shape))

    def _resolved(self) -> Tensor:
        """For each label the smallest that is the same."""
        first = list(range(self._next))

        def smallest(label: int) -> int:
            while first[label] != label:
                first[label] = first[first[label]]
                label = first[label]
            return label

        for left, right in torch.cat([torch.empty(2, 0, dtype=torch.int64), *self._pairs], 1).T.tolist():
            low, high = sorted((smallest(left), smallest(right)))
            first[high] = low
        return torch.tensor([smallest(label) for label in range(self._next)])

    def links(self) -> Links:
        """What was recorded, every label replaced by the smallest that is the same.

        Channels that were split into parts lose as many of each, at the same places; if the parts are heads, then
        those go as a whole, and their width stays.
        """
        found = self._resolved()
        heads = set(
            found[torch.cat([torch.empty(0), *(labels.cpu().flatten() for labels in self.heads)]).long()].tolist()
        )
        for parts in self.splits:
            if heads.isdisjoint(found[parts.cpu().flatten()].tolist()):
                self.same(parts[:1], parts)
        found = self._resolved()
        heads = {int(found[label]) for label in heads}
        return Links({place: found[labels.cpu()] for place, labels in self.places.items()}, heads)


def constant(labels: Tensor, dim: int) -> bool:
    """Whether the labels are the same all along `dim`.

    >>> constant(torch.tensor([[1, 1], [2, 2]]), 1)
    True
    """
    if labels.shape[dim] == 1 or labels.stride(dim) == 0:
        return True
    return bool((labels == labels.narrow(dim, 0, 1)).all())
