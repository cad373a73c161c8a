"""Edits: plain data that turns a base architecture into the shape of a compressed one.

`{"kind": "keep", "layer": "conv1", "side": "out", "index": [0, 2]}` keeps those channels of a layer;
`{"kind": "fold", "norm": "bn1", "into": "conv1"}` stands for a batch norm that went into the layer before it;
`{"kind": "drop", "layer": "layer1.2"}` puts an identity in the place of a residual block;
`{"kind": "set", "layer": "attention", "attribute": "num_heads", "value": 2}` tells a module how many heads it has left.
`{"kind": "factor", "layer": "fc", "form": "svd", "ranks": [8]}` for a layer that took another form (forms.py);
`{"kind": "tie", "layers": ["conv1", "conv2"]}` for layers that are one: the first, in every place;
`{"kind": "reuse", "layer": "fc", ...}` for another network's classifier behind a projector (reused.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_compress.core import forms, reused, surgery
from lightning_compress.core.attention import FewerHeads
from lightning_compress.core.method import Edit
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
#: Layers that make new channels.
WRITERS: tuple[type[nn.Module], ...] = (*WEIGHTED, *TRANSPOSED, nn.MultiheadAttention)
#: Layers with a scale, or a statistic, for each channel that comes in.
SCALES: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.PReLU)


def keep(layer: str, side: str, index: Tensor) -> Edit:
    """The edit that keeps the channels `index` (1-D) on the `side` "in" or "out" of `layer`.

    Going "in" to a grouped conv they are counted within a group, the same for all groups. Going "out" of an
    `nn.MultiheadAttention` they are the rows of `in_proj_weight`.

    >>> keep("fc", "out", torch.tensor([0, 2]))
    {'kind': 'keep', 'layer': 'fc', 'side': 'out', 'index': [0, 2]}
    """
    return {"kind": "keep", "layer": layer, "side": side, "index": [int(i) for i in index]}


def fold(norm: str, into: str) -> Edit:
    """The edit that takes the batch norm `norm` away and gives `into` a bias for it.

    >>> fold("bn1", "conv1")
    {'kind': 'fold', 'norm': 'bn1', 'into': 'conv1'}
    """
    return {"kind": "fold", "norm": norm, "into": into}


def drop(layer: str) -> Edit:
    """The edit that puts an identity in the place of `layer`, a residual block whose branch is gone.

    >>> drop("layer1.2")
    {'kind': 'drop', 'layer': 'layer1.2'}
    """
    return {"kind": "drop", "layer": layer}


def set_count(layer: str, attribute: str, value: int) -> Edit:
    """The edit that sets a whole number that `layer` reads when it is called, such as how many heads there are.

    >>> set_count("attention", "num_heads", 2)
    {'kind': 'set', 'layer': 'attention', 'attribute': 'num_heads', 'value': 2}
    """
    return {"kind": "set", "layer": layer, "attribute": attribute, "value": value}


def factor(layer: str, form: str, ranks: Sequence[int]) -> Edit:
    """The edit that gives `layer` another form.

    >>> factor("fc", "svd", (8,))
    {'kind': 'factor', 'layer': 'fc', 'form': 'svd', 'ranks': [8]}
    """
    return {"kind": "factor", "layer": layer, "form": form, "ranks": list(ranks)}


def tie(layers: Sequence[str]) -> Edit:
    """The edit that puts the first of `layers` in the place of the others.

    >>> tie(["conv1", "conv2"])
    {'kind': 'tie', 'layers': ['conv1', 'conv2']}
    """
    return {"kind": "tie", "layers": list(layers)}


def cuts(model: nn.Module, edit: Edit) -> dict[str, int]:
    """Names of the tensors that a "keep" edit slices, with the dimension it slices them along.

    >>> cuts(nn.Sequential(nn.Linear(3, 2)), keep("0", "out", torch.tensor([1])))
    {'0.weight': 0, '0.bias': 0}
    """
    layer = model.get_submodule(edit["layer"])
    turned = int(isinstance(layer, TRANSPOSED))  # weights [in, out, ...]
    if isinstance(layer, nn.MultiheadAttention):
        found = {"in_proj_weight": 0, "in_proj_bias": 0}
    elif edit["side"] == "in":
        found = {"weight": 1 - turned}
    elif isinstance(layer, SCALES):
        found = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    else:
        found = {"weight": turned, "bias": 0}
    present = {name: dim for name, dim in found.items() if getattr(layer, name, None) is not None}
    return {surgery.dotted(edit["layer"], name): dim for name, dim in present.items()}


def _resize(layer: Any, side: str, index: Tensor) -> None:
    size = len(index)
    if isinstance(layer, nn.Linear):
        setattr(layer, f"{side}_features", size)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = size
    elif isinstance(layer, _NormBase):
        layer.num_features = size
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = _whole_groups(index, layer.num_channels // layer.num_groups)
        layer.num_channels = size
    elif isinstance(layer, nn.MultiheadAttention):
        layer.__class__ = FewerHeads
        layer._qkv_same_embed_dim = (
            False  # keeps nn.TransformerEncoderLayer off its kernel, which knows no missing heads
        )
        layer.num_heads = _whole_groups(index, layer.head_dim) // 3
    elif layer.groups > 1:
        _resize_grouped(layer, side, index)
    else:
        setattr(layer, f"{side}_channels", size)


def _resize_grouped(conv: Any, side: str, index: Tensor) -> None:
    if side == "in":
        conv.in_channels = len(index) * conv.groups
        return
    per_group = conv.out_channels // conv.groups
    left = torch.bincount(index // per_group, minlength=conv.groups)
    depthwise = conv.groups == conv.in_channels
    if depthwise and bool(((left == 0) | (left == per_group)).all()):  # a channel goes with the filters on it
        conv.groups = conv.in_channels = int(left.count_nonzero())
    elif int(left.min()) != int(left.max()):
        raise ValueError(f"a conv with {conv.groups} groups must keep equally many of each; got {left.tolist()}")
    conv.out_channels = len(index)


def _whole_groups(index: Tensor, size: int) -> int:
    """How many runs of `size` channels `index` is made of."""
    runs = torch.unique(index // size)
    if len(index) != len(runs) * size:
        raise ValueError(f"its channels go in groups of {size}; got {index.tolist()[:8]}...")
    return len(runs)


def _check_kind(edit: Edit, layer: nn.Module) -> None:
    if not isinstance(layer, (*SCALES, *WRITERS)):
        raise ValueError(
            f"cannot keep channels of a {type(layer).__name__}: expected a conv, a linear, a multi-head attention "
            "layer, or a norm with a scale for each channel"
        )
    if isinstance(layer, TRANSPOSED) and layer.groups > 1:
        raise ValueError(f"cannot keep channels of {edit['layer']!r}: a transposed conv in groups")


@torch.no_grad()
def _cut(model: nn.Module, edit: Edit) -> nn.Module:
    layer = model.get_submodule(edit["layer"])
    _check_kind(edit, layer)
    index = torch.tensor(edit["index"], dtype=torch.int64)
    for name, dim in cuts(model, edit).items():
        attribute = name.rpartition(".")[2]
        old = getattr(layer, attribute)
        if len(index) == 0 or int(index.max()) >= old.shape[dim]:
            raise ValueError(f"edit of {name!r} keeps channels {edit['index'][-3:]} of {old.shape[dim]}: out of range")
        new = old.detach().index_select(dim, index)
        is_parameter = isinstance(old, nn.Parameter)
        setattr(layer, attribute, nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new)
    try:
        _resize(layer, edit["side"], index)
    except ValueError as error:
        raise ValueError(f"cannot keep channels of {edit['layer']!r}: {error}") from error
    return model


def _drop(model: nn.Module, edit: Edit) -> nn.Module:
    return surgery.replace(model, edit["layer"], nn.Identity())


def _set(model: nn.Module, edit: Edit) -> nn.Module:
    module, name, value = model.get_submodule(edit["layer"]), edit["attribute"], edit["value"]
    if type(vars(module).get(name)) is not int or type(value) is not int or value < 1:
        raise ValueError(f"cannot set {name!r} of {edit['layer']!r} to {value!r}: expected a count that it has")
    setattr(module, name, value)
    return model


def _take_norm(model: nn.Module, edit: Edit) -> nn.Module:
    norm: Any = model.get_submodule(edit["norm"])
    into: Any = model.get_submodule(edit["into"])
    fits = isinstance(norm, _BatchNorm) and isinstance(into, WEIGHTED)
    if not fits:
        raise ValueError(
            f"cannot fold {edit['norm']!r} ({type(norm).__name__}) into {edit['into']!r} ({type(into).__name__}): "
            "expected a batch norm and a conv or linear"
        )
    if into.bias is None:
        into.bias = nn.Parameter(into.weight.new_zeros(norm.num_features), requires_grad=into.weight.requires_grad)
    return surgery.replace(model, edit["norm"], nn.Identity())


def _put_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` in every place of `model` that `old` has: what was shared stays shared."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
    return new if model is old else model


def _take_form(model: nn.Module, edit: Edit) -> nn.Module:
    layer = model.get_submodule(edit["layer"])
    made = forms.shaped(layer, edit["form"], edit["ranks"])
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (layer, made)]
    if sizes[1] >= sizes[0]:  # also what bounds the memory that a file can ask for
        raise ValueError(f"{edit['layer']!r} as {edit['form']!r} of ranks {edit['ranks']} saves none of its weights")
    return _put_everywhere(model, layer, forms.blank(layer, edit["form"], edit["ranks"]))


def _tie(model: nn.Module, edit: Edit) -> nn.Module:
    first, *others = (model.get_submodule(name) for name in edit["layers"])
    for name, other in zip(edit["layers"][1:], others, strict=True):
        alike = type(other) is type(first) and other.extra_repr() == first.extra_repr()
        if not alike or not isinstance(first, WEIGHTED):
            raise ValueError(
                f"cannot tie {name!r}, {other}, to {edit['layers'][0]!r}, {first}: expected two convs or linear layers "
                "that are alike in all but their values"
            )
        _put_everywhere(model, other, first)
    return model


_KINDS: dict[str, Callable[[nn.Module, Edit], nn.Module]] = {
    "keep": _cut,
    "fold": _take_norm,
    "drop": _drop,
    "set": _set,
    "factor": _take_form,
    "tie": _tie,
    reused.KIND: reused.take,
}


def replay(model: nn.Module, edits: list[Edit]) -> nn.Module:
    """Give a base architecture the shape that `edits` describe, in place; values of kept channels stay.

    A layer in another form holds zeros; the model itself is replaced where it is that layer.

    Raises:
        ValueError: an edit names a layer or a kind that there is not.

    >>> net = replay(nn.Sequential(nn.Linear(3, 4)), [keep("0", "out", torch.tensor([0, 3]))])
    >>> net[0].out_features
    2
    """
    for edit in edits:
        missing = [name for name in _names(edit) if name not in dict(model.named_modules())]
        if missing:
            raise ValueError(f"edit {edit['kind']!r} names a layer {missing[0]!r} that the model does not have")
        if edit["kind"] not in _KINDS:
            raise ValueError(f"unknown edit {edit['kind']!r}; expected one of {', '.join(_KINDS)}")
        model = _KINDS[edit["kind"]](model, edit)
    return model


def _names(edit: Edit) -> list[str]:
    return [*(edit[key] for key in ("layer", "norm", "into", "after") if key in edit), *edit.get("layers", [])]


def cut_stored(model: nn.Module, stored: dict[str, Stored], edit: Edit) -> dict[str, Stored]:
    """The stored tensors after a "keep" or "drop" edit; call it before the model itself is cut."""
    if edit["kind"] == "drop":
        return {name: kept for name, kept in stored.items() if not name.startswith(f"{edit['layer']}.")}
    index = torch.tensor(edit["index"], dtype=torch.int64)
    return stored | {name: stored[name].take(dim, index) for name, dim in cuts(model, edit).items()}
