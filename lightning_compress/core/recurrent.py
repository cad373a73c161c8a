"""Recurrent layers whose weights are parametrized: PyTorch's own kernels, with the weights as they are at each call."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

#: Layers that have several weights, all of them called weight_...
KINDS: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)


def names(layer: nn.Module) -> list[str]:
    """The weights of a recurrent layer, without the biases.

    >>> names(nn.GRU(8, 4))
    ['weight_ih_l0', 'weight_hh_l0']
    """
    own = getattr(layer, "_flat_weights_names", ["weight_ih", "weight_hh"])
    return [name for name in own if name.startswith("weight")]


def reads_inputs(name: str) -> bool:
    """Whether a weight of a recurrent layer takes what comes in from outside, not the states inside.

    >>> reads_inputs("weight_ih_l0_reverse"), reads_inputs("weight_ih_l1"), reads_inputs("weight_hh")
    (True, False, False)
    """
    return name == "weight_ih" or name.startswith("weight_ih_l0")


def numbers(inputs: Tensor | PackedSequence) -> Tensor:
    """What a layer takes as one tensor, packed or not: of a packed sequence (steps of all samples, features).

    >>> import torch
    >>> numbers(torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])).shape
    torch.Size([4, 2])
    """
    return inputs.data if isinstance(inputs, PackedSequence) else inputs


def follow(layer: nn.RNNBase) -> None:
    """Have a layer with parametrized tensors read each of them once per call.

    PyTorch notices that they change, but keeps what it has read, graph and all, so that the layer cannot be copied. The
    class is the layer's own, made by its first parametrization; with that it goes when the layer is folded.

    >>> import torch
    >>> layer = nn.LSTM(2, 3)
    >>> parametrize.register_parametrization(layer, "weight_hh_l0", nn.ReLU())  # doctest: +ELLIPSIS
    Parametrized...
    >>> follow(layer)
    >>> layer(torch.ones(4, 1, 2))[0].sum().backward()
    >>> layer.parametrizations.weight_hh_l0.original.grad.shape
    torch.Size([12, 3])
    """
    own: Any = type(layer)
    assert issubclass(own, nn.RNNBase)
    vars(layer).pop("_flat_weights", None)
    own._flat_weights = property(_read, _ignore)
    own._init_flat_weights = own._update_flat_weights = own.flatten_parameters = _ignore
    own.forward = _forward


def rest(layer: nn.RNNBase) -> None:
    """Have a layer that was folded back into plain tensors hold these as any other does.

    >>> layer = nn.GRU(2, 3)
    >>> rest(layer)
    >>> len(layer._flat_weights)
    4
    """
    layer._init_flat_weights()


def _read(layer: Any) -> list[Tensor]:
    return [getattr(layer, name) for name in layer._flat_weights_names]


def _ignore(layer: Any, *_: object) -> None:
    """What is read anew needs no keeping."""


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    base: Any = type(layer).__bases__[0]
    with parametrize.cached():
        return base.forward(layer, *args, **kwargs)
