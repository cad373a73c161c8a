"""A whole study whose workers and disk really fail: it says so, goes on or stops cleanly, and loses nothing."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_compress.sweep import ledger, pool, record
from lightning_compress.sweep.ledger import Ledger
from lightning_compress.sweep.pool import DiskFullError
from lightning_compress.sweep.spec import StudySpec
from tests.sweep import breaks
from tests.sweep.failing import (
    TRIALS,
    check_resumed,
    check_told_once,
    complete,
    ends,
    failed,
    line_with,
    spec_of,
    sweep,
)

NOT_FINITE = "ValueError: the result of 'trial-{}' is not finite (val/accuracy={})"


def test_workers_that_run_out_of_memory(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    spec = spec_of(folder, {"trial-1": "memory", "trial-3": "memory_once"})
    lines = sweep(spec, folder)
    out = {"cause": "memory", "detail": "MemoryError"}
    assert ends(folder, "trial-1") == [{**out, "retry": True}, {**out, "retry": False}]
    assert ends(folder, "trial-3")[0] == {**out, "retry": True}
    assert failed(folder) == {1: "memory: MemoryError"}
    assert line_with(lines, "trial 3 failed and is tried again: memory: MemoryError")
    assert "1 failed" in line_with(lines, "trial 1 failed: memory: MemoryError (see ")
    assert (folder / "runs/trial-1/error.txt").read_text().endswith("MemoryError\n")
    check_told_once(folder)
    check_resumed(spec, folder)


def test_objectives_that_are_no_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    spec = spec_of(folder, {"trial-1": "not_a_number", "trial-4": "infinite"})
    lines = sweep(spec, folder)
    reasons = {1: NOT_FINITE.format(1, "nan"), 4: NOT_FINITE.format(4, "inf")}
    assert failed(folder) == reasons
    for number, reason in reasons.items():
        assert ends(folder, f"trial-{number}") == [{"cause": "error", "detail": reason, "retry": False}]
        assert line_with(lines, f"trial {number} failed: {reason} (see ")
    check_told_once(folder)
    check_resumed(spec, folder)


def test_workers_that_hang(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    spec = spec_of(folder, {"trial-1": "hang", "trial-2": "stand_still_once"}, timeout=1.5, retries={"timeout": 1})
    lines = sweep(spec, folder)
    out = {"cause": "timeout", "detail": "stopped after 1.5 s"}
    assert ends(folder, "trial-1") == [{**out, "retry": True}, {**out, "retry": False}]
    assert ends(folder, "trial-2")[0] == {**out, "retry": True}
    assert failed(folder) == {1: "timeout: stopped after 1.5 s"}
    assert line_with(lines, "trial 1 failed: timeout: stopped after 1.5 s (see ")
    assert line_with(lines, "trial 2 failed and is tried again: timeout: stopped after 1.5 s")
    check_told_once(folder)
    check_resumed(spec, folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, somewhat larger than what a run must find free."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = _mount("size=110m", place)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(options: str, place: Path) -> subprocess.CompletedProcess[bytes]:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return subprocess.run(command, check=False, capture_output=True)


def _check_stops(spec: StudySpec, folder: Path, words: str) -> None:
    """The disk is full: the command stops, says so, and has changed no result."""
    before, known = complete(folder), list(ledger.read(folder))
    with pytest.raises(DiskFullError, match=rf"(?s){words}.*make room, then write the same command again") as caught:
        sweep(spec, folder)
    written = list(ledger.read(folder))
    assert written[: len(known)] == known
    (stop,) = [event for event in written[len(known) :] if event["event"] == "stop"]
    assert stop["cause"] == "disk"
    assert stop["detail"] in str(caught.value)
    assert before.items() <= complete(folder).items()


def test_a_disk_that_a_worker_finds_full(disk: Path) -> None:
    folder = disk / "study"
    spec = spec_of(folder, {"trial-2": "disk_once"}, workers=1)
    _check_stops(spec, folder, "trial-2: ")
    assert [each["cause"] for each in ends(folder, "trial-2")] == ["disk"]
    finished = complete(folder)
    assert len(finished) >= 2
    _check_stops(spec, folder, "no room is left for the study in ")
    assert complete(folder) == finished
    assert _mount("remount,size=220m", disk).returncode == 0
    lines = sweep(spec, folder)
    assert finished.items() <= complete(folder).items()
    assert failed(folder) == {}
    assert line_with(lines, "trial 2: val/accuracy")
    check_told_once(folder)
    check_resumed(spec, folder)


class Filling:
    """Fills a disk when the driver has made sure of so many writes, from when it was asked."""

    def __init__(self, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._disk, self._left, self._sync = disk, 0, os.fsync
        self.writes = 0
        monkeypatch.setattr(os, "fsync", self._fsync)
        # Otherwise the driver sees most of it coming.
        monkeypatch.setattr(pool, "_LEAST_DISK", 0)

    def after(self, writes: int) -> None:
        self._left = writes

    def _fsync(self, descriptor: int) -> None:
        self._sync(descriptor)
        self.writes += 1
        self._left -= 1
        if self._left == 0:
            breaks.fill(self._disk)


def test_a_disk_that_the_driver_finds_full(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, filling = disk / "study", Filling(disk, monkeypatch)
    spec = spec_of(folder, {})
    for writes in (20, 15):
        filling.after(writes)
        _check_stops(spec, folder, "")
        (disk / "ballast").unlink()
    sweep(spec, folder)
    assert failed(folder) == {}
    check_told_once(folder)


def test_a_disk_that_is_full_before_the_study_begins(disk: Path) -> None:
    folder = disk / "study"
    spec = spec_of(folder, {}, launcher="inline")
    breaks.fill(disk)
    with pytest.raises(
        DiskFullError, match=r"no room is left for the study in .*: make room, then write the same comm"
    ):
        sweep(spec, folder)
    (disk / "ballast").unlink()
    sweep(spec, folder)
    check_told_once(folder)


@pytest.mark.slow
def test_a_disk_that_is_full_at_whatever_moment(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _mount("remount,size=1m", disk).returncode == 0
    filling, folder = Filling(disk, monkeypatch), disk / "study"
    spec = replace(spec_of(folder, {}, launcher="inline"), report=str(disk.parent / "report"))
    sweep(spec, folder)
    for writes in range(1, filling.writes + 1):
        shutil.rmtree(folder)
        filling.after(writes)
        _check_stops(spec, folder, "")
        (disk / "ballast").unlink()
        before = complete(folder)
        sweep(spec, folder)
        assert before.items() <= complete(folder).items()
        assert failed(folder) == {}
        check_told_once(folder)


def _append_on(book: Ledger) -> None:
    while True:
        book.append("stop", cause="disk")


def test_the_ledger_has_room_for_last_words(disk: Path) -> None:
    assert _mount("remount,size=1m", disk).returncode == 0
    book = Ledger(disk)
    breaks.fill(disk)
    book.append("stop", cause="disk")
    with pytest.raises(OSError, match="No space left"):
        _append_on(book)
    assert list(ledger.read(disk)) == book.events
    (disk / "ballast").unlink()
    Ledger(disk).append("start")
    assert [event["event"] for event in ledger.read(disk)] == [*("stop" for _ in book.events), "start"]


def _garble(path: Path) -> None:
    """What a broken disk gives back: the length is right, a block in the middle is not."""
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(range(192, 256))
    path.write_bytes(whole)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _cut_lines(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "study"
    sweep(spec_of(folder, {}), folder)
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished study."""
    return shutil.copytree(finished, tmp_path / "study")


PUT_BACK = ".*: put back a copy, or write --fresh to begin the study anew"


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("journal.log", _garble, "journal.log is damaged" + PUT_BACK),
        ("journal.log", _cut_lines, "journal.log has lost what it knew of trial [0-9]" + PUT_BACK),
        ("journal.log", _empty, "journal.log has lost what it knew of trial 0" + PUT_BACK),
        ("journal.log", Path.unlink, "journal.log has lost what it knew of trial 0" + PUT_BACK),
        ("study.json", _garble, "study.json is damaged" + PUT_BACK),
        ("study.json", _cut, "study.json is damaged" + PUT_BACK),
        ("study.json", _empty, "study.json is damaged" + PUT_BACK),
        ("ledger.jsonl", _garble, "ledger.jsonl, line [0-9]+ is damaged" + PUT_BACK),
        ("runs/baseline-0/result.json", _cut, "baseline-0/result.json is damaged .*: remove that file and train again"),
    ],
    ids=lambda value: None if isinstance(value, str) and " " in value else getattr(value, "__name__", value),
)
def test_a_study_file_that_cannot_be_read(study: Path, file: str, damage: Callable[[Path], None], words: str) -> None:
    before, whole = complete(study), (study / file).read_bytes()
    damage(study / file)
    with pytest.raises(ValueError, match=words) as caught:
        sweep(replace(spec_of(study, {}), trials=TRIALS + 1), study)
    assert str(study / file) in str(caught.value)
    (study / file).write_bytes(whole)
    assert complete(study) == before
    check_resumed(spec_of(study, {}), study)


def test_lines_that_the_ledger_has_lost_are_written_again(study: Path) -> None:
    known = list(record.trials(study))
    _cut_lines(study / ledger.FILE)
    assert list(record.trials(study)) != known
    check_resumed(spec_of(study, {}), study)
    assert list(record.trials(study)) == known
