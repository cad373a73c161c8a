"""Four-bit weights of an ONNX graph in the form that runtimes have kernels for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir


def narrow(graph: ir.Graph) -> None:
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
