import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lightning_compress.compare.subject import Run, Study, read
from lightning_compress.run.result import Result
from lightning_compress.sweep import publish
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import DEFAULTS, Bench, result_of, run_study

RECORD = ("row", "seed", "status", "name", "metrics", "cost", "config", "provenance", "wall_seconds", "error")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    result_of(DEFAULTS, "first").save(tmp_path / "a")
    return tmp_path / "a"


def record_of(result: Result, path: Path) -> Path:
    """A record as a table keeps it: of a row, without curves, layers and files."""
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({key: value for key, value in {**asdict(result), "row": "r"}.items() if key in RECORD}))
    return path


def test_runs_records_and_studies_are_read(run: Path, tmp_path: Path) -> None:
    record = record_of(result_of(DEFAULTS, "second"), tmp_path / "records/paper/r/seed0.json")
    spec = StudySpec(
        name="tiny",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
        space={"bits": [2, 4]},
        trials=1,
        base=[],
    )
    run_study(spec, Bench(), tmp_path / "study")
    first, second, study = read([run, record, tmp_path / "study"])
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert isinstance(study, Study)
    assert (first.label, second.label, study.label) == ("a", "r/seed0", "study")
    assert second.result == replace(result_of(DEFAULTS, "second"), layers=[], files={}, history=[])
    assert len(study.record.front) == 1
    assert (first.link, study.link) == (None, None)
    (tmp_path / "study" / publish.MARK).write_text('{"url": "https://wandb.ai/me/p/runs/tiny-study"}')
    again = read([run, tmp_path / "study"])[1]
    assert again.link == "https://wandb.ai/me/p/runs/tiny-study"


def test_a_file_may_not_say_what_a_link_does(run: Path, tmp_path: Path) -> None:
    for number, url in enumerate(("javascript:alert(1)", 7, "https://wandb.ai/me/p/runs/x")):
        result = result_of(DEFAULTS, "b")
        result.provenance["wandb"] = url
        result.save(tmp_path / str(number))
    found = read([tmp_path / str(number) for number in range(3)])
    assert [one.link for one in found] == [None, None, "https://wandb.ai/me/p/runs/x"]


def test_what_cannot_be_compared_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").touch()
    (tmp_path / "torn.json").write_text('{"name": ')
    (tmp_path / "many.json").write_text('{"name": "a", "runs": []}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text("[]")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/study.json").write_text("{}")
    for paths, said in (
        (["a"], "expected two or more of a run's folder .* got 1"),
        (["a", "./a"], "a and a are the same; name it once"),
        (["a", "a/result.json"], "a and a/result.json are the same"),
        (["a", "empty"], r"expected a run's folder \(with result.json\), a study's folder .*; empty has neither"),
        (["a", "nowhere"], "nowhere is not there"),
        (["a", "notes.md"], "notes.md is another file"),
        (["a", "torn.json"], "torn.json is damaged"),
        (["a", "many.json"], "many.json is no result of one run"),
        (["a", "broken"], "broken/result.json has schema None, this version reads 1"),
        (["a", "damaged"], "damaged/study.json is damaged"),
    ):
        with pytest.raises(ValueError, match=said):
            read([Path(path) for path in paths])
