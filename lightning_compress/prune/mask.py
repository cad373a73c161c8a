"""The mask: a parametrization that multiplies a tensor by zeros and ones."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core.stored import Stored


@final
class Mask(nn.Module):
    """Multiplies by `mask`, a bool buffer that broadcasts to the tensor's shape; starts with everything kept.

    >>> mask = Mask((2, 1))
    >>> mask.mask[0] = False
    >>> mask(torch.ones(2, 2))
    tensor([[0., 0.],
            [1., 1.]])
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, of the weight's shape."""
        return weight * self.mask

    def store(self, stored: Stored) -> Stored:
        """A masked tensor on disk."""
        return stored.masked(self.mask.cpu())

    @classmethod
    def on(cls, layer: nn.Module, name: str, shape: tuple[int, ...]) -> "Mask":
        """Put a new mask on the tensor `name` of `layer` and return it."""
        mask = cls(shape).to(getattr(layer, name).device)
        parametrize.register_parametrization(layer, name, mask)
        return mask
