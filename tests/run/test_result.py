import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from lightning_compress.core.files import write_json
from lightning_compress.run.result import SCHEMA, Result


def _result() -> Result:
    return Result(
        name="a",
        metrics={"val/accuracy": 0.9, "val/loss": 0.3},
        cost={"params": 10, "packed_bytes": 123, "device": "a CPU", "latency_ms": 0.5},
        layers=[{"name": "conv", "shape": [1, 2]}],
        history=[{"epoch": 0.0, "train/loss": 1.0}],
        files={"packed": "model.lcz"},
    )


def test_round_trip(tmp_path: Path) -> None:
    path = _result().save(tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep/folder/result.json"
    assert Result.load(path.parent) == _result()
    assert json.loads(path.read_text())["schema"] == SCHEMA


def test_numbers_by_name() -> None:
    result = _result()
    assert result.get("val/accuracy") == 0.9
    assert result.get("cost/packed_bytes") == 123.0
    with pytest.raises(KeyError, match="no 'val/acc' in the result of 'a'; it has cost/latency_ms, cost/packed_bytes"):
        result.get("val/acc")
    with pytest.raises(KeyError):
        result.get("cost/device")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    _result().save(tmp_path)
    bad = _result()
    bad.metrics["val/loss"] = math.nan
    bad.cost["latency_ms"] = math.inf
    with pytest.raises(ValueError, match=r"'a' is not finite \(val/loss=nan, cost/latency_ms=inf\)"):
        bad.save(tmp_path)
    assert Result.load(tmp_path) == _result()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", json.dumps({"schema": SCHEMA}), json.dumps({**asdict(_result()), "color": 1})],
)
def test_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json .*: remove that file and train again"):
        Result.load(tmp_path)


def test_another_schema_version(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {**asdict(_result()), "schema": SCHEMA + 1})
    with pytest.raises(ValueError, match=f"has schema {SCHEMA + 1}, this version reads {SCHEMA}"):
        Result.load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: there is no result\.json in it"):
        Result.load(tmp_path)


def test_another_name(tmp_path: Path) -> None:
    result = Result(name="a", status="paused")
    assert result.save(tmp_path, "rung-3.json") == tmp_path / "rung-3.json"
    assert Result.load(tmp_path, "rung-3.json") == result
    with pytest.raises(ValueError, match=r"there is no result\.json in it"):
        Result.load(tmp_path)
