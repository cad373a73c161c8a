"""Groups of channels, or heads, that go together, and the edits that cut them."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from posixpath import commonpath
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.method import Edit
from lightning_compress.prune import graph

Keep = dict[str, Tensor]


@final
@dataclass(frozen=True)
class Member:
    """A side of a layer that a group runs through: its entry `index[i]` belongs to the group's unit `root[i]`."""

    layer: str
    side: str
    index: Tensor
    root: Tensor


@final
@dataclass(frozen=True)
class Group:
    """Units 0 to `size` - 1, each of which goes as a whole, and where their channels are; or they are `heads`."""

    members: list[Member]
    size: int
    heads: bool = False


def groups(model: nn.Module, example: Any, layers: Collection[str], *, heads: bool = False) -> dict[str, Group]:
    """Groups of a plain `model` that may lose units, each under the first layer that writes it.

    A unit is all that a channel of a layer drags along: as many layers as a residual stream has, the same place in
    every group of a grouped conv (DepGraph, arXiv 2301.12900, calls it a dependency). With `heads`, units are heads of
    attention, which are left out otherwise. A channel stays where one of the layers that write it is not in `layers`,
    or that nobody reads.

    Raises:
        ValueError: the model cannot be traced.

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    >>> groups(net, torch.ones(1, 3, 2, 2), ["0"])["0"].size
    2
    """
    links = graph.trace(model, example)
    written = {
        name: links.places[name, "out"].tolist()
        for name, module in model.named_modules()
        if isinstance(module, edits.WRITERS) and (name, "out") in links.places
    }
    fixed = {0}.union(*(labels for name, labels in written.items() if _selected(name, model) not in layers))
    units: dict[str, dict[int, None]] = {}
    for name, labels in written.items():
        own = dict.fromkeys(label for label in labels if label not in fixed and (label in links.heads) == heads)
        met = [root for root, others in units.items() if own.keys() & others.keys()]
        for root in met[1:]:
            units[met[0]] |= units.pop(root)
        if own:
            units[met[0] if met else name] = units.get(met[0], {}) | own if met else own
    found = {root: _group(links.places, list(labels), heads) for root, labels in units.items() if len(labels) > 1}
    return {root: group for root, group in found.items() if any(member.side == "in" for member in group.members)}


def _selected(name: str, model: nn.Module) -> str:
    """The name by which a layer is selected: the rows of `nn.MultiheadAttention` go with its linear layer."""
    attention = isinstance(model.get_submodule(name), nn.MultiheadAttention)
    return surgery.dotted(name, "out_proj") if attention else name


def _group(places: dict[tuple[str, str], Tensor], labels: list[int], heads: bool) -> Group:
    number = torch.full((max(int(place.max()) for place in places.values()) + 1,), -1)
    number[labels] = torch.arange(len(labels))
    members = []
    for (layer, side), place in places.items():
        units = number[place]
        index = (units >= 0).nonzero().flatten()
        if len(index):
            members.append(Member(layer, side, index, units[index]))
    return Group(members, len(labels), heads)


def cuts(model: nn.Module, found: dict[str, Group], keep: Keep) -> list[Edit]:
    """The edits that leave of each group the units in `keep`."""
    stays: dict[tuple[str, str], Tensor] = {}
    counts: list[Edit] = []
    for root, group in found.items():
        if keep[root].all():
            continue
        for member in group.members:
            key = (member.layer, member.side)
            if key not in stays:
                stays[key] = torch.ones(entries(model, *key), dtype=torch.bool)
            stays[key][member.index] &= keep[root].cpu()[member.root]
        if group.heads:
            counts += _counts(model, group, int(keep[root].sum()))
    return [edits.keep(layer, side, kept.nonzero().flatten()) for (layer, side), kept in stays.items()] + counts


def entries(model: nn.Module, layer: str, side: str) -> int:
    """How many channels there are on a side of a layer, as `edits.keep` counts them."""
    module = model.get_submodule(layer)
    for tensor, dim in edits.cuts(model, {"layer": layer, "side": side}).items():
        size: int = getattr(module, tensor.rpartition(".")[2]).shape[dim]
        return size
    assert isinstance(module.num_features, int)  # a norm without any tensor
    return module.num_features


def written(model: nn.Module, layer: str) -> dict[str, int]:
    """The parameters that make a layer's output channels, with the dimension of those: what a mask covers.

    >>> written(nn.Sequential(nn.BatchNorm1d(2)), "0")
    {'weight': 0, 'bias': 0}
    """
    found = edits.cuts(model, {"layer": layer, "side": "out"})
    names = {name.rpartition(".")[2]: dim for name, dim in found.items()}
    return {name: dim for name, dim in names.items() if not name.startswith("running")}


def _counts(model: nn.Module, group: Group, left: int) -> list[Edit]:
    """What the module around hand-written heads is told of them: its numbers called something with "head".

    Those are the number of heads and, as "dim" or "size", the width of all together. The width of one head stays.
    """
    width = next(len(member.index) for member in group.members if member.side == "in")
    made = []
    # All of a head, or query, key and value alone: the layer behind may be in a module of its own.
    for owner in dict.fromkeys(_around(group, sides) for sides in (("in", "out"), ("out",))):
        module = model.get_submodule(owner)
        for name, value in {} if isinstance(module, nn.MultiheadAttention) else vars(module).items():
            whole, now = (width, width // group.size * left) if re.search("dim|size", name) else (group.size, left)
            if "head" in name and type(value) is int and value == whole:
                made.append(edits.set_count(owner, name, now))
    return made


def _around(group: Group, sides: Collection[str]) -> str:
    layers = [member.layer.replace(".", "/") for member in group.members if member.side in sides]
    return commonpath(layers).replace("/", ".")
