"""Whole channels, or attention heads, masked in training and removed for real."""

import logging
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact
from lightning_compress.core.select import WEIGHTED
from lightning_compress.prune.groups import Group, Keep, Member, cuts, groups, written
from lightning_compress.prune.patterns import Score, masked_weight
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
        self._telling = {root: _telling(masks, self.groups[root].size) for root, masks in self._masks.items()}

    @torch.no_grad()
    def view(self) -> dict[str, Tensor]:
        """The masked latent weights that each unit is made of, [units, size], of every layer that writes it.

        Where units are made of different numbers of filters, zeros fill the gaps.
        """
        found: dict[str, list[Tensor]] = {root: [] for root in self.groups}
        for root, masks in self._masks.items():
            for layer, name, mask, member in masks:
                if name.endswith("weight") and not isinstance(layer, edits.SCALES):
                    dim = mask.mask.shape.index(mask.mask.numel())
                    filters = masked_weight(layer, name).movedim(dim, 0).flatten(1)
                    found[root].append(_by_unit(filters, member, self.groups[root].size))
        return {root: torch.cat(parts, 1) if len(parts) > 1 else parts[0] for root, parts in found.items()}

    def scores(self, score: Score) -> dict[str, Tensor]:
        """Score of each unit: the sum over the filters of every layer that writes it, -inf where it is masked."""
        keep = self.keep()
        return {
            root: score(units).sum(1).float().masked_fill(~keep[root], -torch.inf)
            for root, units in self.view().items()
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


def _by_unit(filters: Tensor, member: Member, units: int) -> Tensor:
    """Rows of `filters` beside each other by the unit they belong to, [units, ...]."""
    index, root = member.index.to(filters.device), member.root.to(filters.device)
    if len(index) == len(filters) == units and torch.equal(root, index):  # channel i of the layer is unit i
        return filters
    order = root.argsort(stable=True)
    counts = root.bincount(minlength=units)
    place = torch.arange(len(root), device=root.device) - (counts.cumsum(0) - counts)[root[order]]
    found = filters.new_zeros(units, int(counts.max()), filters.shape[1])
    found[root[order], place] = filters[index[order]]
    return found.flatten(1)


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
