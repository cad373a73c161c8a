"""Trials: whether what is to be removed can be, tried on noisy copies of a model before training starts."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.core import edits, surgery
from lightning_compress.core.inputs import call
from lightning_compress.core.method import Edit
from lightning_compress.prune.groups import Group, cuts, written


def noisy(model: nn.Module) -> tuple[nn.Module, torch.Generator]:
    """A copy of `model` in eval mode that has no tensor of zeros or ones, which would hide what goes wrong."""
    noise = torch.Generator().manual_seed(0)
    copied = surgery.plain(model).eval().requires_grad_(False)
    for tensor in [*copied.parameters(), *(b for n, b in copied.named_buffers() if n.endswith("running_mean"))]:
        size = tensor.abs().mean()
        tensor += 0.1 * torch.where(size > 0, size, 1.0) * torch.randn(tensor.shape, generator=noise).to(tensor)
    return copied, noise


def zero(model: nn.Module, layer: str, index: Tensor | None = None) -> None:
    """Make the output channels `index` of a layer, or all, zero in its weight and bias, as a mask does."""
    for name, dim in written(model, layer).items():
        tensor = getattr(model.get_submodule(layer), name).data
        if index is None:
            tensor.zero_()
        else:
            tensor.index_fill_(dim, index.to(tensor.device), 0.0)


def survives(model: nn.Module, example: Any, found: dict[str, Group]) -> bool:
    """Whether cutting units of these groups gives what zeroing them gives: about half of each, then all but one.

    The graph does not see all: a sigmoid that turns the zeros of a channel into halves, a reshape with a fixed number
    of channels. So each group has to prove itself.
    """
    for share in (0.5, 0.0):
        masked, noise = noisy(model)
        keep = {root: torch.rand(group.size, generator=noise) < share for root, group in found.items()}
        for root, group in found.items():
            keep[root][0], keep[root][-1] = True, False
            for member in (member for member in group.members if member.side == "out"):
                zero(masked, member.layer, member.index[~keep[root][member.root]])
        if not same_outputs(masked, example, partial(cuts, masked, found, keep)):
            return False
    return True


def same_outputs(masked: nn.Module, example: Any, made: Callable[[], list[Edit]]) -> bool:
    """Whether a masked model gives the same once the edits that it stands for are `made`; it stays as it is."""
    try:
        with torch.no_grad():
            wanted = call(masked, example)
            got = call(edits.replay(copy.deepcopy(masked), made()), example)
    except Exception:  # whatever a layer says when its shapes no longer fit
        return False
    pairs = list(zip(tree_leaves(wanted), tree_leaves(got), strict=False))
    return all(close(a, b) for a, b in pairs if isinstance(a, Tensor))


def close(wanted: Tensor, got: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    room = 1e-3 * float(wanted.abs().max())
    return wanted.shape == got.shape and bool(torch.isfinite(wanted).all()) and torch.allclose(wanted, got, 0.0, room)
