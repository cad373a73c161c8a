"""ONNX with real QuantizeLinear/DequantizeLinear pairs."""

import functools
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
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
from torch.utils._pytree import tree_map

from lightning_compress.core.inputs import call, named, rows
from lightning_compress.core.method import Compact
from lightning_compress.export import free_sizes, integer
from lightning_compress.export.four_bits import narrow
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


#: What stands in the file for the operators of integer.py.
_TRANSLATED: dict[Any, Any] = {
    torch.ops.lightning_compress.dequantize.default: _emit_dequantize,
    torch.ops.lightning_compress.round.default: _emit_round,
}


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
    compact: Compact, example: Any, path: str | Path, *, dynamic_batch: bool = True, dynamic_length: bool | None = None
) -> Path:
    """Write a finalized model as an ONNX file that holds integer codes, not the floats they stand for.

    Coded weights become int8 (uint8 where an 8-bit affine range asks for it) under a DequantizeLinear; activations go
    through QuantizeLinear and DequantizeLinear in uint8, clipped below 8 bits; the bias of a layer with both becomes
    int32, without which ONNX Runtime falls back to a float kernel. Codes under 8 bits take a byte each, but those of at
    most 4 bits in blocks, of a linear layer whose inputs are floats, half of one. The file is sealed (sealed.py).
    `example` is one batch, float32 or token ids; input and output are called "input" and "output", several inputs as
    `forward` has them, several outputs by their names, the free dimension "batch". With `dynamic_length` that of
    token ids, or where there are none, of all inputs, "length", is free too, and the file's metadata say under that
    name what it was here. Left open, this is so for token ids, where the model lets it; a log line says if not.

    Raises:
        ValueError: an activation has more than 8 bits, an input is no tensor, the outputs have no names, or the model
            does not let a dimension be free.
        OnnxExporterError: PyTorch cannot export the model so.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = torch.nn.Linear(2, 3).eval().requires_grad_(False)
    ...     export(Compact(net, {}), torch.zeros(1, 2), Path(folder) / "model.onnx").name
    'model.onnx'
    """
    inputs = named(compact.model, example)
    ids = _texts(inputs.values())
    if dynamic_length is None and dynamic_batch and ids:
        return _of_texts(compact, example, ids[0].shape[1], path)
    texts = ids or list(inputs.values())
    deployed, outputs = integer.deployed(compact), _names(call(compact.model, example))
    free = {0: "batch"} if dynamic_batch else {}  # by name alone: how far a length may go is read off the model
    sizes = {id(value): free for value in inputs.values()}
    sizes |= {id(value): {**free, 1: LENGTH} for value in texts if dynamic_length}
    shapes = tree_map(lambda value: sizes[id(value)], example)
    two = rows(example, torch.tensor([0, 0])) if dynamic_batch else example  # one is taken for a constant
    with _quiet(), free_sizes.kept():
        program = torch.onnx.export(
            deployed,
            kwargs={"inputs": two},  # a dict in `args` would be taken for these
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes={"inputs": shapes} if any(sizes.values()) else None,
            input_names=list(inputs),
            output_names=outputs,
            custom_translation_table=_TRANSLATED,
        )
    assert isinstance(program, ONNXProgram)
    graph = program.model.graph
    _check(graph, deployed)
    for found, given in zip(graph.inputs, inputs.values(), strict=True):
        free_sizes.check(list(found.shape or ()), sizes[id(given)])
    for change in (unshare, _pool, _round_before_max, narrow):
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


def _names(outputs: Any) -> list[str]:
    if isinstance(outputs, Mapping):
        return list(outputs)
    if not isinstance(outputs, Tensor):
        kind = type(outputs).__name__
        raise ValueError(f"expected a tensor as output, or several by name, got a {kind}: let forward return a dict")
    return ["output"]


def _texts(inputs: Iterable[Tensor]) -> list[Tensor]:
    """The token ids that are as long as the first of them."""
    found = [value for value in inputs if value.dtype == torch.int64 and value.dim() > 1]
    return [value for value in found if value.shape[1] == found[0].shape[1]]


def _of_texts(compact: Compact, example: Any, length: int, path: str | Path) -> Path:
    """Write a model that takes texts of any length, or of the example's `length` alone where it must."""
    try:
        return export(compact, example, path, dynamic_length=True)
    except (torch.onnx.OnnxExporterError, ValueError) as error:
        file, why = export(compact, example, path, dynamic_length=False), error.__cause__ or error
    logging.getLogger(__name__).warning("%s takes texts of %s tokens alone: %s", file, length, why)
    return file


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
