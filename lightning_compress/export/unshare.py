"""Integer weights of an ONNX graph that several products have in common, each one's own again."""

from onnxscript import ir

#: What ONNX Runtime computes in integers where a weight comes in codes.
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def unshare(graph: ir.Graph) -> None:
    """Give each product int8 codes and zero points of its own, in place.

    So a layer that is called twice has them twice, and equal zero points, which the exporter merges, are apart again.
    ONNX Runtime 1.31 rewrites int8 weights with their zero points to uint8 where exact sums ask for it, and fails on
    what it has rewritten already. A product that shares its codes with a look-up goes on doing so.
    """
    for node in [node for node in graph if node.op_type == "DequantizeLinear" and _is_int8(node.inputs[0])]:
        shared = node.outputs[0]
        for user, place in _products(shared)[1:]:
            again = ir.node("DequantizeLinear", list(node.inputs), dict(node.attributes))
            again.name, made = f"{node.name}_{user.name}", again.outputs[0]
            made.name, made.shape, made.type = f"{shared.name}_{user.name}", shared.shape, shared.type
            graph.insert_after(node, again)
            user.replace_input_with(place, made)
    for number, node in enumerate(graph):
        for place in (0, 2) if node.op_type == "DequantizeLinear" and len(node.inputs) > 2 else ():
            value = node.inputs[place]
            if value is not None and _is_int8(value) and len(value.uses()) > 1:
                name = f"{value.name}_{number}"
                own = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
                graph.register_initializer(own)
                node.replace_input_with(place, own)


def _is_int8(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.INT8


def _products(weights: ir.Value) -> list[tuple[ir.Node, int]]:
    """The products that take `weights`, and at which place."""
    return [(use.node, use.idx) for use in weights.uses() if use.node.op_type in _PRODUCTS]
