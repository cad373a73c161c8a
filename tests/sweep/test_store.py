import os
import resource
import time
from pathlib import Path

import pytest

from lightning_compress.sweep import space
from lightning_compress.sweep.study import Study

SPACE = space.parse({"width": [0.25, 0.5, 1.0], "bits": {"low": 2, "high": 8, "int": True}})


def _open(folder: Path | None, storage: str | None = None, name: str = "s") -> Study:
    return Study(folder, name=name, objectives={"a": "max", "b": "min"}, sampler="random", seed=0, storage=storage)


def _grow(study: Study, trials: int) -> None:
    while study.num_spent < trials:
        trial = study.ask(SPACE)
        if trial.state == "running":
            study.tell(trial.number, (float(trial.number), 1.0))


def _cut(journal: Path) -> tuple[bytes, list[int]]:
    """What the journal holds, and every length that cuts its last record, every 25th that cuts the one before it."""
    whole = journal.read_bytes()
    ends = [len(b"".join(whole.splitlines(keepends=True)[:-back])) for back in (2, 1)]
    return whole, [*range(ends[0], ends[1], 25), *range(ends[1], len(whole))]


def test_a_record_cut_off_anywhere_costs_that_record_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    journal = tmp_path / "journal.log"
    _grow(_open(tmp_path), 3)
    before = _open(tmp_path).trials()
    whole, lengths = _cut(journal)
    assert len(lengths) > 100
    for length in lengths:
        journal.write_bytes(whole[:length])
        study = _open(tmp_path)
        assert study.trials()[:2] == before[:2]
        for trial in study.interrupted():
            study.tell(trial.number, (2.0, 1.0))
        _grow(study, 4)
        again = _open(tmp_path).trials()
        assert again[:3] == before, length
        assert [trial.state for trial in again] == ["done"] * 4, length
        assert all(line.startswith(b'{"op_code"') for line in journal.read_bytes().splitlines())


def test_a_first_record_cut_off_begins_the_study_anew(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    _open(tmp_path)
    whole = journal.read_bytes()
    assert whole.count(b"\n") == 1
    for length in (0, 1, 5, len(whole) - 1):
        journal.write_bytes(whole[:length])
        _grow(_open(tmp_path), 1)
        assert len(_open(tmp_path).trials()) == 1


def test_reading_changes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    _grow(_open(tmp_path), 2)
    torn = journal.read_bytes() + b'{"op_code":'
    journal.write_bytes(torn)
    journal.with_name("journal.log.lock").symlink_to(journal)
    study = _open(tmp_path)
    assert [trial.state for trial in study.trials()] == ["done"] * 2
    assert study.num_spent == 2
    assert journal.read_bytes() == torn
    assert journal.with_name("journal.log.lock").is_symlink()


@pytest.mark.parametrize("relative", [True, False])
def test_the_lock_of_a_killed_process_does_not_hold_up_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path() if relative else tmp_path
    _grow(_open(folder), 1)
    (tmp_path / "journal.log.lock").symlink_to(tmp_path / "journal.log")
    start = time.perf_counter()
    _grow(_open(folder), 2)
    assert time.perf_counter() - start < 5
    assert not (tmp_path / "journal.log.lock").is_symlink()


@pytest.mark.parametrize("room", [0, 1, 100, 500])
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(tmp_path: Path, room: int) -> None:
    journal = tmp_path / "journal.log"
    study = _open(tmp_path)
    _grow(study, 2)
    size = journal.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
    try:
        with pytest.raises(OSError):
            study.ask(SPACE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.stat().st_size == size
    assert not journal.with_name("journal.log.lock").exists()
    _grow(study, 3)  # the same process goes on when there is room again
    assert _open(tmp_path).trials() == study.trials()
    assert len(study.trials()) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"not a journal",
        lambda whole: b"not a journal\n",
        lambda whole: whole[:200] + b"\0" * 20 + whole[220:],
        lambda whole: whole[:-30] + b"\n",
        lambda whole: whole.replace(b'"op_code":4', b'"op_code":99'),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    journal = tmp_path / "journal.log"
    _grow(_open(tmp_path), 2)
    journal.write_bytes(damage(journal.read_bytes()))
    with pytest.raises(ValueError, match=r"journal\.log is damaged .*put back a copy, or write --fresh"):
        _open(tmp_path)


def test_a_study_in_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    _grow(_open(None, url), 2)
    _open(None, url).stop(_open(None, url).ask(SPACE).number, (1.0, 2.0), epochs=3)
    _grow(_open(tmp_path, url, name="other"), 1)
    _grow(_open(tmp_path), 2)
    assert _open(None, url).trials()[:2] == _open(tmp_path).trials()
    assert _open(None, url).trials()[2].values == (1.0, 2.0)
    assert len(_open(None, url, name="other").trials()) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("jurnal", r"'jurnal' is no database URL: write journal, "),
        ("postgresql+psycopg2x://host/db", r"cannot use postgresql\+psycopg2x://host/db"),
        ("mysql+mysqldb://me:secret@host/db", r"no driver for mysql\+mysqldb://me:\*\*\*@host/db: pip install PyMySQL"),
        ("sqlite:////nowhere/at/all.db", r"cannot use sqlite:////nowhere/at/all.db .*unable to open"),
    ],
)
def test_a_database_that_cannot_be_used_is_named(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _open(None, url)


def test_a_server_that_does_not_answer_is_named() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(
        ValueError, match=r"cannot use postgresql\+psycopg://me:\*\*\*@127.0.0.1:9/db .*that the server"
    ):
        _open(None, "postgresql+psycopg://me:secret@127.0.0.1:9/db")
