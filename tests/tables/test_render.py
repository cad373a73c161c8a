"""The pages of a table: what they say of each cell, and that they are always what their records give."""

import re
from pathlib import Path

import pytest

from lightning_compress.tables import cells, records, render
from lightning_compress.tables.cells import Cell, Sheet
from tests.tables.conftest import Keep, Make, edited


@pytest.fixture
def full(keep: Keep, tmp_path: Path) -> Path:
    """Records of all three dense runs and two pruned ones."""
    for seed, (dense, pruned) in enumerate([(2.0, 2.4), (2.1, 2.5)]):
        keep("dense", seed, dense)
        keep("pruned", seed, pruned)
    keep("dense", 2, 2.2)
    return tmp_path / "records"


def sheet(make: Make, root: Path) -> Sheet:
    spec = make()
    return cells.sheet(spec, records.read(root, spec))


def cell(found: Sheet, row: str, column: str) -> Cell:
    return next(line.cells[column] for part in found.sections for line in part.lines if line.row.name == row)


def test_cells_say_both_values_the_verdict_and_deltas(make: Make, full: Path) -> None:
    found = sheet(make, full)
    assert cell(found, "dense", "error") == Cell("2.00", "a", "2.10 ± 0.10 (3)", "reproduced", "off 0.100, bound 0.231")
    assert cell(found, "pruned", "error") == Cell(
        *("2.50 ± 0.1 (5)", "a", "2.45 ± 0.07 (2 of 3)", "reproduced", "off 0.050, bound 0.234 (baseline 0.100)"),
        *("+0.50", "+0.40"),
    )
    assert cell(found, "pruned", "smaller") == Cell(
        "10", "a", "10.0 ± 0.0 (2 of 3)", "reproduced", "off 0.00, bound 0.00", "", "+0.0"
    )
    assert cell(found, "same", "smaller").word == "not"
    assert cell(found, "cited", "error") == Cell("1.50", "b†")
    assert found.counts == {"reproduced": 3, "not reproduced": 1, "cited only": 1}
    assert found.sources == {"a": "table 1 (read in the paper)", "b": "table 1 (from memory, not judged)"}
    assert [(part.title, [column.name for column in part.columns]) for part in found.sections] == [
        ("", ["error", "smaller"]),
        ("small", ["error", "smaller"]),
    ]


def test_claims_are_judged_seed_by_seed(make: Make, full: Path) -> None:
    (claim,) = sheet(make, full).claims
    assert (claim.here, claim.word) == ("-0.40 ± 0.00 (2 seeds, paired)", "holds")
    assert claim.text == "error, %: dense better than small: pruned & shared_50% by at least 0.1"


def test_what_was_not_run_or_failed_is_said(make: Make, keep: Keep, tmp_path: Path) -> None:
    root = tmp_path / "records"
    found = sheet(make, root)
    assert cell(found, "dense", "error") == Cell("2.00", "a", "", "not run")
    assert found.claims[0].word == "not run"
    keep("dense", 0, 2.0)
    records.write_failure(root, "digits", "dense", 1, {"name": "hinton2015/hard"}, ValueError("loss is NaN"))
    found = sheet(make, root)
    assert cell(found, "dense", "error") == Cell("2.00", "a", "2.00 (1 of 3)", "failed 1 of 3")
    assert found.counts["failed"] == 1
    assert found.sections[0].lines[0].remarks == ("seed 1 failed: ValueError: loss is NaN",)


def test_a_row_of_ours_alone_says_that_it_was_not_run(make: Make, tmp_path: Path) -> None:
    unpublished = make(lambda table: table["rows"]["dense"].pop("published"))
    found = cells.sheet(unpublished, records.read(tmp_path / "records", unpublished))
    assert found.sections[0].lines[0].remarks == ("not run",)


def test_numbers_that_the_runs_lack_are_named(make: Make, keep: Keep, tmp_path: Path) -> None:
    keep("pruned", 0, 2.0, cost={"packed_bytes": 100})
    missing = cell(sheet(make, tmp_path / "records"), "pruned", "smaller")
    assert (missing.word, missing.why) == ("not judged", "the runs have no cost/dense_bytes / cost/packed_bytes")


def test_rows_say_how_they_are_made_again(make: Make, full: Path) -> None:
    runs = sheet(make, full).sections[0].lines[0].runs
    assert runs is not None
    assert runs.command == "lightning-compress table digits --only dense --again"
    assert runs.facts == ("0, 1, 2", "0123456789", "a CPU", "0.30")


def test_a_record_that_does_not_fit_is_shown_and_refused(make: Make, full: Path, tmp_path: Path) -> None:
    edited(full / "digits/pruned/seed0.json", lambda data: data["config"].update(epochs=5))
    spec = make()
    render.write(spec, tmp_path, full)
    assert "seed 0 does not fit: the row has epochs=3, the record 5" in (tmp_path / "digits.md").read_text()
    assert len(render.check(spec, tmp_path, full)) == 1


def test_pages_are_checked_byte_for_byte(make: Make, full: Path, tmp_path: Path) -> None:
    spec = make()
    assert {problem.split(" is ")[0] for problem in render.check(spec, tmp_path, full)} == {
        str(tmp_path / f"digits.{ending}") for ending in ("md", "html", "tex")
    }
    render.write(spec, tmp_path, full)
    assert render.check(spec, tmp_path, full) == []
    record = full / "digits/dense/seed1.json"
    # By 0.01 of a percent: the rounded mean and spread stay as they are.
    edited(record, lambda data: data["metrics"].update({"test/accuracy": data["metrics"]["test/accuracy"] + 1e-6}))
    said = render.check(spec, tmp_path, full)
    assert len(said) == 3
    assert "digits.md differs from its records: lightning-compress table digits --render" in said[0]


def test_each_format_shows_the_same(make: Make, full: Path) -> None:
    pages = render.render(
        make(lambda table: table["rows"]["same"].update(cause="Fewer *epochs*, see [a](https://b.org).")), full
    )
    assert (
        "| pruned & shared\\_50% | *2.50 ± 0.1 (5)* <sup>a</sup><br>*Δ +0.50* | **2.45 ± 0.07 (2 of 3)**<br>"
        "reproduced: off 0.050, bound 0.234 (baseline 0.100)<br>Δ +0.40 |"
    ) in pages["digits.md"]
    assert "pruned &amp; shared_50%" in pages["digits.html"]
    assert "<b>2.45 ± 0.07 (2 of 3)</b>" in pages["digits.html"]
    assert "<em>2.50 ± 0.1 (5)</em><sup>a</sup>" in pages["digits.html"]
    assert 'Fewer <em>epochs</em>, see <a href="https://b.org">a</a>.' in pages["digits.html"]
    assert r"pruned \& shared\_50\% & \emph{2.50 $\pm$ 0.1 (5)}\textsuperscript{a}" in pages["digits.tex"]
    assert r"\texttt{lightning-compress table digits -{}-only dense -{}-again}" in pages["digits.tex"]
    assert r"\textbf{2.45 $\pm$ 0.07 (2 of 3)}\newline" in pages["digits.tex"]
    assert r"Fewer \emph{epochs}, see \href{https://b.org}{a}." in pages["digits.tex"]
    for page in pages.values():
        assert re.search("3 (reproduced|</b>)|<b>3</b>", page)


def test_columns_without_published_values_have_ours_alone(make: Make, full: Path) -> None:
    pages = render.render(make(lambda table: table["rows"]["same"].pop("published")), full)
    assert "|  | error, %<br>*published* | **ours** | times smaller<br>**ours** |" in pages["digits.md"]
    assert '<th colspan="1">times smaller</th>' in pages["digits.html"]
    assert r"\emph{published} & \textbf{ours} & times smaller, \textbf{ours} \\" in pages["digits.tex"]


def test_nothing_on_a_page_is_markup_of_the_table_s_own(make: Make, full: Path) -> None:
    title = "<script>alert(1)</script> \\input{x} $y$"
    pages = render.render(make(lambda table: table.update(title=title, about=title, departures=[title])), full)
    assert "<script>alert" not in pages["digits.html"]
    assert "\\input{x}" not in pages["digits.tex"]
    assert "$y$" not in pages["digits.tex"]
    assert pages["digits.md"].startswith("# \\<script\\>")
