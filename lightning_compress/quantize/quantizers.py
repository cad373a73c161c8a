"""The two places a quantizer sits: on a weight (a parametrization) and on a layer's input (a child of the layer)."""

from typing import final

import torch
from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.stored import Stored, along
from lightning_compress.quantize import affine


class _Codes(nn.Module):
    """Lowest and highest code as buffers, so that bits may change during training without a recompilation."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.set_bits(bits)
        self.active = True

    def set_bits(self, bits: int) -> None:
        """Change the number of bits, in place."""
        low, high = affine.code_range(bits, symmetric=self.symmetric)
        self.low.fill_(low)
        self.high.fill_(high)

    @property
    def bits(self) -> int:
        """Number of bits now."""
        return round(float(torch.log2(self.high - self.low + 1 + self.symmetric)))

    def _scale(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.symmetric:
            scale = affine.symmetric_scale(low, high, self.high)
            return scale, torch.zeros_like(scale)
        return affine.affine_scale(low, high, self.high)


@final
class WeightQuantizer(_Codes):
    """Min-max quantization of a weight as it is now; `axis` 0 gives each output channel its own scale, None one to all.

    >>> WeightQuantizer(2, axis=None)(torch.tensor([[0.9, -0.2], [0.3, 0.6]]))
    tensor([[0.9000, -0.0000],
            [0.0000, 0.9000]])
    """

    def __init__(self, bits: int, *, axis: int | None = 0, symmetric: bool = True) -> None:
        super().__init__(bits, symmetric=symmetric)
        self.axis = axis

    @torch.no_grad()
    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for `weight`: 0-dim, or 1-D along `axis`."""
        weight = weight.float()
        rows = weight.flatten() if self.axis is None else weight.movedim(self.axis, 0).flatten(1)
        if self.symmetric:
            high = rows.abs().amax(-1)
            return self._scale(-high, high)
        return self._scale(rows.amin(-1), rows.amax(-1))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as its codes stand for it."""
        if not self.active:
            return weight
        scale, zero_point = (along(values, self.axis, weight.dim()) for values in self.qparams(weight))
        if self.symmetric:
            return affine.round_to_scale(weight, scale)
        return affine.fake_quantize(weight, scale, zero_point, self.low, self.high)

    def store(self, stored: Stored) -> Stored:
        """A quantized tensor on disk."""
        if not self.active:
            return stored
        low, high = self.low.cpu(), self.high.cpu()
        twin = WeightQuantizer(self.bits, axis=self.axis, symmetric=self.symmetric)
        scale, zero_point = twin.qparams(stored.value)
        wide = [along(values, self.axis, stored.value.dim()) for values in (scale, zero_point)]
        codes = affine.codes(stored.value, wide[0], wide[1], low, high)
        return stored.coded(codes, scale, zero_point, bits=self.bits, axis=self.axis, symmetric=self.symmetric)


@final
class InputQuantizer(_Codes):
    """Affine quantization of a layer's first input with a running range.

    `seen` holds the last training batch's minimum and maximum; whoever owns the quantizer folds it into `range` with
    `set_range` after the optimizer step, so that the forward pass needs no communication between ranks.
    """

    range: Tensor
    seen: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits, symmetric=False)
        for name, value in (("range", [0.0, 0.0]), ("seen", [0.0, 0.0]), ("scale", 1.0), ("zero_point", 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self.observing = True

    def forward(self, x: Tensor) -> Tensor:
        """The input as its codes stand for it; in training its range is noted."""
        if self.training and self.observing:
            with torch.no_grad():
                self.seen.copy_(torch.stack(torch.aminmax(x.detach())))
        if not self.active:
            return x
        return affine.fake_quantize(x, self.scale, self.zero_point, self.low, self.high)

    def fixed(self) -> FixedQuantizer:
        """The quantizer as it is deployed: constants only."""
        return FixedQuantizer(
            self.scale.detach().cpu().float().clone(),
            self.zero_point.detach().cpu().to(torch.int32),
            low=round(float(self.low)),
            high=round(float(self.high)),
        )


@torch.no_grad()
def set_ranges(quantizers: list[InputQuantizer], ranges: Tensor) -> None:
    """Give each quantizer its row of `ranges` ([number, 2]: minimum, maximum) and the scale that follows."""
    tops = torch.stack([quantizer.high for quantizer in quantizers])
    scales, zeros = affine.affine_scale(ranges[:, 0], ranges[:, 1], tops)
    for name, values in (("range", ranges), ("scale", scales), ("zero_point", zeros)):
        torch._foreach_copy_([getattr(quantizer, name) for quantizer in quantizers], list(values.unbind()))
