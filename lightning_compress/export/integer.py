"""A finalized model over integers: weights and biases as codes, activations rounded to uint8."""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_compress.core import grid, recurrent, surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.inputs import arguments
from lightning_compress.core.method import Compact
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored, along, by_group

# Pairs of uint8 x int8 products add up in int16 on CPUs without VNNI: the largest that cannot saturate is this.
_MOST_PRODUCT = (2**15 - 1) // 2
# A bias code leaves room for the products that an int32 accumulator adds to it.
_MOST_BIAS = 2**30

torch.library.define(
    "lightning_compress::dequantize", "(Tensor codes, Tensor scale, Tensor zero, int axis, int block) -> Tensor"
)
torch.library.define("lightning_compress::round", "(Tensor x, Tensor scale, Tensor zero, Tensor? high) -> Tensor")


@torch.library.register_fake("lightning_compress::dequantize")  # type: ignore[untyped-decorator]
def _(codes: Tensor, scale: Tensor, zero: Tensor, axis: int, block: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.register_fake("lightning_compress::round")  # type: ignore[untyped-decorator]
def _(x: Tensor, scale: Tensor, zero: Tensor, high: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@final
class Coded(nn.Module):
    """A tensor that is computed from integer codes; with `block`, so many entries along dim 1 share a scale."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor, axis: int | None, block: int = 0) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.axis = 1 if block else axis or 0
        self.block = block

    def forward(self) -> Tensor:
        """The float tensor, as the exporter sees it."""
        return torch.ops.lightning_compress.dequantize(self.codes, self.scale, self.zero, self.axis, self.block)  # type: ignore[no-any-return]


@final
class Rounded(nn.Module):
    """A FixedQuantizer in uint8: its codes moved so that the lowest is 0.

    Raises:
        ValueError: it has more than 8 bits.
    """

    scale: Tensor
    zero: Tensor
    high: Tensor | None

    def __init__(self, fixed: FixedQuantizer) -> None:
        super().__init__()
        high = fixed.high - fixed.low
        if high > 255:
            raise ValueError(f"ONNX export takes activations of at most 8 bits, got {fixed.bits}")
        self.register_buffer("scale", fixed.scale)
        self.register_buffer("zero", (fixed.zero_point - fixed.low).to(torch.uint8))
        self.register_buffer("high", torch.tensor(high, dtype=torch.uint8) if high < 255 else None)

    def forward(self, inputs: Tensor) -> Tensor:
        """The rounded inputs, as the exporter sees them."""
        return torch.ops.lightning_compress.round(inputs, self.scale, self.zero, self.high)  # type: ignore[no-any-return]


@final
class Deployed(nn.Module):
    """The model with the tensors named in `coded` computed from their codes."""

    def __init__(self, model: nn.Module, coded: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.coded = nn.ModuleDict({name.replace(".", "/"): tensor for name, tensor in coded.items()})

    def forward(self, inputs: Any) -> Any:
        """What the model puts out."""
        tensors = {name.replace("/", "."): tensor() for name, tensor in self.coded.items()}
        return functional_call(self.model, tensors, *arguments(inputs))


@final
@dataclass(frozen=True)
class _Integers:
    """A weight as `centred * scale`: int16, 0 where the mask says so; `zero` moves it into uint8 where that must be."""

    centred: Tensor
    scale: Tensor
    zero: Tensor | None
    axis: int | None
    block: int = 0

    def wide(self, values: Tensor) -> Tensor:
        """Scales or zero points as they broadcast over the codes."""
        if not self.block:
            return along(values, self.axis, self.centred.dim())
        owner = torch.full((values.shape[1],), self.block)
        return by_group(values, owner, self.centred.dim())[:, : self.centred.shape[1]]


def _integers(stored: Stored) -> _Integers | None:
    """A stored tensor as integers; None where it has to stay in floats."""
    if stored.codes is None:
        return None
    assert stored.scale is not None
    if stored.levels is not None:
        return _levels(stored, stored.levels, stored.scale)
    assert stored.zero_point is not None
    block = 0 if stored.groups is None else _block(stored.groups)
    if block is None:
        return None
    found = _Integers(stored.codes.to(torch.int16), stored.scale, stored.zero_point, stored.axis, block)
    return _masked(found, found.centred - found.wide(stored.zero_point).to(torch.int16), stored.mask)


def _block(groups: Tensor) -> int | None:
    """How many entries share a scale, where they are as many in each group but the last, which may have fewer."""
    block = int(groups[0])
    even = bool((groups[:-1] == block).all()) and 0 < int(groups[-1]) <= block
    return block if even else None


def _levels(stored: Stored, levels: Tensor, scale: Tensor) -> _Integers | None:
    found = grid.whole(levels, most=127)
    if found is None:
        return None
    assert stored.codes is not None
    numbers, step = found
    centred = numbers[stored.codes.long()].reshape(stored.value.shape).to(torch.int16)
    # A folded batch norm may have turned a channel around, which runtimes expect of codes and not of scales.
    centred = centred * along(torch.where(scale < 0, -1, 1).to(torch.int16), stored.axis, centred.dim())
    return _masked(_Integers(centred, scale.abs() * step, None, stored.axis), centred, stored.mask)


def _masked(found: _Integers, centred: Tensor, mask: Tensor | None) -> _Integers:
    centred = centred if mask is None else torch.where(mask, centred, torch.zeros_like(centred))
    return _Integers(centred, found.scale, found.zero, found.axis, found.block)


def _is_uint4(found: _Integers, centred: Tensor) -> bool:
    if found.zero is None:
        return False
    codes = centred + found.wide(found.zero)
    return all(int(x.min()) >= 0 and int(x.max()) <= 15 for x in (codes, found.zero))


def _coded(found: _Integers, centred: Tensor, scale: Tensor) -> Coded:
    """The codes as int8 with zero point 0 where they fit, which runs everywhere and fastest, else as uint8.

    Blocks have no integer kernel to lose: 4-bit ones that only fit 4 bits with their zero points keep those.
    """
    dtype, zero = torch.int8, torch.zeros_like(scale, dtype=torch.int32)
    low, high = int(centred.min()), int(centred.max())
    if low < -128 or high > 127 or (found.block and high - low > 7 and _is_uint4(found, centred)):
        assert found.zero is not None
        if int(found.zero.min()) < 0 or int(found.zero.max()) > 255:
            raise ValueError(f"8-bit affine weights need zero points in [0, 255], got {found.zero.tolist()}")
        dtype, zero = torch.uint8, found.zero
    codes = (centred + found.wide(zero)).to(dtype)
    if found.block:  # runtimes want a scale for each entry of the other dimensions
        shape = (*scale.shape, *centred.shape[2:])
        scale, zero = (x.reshape(*x.shape, *[1] * (len(shape) - 2)).expand(shape).contiguous() for x in (scale, zero))
    return Coded(codes, scale, zero.to(dtype), found.axis, found.block)


def _with_bias(found: _Integers, bias: Tensor, fixed: FixedQuantizer) -> dict[str, Coded]:
    """Weight and bias of a layer whose input is quantized: the bias in int32 steps of input scale x weight scale.

    Narrow codes are stretched by a power of two, which leaves the weights exactly what they are and makes that step,
    coarse at 2 to 6 bits, as fine as int8 allows. Where weights are so small that the bias would not fit in int32
    (ONNX Runtime saturates even a float one), they are rounded to a coarser step, still below 1e-9 of the bias.
    """
    centred = found.centred
    peak = int(centred.abs().max())
    room = min(127, _MOST_PRODUCT // (fixed.high - fixed.low))
    stretch = 1 << max(0, (room // peak).bit_length() - 1) if peak else 1
    largest = bias.abs() if found.axis == 0 else bias.abs().max()
    # The scale of a channel without weights is arbitrary, and a batch norm may have made it huge: the bias rules.
    empty = (centred.flatten(1) == 0).all(1) if found.axis == 0 else centred.any().logical_not()
    fine = torch.where(empty & (largest > 0), 0.0, found.scale / stretch)
    scale = fine.maximum((largest / fixed.scale / _MOST_BIAS).clamp_min(torch.finfo().tiny))
    centred = (centred * stretch * found.wide(fine / scale)).round()
    step = scale.double() * fixed.scale.double()
    codes = (bias.double() / step).round().to(torch.int32)
    zero = torch.zeros_like(step, dtype=torch.int32)
    return {"weight": _coded(found, centred, scale), "bias": Coded(codes, step.float(), zero, found.axis)}


def _coded_tensors(compact: Compact) -> dict[str, Coded]:
    integers = {name: found for name, stored in compact.stored.items() if (found := _integers(stored)) is not None}
    coded = {name: _coded(found, found.centred, found.scale) for name, found in integers.items()}
    for layer_name, layer in compact.model.named_modules():
        weight, bias = surgery.dotted(layer_name, "weight"), surgery.dotted(layer_name, "bias")
        fixed = getattr(layer, surgery.INPUT_CHILD, None)
        if not isinstance(layer, WEIGHTED) or not isinstance(layer.bias, Tensor) or bias in coded:
            continue
        found = integers.get(weight)
        if found and isinstance(fixed, FixedQuantizer) and found.axis in (None, 0) and not found.block:
            both = _with_bias(found, layer.bias.detach(), fixed)
            coded |= {surgery.dotted(layer_name, attribute): tensor for attribute, tensor in both.items()}
    return coded | {name: _unsigned(coded[name]) for name in _read_by_several(compact.model) if name in coded}


def _read_by_several(model: nn.Module) -> list[str]:
    """Names of the weights that several operators take: tied ones, and recurrent ones, whose gates are cut apart."""
    modules = list(model.modules())
    places = Counter(id(parameter) for module in modules for parameter in module.parameters(recurse=False))
    cut = [module for module in modules if isinstance(module, recurrent.KINDS)]
    places.update(id(getattr(module, name)) for module in cut for name in recurrent.names(module))
    return [name for name, parameter in model.named_parameters() if places[id(parameter)] > 1]


def _unsigned(coded: Coded) -> Coded:
    """The same weights by uint8 codes, where there is no block.

    ONNX Runtime 1.31 makes uint8 codes of int8 ones, where exact sums ask for it, once for each operator that takes
    them, and fails on the second.
    """
    if coded.codes.dtype != torch.int8 or coded.block:
        return coded
    codes, zero = ((tensor.to(torch.int16) + 128).to(torch.uint8) for tensor in (coded.codes, coded.zero))
    return Coded(codes, coded.scale, zero, coded.axis)


def deployed(compact: Compact) -> Deployed:
    """The model to export, in eval mode; `compact` is left as it is.

    Raises:
        ValueError: an activation has more than 8 bits, or affine weights a zero point beyond uint8.

    >>> deployed(Compact(nn.Sequential(nn.Linear(1, 1)), {})).coded
    ModuleDict()
    """
    model = copy.deepcopy(compact.model)
    quantizers = [
        (name, module)
        for name, module in compact.model.named_modules(remove_duplicate=False)
        if isinstance(module, FixedQuantizer)
    ]
    outputs = [module for name, module in quantizers if name.rpartition(".")[2] == surgery.OUTPUT_CHILD]
    for name, module in quantizers:
        # One that a layer has in common with the module it reads from has rounded already.
        done = module in outputs and name.rpartition(".")[2] == surgery.INPUT_CHILD
        model = surgery.replace(model, name, nn.Identity() if done else Rounded(module))
    return Deployed(model, _coded_tensors(compact)).eval()
