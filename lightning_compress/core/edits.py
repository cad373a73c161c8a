"""Edits: plain data that turns a base architecture into the shape of a compressed one.

`{"kind": "keep", "layer": "conv1", "side": "out", "index": [0, 2]}` keeps those channels of a layer;
`{"kind": "fold", "norm": "bn1", "into": "conv1"}` stands for a batch norm that went into the layer before it.
"""

import torch
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.method import Edit
from lightning_compress.core.stored import Stored

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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


def cuts(model: nn.Module, edit: Edit) -> dict[str, int]:
    """Names of the tensors that a "keep" edit slices, with the dimension it slices them along.

    >>> cuts(nn.Sequential(nn.Linear(3, 2)), keep("0", "out", torch.tensor([1])))
    {'0.weight': 0, '0.bias': 0}
    """
    layer = model.get_submodule(edit["layer"])
    if edit["side"] == "in":
        found = {"weight": 1}
    elif isinstance(layer, _NORMS):
        found = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    else:
        found = {"weight": 0, "bias": 0}
    return {f"{edit['layer']}.{name}": dim for name, dim in found.items() if getattr(layer, name) is not None}


def _resize(layer: nn.Module, side: str, size: int) -> None:
    if isinstance(layer, _NORMS):
        layer.num_features = size
    elif isinstance(layer, nn.Linear):
        setattr(layer, f"{side}_features", size)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        setattr(layer, f"{side}_channels", size)
        if side == "out" and layer.groups > 1 and layer.groups == layer.in_channels:
            layer.groups = layer.in_channels = size  # depthwise: one filter a channel, both sides shrink together
    else:
        raise ValueError(f"cannot keep channels of a {type(layer).__name__}: expected a conv, linear or batch norm")


@torch.no_grad()
def _cut(model: nn.Module, edit: Edit) -> None:
    layer = model.get_submodule(edit["layer"])
    index = torch.tensor(edit["index"], dtype=torch.int64)
    for name, dim in cuts(model, edit).items():
        attribute = name.rpartition(".")[2]
        old = getattr(layer, attribute)
        if len(index) == 0 or int(index.max()) >= old.shape[dim]:
            raise ValueError(f"edit of {name!r} keeps channels {edit['index'][-3:]} of {old.shape[dim]}: out of range")
        new = old.detach().index_select(dim, index)
        setattr(layer, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    _resize(layer, edit["side"], len(index))


def _take_norm(model: nn.Module, edit: Edit) -> None:
    norm = model.get_submodule(edit["norm"])
    into = model.get_submodule(edit["into"])
    assert isinstance(norm, _NORMS)
    if into.bias is None:
        into.bias = nn.Parameter(torch.zeros(norm.num_features))
    surgery.replace(model, edit["norm"], nn.Identity())


def replay(model: nn.Module, edits: list[Edit]) -> nn.Module:
    """Give a base architecture the shape that `edits` describe, in place; values of kept channels stay.

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
        else:
            raise ValueError(f"unknown edit {edit['kind']!r}; expected 'keep' or 'fold'")
    return model


def _names(edit: Edit) -> list[str]:
    return [edit[key] for key in ("layer", "norm", "into") if key in edit]


def cut_stored(model: nn.Module, stored: dict[str, Stored], edit: Edit) -> dict[str, Stored]:
    """The stored tensors after a "keep" edit; call it before the model itself is cut."""
    index = torch.tensor(edit["index"], dtype=torch.int64)
    return stored | {name: stored[name].take(dim, index) for name, dim in cuts(model, edit).items()}
