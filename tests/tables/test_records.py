"""Records: what is kept of a run, what is not taken as one, and what no longer fits the table."""

import json
from pathlib import Path

import pytest

from lightning_compress.tables import records
from tests.tables.conftest import Keep, Make, edited


def test_a_record_is_read_back_without_where_files_were(make: Make, keep: Keep, tmp_path: Path) -> None:
    path = keep("pruned", 2, 2.5)
    assert path == records.place(tmp_path / "records", "digits", "pruned", 2)
    found = records.read(tmp_path / "records", make())
    record = found["pruned"][2]
    assert record.numbers == {"test/accuracy": 0.975, "cost/dense_bytes": 1000.0, "cost/packed_bytes": 100.0}
    assert record.config["data"] == {"root": None, "source": "mnist"}
    assert record.config["wandb"] == {"folder": None}
    assert found["same"] == found["pruned"]
    assert found["dense"] == found["cited"] == {}
    assert records.problems(tmp_path / "records", make()) == []


def test_only_finished_runs_of_a_commit_are_recorded(keep: Keep) -> None:
    with pytest.raises(ValueError, match="row dense, seed 0: its code was not committed: commit first"):
        keep("dense", 0, 2.0, provenance={"commit": "abc", "dirty": True})
    with pytest.raises(ValueError, match="its code was in no repository: run it from a clone"):
        keep("dense", 0, 2.0, provenance={"commit": None, "dirty": None})
    with pytest.raises(ValueError, match="is 'running', not done"):
        keep("dense", 0, 2.0, status="running")
    with pytest.raises(ValueError, match="Out of range"):
        keep("dense", 0, 2.0, metrics={"test/accuracy": float("nan")})


def test_a_failed_seed_is_a_record(make: Make, tmp_path: Path) -> None:
    error = RuntimeError("loss is\n  NaN")
    records.write_failure(tmp_path, "digits", "dense", 1, {"name": "hinton2015/hard", "epochs": 3}, error)
    record = records.read(tmp_path, make())["dense"][1]
    assert (record.status, record.error, record.numbers) == ("failed", "RuntimeError: loss is NaN", {})


def test_a_damaged_or_misplaced_record_is_refused(make: Make, keep: Keep, tmp_path: Path) -> None:
    path = keep("dense", 0, 2.0)
    path.rename(path.with_name("seed1.json"))
    with pytest.raises(ValueError, match="holds row 'dense', seed 0: it must lie where these say"):
        records.read(tmp_path / "records", make())
    path.with_name("seed1.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        records.read(tmp_path / "records", make())


def test_what_does_not_fit_the_table_is_a_problem(make: Make, keep: Keep, tmp_path: Path) -> None:
    keep("dense", 0, 2.0, name="hinton2015/soft")
    keep("dense", 7, 2.0)
    edited(keep("dense", 1, 2.0), lambda data: data["provenance"].update(dirty=True))
    keep("gone", 0, 2.0)
    edited(keep("pruned", 0, 2.0), lambda data: data["config"].update(epochs=4))
    spec = make(lambda table: table.update(overrides=["measure.latency=false", "optimizer=sgd", "data.source=mnist"]))
    said = records.problems(tmp_path / "records", spec)
    for problem, place in zip(
        (
            "dense/seed0.json: is of 'hinton2015/soft', the row is of 'hinton2015/hard'",
            "dense/seed1.json: its code was not committed",
            "dense/seed7.json: the row has no seed 7",
            "pruned/seed0.json: the row has epochs=3, the record 4",
            "gone/seed0.json: the table has no row 'gone' with runs of its own",
        ),
        said,
        strict=True,
    ):
        assert problem in place


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ("epochs=3", True),
        ("epochs=3.0", True),
        ("+data.source=mnist", True),
        ("data={source: mnist}", True),
        ("data.source=cifar10", False),
        ("data.size=null", True),
        ("data.root=elsewhere", True),
        ("model.width=0.5", False),
    ],
)
def test_overrides_are_held_against_the_configuration(
    make: Make, keep: Keep, tmp_path: Path, override: str, fits: bool
) -> None:
    keep("dense", 0, 2.0)
    spec = make(lambda table: table["rows"]["dense"].update(overrides=[override]))
    assert (records.problems(tmp_path / "records", spec) == []) == fits


def test_records_are_small_and_plain(keep: Keep) -> None:
    data = json.loads(keep("dense", 0, 2.0).read_text())
    assert set(data) == {
        *("row", "seed", "status", "name", "metrics", "cost", "config", "provenance", "wall_seconds", "train_flops"),
        "error",
    }
