"""Which kernels ONNX Runtime takes, read from the graph that it makes of a file."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact
from lightning_compress.export import packed, runtime, verify
from lightning_compress.export.onnx import export
from lightning_compress.models.resnet_cifar import ResNetCIFAR, Shortcut
from lightning_compress.quantize.method import Quantize

FLOAT = ("Conv", "FusedConv", "Add", "Gemm", "FusedGemm", "MatMul", "ReduceMean", "GlobalAveragePool", "Relu")


def batch() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def resnet(shortcut: Shortcut, *, outputs: bool) -> Compact:
    """ResNet-20 with running statistics that fit its inputs, calibrated at 8 bits."""
    torch.manual_seed(0)
    net: nn.Module = ResNetCIFAR(20, shortcut=shortcut)
    with torch.no_grad():
        for _ in range(30):
            net.train()(batch())
    compressor = Compressor([Quantize(8, 8, outputs=outputs)])
    net = compressor.attach(net, batch()[:1])
    compressor.prepare(net, [(batch(), None)])
    return compressor.finalize(net, batch()[:1])


def kernels(path: Path) -> Counter[str]:
    """Operators that run, with the optimizations that `session` has."""
    options = runtime._options(1, "integer")
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=runtime._DISABLED)
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize(("shortcut", "convolutions"), [("A", 19), ("B", 21)])
def test_resnet_20_runs_on_integers(shortcut: Shortcut, convolutions: int, tmp_path: Path) -> None:
    compact = resnet(shortcut, outputs=True)
    path = export(compact, batch()[:2], tmp_path / "model.onnx")
    found = kernels(path)
    assert found["QLinearConv"] == convolutions
    assert found["QLinearAdd"] == 9
    assert found["QLinearGlobalAveragePool"] == 1
    assert found["QGemm"] == 1
    assert not {name: found[name] for name in FLOAT if found[name]}
    distance = verify.compare(compact.model, runtime.session(path), batch())
    assert distance["relative_error"] < 0.05
    assert distance["agreement"] > 0.8
    packed.write(compact, tmp_path / "model.lcz")
    again = packed.rebuild(packed.read(tmp_path / "model.lcz"), ResNetCIFAR(20, shortcut=shortcut))
    assert torch.equal(again(batch()), compact.model(batch()))


def test_without_outputs_the_residual_half_is_float(tmp_path: Path) -> None:
    found = kernels(export(resnet("A", outputs=False), batch()[:2], tmp_path / "model.onnx"))
    assert found["QLinearConv"] == 9
    assert found["FusedConv"] + found["Conv"] == 10
    assert found["QLinearAdd"] == 0


def test_float_weights_stay_float_between_rounded_activations(tmp_path: Path) -> None:
    """ONNX Runtime would round them to 8 bits, with one step for all."""
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.randn(64, 32)
    compressor = Compressor([Quantize(None, 8)])
    net = compressor.attach(net, inputs[:1])
    compressor.prepare(net, [(inputs, None)])
    compact = compressor.finalize(net, inputs[:1])
    path = export(compact, inputs[:2], tmp_path / "model.onnx")
    assert verify.compare(compact.model, runtime.session(path), inputs)["max_error"] < 1e-5
    assert kernels(path)["QGemm"] == 0
