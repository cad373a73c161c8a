"""What one tensor is on disk: the only thing the packed file and the ONNX export read."""

import warnings
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


def by_group(values: Tensor, groups: Tensor, dims: int) -> Tensor:
    """Spread a [rows, groups] tensor over the entries along dim 1 of a tensor with `dims` dimensions.

    >>> by_group(torch.tensor([[1.0, 2.0]]), torch.tensor([2, 1]), 3).shape
    torch.Size([1, 3, 1])
    """
    wide = values.repeat_interleave(groups, dim=1)
    return wide.reshape(*wide.shape, *[1] * (dims - 2))


@final
@dataclass(frozen=True, eq=False)
class Stored:
    """One tensor as it is deployed: raw values, or integer codes and what they stand for, under an optional mask.

    `codes` and `mask` have the shape of `value`; `scale` and `zero_point` are 0-dim, 1-D along `axis`, or, where
    `groups` (1-D, int64) says how many entries along dim 1 share them, [rows, groups]. Symmetric codes lie in
    [-(2^(bits-1) - 1), 2^(bits-1) - 1], the others in [0, 2^bits - 1]. With `levels`, codes count from 0 and choose a
    level; levels of shape [number, length] stand for that many neighbours along the flattened rows, and `codes` has a
    shape of [rows, columns / length]. In float32 and bit for bit,
    `value == where(mask, (codes - zero_point) * scale, 0)` or `where(mask, levels[codes] * scale, 0)`.

    >>> stored = Stored(torch.tensor([1.0, -2.0])).coded(torch.tensor([1, -2]), torch.tensor(1.0), bits=4)
    >>> stored.masked(torch.tensor([True, False])).value
    tensor([1., 0.])
    >>> Stored(torch.zeros(3)).chosen(torch.tensor([2, 0, 1]), torch.tensor([-1.0, 0.0, 2.0])).value
    tensor([ 2., -1.,  0.])
    """

    value: Tensor
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    bits: int = 32
    axis: int | None = None
    symmetric: bool = True
    mask: Tensor | None = None
    groups: Tensor | None = None
    levels: Tensor | None = None

    def coded(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        bits: int,
        axis: int | None = None,
        symmetric: bool = True,
        groups: Tensor | None = None,
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
            groups=groups,
            levels=None,
        )
        return replace(coded, value=coded.dequantize())

    def chosen(self, codes: Tensor, levels: Tensor, scale: Tensor | None = None, *, axis: int | None = None) -> Self:
        """The same tensor as choices among `levels` (at most 65,536), times a scale; the value follows from them."""
        coded = replace(
            self,
            codes=codes.to(torch.int32),
            scale=torch.ones(()) if scale is None else scale.to(torch.float32),
            zero_point=None,
            bits=max(1, (len(levels) - 1).bit_length()),
            axis=axis,
            groups=None,
            levels=levels.to(torch.float32),
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
            dims = self.value.dim()
            if self.levels is not None:
                value = self.levels[self.codes.long()].reshape(self.value.shape) * along(self.scale, self.axis, dims)
            else:
                assert self.zero_point is not None
                centred = self.codes.to(torch.float32) - self._wide(self.zero_point).to(torch.float32)
                value = centred * self._wide(self.scale)
        return value if self.mask is None else torch.where(self.mask, value, torch.zeros_like(value))

    def _wide(self, values: Tensor) -> Tensor:
        """Scales or zero points as they broadcast over the tensor."""
        if self.groups is not None:
            return by_group(values, self.groups, self.value.dim())
        return along(values, self.axis, self.value.dim())

    def take(self, dim: int, index: Tensor) -> Self:
        """Keep the entries `index` (1-D, int64) along `dim`, codes, mask, scales and groups alike.

        Levels for several neighbours cannot be taken apart but along dim 0: elsewhere the values stay, uncoded.
        """
        if self.levels is not None and self.levels.dim() == 2 and dim != 0:
            warnings.warn(
                f"{tuple(self.value.shape)} weights in blocks of {self.levels.shape[1]} lose channels inside a block: "
                "they are stored as plain floats",
                stacklevel=2,
            )
            return replace(self, codes=None, scale=None, levels=None, bits=32, axis=None, value=self.value).take(
                dim, index
            )
        cut_scale = self.axis == dim or (self.groups is not None and dim == 0)
        groups = self.groups
        if groups is not None and dim == 1:
            owner = torch.arange(len(groups)).repeat_interleave(groups)
            groups = torch.bincount(owner[index], minlength=len(groups))

        def cut(tensor: Tensor | None, wanted: bool, along_dim: int) -> Tensor | None:
            return tensor if tensor is None or not wanted else tensor.index_select(along_dim, index)

        return replace(
            self,
            value=self.value.index_select(dim, index),
            codes=cut(self.codes, True, dim),
            mask=cut(self.mask, True, dim),
            scale=cut(self.scale, cut_scale, 0),
            zero_point=cut(self.zero_point, cut_scale, 0),
            groups=groups,
        )

    @property
    def sparsity(self) -> float:
        """Share of exact zeros in the deployed value."""
        return 1.0 - self.value.count_nonzero().item() / max(1, self.value.numel())
