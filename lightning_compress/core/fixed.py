"""A quantizer that no longer learns: what a finalized model holds on a layer's input."""

from typing import final

import torch
from torch import Tensor, nn


@final
class FixedQuantizer(nn.Module):
    """Rounds activations to a fixed affine grid in float32 (Jacob et al. 2018, arXiv 1712.05877, section 2.1).

    `scale` is a 0-dim float, `zero_point` a 0-dim integer; codes lie in [`low`, `high`], rounded half to even:
    `output = (clamp(round(input / scale) + zero_point, low, high) - zero_point) * scale`, of any shape. Zero is
    always on the grid, so that zeros (ReLU, padding, a mask) stay exact.

    Raises:
        ValueError: `scale` is not a positive number, `low` not below `high`, or `zero_point` not between them.

    >>> FixedQuantizer(torch.tensor(0.5), torch.tensor(0), 0, 3)(torch.tensor([-1.0, 0.6, 9.0]))
    tensor([0.0000, 0.5000, 1.5000])
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, low: int, high: int) -> None:
        super().__init__()
        if scale.dim() or not (torch.isfinite(scale) and scale > 0):
            raise ValueError(f"FixedQuantizer needs one finite scale > 0, got {scale.tolist()}")
        if zero_point.dim() or not (low < high and low <= int(zero_point) <= high):
            raise ValueError(
                f"FixedQuantizer needs low < high and one zero point between them, got low={low}, high={high}, "
                f"zero_point={zero_point.tolist()}"
            )
        self.register_buffer("scale", scale.detach().to(torch.float32).clone())
        self.register_buffer("zero_point", zero_point.detach().to(torch.int32).clone())
        self.low = low
        self.high = high

    @property
    def bits(self) -> int:
        """Bits that one code takes."""
        return (self.high - self.low).bit_length()

    def forward(self, inputs: Tensor) -> Tensor:
        """Round `inputs` to the grid; same shape."""
        codes = ((inputs / self.scale).round() + self.zero_point).clamp(self.low, self.high)
        return (codes - self.zero_point) * self.scale

    def extra_repr(self) -> str:
        """What the module prints between its brackets."""
        return f"{self.bits} bits, codes {self.low}..{self.high}"
