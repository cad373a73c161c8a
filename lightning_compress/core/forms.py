"""Other forms of a layer: a few smaller layers in a row, in the place of a linear layer or a 2-D convolution.

| form | layers, for `ranks` |
|---|---|
| svd | to r channels, as the layer moves over the image; 1x1 from there (a linear layer: two linear ones; a recurrent |
|     | one: a linear layer for what comes in, and the recurrent one on r features) |
| tucker | 1x1 to r1 channels, the kernel from r1 to r2, 1x1 from there (Kim et al., arXiv 1511.06530) |
| cp | 1x1 to r channels, 1xk and kx1 on each channel alone, 1x1 from there (Lebedev et al., arXiv 1412.6553) |
| spatial | 1xk to r channels, kx1 from there (Jaderberg et al., arXiv 1405.3866) |
| separable | the kernel on each channel alone, 1x1 from there: no ranks (Howard et al., arXiv 1704.04861) |
| grouped | a shuffle of the channels, then the kernel in g groups (Zhang et al., arXiv 1707.01083) |

All are plain `torch.nn` layers. The last one has the bias, so a batch norm that followed the layer folds into it.
"""

import warnings
from collections.abc import Callable, Sequence
from math import gcd, prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_compress.core import recurrent

Geometry = nn.Linear | nn.Conv2d
_PLAIN = (nn.Linear, nn.Conv2d, nn.LSTM, nn.GRU, nn.RNN)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight [out, in, ...] that another form is of: of a recurrent layer what reads the inputs, both ways.

    >>> weight_of(nn.LSTM(3, 4, bidirectional=True)).shape
    torch.Size([32, 3])
    """
    if isinstance(layer, nn.RNNBase):
        return torch.cat([weight for name, weight in layer.named_parameters() if recurrent.reads_inputs(name)])
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _on_features(layer: Any, features: int) -> nn.Module:
    """A recurrent layer as `layer` for another number of features; shapes alone."""
    options = {"proj_size": layer.proj_size} if isinstance(layer, nn.LSTM) else {}
    options |= {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that dropout of a single layer does nothing, the user has read before
        made: nn.Module = type(layer)(
            features,
            layer.hidden_size,
            layer.num_layers,
            bias=layer.bias,
            batch_first=layer.batch_first,
            dropout=layer.dropout,
            bidirectional=layer.bidirectional,
            device="meta",
            dtype=layer.weight_ih_l0.dtype,
            **options,
        )
    return made


@final
class OnProjection(nn.Sequential):
    """A linear layer and the recurrent one behind it, called and asked as that one alone: with states, or packed.

    >>> row = OnProjection(nn.Linear(6, 2, bias=False), nn.GRU(2, 4))
    >>> row(torch.zeros(3, 1, 6), torch.ones(1, 1, 4))[0].shape, row.hidden_size
    (torch.Size([3, 1, 4]), 4)
    """

    def forward(self, inputs: Tensor | PackedSequence, states: Any = None) -> Any:
        """What the recurrent layer puts out."""
        if isinstance(inputs, PackedSequence):
            return self[1](inputs._replace(data=self[0](inputs.data)), states)
        return self[1](self[0](inputs), states)

    def __getattr__(self, name: str) -> Any:
        """What a network asks of its recurrent layer, such as how many layers and units it has."""
        asked = name in nn.RNNBase.__constants__ or name == "flatten_parameters"
        return getattr(self[1], name) if asked else super().__getattr__(name)


def _conv(layer: Any, inputs: int, outputs: int, along: str = "", *, groups: int = 1) -> nn.Module:
    """A layer without bias that moves over the image as `layer` does along "h" and "w", and is 1x1 where not named."""
    if not isinstance(layer, nn.Conv2d):
        return nn.Linear(inputs, outputs, bias=False, device="meta", dtype=next(layer.parameters()).dtype)

    def here(values: tuple[int, ...], elsewhere: int) -> tuple[int, int]:
        height, width = (value if side in along else elsewhere for side, value in zip("hw", values, strict=True))
        return height, width

    return nn.Conv2d(
        inputs,
        outputs,
        here(layer.kernel_size, 1),
        stride=here(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else here(layer.padding, 0),
        dilation=here(layer.dilation, 1),
        padding_mode=layer.padding_mode if along else "zeros",
        groups=groups,
        bias=False,
        device="meta",
        dtype=layer.weight.dtype,
    )


def _svd(layer: Geometry | nn.RNNBase, rank: int) -> list[nn.Module]:
    outputs, inputs = weight_of(layer).shape[:2]
    behind = _on_features(layer, rank) if isinstance(layer, nn.RNNBase) else _conv(layer, rank, outputs)
    return [_conv(layer, inputs, rank, "hw"), behind]


def _tucker(layer: Geometry, first: int, second: int) -> list[nn.Module]:
    outputs, inputs = layer.weight.shape[:2]
    return [_conv(layer, inputs, first), _conv(layer, first, second, "hw"), _conv(layer, second, outputs)]


def _cp(layer: Geometry, rank: int) -> list[nn.Module]:
    outputs, inputs = layer.weight.shape[:2]
    alone = [_conv(layer, rank, rank, side, groups=rank) for side in "wh"]
    return [_conv(layer, inputs, rank), *alone, _conv(layer, rank, outputs)]


def _spatial(layer: Geometry, rank: int) -> list[nn.Module]:
    outputs, inputs = layer.weight.shape[:2]
    return [_conv(layer, inputs, rank, "w"), _conv(layer, rank, outputs, "h")]


def _separable(layer: Geometry) -> list[nn.Module]:
    outputs, inputs = layer.weight.shape[:2]
    return [_conv(layer, inputs, inputs, "hw", groups=inputs), _conv(layer, inputs, outputs)]


def _grouped(layer: Geometry, groups: int) -> list[nn.Module]:
    outputs, inputs = layer.weight.shape[:2]
    return [nn.ChannelShuffle(groups), _conv(layer, inputs, outputs, "hw", groups=groups)]


FORMS: dict[str, Callable[..., list[nn.Module]]] = {
    "svd": _svd,
    "tucker": _tucker,
    "cp": _cp,
    "spatial": _spatial,
    "separable": _separable,
    "grouped": _grouped,
}


def refusal(layer: nn.Module, form: str) -> str | None:
    """Why `layer` cannot take `form`, or None.

    >>> refusal(nn.Conv2d(4, 4, 3, groups=4), "tucker")
    'it has groups'
    """
    if type(layer) not in _PLAIN:  # a class of somebody's own may compute something else
        return f"it is a {type(layer).__name__}, not a plain nn.Linear, nn.Conv2d, nn.LSTM, nn.GRU or nn.RNN"
    if not isinstance(layer, nn.Conv2d):
        kind = "linear" if isinstance(layer, nn.Linear) else "recurrent"
        return None if form == "svd" else f"a {kind} layer has no {form!r} form"
    if layer.groups > 1:
        return "it has groups"
    return "a side of its kernel is 1" if form in ("cp", "spatial") and 1 in layer.kernel_size else None


def full_ranks(shape: Sequence[int], form: str) -> tuple[int, ...]:
    """The largest useful ranks for a weight of `shape`: with these nothing is lost, but for "grouped".

    >>> full_ranks((20, 4, 3, 3), "tucker"), full_ranks((20, 4, 3, 3), "svd")
    ((4, 20), (20,))
    """
    outputs, inputs = shape[:2]
    height, width = (*shape[2:], 1, 1)[:2]
    entries = prod(shape)
    ranks: dict[str, tuple[int, ...]] = {
        "svd": (min(outputs, entries // outputs),),
        "tucker": (min(inputs, entries // inputs), min(outputs, entries // outputs)),
        "cp": (entries // max(shape),),
        "spatial": (min(inputs * width, outputs * height),),
        "separable": (),
        "grouped": (gcd(inputs, outputs),),
    }
    return ranks[form]


def _check(layer: nn.Module, form: str, ranks: Sequence[int]) -> None:
    if form not in FORMS:
        raise ValueError(f"no form {form!r} of a layer; expected one of {', '.join(FORMS)}")
    why = refusal(layer, form)
    if why is not None:
        raise ValueError(f"cannot give a layer the form {form!r}: {why}")
    weight = weight_of(layer)
    most = full_ranks(weight.shape, form)
    whole = len(ranks) == len(most) and all(type(rank) is int for rank in ranks)
    if not whole or any(not 1 <= rank <= top for rank, top in zip(ranks, most, strict=True)):
        raise ValueError(f"form {form!r} of a weight of {list(weight.shape)} has ranks from 1 to {most}; got {ranks}")
    if form == "grouped" and most[0] % ranks[0]:
        raise ValueError(f"{ranks[0]} groups do not divide the channels of a weight of {list(weight.shape)}")


def shaped(layer: nn.Module, form: str, ranks: Sequence[int]) -> nn.Sequential:
    """`layer` in another form, on the device "meta": shapes alone.

    Raises:
        ValueError: there is no such form, or the layer does not have it with these ranks.

    >>> [tuple(each.weight.shape) for each in shaped(nn.Linear(6, 4), "svd", [2])]
    [(2, 6), (4, 2)]
    """
    _check(layer, form, ranks)
    row = OnProjection if isinstance(layer, nn.RNNBase) else nn.Sequential
    made = row(*FORMS[form](layer, *ranks))
    if isinstance(layer.bias, Tensor):  # a recurrent layer says here whether it has some, as it does in the other form
        last: Any = made[-1]
        last.bias = nn.Parameter(torch.empty(len(last.weight), device="meta", dtype=last.weight.dtype))
    return made


@torch.no_grad()
def blank(layer: nn.Module, form: str, ranks: Sequence[int]) -> nn.Sequential:
    """`layer` in another form where the layer lives, trained as it is, with zeros for values.

    Zeros, as a draw would move the generators of a run that is resumed.

    >>> blank(nn.Linear(6, 4), "svd", [2])(torch.ones(1, 6)).tolist()
    [[0.0, 0.0, 0.0, 0.0]]
    """
    own = next(layer.parameters())
    made = shaped(layer, form, ranks).to_empty(device=own.device)
    for parameter in made.parameters():
        parameter.zero_()
    return made.train(layer.training).requires_grad_(own.requires_grad)
