"""A small study over the stand-in for training in `toy.py`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import Bench

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
