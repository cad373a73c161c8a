"""Multiply-accumulates per layer, counted on one forward pass."""

from collections.abc import Callable
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import recurrent, surgery
from lightning_compress.core.inputs import call, rows
from lightning_compress.core.weight import Place
from lightning_compress.cost.bops import FLOAT_BITS

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Embedding, nn.MultiheadAttention),
    *(*recurrent.KINDS, *_CONVOLUTIONS, *_TRANSPOSED),
)

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def _sizes(layer: nn.Module) -> dict[str, int]:
    """How many numbers each weight of a recurrent layer has."""
    return {name: surgery.latent(layer, name).numel() for name in recurrent.names(layer)}


def _of_call(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> int:
    if isinstance(layer, nn.Embedding):
        return 0
    if isinstance(layer, recurrent.KINDS):
        return inputs.numel() // inputs.shape[-1] * sum(_sizes(layer).values())
    if isinstance(layer, nn.Linear):
        return outputs.numel() * inputs.shape[-1]
    assert isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED))
    kernel = prod(layer.kernel_size)
    channel_dim = -1 - len(layer.kernel_size)
    if isinstance(layer, _TRANSPOSED):
        return inputs.numel() * (outputs.shape[channel_dim] // layer.groups) * kernel
    return outputs.numel() * (inputs.shape[channel_dim] // layer.groups) * kernel


def _projections(layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **_: object) -> list[int]:
    """Of query, key and value together, and of the linear layer behind, which PyTorch computes without a call."""
    inner = layer.num_heads * layer.head_dim
    places = query.numel() // query.shape[-1]
    return [sum(x.numel() for x in (query, key, value)) * inner, places * inner * layer.out_proj.out_features]


@final
class _Counter:
    """Forward hooks that add up the multiply-accumulates of the layers they sit on."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def on(self, name: str) -> Hook:
        self.counts[name] = 0

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            if isinstance(layer, nn.MultiheadAttention):
                counts = _projections(layer, **dict(zip(("query", "key", "value"), args, strict=False)) | kwargs)
                for part, count in zip((name, surgery.dotted(name, "out_proj")), counts, strict=True):
                    self.counts[part] += count
                return
            self.counts[name] += _of_call(layer, recurrent.numbers(args[0]), outputs)

        return hook


def macs(model: nn.Module, example: Any) -> dict[str, int]:
    """Count multiply-accumulates of every convolution, linear and recurrent layer for one sample.

    Padding counts as in the dense kernel; bias, batch norm, activations, pooling and matrix products that are
    not a layer (attention scores) do not, which is the convention of the pruning papers. A layer called twice
    counts twice, one that is not called counts 0, and so does an embedding, which looks up. The weights of a recurrent
    layer count once for each time step; its gates, which multiply numbers of one step, do not. Query, key and value of
    `nn.MultiheadAttention` count under its own name, the layer behind under that one's. Runs the first sample in
    evaluation mode and without gradients, then puts every module back in the mode it was in.

    Args:
        model: on the device of `example`.
        example: a batch of inputs, each (B, ...).

    Raises:
        ValueError: when the model holds a bilinear layer, which has no rule.

    >>> macs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(2, 3, 10, 10))
    {'0': 13824}
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Bilinear):
            raise ValueError(
                f"no rule for the multiply-accumulates of {name!r}, a {type(module).__name__}; "
                "write it with nn.Linear and nn.Conv layers to have its cost counted"
            )
    counter = _Counter()
    modes = [(module, module.training) for module in model.modules()]
    handles = [
        module.register_forward_hook(counter.on(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, _COUNTED)
    ]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # it calls no layer of a `nn.TransformerEncoder`
        with torch.no_grad():
            call(model, rows(example, slice(1)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return counter.counts


def macs_share(place: Place) -> float:
    """The share of a layer's multiply-accumulates that one of its weights takes part in: 1 where it has one weight.

    >>> layer = nn.GRU(8, 8, bidirectional=True)
    >>> macs_share(Place("gru", layer, "weight_hh_l0"))
    0.25
    """
    if not isinstance(place.module, recurrent.KINDS):
        return 1.0
    sizes = _sizes(place.module)
    return sizes[place.attribute] / sum(sizes.values())


def multiplied_bits(place: Place, input_bits: int) -> int:
    """The bits of what a weight multiplies, in a layer whose inputs have `input_bits`: a recurrent state is floats.

    >>> layer = nn.GRU(8, 8)
    >>> [multiplied_bits(Place("gru", layer, name), 4) for name in ("weight_ih_l0", "weight_hh_l0")]
    [4, 32]
    """
    inside = isinstance(place.module, recurrent.KINDS) and not recurrent.reads_inputs(place.attribute)
    return FLOAT_BITS if inside else input_bits
