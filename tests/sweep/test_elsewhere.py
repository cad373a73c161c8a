import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.sweep import elsewhere, record, report
from lightning_compress.sweep.record import StudyRecord
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import Bench, run_study

DEVICE = "Board <b>2</b>"


@pytest.fixture
def found(spec: StudySpec, bench: Bench, tmp_path: Path) -> StudyRecord:
    found, _ = run_study(spec, bench, tmp_path / "study")
    for path in (tmp_path / "study/runs").glob("*/model.onnx"):
        path.write_bytes(path.parent.name.encode())
    return found


def _file(folder: Path, run: str, **changes: Any) -> Path:
    """As measure.py writes it; toy models hold their run's name."""
    data = {
        "schema": 1,
        "device": DEVICE,
        "runtime": "onnxruntime 1.0",
        "kernels": "integer",
        "threads": 2,
        "batch_size": 1,
        "latency_rounds": 50,
        "latency_ms": 3.0,
        "latency_p10_ms": 2.5,
        "latency_p90_ms": 4.0,
        "latency_ratio": 0.25,
        "dense_latency_ms": 12.0,
        "model_sha256": hashlib.sha256(run.encode()).hexdigest(),
        "dense_sha256": hashlib.sha256(b"baseline-1").hexdigest(),
    }
    path = folder / "latency-board.json"
    path.write_text(json.dumps(data | changes))
    return path


def test_it_becomes_a_column_of_table_and_page(found: StudyRecord, spec: StudySpec, tmp_path: Path) -> None:
    point, study = found.front[0], tmp_path / "study"
    (one,) = elsewhere.bring(study, spec, [_file(tmp_path, point.run)])
    assert (one.run, one.label) == (point.run, f"{DEVICE}, 2 threads, batch 1")
    elsewhere.bring(study, spec, [_file(tmp_path, point.run, latency_ms=3.5)])
    elsewhere.bring(study, spec, [_file(tmp_path, "baseline-1", latency_ratio=1.0)])
    again = record.collect(study)
    assert [p.run for p in (*again.front, *again.baselines) if p.elsewhere] == [point.run, "baseline-1"]
    (kept,) = again.front[0].elsewhere
    assert kept.latency_ms == 3.5, "measured again, it takes the place of what was there"
    report.write(again, study, tmp_path / "report")
    with (tmp_path / "report/front.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows[point.name][f"latency_ms on {one.label}"]) == 3.5
    assert float(rows[point.name][f"faster on {one.label}"]) == 4.0
    assert float(rows["full"][f"faster on {one.label}"]) == 1.0
    assert rows["half"][f"faster on {one.label}"] == ""
    text = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "<br>Board &lt;b&gt;2&lt;/b&gt;, 2 threads, batch 1</th>" in text
    assert "<td>3.5\n(4.00)</td>" in text


def test_what_was_measured_of_a_model_that_is_gone_is_not_shown(
    found: StudyRecord, spec: StudySpec, tmp_path: Path
) -> None:
    run, study = found.front[0].run, tmp_path / "study"
    elsewhere.bring(study, spec, [_file(tmp_path, run)])
    assert elsewhere.of_run(study, run)
    (study / "runs" / run / "model.onnx").write_bytes(b"trained again")
    assert elsewhere.of_run(study, run) == ()


def test_other_models_are_refused(found: StudyRecord, spec: StudySpec, tmp_path: Path) -> None:
    good = _file(tmp_path, "baseline-0").rename(tmp_path / "good.json")
    other = _file(tmp_path, "another model")
    with pytest.raises(ValueError, match="is not one of the study in"):
        elsewhere.bring(tmp_path / "study", spec, [good, other])
    beside = _file(tmp_path, "trial-0", dense_sha256="0" * 64)
    with pytest.raises(ValueError, match="ratios to another network cannot be compared"):
        elsewhere.bring(tmp_path / "study", spec, [beside])
    assert not (tmp_path / "study/latency").exists()


@pytest.mark.parametrize(
    "changes",
    [{"schema": 2}, {"latency_ms": "fast"}, {"latency_ratio": -1.0}, {"threads": 1.5}, {"device": 3}, {"extra": 1}],
    ids=str,
)
def test_damaged_files_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"latency-board\.json is no file that measure\.py wrote, or is damaged"):
        elsewhere.read(_file(tmp_path, "trial-0", **changes))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "latency_ms": NaN}', "\x00"])
def test_what_is_no_such_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no file that measure\.py wrote"):
        elsewhere.read(tmp_path / "x.json")
