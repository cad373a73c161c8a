"""`lightning-compress table`: pages are written and checked, and what is wrong is named."""

from pathlib import Path

import pytest

from lightning_compress.cli import main
from lightning_compress.tables import render, schema
from tests.tables.conftest import Keep, Make, edited


@pytest.fixture
def here(make: Make, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one table and one record."""
    make()
    (tmp_path / "reports/tables").mkdir(parents=True)
    (tmp_path / "digits.yaml").rename(tmp_path / "reports/tables/digits.yaml")
    record = keep("dense", 0, 2.0)
    (tmp_path / "records").rename(tmp_path / "reports/records")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reports/records" / record.relative_to(tmp_path / "records")


def test_pages_are_rendered_then_pass_the_check(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--check"]) == 2
    assert "reports/tables/digits.md is missing: lightning-compress table digits --render" in capsys.readouterr().out
    assert main(["table", "digits", "--render"]) == 0
    assert main(["table", "--check"]) == 0
    edited(here, lambda data: data["metrics"].update({"test/accuracy": 0.97}))
    capsys.readouterr()
    assert main(["table", "--check"]) == 2
    said = capsys.readouterr()
    assert "digits.html differs from its records" in said.out
    assert "tables do not agree with their records" in said.err


def test_pages_go_where_they_are_asked_to(here: Path, tmp_path: Path) -> None:
    assert main(["table", "digits", "--render", "--out", "elsewhere"]) == 0
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "digits.html",
        "digits.md",
        "digits.tex",
    ]


def test_mistakes_are_named(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["table", "digit", "--render"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["table", "--check"]) == 2
    assert "there is no table in reports/tables" in capsys.readouterr().err


def test_the_committed_pages_are_what_their_records_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert [problem for spec in schema.every() for problem in render.check(spec, schema.FOLDER)] == []
