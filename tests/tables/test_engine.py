"""Running a table: what is missing, what fails, what was stopped. Runs are of committed code, in a copy of this one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_compress.tables.engine import Asked, Plan, plan
from lightning_compress.tables.records import Record
from tests.tables.conftest import CELL, TABLE, Make

ROOT = Path(__file__).parents[2]
EXPERIMENT = """# @package _global_
name: small
epochs: 3
evaluate_test: true
data: {batch_size: 256}
model: {width: 0.25}
measure: {latency: false}
wandb: {mode: disabled}
"""
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def _row(*overrides: str, seeds: tuple[int, ...] = (0,), **more: Any) -> dict[str, Any]:
    return {"title": "t", "experiment": "small", "overrides": list(overrides), "seeds": list(seeds), **more}


def _record(row: str, seed: int, status: str = "done") -> Record:
    return Record(row, seed, status, "small", {}, {}, {}, {}, 0.0)


def _planned(make: Make, asked: Asked, *, gpu: bool = False, recorded: tuple[Record, ...] = ()) -> Plan:
    spec = make(
        lambda table: table["rows"].update(
            big={**table["rows"]["dense"], "needs": "gpu"}, own={**table["rows"]["dense"], "needs": "data"}
        )
    )
    found: dict[str, dict[int, Record]] = {}
    for record in recorded:
        found.setdefault(record.row, {})[record.seed] = record
    return plan(spec, found, asked, gpu=gpu)


def test_what_has_no_record_is_due(make: Make) -> None:
    recorded = (_record("dense", 0), _record("dense", 1, "failed"))
    made = _planned(make, Asked(), recorded=recorded)
    assert [one.name for one in made.due] == ["dense-seed2", "pruned-seed0", "pruned-seed1", "pruned-seed2"]
    assert made.lines() == [
        "4 to run, 1 recorded, 1 failed",
        "to run: dense, 1 seeds",
        "to run: pruned, 3 seeds",
        "failed, run again with --again: dense-seed1",
        "left out: big: it needs a GPU, and there is none",
        "left out: own: it needs data that does not come by itself; with the data, --only own",
    ]
    again = _planned(make, Asked(only=["dense"], again=True), recorded=recorded)
    assert [one.name for one in again.due] == ["dense-seed0", "dense-seed1", "dense-seed2"]


def test_rows_and_seeds_that_were_asked_for(make: Make) -> None:
    assert [one.name for one in _planned(make, Asked(only=["same"], seeds=[1])).due] == ["pruned-seed1"]
    assert [one.name for one in _planned(make, Asked(only=["own", "big"], seeds=[1]), gpu=True).due] == [
        "big-seed1",
        "own-seed1",
    ]
    assert "to run: big, 3 seeds, on a GPU" in _planned(make, Asked(), gpu=True).lines()


def test_a_row_whose_files_others_read_comes_first(make: Make, tmp_path: Path) -> None:
    spec = make(lambda table: table["rows"]["pruned"].update(after="dense"))
    asked, found = Asked(only=["pruned"]), {"dense": {0: _record("dense", 0)}}
    made = plan(spec, found, asked, runs=tmp_path)
    assert [one.name for one in made.lent] == ["dense-seed0"]
    assert "to run: dense-seed0, whose files others read; its record stays" in made.lines()
    (tmp_path / "digits/dense/seed0").mkdir(parents=True)
    (tmp_path / "digits/dense/seed0/result.json").touch()
    assert not plan(spec, found, asked, runs=tmp_path).lent
    assert not plan(spec, {}, Asked(), runs=tmp_path / "none").lent  # it is due itself
    with pytest.raises(ValueError, match="after 'cited' has no experiment of its own; name one that has"):
        make(lambda table: table["rows"]["pruned"].update(after="cited"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(only=["prune"]), "table digits: row 'prune' is not in the rows: did you mean 'pruned'"),
        (Asked(only=["cited"]), "row 'cited' is cited, there is nothing to run"),
        (Asked(seeds=[0, 7]), "none of the rows has seed 7; they have 0, 1, 2"),
    ],
)
def test_what_is_not_in_the_table_is_named(make: Make, asked: Asked, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _planned(make, asked)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the package as it is now, all of it committed."""
    folder = tmp_path_factory.mktemp("committed")
    shutil.copytree(ROOT / "lightning_compress", folder / "lightning_compress")
    (folder / ".gitignore").write_text("__pycache__/\n")
    _git(folder, "init", "--quiet")
    _git(folder, "add", ".")
    _git(folder, "commit", "--quiet", "--message", "as it is")
    return folder


def _git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True)


@pytest.fixture
def here(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a table of the rows given."""

    def made(rows: dict[str, Any], name: str = "here") -> Path:
        folder = tmp_path / name
        (folder / "experiments").mkdir(parents=True)
        (folder / "experiments/small.yaml").write_text(EXPERIMENT)
        (folder / "reports/tables").mkdir(parents=True)
        columns = {"error": TABLE["columns"]["error"]}
        for row in rows.values():
            row["published"] = {"error": CELL}
        table = {**TABLE, "columns": columns, "rows": rows, "claims": []}
        (folder / "reports/tables/digits.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
        return folder

    return made


def _start(code: Path, folder: Path, *words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_compress.cli", "table", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(code: Path, folder: Path, *words: str) -> tuple[int, str]:
    process = _start(code, folder, *words)
    said, _ = process.communicate(timeout=500)
    return process.returncode, said


def _kept(folder: Path, row: str, seed: int) -> Path:
    return folder / "reports/records/digits" / row / f"seed{seed}.json"


def _metrics(path: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(path.read_text())["metrics"]
    return metrics


@pytest.mark.slow
def test_a_failing_seed_stops_no_other_and_is_not_tried_again(committed: Path, here: Callable[..., Path]) -> None:
    rows = {"wild": _row("optimizer.lr=1e30"), "good": _row(seeds=(0, 1)), "big": _row(needs="gpu")}
    folder = here(rows)
    code, said = _run(committed, folder, "digits", "--workers", "2")
    assert code == 2
    assert "left out: big: it needs a GPU, and there is none" in said
    assert "error: 1 runs gave no number: digits/wild-seed0" in said
    assert json.loads(_kept(folder, "wild", 0).read_text())["status"] == "failed"
    assert {path.name for path in folder.glob("reports/records/digits/*/*")} == {"seed0.json", "seed1.json"}
    assert _metrics(_kept(folder, "good", 0)) != _metrics(_kept(folder, "good", 1))
    assert (folder / "reports/tables/digits.md").exists()
    before = {path: path.read_bytes() for path in folder.glob("reports/records/digits/*/*")}
    code, said = _run(committed, folder, "digits")
    assert (code, "0 to run, 2 recorded, 1 failed" in said) == (0, True)
    assert "failed, run again with --again: wild-seed0" in said
    assert {path: path.read_bytes() for path in before} == before
    code, said = _run(committed, folder, "digits", "--only", "good", "--seeds", "1", "--again")
    assert code == 0
    assert [path for path in before if path.read_bytes() != before[path]] == [_kept(folder, "good", 1)]
    assert _metrics(_kept(folder, "good", 1)) == json.loads(before[_kept(folder, "good", 1)])["metrics"]


@pytest.mark.slow
def test_a_killed_table_goes_on(committed: Path, here: Callable[..., Path]) -> None:
    rows = {"good": _row("epochs=40", seeds=(0, 1))}
    folder, whole = here(rows), here(rows, "whole")
    driver = _start(committed, folder, "digits", "--workers", "1")
    checkpoint = folder / "runs/tables/digits/good/seed1/phase0.ckpt"
    until = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    assert checkpoint.exists()
    assert not _kept(folder, "good", 1).exists(), "it is killed while the second seed trains"
    before = _kept(folder, "good", 0).read_bytes()
    code, said = _run(committed, folder, "digits")
    assert (code, "1 to run, 1 recorded" in said) == (0, True)
    assert _kept(folder, "good", 0).read_bytes() == before
    assert _run(committed, whole, "digits", "--seeds", "1")[0] == 0
    assert _metrics(_kept(folder, "good", 1)) == _metrics(_kept(whole, "good", 1))


@pytest.mark.slow
def test_two_workers_share_a_teacher(committed: Path, here: Callable[..., Path]) -> None:
    taught = ("distill=kl", "model@teacher.model=small_conv", "teacher.epochs=5")
    folder = here({"one": _row(*taught), "other": _row(*taught, "methods.distill.temperature=2.0")})
    code, said = _run(committed, folder, "digits", "--workers", "2")
    assert code == 0, said
    (teacher,) = (folder / "runs/tables/digits/teachers").glob("teacher-*")
    assert (teacher / "result.json").exists()
    hashes = {json.loads(_kept(folder, row, 0).read_text())["provenance"]["teacher"] for row in ("one", "other")}
    assert len(hashes) == 1


@pytest.mark.slow
def test_nothing_is_run_that_could_not_be_recorded(committed: Path, here: Callable[..., Path], tmp_path: Path) -> None:
    folder, changed = here({"good": _row()}), tmp_path / "changed"
    _git(tmp_path, "clone", "--quiet", str(committed), str(changed))
    with (changed / "lightning_compress/module.py").open("a") as file:
        file.write("# changed\n")
    code, said = _run(changed, folder, "digits")
    assert (code, "nothing is run, as nothing could be recorded: its code was not committed" in said) == (2, True)
    code, said = _run(committed, folder, "digits", "epochs=1")
    assert code == 2
    assert "epochs=1 changes epochs" in said
    code, said = _run(committed, folder, "digits", "--dry-run")
    assert (code, "1 to run, 0 recorded, 0 failed" in said) == (0, True)
    assert not list(folder.glob("runs/tables/digits/*/*"))
