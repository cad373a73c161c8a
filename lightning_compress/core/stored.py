"""What one tensor is on disk: the only thing the packed file and the ONNX export read."""

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor


def along(values: Tensor, axis: int | None, dims: int) -> Tensor:
    """Reshape a 0-dim or 1-D tensor so that it broadcasts along `axis` of a tensor with `dims` dimensions.

    >>> along(torch.ones(4), 0, 3).shape
    torch.Size([4, 1, 1])
    """
    if axis is None:
        return values
    return values.reshape([-1 if dim == axis else 1 for dim in range(dims)])


@final
@dataclass(frozen=True, eq=False)
class Stored:
    """One tensor as it is deployed: raw values, or integer codes with a scale, under an optional mask.

    `codes` and `mask` have the shape of `value`; `scale` and `zero_point` are 0-dim, or 1-D along `axis`.
    Symmetric codes lie in [-(2^(bits-1) - 1), 2^(bits-1) - 1], the others in [0, 2^bits - 1]. In float32 and bit
    for bit, `value == where(mask, (codes - zero_point) * scale, 0)`.

    >>> stored = Stored(torch.tensor([1.0, -2.0])).coded(torch.tensor([1, -2]), torch.tensor(1.0), bits=4)
    >>> stored.masked(torch.tensor([True, False])).value
    tensor([1., 0.])
    """

    value: Tensor
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    bits: int = 32
    axis: int | None = None
    symmetric: bool = True
    mask: Tensor | None = None

    def coded(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        bits: int,
        axis: int | None = None,
        symmetric: bool = True,
    ) -> Self:
        """The same tensor as integer codes; the value follows from them."""
        zero = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point.to(torch.int32)
        coded = replace(
            self,
            codes=codes.to(torch.int16),
            scale=scale.to(torch.float32),
            zero_point=zero,
            bits=bits,
            axis=axis,
            symmetric=symmetric,
        )
        return replace(coded, value=coded.dequantize())

    def masked(self, mask: Tensor) -> Self:
        """The same tensor with zeros where `mask` (bool, broadcastable) is False, on top of any mask it has."""
        full = mask.expand(self.value.shape)
        full = full if self.mask is None else full & self.mask
        return replace(self, mask=full, value=torch.where(full, self.value, torch.zeros_like(self.value)))

    def dequantize(self) -> Tensor:
        """The float value that the codes, or the raw values, stand for."""
        value = self.value
        if self.codes is not None:
            assert self.scale is not None
            assert self.zero_point is not None
            dims = self.codes.dim()
            centred = self.codes.to(torch.float32) - along(self.zero_point, self.axis, dims).to(torch.float32)
            value = centred * along(self.scale, self.axis, dims)
        return value if self.mask is None else torch.where(self.mask, value, torch.zeros_like(value))

    def take(self, dim: int, index: Tensor) -> Self:
        """Keep the entries `index` (1-D, int64) along `dim`, codes, mask and scale alike."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(dim, index)

        def cut_axis(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or self.axis != dim else tensor.index_select(0, index)

        return replace(
            self,
            value=self.value.index_select(dim, index),
            codes=cut(self.codes),
            mask=cut(self.mask),
            scale=cut_axis(self.scale),
            zero_point=cut_axis(self.zero_point),
        )

    @property
    def sparsity(self) -> float:
        """Share of exact zeros in the deployed value."""
        return 1.0 - self.value.count_nonzero().item() / max(1, self.value.numel())
