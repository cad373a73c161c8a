"""A model with several heads: each is an output of its ONNX file, by its name, on every runtime."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_compress.core.compressor import read_stored
from lightning_compress.core.method import Compact
from lightning_compress.export import chooser, onnx, runtime, verify
from lightning_compress.models.shared_trunk import SharedTrunk


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> chooser.Deployable:
    torch.manual_seed(0)
    net = SharedTrunk(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), {"parity": nn.Linear(8, 2), "digit": nn.Linear(8, 10)})
    compact = Compact(net.eval().requires_grad_(False), read_stored(net))
    path = tmp_path_factory.mktemp("heads") / "model.onnx"
    return chooser.Deployable(onnx.export(compact, torch.zeros(1, 6), path), compact)


def test_outputs_go_by_the_names_of_the_heads(heads: chooser.Deployable) -> None:
    outputs = runtime.session(heads.onnx)(torch.zeros(3, 6).numpy())
    assert {name: array.shape for name, array in outputs.items()} == {"parity": (3, 2), "digit": (3, 10)}


@pytest.mark.parametrize(
    "name",
    ["onnxruntime/integer", "openvino/f32", "torch/eager", pytest.param("torch/compiled", marks=pytest.mark.slow)],
)
def test_every_runtime_computes_every_head(name: str, heads: chooser.Deployable) -> None:
    (one,) = chooser.named([name])
    if one.why_not() is not None:
        pytest.skip(str(one.why_not()))
    assert heads.compact is not None
    found = verify.compare(heads.compact.model, one.open(heads, 1), torch.randn(5, 6))
    assert max(found["max_error/parity"], found["max_error/digit"]) < 1e-5


def test_a_race_checks_a_file_alone(heads: chooser.Deployable, tmp_path: Path) -> None:
    batch = torch.randn(5, 6).numpy()
    found = chooser.race(
        {"file": chooser.Deployable(heads.onnx)}, chooser.here(["onnxruntime"]), batch, threads=1, rounds=1
    )
    assert found.gaps == {("file", "onnxruntime/integer"): pytest.approx(0.0, abs=1e-6)}
