"""ONNX with real QuantizeLinear/DequantizeLinear pairs; the only file that imports onnxscript."""

import functools
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxscript
import torch
from numpy.typing import NDArray
from onnxscript import ir
from onnxscript import opset21 as op
from torch import Tensor
from torch.onnx import ONNXProgram
from torch.utils._pytree import tree_map

from lightning_compress.core.inputs import call, named, rows
from lightning_compress.core.method import Compact
from lightning_compress.export import free_sizes, integer
from lightning_compress.export.integer import Coded, Deployed
from lightning_compress.export.sealed import sealed
from lightning_compress.export.unshare import unshare

#: Known to every onnxruntime that we support; on 1.31 later ones fuse no more into int8 kernels.
OPSET = 21
#: What the free length of texts is called in a file.
LENGTH = "length"


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


def _narrow(graph: ir.Graph) -> None:
    """Put the 4-bit codes of linear layers in blocks two to a byte, the way around that runtimes have kernels for.

    ONNX Runtime 1.31 makes DequantizeLinear and a product one MatMulNBits where the blocks lie along the first
    dimension of the weights and their length is a power of two from 16 up. With 8-bit codes that is slower, not faster.
    """
    for node in list(graph):
        block = node.attributes["block_size"].as_int() if node.op_type == "DequantizeLinear" else 0
        tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
        if block < 16 or block & (block - 1) or len(tensors) < 3 or len(node.outputs[0].uses()) != 1:
            continue
        codes, scale, zero = (tensor.numpy() for tensor in tensors)
        kind = _four_bits(codes, zero)
        if kind is None or codes.ndim != 2 or not _turn(node.outputs[0], graph):
            continue
        node.attributes["axis"] = ir.AttrInt64("axis", 0)
        node.outputs[0].shape = ir.Shape(codes.shape[::-1])
        for place, (array, of) in enumerate(((codes, kind), (scale, ir.DataType.FLOAT), (zero, kind))):
            _put(graph, node, place, ir.tensor(np.ascontiguousarray(array.T), dtype=of))


def _four_bits(codes: NDArray[Any], zero: NDArray[Any]) -> ir.DataType | None:
    """The type of 4 bits that holds codes and zero points."""
    for kind, low, high in ((ir.DataType.INT4, -8, 7), (ir.DataType.UINT4, 0, 15)):
        signed = codes.dtype == np.int8 if low else codes.dtype == np.uint8
        if signed and all(low <= x.min() and x.max() <= high for x in (codes, zero)):
            return kind
    return None


def _turn(weights: ir.Value, graph: ir.Graph) -> bool:
    """Have what takes weights as [out, in] take them as [in, out]; whether there is a kernel for it then."""
    user = next(iter(weights.uses())).node
    if user.op_type == "Gemm":
        if not _has_kernel(user, weights, {"transB": 1}):
            return False
        user.attributes["transB"] = ir.AttrInt64("transB", 0)
        if len(user.inputs) > 2:
            _split(user, graph)
        return True
    turned = user.outputs[0]
    products = [use.node for use in turned.uses()] if user.op_type == "Transpose" else []
    if not products or any(node.op_type != "MatMul" or not _has_kernel(node, turned, {}) for node in products):
        return False
    for node in products:
        node.replace_input_with(1, weights)
    graph.remove(user, safe=True)
    return True


def _has_kernel(product: ir.Node, weights: ir.Value, flags: dict[str, int]) -> bool:
    """Whether it is a product of floats, not codes, with weights; has no activation that ONNX Runtime fuses it with."""
    usual: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    plain = usual | {key: flag.value for key, flag in product.attributes.items()} == usual | flags
    source = product.inputs[0].producer() if product.inputs[0] is not None else None
    rounded = source is not None and source.op_type == "DequantizeLinear"
    behind = [use.node.op_type for use in product.outputs[0].uses()]
    activated = len(product.inputs) < 3 and ("Relu" in behind or "Clip" in behind)
    return plain and product.inputs[1] is weights and not rounded and not activated


def _split(product: ir.Node, graph: ir.Graph) -> None:
    """Add the bias of a product on its own: ONNX Runtime fuses it again, but an activation behind it no more."""
    bare = ir.Node("", "Gemm", product.inputs[:2], name=f"{product.name}_product", version=product.version)
    made, out = bare.outputs[0], product.outputs[0]
    made.name, made.shape, made.type = f"{out.name}_product", out.shape, out.type
    graph.insert_before(product, bare)
    product.op_type = "Add"
    product.attributes.clear()
    product.replace_input_with(0, made)
    product.replace_input_with(1, product.inputs[2])
    product.resize_inputs(2)


def _put(graph: ir.Graph, node: ir.Node, place: int, tensor: ir.TensorProtocol) -> None:
    """Give an input of a node another value, under the same name where nobody else has it."""
    old = node.inputs[place]
    assert old is not None
    assert old.name is not None
    name = old.name
    node.replace_input_with(place, None)
    if old.uses():
        name = f"{name}_{node.name}"
    else:
        del graph.initializers[name]
    new = ir.Value(
        name=name, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(new)
    node.replace_input_with(place, new)


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


def _round_before_max(graph: ir.Graph) -> None:
    """Round what a maximum pooling takes as what it gives, which changes no number: a rounded maximum is one of those.

    OpenVINO pools in integers then, and lets the layer before give codes.
    """
    for node in graph:
        after = [user for user, _ in node.outputs[0].uses()]
        if node.op_type != "MaxPool" or [user.op_type for user in after] != ["QuantizeLinear"]:
            continue
        rounding = after[0]
        value = node.inputs[0]
        while True:
            copy = ir.node(rounding.op_type, [value, *rounding.inputs[1:]], rounding.attributes)
            graph.insert_before(node, copy)
            value = copy.outputs[0]
            if rounding.op_type == "DequantizeLinear":
                break
            rounding = next(user for user, _ in rounding.outputs[0].uses())  # a Clip of the codes may come first
        node.replace_input_with(0, value)


def export(
    compact: Compact, example: Any, path: str | Path, *, dynamic_batch: bool = True, dynamic_length: bool = False
) -> Path:
    """Write a finalized model as an ONNX file that holds integer codes, not the floats they stand for.

    Coded weights become int8 (uint8 where an 8-bit affine range asks for it) under a DequantizeLinear; activations go
    through QuantizeLinear and DequantizeLinear in uint8, clipped below 8 bits; the bias of a layer with both becomes
    int32, without which ONNX Runtime falls back to a float kernel. Codes under 8 bits take a byte each, but those of at
    most 4 bits in blocks, of a linear layer whose inputs are floats, half of one. The file is sealed (sealed.py).
    `example` is one batch, float32 or token ids; input and output are called "input" and "output", several inputs as
    `forward` has them, several outputs by their names, the free dimension "batch". That of token ids, or with
    `dynamic_length` of a sequence (of several inputs: those of token ids), "length", is free too, and the file's
    metadata say under that name what it was here.

    Raises:
        ValueError: an activation has more than 8 bits, an input is no tensor, or the model does not let a dimension be
            free.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = torch.nn.Linear(2, 3).eval().requires_grad_(False)
    ...     export(Compact(net, {}), torch.zeros(1, 2), Path(folder) / "model.onnx").name
    'model.onnx'
    """
    inputs = named(compact.model, example)
    deployed, outputs = integer.deployed(compact), call(compact.model, example)
    texts = [value for value in inputs.values() if len(inputs) == 1 or value.dtype == torch.int64]
    dynamic_length = dynamic_length or (dynamic_batch and len(inputs) == 1 and texts[0].dtype == torch.int64)
    free = {0: "batch"} if dynamic_batch else {}  # by name alone: how far a length may go is read off the model
    of_texts = free | ({1: LENGTH} if dynamic_length else {})
    shapes = tree_map(lambda value: of_texts if any(value is text for text in texts) else free, example)
    two = rows(example, torch.tensor([0, 0])) if dynamic_batch else example  # one is taken for a constant
    with _quiet(), free_sizes.kept():
        program = torch.onnx.export(
            deployed,
            kwargs={"inputs": two},  # a dict in `args` would be taken for these
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes={"inputs": shapes} if of_texts else None,
            input_names=list(inputs),
            output_names=list(outputs) if isinstance(outputs, Mapping) else ["output"],
            custom_translation_table={
                torch.ops.lightning_compress.dequantize.default: _emit_dequantize,
                torch.ops.lightning_compress.round.default: _emit_round,
            },
        )
    assert isinstance(program, ONNXProgram)
    graph = program.model.graph
    _check(graph, deployed)
    for found, given in zip(graph.inputs, inputs.values(), strict=True):
        free_sizes.check(list(found.shape or ()), of_texts if any(given is text for text in texts) else free)
    for change in (unshare, _pool, _round_before_max, _narrow):
        change(graph)
    # The exporter leaves stack traces with the paths of this machine on every node.
    program.model.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
    if dynamic_length:
        program.model.metadata_props[LENGTH] = str(texts[0].shape[1])
    program.save(str(path))
    Path(path).write_bytes(sealed(Path(path).read_bytes()))
    return Path(path)


def activation_bits(path: str | Path) -> list[int]:
    """The bits of every rounding of activations in an ONNX file: those up to a Clip of the codes, else 8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = torch.nn.Linear(2, 3).eval().requires_grad_(False)
    ...     activation_bits(export(Compact(net, {}), torch.zeros(1, 2), Path(folder) / "model.onnx"))
    []
    """
    bits = []
    for node in ir.load(str(path)).graph:
        if node.op_type == "QuantizeLinear":
            clips = [user for user, _ in node.outputs[0].uses() if user.op_type == "Clip"]
            most = clips[0].inputs[2].const_value if clips and clips[0].inputs[2] else None
            bits.append(8 if most is None else int(most.numpy()).bit_length())
    return bits
