from pathlib import Path

import pytest

from lightning_compress.sweep import ledger
from lightning_compress.sweep.ledger import Ledger


def test_events_are_there_at_once_and_after_reopening(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.append("start", run="trial-0")
    book.append("exit", run="trial-0", cause="done")
    assert [event["event"] for event in ledger.read(tmp_path)] == ["start", "exit"]
    again = Ledger(tmp_path)
    assert [event["run"] for event in again.of("exit", cause="done")] == ["trial-0"]
    assert list(again.of("exit", cause="crash")) == []


def test_half_a_line_at_the_end_is_cut_off_wherever_it_breaks(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.append("ask", trial=0, params={"note": "a\nb é"})
    whole = book.path.read_bytes()
    book.append("end", trial=0)
    full = book.path.read_bytes()
    for length in range(len(whole), len(full)):
        book.path.write_bytes(full[:length])
        assert [event["event"] for event in ledger.read(tmp_path)] == ["ask"]
        mended = Ledger(tmp_path)
        mended.append("end", trial=0)
        assert [event["event"] for event in ledger.read(tmp_path)] == ["ask", "end"]


def test_reading_does_not_change_the_file_that_another_process_writes(tmp_path: Path) -> None:
    Ledger(tmp_path).append("ask", trial=0)
    path = tmp_path / ledger.FILE
    path.write_bytes(path.read_bytes() + b'{"at": 1, "ev')
    before = path.read_bytes()
    assert len(list(ledger.read(tmp_path))) == 1
    assert path.read_bytes() == before


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    for trial in range(3):
        book.append("ask", trial=trial)
    lines = book.path.read_text().splitlines()
    book.path.write_text("\n".join([lines[0], "garbage", lines[2], ""]))
    with pytest.raises(ValueError, match=r"ledger.jsonl, line 2 is damaged"):
        Ledger(tmp_path)
