"""What of an ONNX file takes time, and tiny models of one layer each; the only file that imports onnx."""

from collections import defaultdict
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lightning_compress.export.layers import Layer, Narrowable, Network
from lightning_compress.export.sealed import checked

_OPSET, _IR = 21, 10
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_SHAPES = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze")
# A rectifier ends up in the operator before it.
_FREE = ("Relu", *_SHAPES)
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_UNPRICED = ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "Attention", *_WEIGHTED)


def read(file: Path) -> Network:
    """The layers of an ONNX file, in its order, and what its other operators write.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged, or has an operator that takes long and is no conv or linear layer.
    """
    checked(file)
    return _Graph(file).network()


def narrowable(file: Path) -> Narrowable:
    """A float network in an ONNX file, to be seen with fewer channels.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: what `read` raises.
    """
    checked(file)
    return _Graph(file).narrowable()


def tiny(layer: Layer, *, without: bool = False) -> bytes:
    """An ONNX model of one layer, with what stands before and after it in a network; or `without` the layer itself.

    A conv stands between a thin one and a pool, in the layout that runtimes choose for what flows between layers; the
    time without it is to be taken off. One that reads the network's inputs has nothing before it, a linear layer
    nothing around it.
    """
    return _Tiny().bytes_of(layer, without=without)


def wraps(layer: Layer) -> bool:
    """Whether the tiny model has more in it than the layer and what takes next to no time."""
    return layer.kind == "conv" and not layer.first


@final
class _Graph:
    """The nodes of an ONNX file and what they read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
        self._nodes = list(graph.node)
        self._constants = {value.name: tuple(value.dims) for value in graph.initializer}
        values = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}
        self._outputs = {value.name for value in graph.output}
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].append(node)

    def network(self) -> Network:
        layers, moved, absorbed = [], {"float": 0, "uint8": 0}, set[str]()
        nodes = [node for node in self._nodes if not self._constant(node.output[0])]
        for node in (node for node in nodes if node.op_type not in (_QUANTIZE, _DEQUANTIZE, *_FREE)):
            weight = self._weight(node)
            matrices = node.op_type != "Conv" and node.op_type in _WEIGHTED and len(self._shapes[node.input[0]]) != 2
            if matrices or (weight is None and node.op_type in _UNPRICED):
                raise ValueError(
                    f"{self._file}: no latency table prices {node.op_type}, only conv layers and linear ones"
                )
            reads = [name for name in node.input if name and (weight or not self._constant(name))][
                : 2 if weight else None
            ]
            before = "uint8" if all(map(self._from_codes, reads)) else "float"
            after = "uint8" if before == "uint8" and self._to_codes(node) else "float"
            if weight:
                layers.append(self._layer(node, weight, {"before": before, "after": after}))
            else:
                before = after  # it runs on integers on both sides or on neither
                moved[after] += self._written(node)
            absorbed |= {node.name for node in map(self._from_codes, reads) if node and before == "uint8"}
            absorbed |= {reader.name for reader in self._readers[self._end(node)] if after == "uint8"}
        rest = [node for node in nodes if node.op_type in (_QUANTIZE, _DEQUANTIZE) and node.name not in absorbed]
        return Network(tuple(layers), {**moved, "float": moved["float"] + sum(map(self._written, rest))})

    def narrowable(self) -> Narrowable:
        others = [
            node
            for node in self._nodes
            if node.op_type not in _FREE and not self._weight(node) and not self._constant(node.output[0])
        ]
        return Narrowable(self.network(), tuple((self._written(node), self._channels(node)) for node in others))

    def _channels(self, node: NodeProto) -> dict[str, float]:
        """The layers whose output channels those of a node's output are, each with its share of them."""
        weight = self._weight(node)
        if weight:
            return {_layer_name(weight): 1.0}
        found: dict[str, float] = {}
        parts = [name for name in node.input if name in self._makers and not self._constant(name)]
        wide = self._shapes[node.output[0]][1]
        for name in parts:
            own, share = self._channels(self._makers[name]), self._shapes[name][1] / wide
            if own and (node.op_type in _SHAPES or share == 1.0):
                return own  # operators on several values have the same channels in all
            if node.op_type == "Concat":
                found = {layer: found.get(layer, 0.0) + share * own.get(layer, 0.0) for layer in {**found, **own}}
        return found

    def _weight(self, node: NodeProto) -> str | None:
        return self._constant(node.input[1]) if node.op_type in _WEIGHTED else None

    def _layer(self, node: NodeProto, weight: str, sides: Any) -> Layer:
        known = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        shape, read = self._constants[weight], self._shapes[node.input[0]]
        sides = {**sides, "name": _layer_name(weight), "last": self._end(node) in self._outputs}
        first = self._is_input(node.input[0])
        if node.op_type != "Conv":
            outs, ins = shape if known.get("transB") else shape[::-1]
            return Layer("linear", ins, outs, **sides)
        ones, groups = [1] * len(read[2:]), known.get("group", 1)
        return Layer(
            *("conv", shape[1] * groups, shape[0], read[2:], tuple(shape[2:])),
            strides=tuple(known.get("strides", ones)),
            pads=tuple(known.get("pads", [0, 0] * len(ones))),
            dilations=tuple(known.get("dilations", ones)),
            groups=groups,
            first=first,
            **sides,
        )

    def _written(self, node: NodeProto) -> int:
        return prod(self._shapes[node.output[0]][1:])

    def _constant(self, name: str) -> str | None:
        """The stored tensor that a value is, or is made of codes in."""
        node = self._makers.get(name)
        if node is not None and node.op_type == _DEQUANTIZE:
            return self._constant(node.input[0])
        return name if name in self._constants else None

    def _from_codes(self, name: str) -> NodeProto | None:
        """The node that makes a value of codes, perhaps before its shape changes."""
        node = self._makers.get(name)
        while node is not None and node.op_type in _SHAPES:
            node = self._makers.get(node.input[0])
        return node if node is not None and node.op_type == _DEQUANTIZE else None

    def _to_codes(self, node: NodeProto) -> bool:
        readers = self._readers[self._end(node)]
        return bool(readers) and all(reader.op_type == _QUANTIZE for reader in readers)

    def _end(self, node: NodeProto) -> str:
        """What a node writes, after the rectifier and the changes of shape that may follow it."""
        name: str = node.output[0]
        while len(after := self._readers[name]) == 1 and after[0].op_type in _FREE:
            name = after[0].output[0]
        return name

    def _is_input(self, name: str) -> bool:
        """Whether a value is the network's input, perhaps rounded."""
        node = self._makers.get(name)
        while node is not None and node.op_type in (_QUANTIZE, _DEQUANTIZE, "Clip"):
            name = node.input[0]
            node = self._makers.get(name)
        return node is None


def _layer_name(weight: str) -> str:
    name = weight.removeprefix("model.").removeprefix("coded.").removesuffix(".codes").replace("/", ".")
    return name.removesuffix(".weight")


@final
class _Tiny:
    """A small ONNX model under construction; weights follow a pattern, on which latency does not depend."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def bytes_of(self, layer: Layer, *, without: bool) -> bytes:
        codes, last, wide = layer.before == "uint8", "input", layer.ins
        if codes:
            last = self._add(_DEQUANTIZE, last, *self._scale())
        if wraps(layer):
            wide, ones = 1, (1,) * len(layer.size)
            thin = Layer("conv", 1, layer.ins, layer.size, ones, ones, (0, 0) * len(ones), ones, before=layer.before)
            last = self._rounded(self._conv(last, thin), codes=codes)
        after = codes if without else layer.after == "uint8"
        if not without:
            last = self._conv(last, layer) if layer.kind == "conv" else self._linear(last, layer)
            last = self._rounded(last, codes=after)
        if layer.kind == "conv":
            last = self._rounded(self._add("GlobalAveragePool", last), codes=after)
        kind = TensorProto.UINT8 if codes else TensorProto.FLOAT
        read = helper.make_tensor_value_info("input", kind, ("batch", wide, *layer.size))
        written = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "layer", [read], [written], self._constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        data: bytes = made.SerializeToString()
        return data

    def _rounded(self, last: str, *, codes: bool) -> str:
        if not codes:
            return last
        return self._add(_DEQUANTIZE, self._add(_QUANTIZE, last, *self._scale()), *self._scale())

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"value{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _keep(self, values: NDArray[Any]) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def _scale(self) -> tuple[str, str]:
        return self._keep(np.array(0.02, np.float32)), self._keep(np.array(0, np.uint8))

    def _weights(self, shape: tuple[int, ...], *, integer: bool) -> tuple[str, str]:
        pattern, channels = np.resize(np.arange(-7, 8), shape), np.ones(shape[0], np.float32)
        if not integer:
            return self._keep((0.01 * pattern).astype(np.float32)), self._keep(0.1 * channels)
        weight, bias = (
            self._add(_DEQUANTIZE, *map(self._keep, (codes, step * channels, np.zeros(shape[0], codes.dtype))), axis=0)
            for codes, step in ((pattern.astype(np.int8), 0.01), (np.full(shape[0], 100, np.int32), 0.0002))
        )
        return weight, bias

    def _conv(self, last: str, layer: Layer) -> str:
        shape = (layer.outs, layer.ins // layer.groups, *layer.kernel)
        weights = self._weights(shape, integer=layer.before == "uint8")
        how = {"strides": layer.strides, "pads": layer.pads, "dilations": layer.dilations, "group": layer.groups}
        return self._add("Relu", self._add("Conv", last, *weights, **how))

    def _linear(self, last: str, layer: Layer) -> str:
        weights = self._weights((layer.outs, layer.ins), integer=layer.before == "uint8")
        return self._add("Gemm", last, *weights, transB=1)
