"""ONNX with real QuantizeLinear/DequantizeLinear pairs; the only file that imports onnxscript."""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import onnxscript
import torch
from onnxscript import ir
from onnxscript import opset21 as op
from torch import Tensor
from torch.onnx import ONNXProgram

from lightning_compress.core.method import Compact
from lightning_compress.export import integer
from lightning_compress.export.integer import Coded, Deployed
from lightning_compress.export.sealed import sealed

#: Known to every onnxruntime that we support; on 1.31 later ones fuse no more into int8 kernels.
OPSET = 21


def _emit_dequantize(codes: Any, scale: Any, zero: Any, axis: int, block: int) -> Any:
    return op.DequantizeLinear(codes, scale, zero, axis=axis, block_size=block)


def _emit_round(x: Any, scale: Any, zero: Any, high: Any = None) -> Any:
    codes = op.QuantizeLinear(x, scale, zero)
    # Clipping the codes, not the floats: a float Clip before QuantizeLinear keeps ONNX Runtime from an int8 kernel.
    return op.DequantizeLinear(codes if high is None else op.Clip(codes, None, high), scale, zero)


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


def _check(graph: ir.Graph, deployed: Deployed) -> None:
    """See that the codes, and not what they stand for, are in the file."""
    bytes_like = (ir.DataType.INT8, ir.DataType.UINT8)
    tensors = [value.const_value for value in graph.initializers.values()]
    shapes = {tuple(tensor.shape.numpy()) for tensor in tensors if tensor and tensor.dtype in bytes_like}
    for key, coded in deployed.coded.items():
        name = key.replace("/", ".")
        assert isinstance(coded, Coded)
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


def _pool(graph: ir.Graph) -> None:
    """Call a mean over the image what it is: runtimes have an integer kernel for global pooling, and none for means."""
    for node in graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.attributes["keepdims"].as_int() != 1:
            continue
        image, axes = node.inputs[0], node.inputs[1]
        if image is None or image.shape is None or axes is None or axes.const_value is None:
            continue
        rank = len(image.shape)
        if rank > 2 and {int(axis) % rank for axis in axes.const_value.numpy()} == set(range(2, rank)):
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()
            node.resize_inputs(1)
            if not axes.uses() and axes.name is not None:
                del graph.initializers[axes.name]


def export(compact: Compact, example: Tensor, path: str | Path, *, dynamic_batch: bool = True) -> Path:
    """Write a finalized model as an ONNX file that holds integer codes, not the floats they stand for.

    Coded weights become int8 (uint8 where an 8-bit affine range asks for it) under a DequantizeLinear; activations go
    through QuantizeLinear and DequantizeLinear in uint8, clipped below 8 bits; the bias of a layer with both becomes
    int32, without which ONNX Runtime falls back to a float kernel. Codes under 8 bits take a byte each. The file is
    sealed (sealed.py). `example` is
    one batch of float32 inputs; input and output are called "input" and "output", the free dimension "batch".

    Raises:
        ValueError: an activation has more than 8 bits.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = torch.nn.Linear(2, 3).eval().requires_grad_(False)
    ...     export(Compact(net, {}), torch.zeros(1, 2), Path(folder) / "model.onnx").name
    'model.onnx'
    """
    deployed = integer.deployed(compact)
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
    _pool(program.model.graph)
    # The exporter leaves stack traces with the paths of this machine on every node.
    program.model.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path))
    path = Path(path)
    path.write_bytes(sealed(path.read_bytes()))
    return path
