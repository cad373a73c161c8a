"""ONNX with real QuantizeLinear/DequantizeLinear pairs; the only file that imports onnxscript."""

import copy
import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final
from unittest import mock

import onnxscript
import torch
from onnxscript import ir
from onnxscript import opset21 as op
from torch import Tensor, nn
from torch.func import functional_call
from torch.onnx import ONNXProgram

from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored, along

#: Known to every onnxruntime that we support; on 1.31 later ones fuse no more into int8 kernels.
OPSET = 21
# Pairs of uint8 x int8 products add up in int16 on CPUs without VNNI: the largest that cannot saturate is this.
_MOST_PRODUCT = (2**15 - 1) // 2
# A bias code leaves room for the products that an int32 accumulator adds to it.
_MOST_BIAS = 2**30

torch.library.define("lightning_compress::dequantize", "(Tensor codes, Tensor scale, Tensor zero, int axis) -> Tensor")
torch.library.define("lightning_compress::round", "(Tensor x, Tensor scale, Tensor zero, Tensor? high) -> Tensor")


@torch.library.register_fake("lightning_compress::dequantize")  # type: ignore[untyped-decorator]
def _(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.register_fake("lightning_compress::round")  # type: ignore[untyped-decorator]
def _(x: Tensor, scale: Tensor, zero: Tensor, high: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _emit_dequantize(codes: Any, scale: Any, zero: Any, axis: int) -> Any:
    return op.DequantizeLinear(codes, scale, zero, axis=axis)


def _emit_round(x: Any, scale: Any, zero: Any, high: Any = None) -> Any:
    codes = op.QuantizeLinear(x, scale, zero)
    # Clipping the codes, not the floats: a float Clip before QuantizeLinear keeps ONNX Runtime from an int8 kernel.
    return op.DequantizeLinear(codes if high is None else op.Clip(codes, None, high), scale, zero)


@final
class _Coded(nn.Module):
    """A tensor that is computed from integer codes."""

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor, axis: int | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.axis = axis or 0

    def forward(self) -> Tensor:
        return torch.ops.lightning_compress.dequantize(self.codes, self.scale, self.zero, self.axis)  # type: ignore[no-any-return]


@final
class _Rounded(nn.Module):
    """A FixedQuantizer in uint8: its codes moved so that the lowest is 0."""

    def __init__(self, fixed: FixedQuantizer) -> None:
        super().__init__()
        high = fixed.high - fixed.low
        if high > 255:
            raise ValueError(f"ONNX export takes activations of at most 8 bits, got {fixed.bits}")
        self.register_buffer("scale", fixed.scale)
        self.register_buffer("zero", (fixed.zero_point - fixed.low).to(torch.uint8))
        self.register_buffer("high", torch.tensor(high, dtype=torch.uint8) if high < 255 else None)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ops.lightning_compress.round(inputs, self.scale, self.zero, self.high)  # type: ignore[no-any-return]


@final
class _Deployed(nn.Module):
    """The model with the tensors named in `coded` computed from their codes."""

    def __init__(self, model: nn.Module, coded: dict[str, _Coded]) -> None:
        super().__init__()
        self.model = model
        self.coded = nn.ModuleDict({name.replace(".", "/"): tensor for name, tensor in coded.items()})

    def forward(self, inputs: Tensor) -> Any:
        tensors = {name.replace("/", "."): tensor() for name, tensor in self.coded.items()}
        return functional_call(self.model, tensors, (inputs,))


def _centred(stored: Stored) -> Tensor:
    """Codes minus zero point, int16; 0 where the mask says so."""
    assert stored.codes is not None
    assert stored.zero_point is not None
    codes = stored.codes.to(torch.int16) - along(stored.zero_point, stored.axis, stored.codes.dim()).to(torch.int16)
    return codes if stored.mask is None else torch.where(stored.mask, codes, torch.zeros_like(codes))


def _coded(stored: Stored, centred: Tensor, scale: Tensor) -> _Coded:
    """The codes as int8 with zero point 0 where they fit, which runs everywhere and fastest, else as uint8."""
    if int(centred.min()) >= -128 and int(centred.max()) <= 127:
        return _Coded(centred.to(torch.int8), scale, torch.zeros_like(scale, dtype=torch.int8), stored.axis)
    assert stored.zero_point is not None
    if int(stored.zero_point.min()) < 0 or int(stored.zero_point.max()) > 255:
        raise ValueError(f"8-bit affine weights need zero points in [0, 255], got {stored.zero_point.tolist()}")
    zero = stored.zero_point.to(torch.uint8)
    codes = centred + along(zero, stored.axis, centred.dim())
    return _Coded(codes.to(torch.uint8), scale, zero, stored.axis)


def _with_bias(weight: Stored, bias: Tensor, fixed: FixedQuantizer) -> dict[str, _Coded]:
    """Weight and bias of a layer whose input is quantized: the bias in int32 steps of input scale x weight scale.

    Narrow codes are stretched by a power of two, which leaves the weights exactly what they are and makes that step,
    coarse at 2 to 6 bits, as fine as int8 allows. Where weights are so small that the bias would not fit in int32
    (ONNX Runtime saturates even a float one), they are rounded to a coarser step, still below 1e-9 of the bias.
    """
    assert weight.scale is not None
    centred = _centred(weight)
    peak = int(centred.abs().max())
    room = min(127, _MOST_PRODUCT // (fixed.high - fixed.low))
    stretch = 1 << max(0, (room // peak).bit_length() - 1) if peak else 1
    largest = bias.abs() if weight.axis == 0 else bias.abs().max()
    fine = weight.scale / stretch
    scale = fine.maximum((largest / fixed.scale / _MOST_BIAS).clamp_min(torch.finfo().tiny))
    centred = (centred * stretch * along(fine / scale, weight.axis, centred.dim())).round()
    step = scale.double() * fixed.scale.double()
    codes = (bias.double() / step).round().to(torch.int32)
    zero = torch.zeros_like(step, dtype=torch.int32)
    return {"weight": _coded(weight, centred, scale), "bias": _Coded(codes, step.float(), zero, weight.axis)}


def _coded_tensors(compact: Compact) -> dict[str, _Coded]:
    coded = {}
    for name, stored in compact.stored.items():
        if stored.codes is not None and stored.scale is not None:
            coded[name] = _coded(stored, _centred(stored), stored.scale)
    for layer_name, layer in compact.model.named_modules():
        weight, bias = f"{layer_name}.weight", f"{layer_name}.bias"
        fixed = getattr(layer, surgery.INPUT_CHILD, None)
        if not isinstance(layer, WEIGHTED) or not isinstance(layer.bias, Tensor) or bias in coded:
            continue
        if weight in coded and isinstance(fixed, FixedQuantizer) and compact.stored[weight].axis in (None, 0):
            both = _with_bias(compact.stored[weight], layer.bias.detach(), fixed)
            coded |= {f"{layer_name}.{attribute}": tensor for attribute, tensor in both.items()}
    return coded


def _deployed(compact: Compact) -> _Deployed:
    model = copy.deepcopy(compact.model)
    for name, module in compact.model.named_modules():
        if isinstance(module, FixedQuantizer):
            model = surgery.replace(model, name, _Rounded(module))
    return _Deployed(model, _coded_tensors(compact)).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing, and from parsing all of its 500 translations again for each model.

    That parsing gives only the domain of each translation and takes half of the time of an export.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    traced = onnxscript.TracedOnnxFunction
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), mock.patch.object(traced, "function_ir", property(_function_ir)):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


_parse: Any = onnxscript.TracedOnnxFunction.function_ir.fget  # type: ignore[attr-defined]
_function_ir = functools.cache(_parse)


def _check(graph: ir.Graph, deployed: _Deployed) -> None:
    """See that the codes, and not what they stand for, are in the file."""
    bytes_like = (ir.DataType.INT8, ir.DataType.UINT8)
    tensors = [value.const_value for value in graph.initializers.values()]
    shapes = {tuple(tensor.shape.numpy()) for tensor in tensors if tensor and tensor.dtype in bytes_like}
    for key, coded in deployed.coded.items():
        name = key.replace("/", ".")
        assert isinstance(coded, _Coded)
        assert isinstance(coded.codes, Tensor)
        lost = coded.codes.dtype != torch.int32 and tuple(coded.codes.shape) not in shapes
        if lost or f"model.{name}" in graph.initializers:
            raise RuntimeError(f"the ONNX exporter of torch {torch.__version__} did not keep the codes of {name!r}")


def _unshare(graph: ir.Graph) -> None:
    """Give each weight a zero point of its own: the exporter merges equal ones, as all-zero ones of one length are.

    ONNX Runtime 1.31 rewrites int8 weights with their zero points to uint8 where exact sums ask for it, and fails on a
    zero point that it has rewritten already.
    """
    for number, node in enumerate(graph):
        zero = node.inputs[2] if node.op_type == "DequantizeLinear" and len(node.inputs) > 2 else None
        if zero is not None and zero.is_initializer() and zero.dtype == ir.DataType.INT8 and len(zero.uses()) > 1:
            own = ir.Value(name=f"{zero.name}_{number}", shape=zero.shape, type=zero.type, const_value=zero.const_value)
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def export(compact: Compact, example: Tensor, path: str | Path, *, dynamic_batch: bool = True) -> Path:
    """Write a finalized model as an ONNX file that holds integer codes, not the floats they stand for.

    Coded weights become int8 (uint8 where an 8-bit affine range asks for it) under a DequantizeLinear; activations go
    through QuantizeLinear and DequantizeLinear in uint8, clipped below 8 bits; the bias of a layer with both becomes
    int32, without which ONNX Runtime falls back to a float kernel. Codes under 8 bits take a byte each. `example` is
    one batch of float32 inputs; input and output are called "input" and "output", the free dimension "batch".

    Raises:
        ValueError: an activation has more than 8 bits.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = nn.Linear(2, 3).eval().requires_grad_(False)
    ...     export(Compact(net, {}), torch.zeros(1, 2), Path(folder) / "model.onnx").name
    'model.onnx'
    """
    deployed = _deployed(compact)
    shapes = None
    if dynamic_batch:
        # Tracing takes a batch of one for a constant.
        example = torch.cat([example[:1], example[:1]])
        shapes = ({0: torch.export.Dim("batch")},)
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=["input"],
            output_names=["output"],
            custom_translation_table={
                torch.ops.lightning_compress.dequantize.default: _emit_dequantize,
                torch.ops.lightning_compress.round.default: _emit_round,
            },
        )
    assert isinstance(program, ONNXProgram)
    _check(program.model.graph, deployed)
    _unshare(program.model.graph)
    # The exporter leaves stack traces with the paths of this machine on every node.
    program.model.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path))
    return Path(path)
