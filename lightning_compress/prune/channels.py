"""Whole channels, removed for real: the only file that imports torch-pruning."""

import warnings
from dataclasses import dataclass
from typing import Any, final

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_compress.core import edits, surgery
from lightning_compress.core.method import Compact
from lightning_compress.prune.mask import Mask
from lightning_compress.prune.patterns import Score


@final
@dataclass(frozen=True)
class Member:
    """A side of a layer that a channel group runs through: its entry `index[i]` is the root's channel `root[i]`."""

    layer: str
    side: str
    index: Tensor
    root: Tensor


Group = list[Member]

_OUT = {
    tp.prune_conv_out_channels,
    tp.prune_linear_out_channels,
    tp.prune_batchnorm_out_channels,
    tp.prune_depthwise_conv_out_channels,
}
_IN = {tp.prune_conv_in_channels, tp.prune_linear_in_channels}


def groups(model: nn.Module, example: Any, roots: list[str]) -> dict[str, Group]:
    """Channel groups of a plain `model`, each under the first of `roots` it contains (DepGraph, arXiv 2301.12900).

    Raises:
        ValueError: the graph cannot be traced, or a group runs through an operation that cannot be cut.
    """
    names = {module: name for name, module in model.named_modules()}
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    except Exception as error:
        raise ValueError(
            f"channel pruning could not trace the model: {error}; expected plain tensor operations"
        ) from error
    found: dict[str, Group] = {}
    taken: set[tuple[str, int]] = set()
    for root in roots:
        layer = model.get_submodule(root)
        if (root, 0) in taken:
            continue
        pruner = graph.get_pruner_of_module(layer)
        size = pruner.get_out_channels(layer)
        group = graph.get_pruning_group(layer, pruner.prune_out_channels, idxs=list(range(size)))
        found[root] = [member for item in group if (member := _member(item, names)) is not None]
        taken.update((member.layer, 0) for member in found[root] if member.side == "out")
    return found


def _member(item: Any, names: dict[nn.Module, str]) -> Member | None:
    module, act = item.dep.target.module, item.dep.handler
    handler = getattr(act, "__func__", act)
    side = "out" if handler in {getattr(f, "__func__", f) for f in _OUT} else None
    side = "in" if handler in {getattr(f, "__func__", f) for f in _IN} else side
    if module not in names:  # torch-pruning's own stand-ins for add, concat, flatten and the like
        return None
    if side is None:
        raise ValueError(f"channel pruning cannot cut {names[module]!r} ({type(module).__name__}): exclude its group")
    index = torch.tensor([int(i) for i in item.idxs])
    root = torch.tensor([int(i) for i in item.root_idxs])
    return Member(names[module], side, index, root)


@final
class Channel:
    """Output channels of a conv or linear layer with all that depends on them, masked in training, cut in `finalize`.

    The mask covers weight and bias of every layer that writes the channel and the scale and shift of its batch norms,
    so removing it changes nothing.

    Raises:
        ValueError: no selected layer has channels that may go (the output layer's never may).
    """

    def __init__(self, model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> None:
        self._groups = _prunable(groups(surgery.plain(model), example, list(layers)), model, set(layers))
        self._masks = {root: _masked(model, group) for root, group in self._groups.items()}

    def _size(self, root: str) -> int:
        return 1 + int(max(member.root.max() for member in self._groups[root]))

    def scores(self, score: Score) -> dict[str, Tensor]:
        """Score of each channel: the sum over the filters of every layer that writes it, zero where it is masked."""
        found = {}
        for root, masks in self._masks.items():
            total = torch.zeros(self._size(root))
            for layer, name, mask, member in masks:
                if name == "weight" and not isinstance(layer, _NormBase):
                    latent: Any = layer.parametrizations
                    sums = (score(latent.weight.original.detach()) * mask.mask).flatten(1).sum(1)
                    total = total.to(sums.device).index_add(0, member.root.to(sums.device), sums[member.index])
            found[root] = total
        return found

    def apply(self, keep: dict[str, Tensor]) -> None:
        """Set the masks."""
        for root, masks in self._masks.items():
            for _, _, mask, member in masks:
                flat = mask.mask.view(-1)
                flat[member.index.to(flat.device)] = keep[root].to(flat.device)[member.root.to(flat.device)]

    def keep(self) -> dict[str, Tensor]:
        """The channels that the masks keep now."""
        found = {}
        for root, masks in self._masks.items():
            _, _, mask, member = masks[0]
            kept = torch.ones(self._size(root), dtype=torch.bool, device=mask.mask.device)
            kept[member.root.to(kept.device)] = mask.mask.view(-1)[member.index.to(kept.device)]
            found[root] = kept
        return found

    def finalize(self, compact: Compact) -> Compact:
        """Cut the masked channels out of every layer they run through."""
        stays: dict[tuple[str, str], Tensor] = {}
        for root, kept in self.keep().items():
            for member in self._groups[root] if not kept.all() else []:
                key = (member.layer, member.side)
                side = stays.setdefault(key, _everything(compact.model.get_submodule(member.layer), member.side))
                side[member.index] &= kept.cpu()[member.root]
        model, stored = compact.model, compact.stored
        made = [edits.keep(layer, side, kept.nonzero().flatten()) for (layer, side), kept in stays.items()]
        for edit in made:
            stored = edits.cut_stored(model, stored, edit)
            edits.replay(model, [edit])
        return Compact(model, stored, [*compact.edits, *made])


def _masked(model: nn.Module, group: Group) -> list[tuple[nn.Module, str, Mask, Member]]:
    """Masks on weight and bias of every layer and batch norm that writes the group's channels."""
    masks = []
    for member in (member for member in group if member.side == "out"):
        layer = model.get_submodule(member.layer)
        for name in ("weight", "bias"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                mask = Mask.on(layer, name, (tensor.shape[0], *[1] * (tensor.dim() - 1)))
                masks.append((layer, name, mask, member))
    return masks


def _everything(layer: nn.Module, side: str) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return torch.ones(weight.shape[1 if side == "in" else 0], dtype=torch.bool)


def _prunable(found: dict[str, Group], model: nn.Module, selected: set[str]) -> dict[str, Group]:
    """Groups that may lose channels: every layer that writes them was selected, and somebody reads them."""
    kept = {}
    for root, group in found.items():
        writers = {
            member.layer
            for member in group
            if member.side == "out"
            and not isinstance(model.get_submodule(member.layer), _NormBase)
            and getattr(model.get_submodule(member.layer), "groups", 1) == 1
        }
        if writers <= selected and any(member.side == "in" for member in group):
            kept[root] = group
    if not kept:
        raise ValueError(
            f"channel pruning: none of the selected layers ({', '.join(sorted(selected))}) has channels that may go; "
            "the output layer's channels are the classes, and a group goes only when all its layers are selected"
        )
    return kept
