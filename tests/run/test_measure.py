from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.compressor import read_stored
from lightning_compress.core.method import Compact
from lightning_compress.core.task import classification
from lightning_compress.export import chooser, files, latency, packed, runtime, verify
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.run import measure
from lightning_compress.run.result import Result


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return SmallConv(width=0.25).eval().requires_grad_(False)


@pytest.fixture
def compact(net: nn.Module) -> Compact:
    return Compact(surgery.plain(net), read_stored(net))


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_evaluate_against_numpy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    targets = torch.tensor([0, 0, 1])
    batches = [(logits[:2], targets[:2]), (logits[2:], targets[2:], "more", "things")]
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    found = measure.evaluate(model, batches, classification(2), "val")
    exponentials = np.exp(logits.numpy())
    shares = exponentials / exponentials.sum(1, keepdims=True)
    assert found["val/loss"] == pytest.approx(-np.log(shares[np.arange(3), targets.numpy()]).mean(), rel=1e-6)
    assert found["val/accuracy"] == pytest.approx(1 / 3)
    assert model.training, "it is left as it was"


def test_evaluate_without_a_batch() -> None:
    with pytest.raises(ValueError, match="the test split yields no batch"):
        measure.evaluate(nn.Identity(), [], classification(2), "test")


def test_the_packed_file_gives_back_the_outputs(
    net: nn.Module, compact: Compact, inputs: Tensor, tmp_path: Path
) -> None:
    files.write_packed(compact, net, inputs, tmp_path / "m.lcz", {"_target_": "x"})
    found = packed.read(tmp_path / "m.lcz")
    assert found.architecture == {"model": {"_target_": "x"}, "input_shape": [1, 8, 8]}
    assert torch.equal(packed.rebuild(found, net)(inputs), net(inputs))


def test_a_packed_file_that_does_not_is_refused(
    net: nn.Module, compact: Compact, inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(found: packed.Packed, base: nn.Module) -> nn.Module:
        other = surgery.plain(base).eval()
        with torch.no_grad():
            next(iter(other.parameters())).add_(1e-3)
        return other

    monkeypatch.setattr(packed, "rebuild", spoilt)
    with pytest.raises(ValueError, match="does not give back the model's outputs bit for bit"):
        files.write_packed(compact, net, inputs, tmp_path / "m.lcz", None)


def test_bit_operations_count_what_is_multiplied(net: nn.Module, compact: Compact, tmp_path: Path) -> None:
    example = torch.zeros(1, 1, 8, 8)

    def bops(levels: Tensor) -> int:
        coded = {
            name: stored.chosen(torch.zeros_like(stored.value), levels) if name.endswith("weight") else stored
            for name, stored in compact.stored.items()
        }
        model = surgery.plain(net)
        model.load_state_dict({name: stored.value for name, stored in coded.items()})
        written = files.write_packed(Compact(model.eval(), coded), net, example, tmp_path / "m.lcz", None)
        return int(measure.costs(Compact(model, coded), net, example, written)[0]["bops"])

    macs = measure.count(compact, net, example, None)["macs"]
    assert bops(torch.tensor([0.5, -0.1234, 0.77])) == macs * 32 * 32
    assert bops(torch.tensor([0.5, -0.5, 0.0])) == macs * 2 * 32


def test_an_onnx_file_that_computes_something_else_is_refused(
    net: nn.Module, compact: Compact, inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = files.write_onnx(compact, inputs, tmp_path / "m.onnx")
    assert checks["integer/agreement"] == checks["float/agreement"] == 1.0
    assert checks["float/max_error"] < 1e-4
    monkeypatch.setattr(runtime, "session", lambda path, **_: lambda batch: 2 * net(torch.from_numpy(batch)).numpy())
    with pytest.raises(verify.ExportMismatchError, match="off by"):
        files.write_onnx(compact, inputs, tmp_path / "m.onnx")


def test_counts(net: nn.Module, compact: Compact, inputs: Tensor, tmp_path: Path) -> None:
    weight = compact.stored["conv2.weight"]
    mask = torch.zeros_like(weight.value, dtype=torch.bool)
    mask[:, ::2] = True
    masked = replace(weight, value=weight.value * mask, mask=mask)
    compact.model.load_state_dict({"conv2.weight": masked.value}, strict=False)
    compact = Compact(compact.model, {**compact.stored, "conv2.weight": masked})
    written = files.write_packed(compact, net, inputs, tmp_path / "m.lcz", None)
    found, rows = measure.costs(compact, net, inputs[:1], written)
    params = sum(p.numel() for p in net.parameters())
    zeros = sum(int((p == 0).sum()) for p in compact.model.parameters())
    assert found["params"] == params
    assert found["nonzeros"] == params - zeros
    assert found["sparsity"] == pytest.approx(zeros / params)
    assert found["dense_bytes"] == 4 * params
    assert found["packed_bytes"] == len((tmp_path / "m.lcz").read_bytes())
    assert found["relative_bops"] == 1.0
    assert found["bops"] == 1024 * found["macs"]
    by_name = {row.name: row for row in rows}
    assert by_name["conv2"].sparsity == pytest.approx(1 - mask.float().mean().item(), abs=0.01)
    assert sum(row.macs for row in rows) == found["macs"]


def test_latency_is_taken_side_by_side(net: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    file = measure.export_dense(net, inputs[:2], tmp_path / "dense.onnx")
    # Of 15 us each: few of them say nothing on a busy machine.
    timing = measure.Timing(None, batch_size=3, threads=1, rounds=100)
    found = measure.side_by_side({"dense": file, "again": file}, inputs, timing)
    assert found.fastest("dense").ratio == 1.0
    assert 0.2 < found.fastest("again").ratio < 5.0
    assert found.fastest("again").batch_size == 3
    assert list(found.latencies) == [("dense", "onnxruntime/integer"), ("again", "onnxruntime/integer")]


def test_dense_and_model_count_with_their_fastest_runtimes(
    net: nn.Module, inputs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_one: Any, model: chooser.Deployable, *_: Any) -> tuple[Any, float]:
        if (model.onnx.name, _one.name) == ("dense.onnx", "openvino/f32"):
            raise ValueError("not this one")
        return (model.onnx.name, _one.name), 0.0

    seconds = {
        ("dense.onnx", "onnxruntime/integer"): [4.0, 4.0],
        ("model.onnx", "onnxruntime/integer"): [3.0, 3.0],
        ("model.onnx", "openvino/f32"): [1.0, 2.0],
    }
    monkeypatch.setattr(chooser, "_checked", run)
    monkeypatch.setattr(chooser.Deployable, "expected", lambda *_: None)
    monkeypatch.setattr(chooser.Deployable, "tolerance", lambda *_: 0.0)
    monkeypatch.setattr(latency, "sample", lambda calls, rounds: {key: seconds[call] for key, call in calls.items()})
    files = {name: measure.export_dense(net, inputs[:2], tmp_path / f"{name}.onnx") for name in ("dense", "model")}
    timing = measure.Timing(batch_size=2, runtimes=["onnxruntime", "openvino/f32"])
    cost = measure.time_beside(files["dense"], files["model"], inputs, timing)
    assert cost["latency_ratio"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert cost["latency_ms"] == pytest.approx(1500)
    assert cost["dense_latency_ms"] == pytest.approx(4000)
    assert cost["runtime"].startswith("openvino 20")
    assert cost["dense_runtime"] == runtime.name
    assert cost["runtimes_left_out"] == "openvino/f32 (dense): not this one"


def test_measure_writes_and_names_its_files(net: nn.Module, compact: Compact, inputs: Tensor, tmp_path: Path) -> None:
    timing = measure.Timing(batch_size=2, rounds=25)
    files, checks, cost, layers = measure.measure(
        compact, lambda: net, inputs, tmp_path, architecture=None, timing=timing
    )
    assert files == {
        "packed": "model.lcz",
        "weights": "weights.pt",
        "edits": "edits.json",
        "onnx": "model.onnx",
    }
    assert all((tmp_path / name).is_file() for name in files.values())
    assert checks["integer/agreement"] == checks["float/agreement"] == 1.0
    assert cost["latency_rounds"] == 25
    assert cost["latency_ratio"] == pytest.approx(cost["latency_ms"] / cost["dense_latency_ms"], rel=0.5)
    assert cost["runtime"].startswith("onnxruntime")
    assert [row["name"] for row in layers if row["macs"]]
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(saved["conv1.weight"], net.state_dict()["conv1.weight"])


def test_what_a_run_says_is_in_its_files(joint: tuple[Path, Result]) -> None:
    folder, result = joint
    found = packed.read(folder / "model.lcz")
    weights = {
        name: tensor for name, tensor in found.tensors.items() if name.endswith("weight") and tensor.codes is not None
    }
    assert weights
    total: dict[str, Any] = {row["name"]: row for row in result.layers}
    for name, tensor in weights.items():
        row = total[name.removesuffix(".weight")]
        assert row["weight_bits"] == tensor.bits == 8
        assert row["sparsity"] == pytest.approx((tensor.value == 0).float().mean().item(), abs=0.02)
    assert result.cost["packed_bytes"] == (folder / "model.lcz").stat().st_size
