"""What an operation on tensors does to the labels of their values.

A rule is `rule(labels, func, args, kwargs, outputs) -> labels of the outputs`, or None where nothing can be said.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_compress.prune.labels import Labels, constant

_MOVES = {"cat", "stack", "flip", "roll", "repeat", "index", "index_select", "unfold", "_unsafe_view"}
_MOVES |= {"channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "constant_pad_nd"}
_VIEWS = {"view", "_unsafe_view"}
_SHUFFLES = {"channel_shuffle", "native_channel_shuffle"}
_POINTWISE = {"hardswish", "hardswish_", "_to_copy"}  # which PyTorch does not tag as such
_REDUCTIONS = {"mean", "sum", "amax", "amin"}
_SOFTMAX = {"_softmax", "_safe_softmax", "_log_softmax"}
_SPATIAL = re.compile(r"pool|upsample|(reflection|replication)_pad")
_PRODUCTS = re.compile(r"^bmm$|scaled_dot_product")

Rule = Callable[[Labels, Any, Any, Any, Any], Any]


def follow(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> None:
    """Give the outputs of the operator `func` their labels; without a rule all that went in is kept for ever."""
    values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    if not any(labels.has(value) for value in values):
        return
    name = func.overloadpacket.__name__
    rule = _rule(func, name)
    # What is written into a tensor that nobody follows may come out anywhere.
    lost = name.endswith("_") and not labels.has(args[0])
    made = None if rule is None or lost else rule(labels, func, args, kwargs, outputs)
    if made is None:
        labels.keep_for_ever(values, outputs)
        return
    for value, own in zip(tree_leaves(outputs), tree_leaves(made), strict=False):
        labels.put(value, own)


def _rule(func: Any, name: str) -> Rule | None:
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        return _pointwise
    if (func.is_view and name != "as_strided") or name in _MOVES:
        return _move
    for known, rule in ((_REDUCTIONS, _reduce), (_SOFTMAX, _softmax)):
        if name in known:
            return rule
    if _PRODUCTS.search(name):
        return _product
    return _spatial if _SPATIAL.search(name) else None


def _move(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> Any:
    """Labels are moved as the values are; what padding adds is a constant."""
    name = func.overloadpacket.__name__
    args, kwargs = tree_map(
        lambda v: labels.of(v) if isinstance(v, Tensor) and v.is_floating_point() else v, (args, kwargs)
    )
    if name in _VIEWS:
        _note_splits(labels, args[0], outputs.shape)
        return args[0].reshape(outputs.shape)
    if name in _SHUFFLES:
        labels.splits.append(_channels(args[0], 1).reshape(args[1], -1))
    if name == "pixel_shuffle":  # what makes one channel goes together
        together = _channels(args[0], -3).reshape(-1, args[1] ** 2)
        labels.same(together[:, :1], together)
        return together[:, :1, None].expand(outputs.shape)
    made = func(args[0], args[1]) if name == "constant_pad_nd" else func(*args, **kwargs)
    if name.startswith("split") and len({part.shape for part in made}) == 1:
        for part in made[1:]:  # as many of each, or they would not be equal parts any more
            labels.same(made[0], part)
    return made


def _channels(own: Tensor, dim: int) -> Tensor:
    return own.movedim(dim, 0).flatten(1)[:, 0]


def _note_splits(labels: Labels, own: Tensor, shape: torch.Size) -> None:
    """Note every dimension with several labels of which a reshape to `shape` makes several dimensions."""
    sizes = [size for size in shape if size > 1]
    for dim, size in enumerate(own.shape):
        first, reach, many = sizes[0] if sizes else 1, 1, 0
        while sizes and reach < size:
            reach *= sizes.pop(0)
            many += 1
        if reach != size:
            return  # dimensions were merged here: what comes after has to prove itself
        if many > 1 and not constant(own, dim):
            labels.splits.append(_channels(own, dim).reshape(first, -1))


def _pointwise(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> Tensor | None:
    """Values that meet go together; one value that meets many channels is needed by all of them."""
    shape = tree_leaves(outputs)[0].shape
    parts = [labels.of(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    parts = [part[(None,) * (len(shape) - part.dim())] for part in parts]
    spread = [_is_spread(part, parts, shape) for part in parts]
    for part in (part for part, is_spread in zip(parts, spread, strict=True) if is_spread):
        labels.same(part, part.new_zeros(()))
    kept = [part for part, is_spread in zip(parts, spread, strict=True) if not is_spread]
    for left, right in pairwise(kept):
        labels.same(left, right)
    return kept[0].expand(shape) if kept else None


def _is_spread(part: Tensor, parts: list[Tensor], shape: torch.Size) -> bool:
    """Whether one value of `part` meets several labels of another operand."""
    dims = [dim for dim, size in enumerate(shape) if size > 1 and part.shape[dim] == 1]
    return any(other.shape[dim] > 1 and not constant(other, dim) for other in parts for dim in dims)


def _constant_dims(labels: Tensor, args: Any) -> list[int] | None:
    """The dimensions that an operation runs along, the last first, if the labels are the same all along them."""
    dims = args[1] if len(args) > 1 and args[1] is not None else list(range(labels.dim()))
    found = sorted({dim % labels.dim() for dim in ([dims] if isinstance(dims, int) else dims)}, reverse=True)
    return found if all(constant(labels, dim) for dim in found) else None


def _reduce(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> Tensor | None:
    own = labels.of(args[0])
    dims = _constant_dims(own, args)
    if dims is None:
        return None
    for dim in dims:
        own = own.select(dim, 0)
    return own.reshape(outputs.shape)


def _softmax(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> Tensor | None:
    own = labels.of(args[0])
    return None if _constant_dims(own, args) is None else own


def _spatial(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> Tensor | None:
    """Pooling and resizing leave channels, dimension 1, as they are."""
    own, value = labels.of(args[0]), tree_leaves(outputs)[0]
    if own.dim() < 3 or not all(constant(own, dim) for dim in range(2, own.dim())):
        return None
    channels = own.flatten(2)[..., 0]
    return channels.view(*channels.shape, *[1] * (value.dim() - 2)).expand(value.shape)


def _product(labels: Labels, func: Any, args: Any, kwargs: Any, outputs: Any) -> Tensor | None:
    """A product of matrices, one for each head: all that one head is made of goes together."""
    value = tree_leaves(outputs)[0]
    parts = [labels.of(arg) for arg in args[:3] if isinstance(arg, Tensor)]
    if len({part.shape[:-2] for part in parts}) > 1:
        return None
    heads = torch.cat([part.flatten(-2) for part in parts], -1)
    labels.same(heads[..., :1], heads)
    labels.heads.append(heads[..., 0])
    return heads[..., :1, None].expand(value.shape)
