"""Weights of at most 4 bits in blocks: two to a byte in the ONNX file, and kernels that compute with them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import openvino, runtime, verify
from lightning_compress.export.onnx import export


def grouped(*, block: int = 16, bits: int = 4, symmetric: bool = True, bias: bool = True, width: int = 128) -> Compact:
    """A linear layer with codes in blocks, and another in floats."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 48, bias=bias), nn.ReLU(), nn.Linear(48, 4)).eval().requires_grad_(False)
    stored = {name: Stored(value) for name, value in net.state_dict().items()}
    groups = torch.tensor([block] * (width // block) + ([width % block] if width % block else []))
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1)) if symmetric else (0, 2**bits)
    codes, scale = torch.randint(low, high, (48, width)), torch.rand(48, len(groups)) + 0.1
    zero = None if symmetric else torch.randint(low, high, (48, len(groups)))
    stored["0.weight"] = stored["0.weight"].coded(codes, scale, zero, bits=bits, symmetric=symmetric, groups=groups)
    net.load_state_dict({name: value.value for name, value in stored.items()})
    return Compact(net, stored)


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def kernels(path: Path, kernels: runtime.Kernels = "integer") -> Counter[str]:
    """Operators that run, with the options that `session` has."""
    options = runtime._options(1, kernels)
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=runtime._DISABLED)
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def types(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def error(compact: Compact, path: Path, inputs: Tensor, kernels: runtime.Kernels = "integer") -> float:
    return verify.compare(compact.model, runtime.session(path, kernels=kernels), inputs)["relative_error"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("block", "width"), [(16, 128), (128, 128), (32, 100)])
def test_onnx_runtime_multiplies_by_4_bit_weights(block: int, width: int, symmetric: bool, tmp_path: Path) -> None:
    compact, inputs = grouped(block=block, width=width, symmetric=symmetric), batch(6, width)
    path = export(compact, inputs, tmp_path / "model.onnx")
    kind = TensorProto.INT4 if symmetric else TensorProto.UINT4
    assert types(path)["coded.0/weight.codes"] == types(path)["coded.0/weight.zero"] == kind
    onnx.checker.check_model(onnx.load(path), full_check=True)
    found = kernels(path)
    assert found["MatMulNBits"] == 1
    assert found["DequantizeLinear"] == 0
    assert error(compact, path, inputs, "integer") < 1e-5
    assert error(compact, path, inputs, "float") < 1e-5


def test_weights_are_the_same_numbers_in_half_the_bytes(tmp_path: Path) -> None:
    compact = grouped(block=32)
    path = export(compact, batch(2, 128), tmp_path / "model.onnx")
    found = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    codes, scale = found["coded.0/weight.codes"], found["coded.0/weight.scale"]
    assert len(codes.raw_data) == 128 * 48 // 2
    wide = onnx.numpy_helper.to_array(scale).repeat(32, 0)
    weight = onnx.numpy_helper.to_array(codes).astype(np.float32) * wide
    assert np.array_equal(weight.T, compact.stored["0.weight"].value.numpy())


def test_sequences_are_multiplied_too(tmp_path: Path) -> None:
    compact = grouped()
    path = export(compact, batch(3, 5, 128), tmp_path / "model.onnx")
    assert kernels(path)["MatMulNBits"] == 1
    assert error(compact, path, batch(3, 5, 128)) < 1e-5


def test_layers_of_one_shape_keep_weights_of_their_own(tmp_path: Path) -> None:
    """Equal scales and zero points are one tensor in what the exporter makes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval().requires_grad_(False)
    stored = {name: Stored(value) for name, value in net.state_dict().items()}
    scale = torch.rand(32, 2)
    for name in ("0.weight", "2.weight"):
        codes = torch.randint(-7, 8, (32, 32))
        stored[name] = stored[name].coded(codes, scale, bits=4, groups=torch.tensor([16, 16]))
    net.load_state_dict({name: value.value for name, value in stored.items()})
    path = export(Compact(net, stored), batch(2, 32), tmp_path / "model.onnx")
    assert kernels(path)["MatMulNBits"] == 2
    assert error(Compact(net, stored), path, batch(7, 32)) < 1e-5


@pytest.mark.parametrize("change", [{"block": 8}, {"block": 24}, {"bits": 8}, {"bits": 8, "symmetric": False}])
def test_what_has_no_kernel_takes_bytes(change: dict[str, Any], tmp_path: Path) -> None:
    compact, inputs = grouped(**change), batch(6, 128)
    path = export(compact, inputs, tmp_path / "model.onnx")
    assert types(path)["coded.0/weight.codes"] in (TensorProto.INT8, TensorProto.UINT8)
    assert kernels(path)["MatMulNBits"] == 0
    assert error(compact, path, inputs) < 1e-5


def test_under_rounded_inputs_codes_take_bytes(tmp_path: Path) -> None:
    compact, inputs = grouped(), batch(6, 128)
    fixed = FixedQuantizer(torch.tensor(0.03), torch.tensor(128), 0, 255)
    surgery.put_on_input(compact.model.get_submodule("0"), fixed)
    path = export(compact, inputs, tmp_path / "model.onnx")
    assert types(path)["coded.0/weight.codes"] == TensorProto.INT8
    assert error(compact, path, inputs) < 1e-4


class Product(nn.Module):
    """Weights in a product that is no linear layer's."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32, 32))
        self.turned = turned

    def forward(self, inputs: Tensor) -> Tensor:
        if self.turned:
            return 2.0 * inputs + torch.addmm(inputs, inputs, self.weight.T, alpha=3.0)
        return inputs @ self.weight


@pytest.mark.parametrize("turned", [True, False])
def test_other_products_are_left_alone(turned: bool, tmp_path: Path) -> None:
    net = Product(turned=turned).eval().requires_grad_(False)
    stored = Stored(net.weight).coded(
        torch.randint(-7, 8, (32, 32)), torch.rand(32, 2), bits=4, groups=torch.tensor([16, 16])
    )
    net.weight.copy_(stored.value)
    path = export(Compact(net, {"weight": stored}), batch(2, 32), tmp_path / "model.onnx")
    assert types(path)["coded.weight.codes"] == TensorProto.INT8
    assert error(Compact(net, {}), path, batch(6, 32)) < 1e-5


def test_convolutions_in_blocks_take_bytes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(32, 4, 1)).eval().requires_grad_(False)
    stored = {name: Stored(value) for name, value in net.state_dict().items()}
    codes, groups = torch.randint(-7, 8, (4, 32, 1, 1)), torch.tensor([16, 16])
    stored["0.weight"] = stored["0.weight"].coded(codes, torch.rand(4, 2), bits=4, groups=groups)
    net.load_state_dict({name: value.value for name, value in stored.items()})
    path = export(Compact(net, stored), batch(2, 32, 3, 3), tmp_path / "model.onnx")
    assert types(path)["coded.0/weight.codes"] == TensorProto.INT8
    assert error(Compact(net, stored), path, batch(2, 32, 3, 3)) < 1e-5


@pytest.mark.parametrize(
    ("behind", "bias"), [(nn.ReLU(), True), (nn.ReLU6(), True), (nn.GELU(), False), (nn.ReLU(), False)]
)
def test_activations_behind_it(behind: nn.Module, bias: bool, tmp_path: Path) -> None:
    compact = grouped(bias=bias)
    compact.model[1] = behind  # type: ignore[operator]
    path = export(compact, batch(2, 128), tmp_path / "model.onnx")
    assert kernels(path)["MatMulNBits"] == (bias or isinstance(behind, nn.GELU))
    assert types(path)["coded.0/weight.codes"] == (
        TensorProto.INT4 if kernels(path)["MatMulNBits"] else TensorProto.INT8
    )
    assert error(compact, path, batch(6, 128)) < 1e-5


@pytest.mark.parametrize("symmetric", [True, False])
def test_openvino_multiplies_by_4_bit_weights(symmetric: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    compact, inputs = grouped(block=32, symmetric=symmetric), batch(6, 128)
    path = export(compact, inputs, tmp_path / "model.onnx")
    got = torch.from_numpy(openvino.session(path)(inputs.numpy()))
    torch.testing.assert_close(got, compact.model(inputs), rtol=1e-3, atol=1e-2)
    layers = openvino.executed(path, (6, 128))
    assert ("i4" if symmetric else "u4") in [layer.precision for layer in layers if "Fully" in layer.kind]
