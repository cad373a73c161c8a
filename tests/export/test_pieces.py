"""What is read from an exported file, beside what one would write down by hand; tiny models do run."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor, read_stored
from lightning_compress.core.method import Compact, Method
from lightning_compress.export import pieces
from lightning_compress.export.layers import Layer, Network
from lightning_compress.export.onnx import export
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune.groups import cuts, groups
from lightning_compress.quantize.method import Quantize
from tests.prune import graphs, removing


class Block(nn.Module):
    """A stem, a residual block of one depthwise conv, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        self.relu, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        stem = self.relu(self.stem(inputs))
        outputs: Tensor = self.fc(self.flatten(self.pool(self.relu2(self.each(stem) + stem))))
        return outputs


@pytest.mark.parametrize("build", [graphs.Dense, graphs.Excited, partial(ResNetCIFAR, 8, shortcut="B"), Block])
def test_narrowed_as_if_cut(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, inputs = build().eval(), torch.zeros(2, 3, 8, 8)
    found = groups(model, inputs, removing.layers(model))
    keep = {root: torch.arange(group.size) % 3 > 0 for root, group in found.items()}
    small = edits.replay(copy.deepcopy(model), cuts(model, found, keep))
    before, after = (
        export(Compact(net, read_stored(net)), inputs, tmp_path / f"{at}.onnx") for at, net in enumerate((model, small))
    )
    shapes = {name: small.get_parameter(f"{name}.weight").shape[:2] for name in removing.layers(small)}
    assert pieces.narrowable(before).at(shapes) == pieces.read(after)
    assert pieces.read(before) != pieces.read(after)


def network(folder: Path, *methods: Method) -> Network:
    inputs = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(methods)
    model = compressor.attach(Block(), inputs[:1])
    compressor.prepare(model, [(inputs, None)], trains=False)
    compact: Compact = compressor.finalize(model, inputs[:1])
    return pieces.read(export(compact, inputs[:2], folder / "model.onnx"))


STEM = Layer("conv", 3, 8, (12, 12), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), first=True)
EACH = Layer("conv", 8, 8, (6, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=8)
FC = Layer("linear", 8, 5)


def test_a_float_network(tmp_path: Path) -> None:
    found = network(tmp_path)
    assert found.layers == (STEM, EACH, FC)
    assert [layer.name for layer in found.layers] == ["stem", "each", "fc"]
    assert [layer.last for layer in found.layers] == [False, False, True]
    assert found.moved == {"float": 8 * 6 * 6 + 8, "uint8": 0}  # the sum and the pool


def test_an_integer_network(tmp_path: Path) -> None:
    found = network(tmp_path, Quantize(8, 8, outputs=True))
    assert [(layer.before, layer.after) for layer in found.layers] == [("uint8", "uint8")] * 2 + [("uint8", "float")]
    assert [layer.name for layer in found.layers] == ["stem", "each", "fc"]
    assert [layer.first for layer in found.layers] == [True, False, False]
    assert found.moved == {"float": 3 * 12 * 12, "uint8": 8 * 6 * 6 + 8}  # the inputs are rounded


def test_with_rounded_inputs_only(tmp_path: Path) -> None:
    found = network(tmp_path, Quantize(8, 8, exclude=["fc"]))
    assert [(layer.before, layer.after) for layer in found.layers] == [
        *(("uint8", "float"), ("uint8", "float"), ("float", "float"))
    ]
    # the inputs and the stem's outputs are rounded; the stem's are also added as they are
    assert found.moved == {"float": 3 * 12 * 12 + 8 * 6 * 6 * 2 + 8, "uint8": 0}


def test_an_operator_that_no_table_prices(tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "x"], ["y"])], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "scores.onnx")
    with pytest.raises(ValueError, match="no latency table prices MatMul"):
        pieces.read(tmp_path / "scores.onnx")


def optimized(model: bytes, folder: Path) -> list[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "o.onnx"), 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    read = session.get_inputs()[0]
    kind = np.uint8 if "uint8" in read.type else np.float32
    (outputs,) = session.run(None, {read.name: np.ones((2, *read.shape[1:]), kind)})
    assert np.isfinite(outputs).all()
    return [node.op_type for node in onnx.load(folder / "o.onnx").graph.node]


@pytest.mark.parametrize("layer", [STEM, EACH, FC], ids=str)
def test_tiny_models_run_the_kernels_they_stand_for(layer: Layer, tmp_path: Path) -> None:
    around = 1 if pieces.wraps(layer) else 0
    assert around == (layer is EACH)
    floats = optimized(pieces.tiny(layer), tmp_path)
    assert sum(name in ("Conv", "FusedConv", "Gemm") for name in floats) == 1 + around
    integer = Layer(**{**vars(layer), "before": "uint8", "after": "uint8"})
    kernels = optimized(pieces.tiny(integer), tmp_path)
    assert sum(name in ("QLinearConv", "QGemm") for name in kernels) == 1 + around
    assert set(kernels) <= {"QLinearConv", "QLinearGlobalAveragePool", "QGemm", "Transpose", "DequantizeLinear"}
    if around:
        assert optimized(pieces.tiny(integer, without=True), tmp_path).count("QLinearConv") == 1
