"""A small table, and records for it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_compress.run.result import Result
from lightning_compress.tables import records
from lightning_compress.tables.schema import Spec, load

CELL = {"value": 2.0, "source": "table 1", "confidence": "V-paper"}
TABLE: dict[str, Any] = {
    "title": "Digits",
    "paper": {"authors": "A", "title": "T", "venue": "V 2000", "url": "https://example.org", "tables": "table 1"},
    "about": "Small networks on *digits*.",
    "departures": ["Fewer digits."],
    "columns": {
        "error": {"title": "error, %", "metric": "test/accuracy", "scale": -100, "offset": 100, "better": "lower"},
        "smaller": {"title": "times smaller", "metric": "cost/dense_bytes / cost/packed_bytes", "decimals": 1},
    },
    "rows": {
        "dense": {"title": "dense", "experiment": "hinton2015/hard", "seeds": [0, 1, 2], "published": {"error": CELL}},
        "pruned": {
            "title": "pruned & shared_50%",
            "section": "small",
            "experiment": "hinton2015/hard",
            "overrides": ["epochs=3"],
            "seeds": [0, 1, 2],
            "baseline": "dense",
            "published": {"error": {**CELL, "value": 2.5, "sd": 0.1, "n": 5}, "smaller": {**CELL, "value": 10}},
        },
        "same": {"title": "the same runs", "runs_of": "pruned", "published": {"smaller": {**CELL, "value": 9}}},
        "cited": {"title": "cited", "published": {"error": {**CELL, "value": 1.5, "confidence": "M"}}},
    },
    "claims": [{"column": "error", "better": "dense", "worse": "pruned", "least": 0.1, "source": "section 4"}],
}
Change = Callable[[dict[str, Any]], object]
Make = Callable[..., Spec]
Keep = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes the table, changed as asked, and loads it."""

    def made(change: Change = lambda table: None) -> Spec:
        table = copy.deepcopy(TABLE)
        change(table)
        path = tmp_path / "digits.yaml"
        path.write_text(yaml.safe_dump(table, sort_keys=False))
        return load(path)

    return made


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Writes the record of a run with so much test error in percent."""

    def kept(row: str, seed: int, error: float, **changes: Any) -> Path:
        config = {"epochs": 3, "data": {"root": "/home/someone", "source": "mnist"}, "wandb": {"folder": "/scratch/x"}}
        result = Result(
            "hinton2015/hard",
            metrics={"test/accuracy": 1 - error / 100},
            cost={"dense_bytes": 1000, "packed_bytes": 100, "device": "a CPU"},
            config=config,
            seed=seed,
            provenance={"commit": "0123456789abcdef", "dirty": False, "device": "a CPU", "time": "2026"},
            wall_seconds=360.0,
        )
        for name, value in changes.items():
            setattr(result, name, value)
        return records.write(tmp_path / "records", "digits", row, result)

    return kept


def edited(path: Path, change: Change) -> None:
    """Change a record in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
