"""Runs whose latency is the sum of a table made by hand, and what stops them before they train."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.core.compressor import read_stored
from lightning_compress.core.method import Compact
from lightning_compress.export import onnx, pieces, runtime
from lightning_compress.export.layers import Layer
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.run import worker
from lightning_compress.run.result import Result
from lightning_compress.run.train import train

Configured = Callable[..., dict[str, Any]]
COUNTS = [1, 4, 1024, 1025]


def price(layer: Layer) -> float:
    return layer.ins + layer.outs / 100 if layer.before == "float" else (layer.ins + layer.outs / 100) / 4


def written(layers: tuple[Layer, ...], file: Path, **changes: Any) -> Path:
    """A table of these kinds of layers, linear in their channels; integers are four times as fast."""
    found = {}
    for layer in layers:
        for before, after in (("float", "float"), ("uint8", "uint8"), ("uint8", "float")):
            one = Layer(**{**vars(layer), "before": before, "after": after})
            ms = [[price(one.at(ins, outs)) for outs in COUNTS] for ins in COUNTS]
            found[one.family] = {"layer": asdict(one), "ins": COUNTS, "outs": COUNTS, "ms": {"integer": ms}}
    bench = {"device": "another CPU", "runtime": "onnxruntime 1.31", "threads": 1, "batch_size": 64, "rounds": 5}
    data = {"schema": 1, **bench, "layers": list(found.values()), "networks": [], **changes}
    file.write_text(json.dumps(data))
    return file


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layer, ...]:
    net = SmallConv(width=0.25).eval()
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    return pieces.read(onnx.export(Compact(net, read_stored(net)), torch.zeros(2, 1, 8, 8), path)).layers


def test_a_run_takes_the_sum_of_its_layers(configure: Configured, layers: tuple[Layer, ...], tmp_path: Path) -> None:
    table = written(layers, tmp_path / "cpu.json")
    config = configure("epochs=1", "prune=gradual", "methods.prune.pattern=channel", "quantize=affine",
                       "measure.latency=true", f"measure.table={table}")  # fmt: skip
    cost = train(config, tmp_path / "run").cost
    ours, dense = (pieces.read(tmp_path / "run" / name).layers for name in ("model.onnx", "dense.onnx"))
    assert len(ours) == len(dense) == len(layers)
    assert ours != dense
    assert cost["latency_ms"] == pytest.approx(sum(map(price, ours)))
    assert cost["latency_ratio"] == pytest.approx(sum(map(price, ours)) / sum(map(price, dense)))
    assert cost["dense_latency_ms"] == pytest.approx(sum(map(price, dense)))
    assert (cost["device"], cost["batch_size"]) == ("another CPU", 64)
    assert cost["latency_source"] == "predicted from cpu.json: of unknown error"
    assert worker.timing_priced(str(tmp_path / "run")) is None, "the table is of another device"


def test_a_trial_is_priced_later_and_measured_here(
    configure: Configured, layers: tuple[Layer, ...], tmp_path: Path
) -> None:
    table = written(layers, tmp_path / "cpu.json", device=runtime.device_name())
    config = configure("epochs=1", "measure.onnx=true", "measure.rounds=2", f"measure.table={table}")
    place = tmp_path / "run"
    assert "latency_ms" not in train(config, place).cost
    found = worker.timing(str(place), str(place / "dense.onnx"))
    assert found["latency_ratio"] == 1
    cost = Result.load(place).cost
    assert cost["latency_ms"] == pytest.approx(sum(map(price, pieces.read(place / "model.onnx").layers)))
    measured = worker.timing_priced(str(place))
    assert measured is not None
    assert measured["latency_rounds"] == 2
    assert 0 < measured["latency_ms"] != cost["latency_ms"]
    assert len(measured["model_sha256"]) == 64
    assert Result.load(place).cost == cost


def test_channels_go_until_the_latency_is_met(configure: Configured, layers: tuple[Layer, ...], tmp_path: Path) -> None:
    table = written(layers, tmp_path / "cpu.json")
    config = configure("epochs=1", "prune=channel", "methods.prune.sparsity=null", "methods.prune.latency=0.6",
                       "measure.latency=true", f"measure.table={table}")  # fmt: skip
    assert 0.5 < train(config, tmp_path / "run").cost["latency_ratio"] <= 0.6


@pytest.mark.parametrize(
    ("changes", "kept", "said"),
    [
        ({}, slice(1, None), "does not price layer 'conv1'"),
        ({"batch_size": 1}, slice(None), "set measure.batch_size=1 measure.threads=1"),
        ({"schema": 2}, slice(None), "no latency table of schema 1"),
    ],
)
def test_what_is_said_before_training(
    changes: dict[str, Any], kept: slice, said: str, configure: Configured, layers: tuple[Layer, ...], tmp_path: Path
) -> None:
    table = written(layers[kept], tmp_path / "cpu.json", **changes)
    with pytest.raises(ValueError, match=r"lightning-compress latency-table|set measure") as error:
        train(configure("epochs=1", "measure.onnx=true", f"measure.table={table}"), tmp_path / "run")
    assert said in str(error.value)
    assert not list((tmp_path / "run").glob("phase*"))
