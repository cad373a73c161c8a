"""A study whose latencies come from a table: nothing waits to be alone, and what was chosen is measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_compress.launch.job import Job
from lightning_compress.sweep import runs
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import Bench, run_study


@pytest.fixture
def priced(spec: StudySpec, tmp_path: Path) -> StudySpec:
    bench = {"device": "a CPU", "runtime": "fake 1.0", "threads": 1, "batch_size": 64, "rounds": 5}
    (tmp_path / "cpu.json").write_text(json.dumps({"schema": 1, **bench, "layers": [], "networks": []}))
    return replace(spec, base=[*spec.base, f"measure.table={tmp_path / 'cpu.json'}"])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether each timing asked for the machine to itself."""
    asked: dict[str, bool] = {}

    def timing(self: runs.Runs, name: str, record: str) -> Job:
        job = before(self, name, record)
        asked[name] = job.resources.exclusive
        return job

    before = runs.Runs.timing
    monkeypatch.setattr(runs.Runs, "timing", timing)
    return asked


def test_nothing_waits_and_the_front_is_measured(
    priced: StudySpec, bench: Bench, alone: dict[str, bool], tmp_path: Path
) -> None:
    found, _ = run_study(priced, bench, tmp_path / "study")
    assert set(alone.values()) == {False}
    assert {config["measure"]["table"] for _, config in bench.trained} == {str(tmp_path / "cpu.json")}
    shown = [*found.front, *found.baselines]
    assert bench.measured == [point.run for point in shown]
    assert [(one.latency_ms, one.latency_ratio, one.kernels) for point in shown for one in point.elsewhere] == [
        (3.5, 0.7, "float")
    ] * len(shown)
    page = (Path(priced.report) / "index.html").read_text()
    assert "latency is\npredicted from cpu.json: off by 4%; columns with a device's name were measured. Fresh" in page
    run_study(priced, bench, tmp_path / "study")
    assert bench.measured == [point.run for point in shown], "once is enough"


def test_a_table_of_another_device(priced: StudySpec, bench: Bench, tmp_path: Path) -> None:
    bench.here = False
    found, lines = run_study(priced, bench, tmp_path / "study")
    assert len(bench.measured) == 1
    assert not found.front[0].elsewhere
    assert any("the latency table is of another device" in line for line in lines)


def test_without_a_table_timings_are_alone(
    spec: StudySpec, bench: Bench, alone: dict[str, bool], tmp_path: Path
) -> None:
    run_study(spec, bench, tmp_path / "study")
    assert set(alone.values()) == {True}
    assert not bench.measured


def test_no_table_is_found_before_anything_is_trained(priced: StudySpec, bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "cpu.json").unlink()
    with pytest.raises(FileNotFoundError, match="no latency table at"):
        run_study(priced, bench, tmp_path / "study")
    assert not bench.trained
