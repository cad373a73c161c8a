"""A stand-in for training: results from a formula, files of the right names, at no cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.run.result import Result
from lightning_compress.sweep.runs import Tools
from lightning_compress.sweep.spec import StudySpec

DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "model": {"width": 1.0},
    "bits": 32,
    "sparsity": 0.0,
    "kind": "plain",
    "share": 0.5,
    "teacher": {"model": None, "weights": None},
    "measure": {"reference": None, "latency": True},
    "wandb": {
        "mode": "disabled",
        "project": "p",
        "group": None,
        "job_type": "train",
        "name": "run",
        "id": None,
        "tags": [],
    },
}


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra in small: dotted keys that must exist, values as Hydra's parser reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config: dict[str, Any] = {**DEFAULTS, **{k: dict(v) for k, v in DEFAULTS.items() if isinstance(v, dict)}}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        *parents, leaf = override.key_or_group.split(".")
        node = config
        for parent in parents:
            node = node.get(parent, {})
        if leaf not in node and not override.is_force_add():
            raise ValueError(f"no key {override.key_or_group!r}")
        node[leaf] = override.value()
    return config


@dataclass
class Bench:
    """Fake training that keeps what it was asked; `broken(config)` may raise or return numbers to put in."""

    broken: Callable[[dict[str, Any]], Mapping[str, float]] = lambda config: {}
    trained: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)

    def train(self, config: dict[str, Any], folder: Path) -> Result:
        self.trained.append((folder.name, config))
        changes = self.broken(config)
        result = result_of(config, folder.name)
        result.metrics |= changes
        for name in ("model.lcz", "model.onnx", "weights.pt"):
            (folder / name).write_bytes(b"x" * 100)
        result.save(folder)
        return result

    def test(self, folder: Path) -> dict[str, float]:
        self.tested.append(folder.name)
        return {"test/accuracy": Result.load(folder).get("val/accuracy") - 0.01}

    @property
    def tools(self) -> Tools:
        return Tools(compose, self.train, self.test)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.trained]


def result_of(config: dict[str, Any], name: str) -> Result:
    """Wider and more bits: better, larger, slower."""
    size = config["model"]["width"] * config["bits"] / 32 * (1 - config["sparsity"])
    return Result(
        name=name,
        metrics={"val/accuracy": 1 - 0.1 * math.exp(-4 * size) - 0.001 * (config["seed"] % 7)},
        cost={
            "params": 1000,
            "nonzeros": int(1000 * (1 - config["sparsity"])),
            "sparsity": config["sparsity"],
            "relative_bops": size,
            "packed_bytes": int(100_000 * size) + 200,
            "dense_bytes": 100_200,
            "latency_ms": 2 * config["model"]["width"],
            "latency_ratio": config["model"]["width"],
            "device": "a CPU",
            "runtime": "fake 1.0",
            "threads": 1,
            "batch_size": 64,
        },
        layers=[
            {
                "name": "conv",
                "kind": "Conv2d",
                "shape": [4, 1, 3, 3],
                "weight_bits": config["bits"],
                "activation_bits": 8,
                "sparsity": config["sparsity"],
                "macs": 10,
                "bytes": 36,
            }
        ],
        config=config,
        seed=config["seed"],
        provenance={"commit": "abc123", "dirty": True},
        wall_seconds=1.5,
        files={"packed": "model.lcz", "onnx": "model.onnx"},
    )


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench() -> MakeBench:
    return Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return StudySpec(
        name="tiny",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
        space={
            "bits": {"low": 2, "high": 8, "int": True},
            "sparsity": {"low": 0.1, "high": 0.9},
            "kind": ["plain", "fancy"],
        },
        trials=8,
        base=["kind=plain"],
        dense=["bits=32"],
        teacher=["model.width=2"],
        baselines={"half": ["model.width=0.5"], "full": ["model.width=1.0"]},
        reference="full",
        enqueue=[{"bits": 8, "sparsity": 0.5}],
        confirm_seeds=[101, 102],
        test=True,
        report=str(tmp_path / "report"),
    )
