"""Fitting a convolution to outputs that it should have, by least squares on its inputs."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Inputs that hardly vary leave the weights on them undetermined: those stay where they are.
_RIDGE = 1e-6


@final
class LeastSquares:
    """Gathers inputs of a convolution and the outputs it should have; then finds the weight and bias nearest to them.

    In float64, as sums over all positions: `add` may be called with any number of batches. With few samples the
    weights stay near those that the layer has (ridge regression towards them).

    >>> conv = nn.Conv2d(3, 2, 1)
    >>> wanted, inputs = nn.Conv2d(3, 2, 1), torch.randn(4, 3, 5, 5)
    >>> squares = LeastSquares(conv)
    >>> squares.add(inputs, wanted(inputs))
    >>> squares.solve()
    >>> bool(torch.allclose(conv(inputs), wanted(inputs), atol=1e-4))
    True
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        columns = conv.weight[0].numel() + (conv.bias is not None)
        new = conv.weight.detach().new_zeros((), dtype=torch.float64)
        self._gram = new.repeat(conv.groups, columns, columns)
        self._cross = new.repeat(conv.groups, columns, conv.out_channels // conv.groups)

    @torch.no_grad()
    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Count a batch: inputs [batch, in, H, W] and the outputs [batch, out, H', W'] they should lead to."""
        columns = self._columns(inputs.double())
        wanted = targets.double().transpose(0, 1).flatten(1)  # [out, positions]
        wanted = wanted.reshape(self.conv.groups, -1, wanted.shape[1]).transpose(1, 2)
        self._gram += columns.transpose(1, 2) @ columns
        self._cross += columns.transpose(1, 2) @ wanted

    def _columns(self, inputs: Tensor) -> Tensor:
        """What each output is a sum over: [groups, positions, columns], with ones for the bias last."""
        conv = self.conv
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)
        patches = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride)  # [batch, in * kh * kw, positions]
        patches = patches.transpose(0, 1).flatten(1).reshape(conv.groups, -1, patches.shape[0] * patches.shape[2])
        columns = patches.transpose(1, 2)
        return columns if conv.bias is None else F.pad(columns, (0, 1), value=1.0)

    @torch.no_grad()
    def solve(self) -> None:
        """Give the convolution the weight and bias that come nearest."""
        conv = self.conv
        now = conv.weight.double().reshape(conv.groups, -1, conv.weight[0].numel())
        if conv.bias is not None:
            now = torch.cat([now, conv.bias.double().view(conv.groups, -1, 1)], dim=2)
        now = now.transpose(1, 2)  # [groups, columns, out]
        ridge = _RIDGE * self._gram.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
        gram = self._gram + ridge[:, None, None] * torch.eye(self._gram.shape[1], device=now.device)
        found = torch.linalg.solve(gram, self._cross + ridge[:, None, None] * now).transpose(1, 2).flatten(0, 1)
        size = conv.weight[0].numel()
        conv.weight.copy_(found[:, :size].reshape(conv.weight.shape))
        if conv.bias is not None:
            conv.bias.copy_(found[:, size])
