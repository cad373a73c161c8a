"""Edits: plain data that turns a base architecture into the shape of a compressed one.

`{"kind": "keep", "layer": "conv1", "side": "out", "index": [0, 2]}` keeps those channels of a layer;
`{"kind": "fold", "norm": "bn1", "into": "conv1"}` stands for a batch norm that went into the layer before it;
`{"kind": "factor", "layer": "fc", "form": "svd", "ranks": [8]}` for a layer that took another form (forms.py);
`{"kind": "tie", "layers": ["conv1", "conv2"]}` for layers that are one: the first, in every place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.core import forms, surgery
from lightning_compress.core.method import Edit
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored


def keep(layer: str, side: str, index: Tensor) -> Edit:
    """The edit that keeps the channels `index` (1-D) on the `side` "in" or "out" of `layer`.

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
    if edit["side"] == "in":
        found = {"weight": 1}
    elif isinstance(layer, _BatchNorm):
        found = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    else:
        found = {"weight": 0, "bias": 0}
    present = {name: dim for name, dim in found.items() if getattr(layer, name) is not None}
    return {surgery.dotted(edit["layer"], name): dim for name, dim in present.items()}


def _resize(layer: nn.Module, side: str, size: int) -> None:
    if isinstance(layer, _BatchNorm):
        layer.num_features = size
    elif isinstance(layer, nn.Linear):
        setattr(layer, f"{side}_features", size)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if layer.groups > 1:  # depthwise: one filter a channel, both sides shrink together
            layer.groups = layer.in_channels = layer.out_channels = size
        else:
            setattr(layer, f"{side}_channels", size)


def _check_kind(edit: Edit, layer: nn.Module) -> None:
    if not isinstance(layer, (_BatchNorm, *WEIGHTED)):
        raise ValueError(f"cannot keep channels of a {type(layer).__name__}: expected a conv, linear or batch norm")
    groups = getattr(layer, "groups", 1)
    if groups > 1 and (edit["side"] == "in" or not groups == layer.in_channels == layer.out_channels):
        raise ValueError(f"cannot keep channels of {edit['layer']!r}: a grouped conv that is not depthwise")


@torch.no_grad()
def _cut(model: nn.Module, edit: Edit) -> None:
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
    _resize(layer, edit["side"], len(index))


def _take_norm(model: nn.Module, edit: Edit) -> None:
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
    surgery.replace(model, edit["norm"], nn.Identity())


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


def _tie(model: nn.Module, edit: Edit) -> None:
    first, *others = (model.get_submodule(name) for name in edit["layers"])
    for name, other in zip(edit["layers"][1:], others, strict=True):
        alike = type(other) is type(first) and other.extra_repr() == first.extra_repr()
        if not alike or not isinstance(first, WEIGHTED):
            raise ValueError(
                f"cannot tie {name!r}, {other}, to {edit['layers'][0]!r}, {first}: expected two convs or linear layers "
                "that are alike in all but their values"
            )
        _put_everywhere(model, other, first)


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
        if edit["kind"] == "keep":
            _cut(model, edit)
        elif edit["kind"] == "fold":
            _take_norm(model, edit)
        elif edit["kind"] == "factor":
            model = _take_form(model, edit)
        elif edit["kind"] == "tie":
            _tie(model, edit)
        else:
            raise ValueError(f"unknown edit {edit['kind']!r}; expected 'keep', 'fold', 'factor' or 'tie'")
    return model


def _names(edit: Edit) -> list[str]:
    return [*(edit[key] for key in ("layer", "norm", "into") if key in edit), *edit.get("layers", [])]


def cut_stored(model: nn.Module, stored: dict[str, Stored], edit: Edit) -> dict[str, Stored]:
    """The stored tensors after a "keep" edit; call it before the model itself is cut."""
    index = torch.tensor(edit["index"], dtype=torch.int64)
    return stored | {name: stored[name].take(dim, index) for name, dim in cuts(model, edit).items()}
