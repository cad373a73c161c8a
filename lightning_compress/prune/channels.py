"""Whole channels, or attention heads, masked in training and removed for real."""

import logging
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from lightning_compress.core import edits, select, surgery
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.weight import Weight
from lightning_compress.prune.groups import Group, Keep, Member, cuts, groups, written
from lightning_compress.prune.patterns import masked_weight, side_by_side
from lightning_compress.prune.trial import survives

#: Layers whose channels may go.
KINDS: tuple[type[nn.Module], ...] = (*WEIGHTED, *edits.TRANSPOSED)


@final
class Channel:
    """Output channels of a conv or linear layer with all that depends on them, masked in training, cut in `finalize`.

    The mask covers weight and bias of every layer that writes the channel and the scale and shift of its norms, so
    removing it changes nothing. With `heads` the units are heads of attention: rows of query, key and value, and the
    columns of the layer behind that read them.

    Raises:
        ValueError: no selected layer has channels that may go (the output layer's never may).
    """

    def __init__(self, model: nn.Module, example: Any, layers: dict[str, nn.Module], *, heads: bool = False) -> None:
        self.groups = prunable(model, example, layers, heads=heads)
        self._masks = {root: _masked(model, group) for root, group in self.groups.items()}
        self._grouped = {name for name, layer in model.named_modules() if getattr(layer, "groups", 1) > 1}
        self._readers = {
            root: [
                (model.get_submodule(member.layer), member) for member in group.members if self._reads(model, member)
            ]
            for root, group in self.groups.items()
        }
        self._telling = {root: _telling(masks, self.groups[root].size) for root, masks in self._masks.items()}

    def _reads(self, model: nn.Module, member: Member) -> bool:
        layer = model.get_submodule(member.layer)
        return member.side == "in" and isinstance(layer, KINDS) and member.layer not in self._grouped

    def view(self, read: Callable[[Weight], Tensor] = masked_weight) -> dict[str, Tensor]:
        """Each unit's entries, [units, size], of what `read` gives for every layer that writes it, side by side."""
        found = {}
        for root, masks in self._masks.items():
            parts = []
            for layer, name, _, member in masks:
                if name.endswith("weight") and not isinstance(layer, edits.SCALES):
                    filters = (
                        read(Weight.of(layer, name)).movedim(int(isinstance(layer, edits.TRANSPOSED)), 0).flatten(1)
                    )
                    parts.append(side_by_side(filters[member.index], member.root, self.groups[root].size).flatten(1))
            found[root] = torch.cat(parts, 1)
        return found

    def norms(self, read: Callable[[Weight], Tensor] = masked_weight) -> dict[str, Tensor]:
        """The scales of the batch norms over each unit, [units, norms].

        Raises:
            ValueError: a group that has none.
        """
        found = {}
        for root, masks in self._masks.items():
            scales = [
                side_by_side(read(Weight.of(layer, name))[member.index], member.root, self.groups[root].size).flatten(1)
                for layer, name, _, member in masks
                if name == "weight" and isinstance(layer, _BatchNorm)
            ]
            if not scales:
                raise ValueError(
                    f"channel pruning: no batch norm follows {root!r}; "
                    f"write exclude={[select.exactly(root)]}, or a score that needs none"
                )
            found[root] = torch.cat(scales, 1)
        return found

    def reading(self) -> dict[str, Tensor]:
        """The columns in which layers read each unit, [units, size]; grouped ones, which have none, left out."""
        found = {}
        for root, readers in self._readers.items():
            parts = [torch.zeros(self.groups[root].size, 1)]
            for layer, member in readers:
                columns = _plain(layer).movedim(1 - int(isinstance(layer, edits.TRANSPOSED)), 0).flatten(1)
                parts.append(side_by_side(columns[member.index], member.root, self.groups[root].size).flatten(1))
            found[root] = torch.cat([part.to(parts[-1]) for part in parts], 1)
        return found

    def readers(self) -> dict[str, Member]:
        """The first layer that reads all channels of each group.

        Raises:
            ValueError: a group whose channels no single layer reads, or reads in groups of its own.
        """
        found = {}
        for root, group in self.groups.items():
            whole = [
                member
                for member in group.members
                if member.side == "in"
                and len(set(member.root.tolist())) == group.size
                and member.layer not in self._grouped
            ]
            if not whole or group.heads:
                raise ValueError(
                    f"channel pruning: no layer reads all channels of {root!r}; "
                    f"write exclude={[select.exactly(root)]}, or a score that needs no features"
                )
            found[root] = whole[0]
        return found

    def gates(self) -> dict[str, list[tuple[Mask, Tensor, Tensor]]]:
        """The masks of each group, with the places of its units in them."""
        return {
            root: [(mask, member.index, member.root) for _, _, mask, member in masks]
            for root, masks in self._masks.items()
        }

    def apply(self, keep: Keep) -> None:
        """Tighten the masks: what is gone stays gone."""
        for root, masks in self._masks.items():
            for _, _, mask, member in masks:
                flat = mask.mask.view(-1)
                flat[member.index.to(flat.device)] *= keep[root].to(flat)[member.root.to(flat.device)]

    def keep(self) -> Keep:
        """The units that the masks keep now."""
        found = {}
        for root, masks in self._telling.items():
            kept = torch.ones(self.groups[root].size, dtype=torch.bool, device=masks[0][0].mask.device)
            for mask, member in masks:
                kept[member.root.to(kept.device)] = mask.mask.view(-1)[member.index.to(kept.device)] > 0
            found[root] = kept
        return found

    def finalize(self, compact: Compact) -> Compact:
        """Cut the masked units out of every layer they run through."""
        model, stored = compact.model, compact.stored
        made = cuts(model, self.groups, self.keep())
        for edit in made:
            if edit["kind"] == "keep":
                stored = edits.cut_stored(model, stored, edit)
            edits.replay(model, [edit])
        return Compact(model, stored, [*compact.edits, *made])


def _plain(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return masked_weight(Weight.of(layer)) if parametrize.is_parametrized(layer, "weight") else weight.detach()


def _masked(model: nn.Module, group: Group) -> list[tuple[nn.Module, str, Mask, Member]]:
    """Masks on weight and bias of every layer, and scale and shift of every norm, that writes the group's units."""
    masks = []
    for member in (member for member in group.members if member.side == "out"):
        layer = model.get_submodule(member.layer)
        for name, dim in written(model, member.layer).items():
            shape = [size if at == dim else 1 for at, size in enumerate(getattr(layer, name).shape)]
            masks.append((layer, name, Mask.on(layer, name, tuple(shape)), member))
    return masks


def _telling(masks: list[tuple[nn.Module, str, Mask, Member]], units: int) -> list[tuple[Mask, Member]]:
    """As many of a group's masks as it takes to know of each unit whether it is kept."""
    told: set[int] = set()
    found = []
    for _, _, mask, member in masks:
        if not told.issuperset(member.root.tolist()):
            told.update(member.root.tolist())
            found.append((mask, member))
        if len(told) == units:
            break
    return found


def prunable(model: nn.Module, example: Any, layers: dict[str, nn.Module], *, heads: bool = False) -> dict[str, Group]:
    """Groups that may lose units and for which cutting works.

    Raises:
        ValueError: there is none.
    """
    plain = surgery.plain(model)
    kept = groups(plain, example, layers, heads=heads)
    sound = _sound(plain, example, kept)
    what = "heads" if heads else "channels"
    if len(sound) < len(kept):
        logging.getLogger(__name__).warning(
            f"pruning leaves all {what} of %s in place: cutting them is not the same as zeroing them "
            "(a sigmoid, a norm without scale, a reshape with a fixed number of channels?)",
            ", ".join(root for root in kept if root not in sound),
        )
    if not sound or not survives(plain, example, sound):
        raise ValueError(
            f"pruning: none of the selected layers ({', '.join(sorted(layers))}) has {what} that may go; "
            "the output layer's channels are the classes, a group goes only when all its layers are selected, and "
            "cutting must be the same as zeroing"
        )
    return sound


def _sound(model: nn.Module, example: Any, found: dict[str, Group]) -> dict[str, Group]:
    """The groups that survive, found by halving: it is few that do not."""
    if not found or survives(model, example, found):
        return found
    names = list(found)
    middle = len(names) // 2
    halves = ({name: found[name] for name in part} for part in (names[:middle], names[middle:]) if middle)
    return {name: group for half in halves for name, group in _sound(model, example, half).items()}
