"""Whole channels, removed for real: the only file that imports torch-pruning."""

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lightning_compress.core import edits, select, surgery
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact, Edit
from lightning_compress.prune.patterns import masked_weight, side_by_side


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
_SIDES = {getattr(f, "__func__", f): side for side, known in (("out", _OUT), ("in", _IN)) for f in known}


def groups(model: nn.Module, example: Any, roots: list[str]) -> dict[str, Group]:
    """Channel groups of a plain `model`, each under the first of `roots` it contains (DepGraph, arXiv 2301.12900).

    What runs through operations other than conv, linear and batch norm is left out: `survives` says whether a group
    can be cut all the same.

    Raises:
        ValueError: the graph cannot be traced.
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
    taken: set[str] = set()
    for root in roots:
        if root in taken:
            continue
        layer = model.get_submodule(root)
        pruner = graph.get_pruner_of_module(layer)
        size = pruner.get_out_channels(layer)
        group = graph.get_pruning_group(layer, pruner.prune_out_channels, idxs=list(range(size)))
        found[root] = [member for item in group if (member := _member(item, names)) is not None]
        taken.update(member.layer for member in found[root] if member.side == "out")
    return found


def _member(item: Any, names: dict[nn.Module, str]) -> Member | None:
    module, handler = item.dep.target.module, item.dep.handler
    side = _SIDES.get(getattr(handler, "__func__", handler))
    if module not in names or side is None:
        return None
    index = torch.tensor([int(i) for i in item.idxs])
    root = torch.tensor([int(i) for i in item.root_idxs])
    return Member(names[module], side, index, root)


def _size(group: Group) -> int:
    return 1 + int(max(member.root.max() for member in group))


def survives(model: nn.Module, example: Any, found: dict[str, Group]) -> bool:
    """Whether cutting channels of these groups gives what zeroing them gives, tried on noisy copies of `model`.

    The graph is traced from autograd, and does not see all: zero padding of channels, a shuffle, a sigmoid that turns
    the zeros of a channel into halves. So each group has to prove itself before training starts.
    """
    noise = torch.Generator().manual_seed(0)
    masked = surgery.plain(model).eval().requires_grad_(False)
    for tensor in [*masked.parameters(), *(b for n, b in masked.named_buffers() if n.endswith("running_mean"))]:
        size = tensor.abs().mean()  # a tensor of zeros or ones would hide what goes wrong
        tensor += 0.1 * torch.where(size > 0, size, 1.0) * torch.randn(tensor.shape, generator=noise).to(tensor)
    keep = {root: torch.rand(_size(group), generator=noise) < 0.5 for root, group in found.items()}
    for root, group in found.items():
        keep[root][0], keep[root][-1] = True, len(keep[root]) == 1
        for member in (member for member in group if member.side == "out"):
            layer = masked.get_submodule(member.layer)
            for values in (getattr(layer, name, None) for name in ("weight", "bias")):
                if isinstance(values, Tensor):
                    values[member.index[~keep[root][member.root]]] = 0.0
    try:
        with torch.no_grad():
            wanted = masked(example)
            got = edits.replay(copy.deepcopy(masked), _cuts(masked, found, keep))(example)
    except Exception:  # whatever a layer says when its shapes no longer fit
        return False
    pairs = list(zip(tree_leaves(wanted), tree_leaves(got), strict=False))
    return all(_close(a, b) for a, b in pairs if isinstance(a, Tensor))


def _close(wanted: Tensor, got: Tensor) -> bool:
    room = 1e-3 * float(wanted.abs().max())
    return wanted.shape == got.shape and bool(torch.isfinite(wanted).all()) and torch.allclose(wanted, got, 0.0, room)


def _cuts(model: nn.Module, found: dict[str, Group], keep: dict[str, Tensor]) -> list[Edit]:
    """The edits that leave of each group the channels in `keep`."""
    stays: dict[tuple[str, str], Tensor] = {}
    for root, group in found.items():
        for member in group if not keep[root].all() else []:
            key = (member.layer, member.side)
            side = stays.setdefault(key, _everything(model.get_submodule(member.layer), member.side))
            side[member.index] &= keep[root].cpu()[member.root]
    return [edits.keep(layer, side, kept.nonzero().flatten()) for (layer, side), kept in stays.items()]


def _everything(layer: nn.Module, side: str) -> Tensor:
    if isinstance(layer, _BatchNorm):
        return torch.ones(layer.num_features, dtype=torch.bool)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return torch.ones(weight.shape[1 if side == "in" else 0], dtype=torch.bool)


@final
class Channel:
    """Output channels of a conv or linear layer with all that depends on them, masked in training, cut in `finalize`.

    The mask covers weight and bias of every layer that writes the channel and the scale and shift of its batch norms,
    so removing it changes nothing.

    Raises:
        ValueError: no selected layer has channels that may go (the output layer's never may).
    """

    def __init__(self, model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> None:
        self._groups = _prunable(model, example, layers)
        self._masks = {root: _masked(model, group) for root, group in self._groups.items()}

    def view(self, read: Callable[[nn.Module], Tensor] = masked_weight) -> dict[str, Tensor]:
        """Each channel's entries of what `read` gives for every layer that writes it, side by side."""
        found = {}
        for root, masks in self._masks.items():
            written = [
                side_by_side(read(layer).flatten(1)[member.index], member.root, _size(self._groups[root])).flatten(1)
                for layer, name, _, member in masks
                if name == "weight" and not isinstance(layer, _BatchNorm)
            ]
            found[root] = torch.cat(written, 1)
        return found

    def norms(self) -> dict[str, Tensor]:
        """The scales of the batch norms over each channel, [channels, norms].

        Raises:
            ValueError: a group of channels that has none.
        """
        found = {}
        for root, masks in self._masks.items():
            scales = [
                side_by_side(masked_weight(layer)[member.index], member.root, _size(self._groups[root]))
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

    def readers(self) -> dict[str, Member]:
        """The first layer that reads all channels of each group.

        Raises:
            ValueError: a group whose channels no single layer reads.
        """
        found = {}
        for root, group in self._groups.items():
            whole = [m for m in group if m.side == "in" and len(set(m.root.tolist())) == _size(group)]
            if not whole:
                raise ValueError(
                    f"channel pruning: no layer reads all channels of {root!r}; "
                    f"write exclude={[select.exactly(root)]}, or a score that needs no features"
                )
            found[root] = whole[0]
        return found

    def apply(self, keep: dict[str, Tensor]) -> None:
        """Tighten the masks: what is gone stays gone."""
        for root, masks in self._masks.items():
            for _, _, mask, member in masks:
                flat = mask.mask.view(-1)
                flat[member.index.to(flat.device)] *= keep[root].to(flat)[member.root.to(flat.device)]

    def keep(self) -> dict[str, Tensor]:
        """The channels that the masks keep now."""
        found = {}
        for root, masks in self._masks.items():
            _, _, mask, member = masks[0]
            kept = torch.ones(_size(self._groups[root]), dtype=torch.bool, device=mask.mask.device)
            kept[member.root.to(kept.device)] = mask.mask.view(-1)[member.index.to(kept.device)] > 0
            found[root] = kept
        return found

    def finalize(self, compact: Compact) -> Compact:
        """Cut the masked channels out of every layer they run through."""
        model, stored = compact.model, compact.stored
        made = _cuts(model, self._groups, self.keep())
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


def _prunable(model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> dict[str, Group]:
    """Groups that may lose channels: every layer that writes them is selected, somebody reads them, cutting works."""
    plain = surgery.plain(model)
    kept = {}
    for root, group in groups(plain, example, list(layers)).items():
        out = {member.layer for member in group if member.side == "out"}
        writers = {name for name in out if not isinstance(plain.get_submodule(name), _BatchNorm)}
        if writers <= set(layers) and any(member.side == "in" for member in group):
            kept[root] = group
    sound = _sound(plain, example, kept)
    if len(sound) < len(kept):
        logging.getLogger(__name__).warning(
            "channel pruning leaves all channels of %s in place: cutting them is not the same as zeroing them "
            "(zero padding, a grouped conv, a norm over channels, a sigmoid?)",
            ", ".join(root for root in kept if root not in sound),
        )
    if not sound or not survives(plain, example, sound):
        raise ValueError(
            f"channel pruning: none of the selected layers ({', '.join(sorted(layers))}) has channels that may go; "
            "the output layer's channels are the classes, a group goes only when all its layers are selected, and "
            "cutting a channel must be the same as zeroing it"
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
