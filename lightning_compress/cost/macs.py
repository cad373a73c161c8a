"""Multiply-accumulates per layer, counted on one forward pass."""

from collections.abc import Callable
from math import prod
from typing import final

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
_UNCOUNTED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


def _of_call(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return outputs.numel() * inputs.shape[-1]
    assert isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED))
    kernel = prod(layer.kernel_size)
    channel_dim = -1 - len(layer.kernel_size)
    if isinstance(layer, _TRANSPOSED):
        return inputs.numel() * (outputs.shape[channel_dim] // layer.groups) * kernel
    return outputs.numel() * (inputs.shape[channel_dim] // layer.groups) * kernel


@final
class _Counter:
    """Forward hooks that add up the multiply-accumulates of the layers they sit on."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def on(self, name: str) -> Hook:
        self.counts[name] = 0

        def hook(layer: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> None:
            self.counts[name] += _of_call(layer, args[0], outputs)

        return hook


def macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Count multiply-accumulates of every convolution and linear layer for one sample.

    Padding counts as in the dense kernel; bias, batch norm, activations, pooling and matrix products that are
    not a layer (attention scores) do not, which is the convention of the pruning papers. A layer called twice
    counts twice, one that is not called counts 0. Runs the first sample in evaluation mode and without
    gradients, then puts every module back in the mode it was in.

    Args:
        model: on the device of `example`.
        example: a batch, (B, ...).

    Raises:
        ValueError: when the model holds a recurrent, bilinear or `nn.MultiheadAttention` layer, which has no rule.

    >>> macs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(2, 3, 10, 10))
    {'0': 13824}
    """
    for name, module in model.named_modules():
        if isinstance(module, _UNCOUNTED):
            raise ValueError(
                f"no rule for the multiply-accumulates of {name!r}, a {type(module).__name__}; "
                "write it with nn.Linear and nn.Conv layers to have its cost counted"
            )
    counter = _Counter()
    modes = [(module, module.training) for module in model.modules()]
    handles = [
        module.register_forward_hook(counter.on(name))
        for name, module in model.named_modules()
        if isinstance(module, _COUNTED)
    ]
    try:
        model.eval()
        with torch.no_grad():
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return counter.counts
