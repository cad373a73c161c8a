"""The tables of this repository: each can be read, and what its rows ask for can be composed and would be a record."""

import pytest

from lightning_compress.run.config import PACKAGE, compose
from lightning_compress.tables.records import Record, stale
from lightning_compress.tables.schema import Row, Spec, load

SPECS = [load(path) for path in sorted((PACKAGE.parent / "reports/tables").glob("*.yaml"))]
RUN = [(spec, row) for spec in SPECS for row in spec.rows.values() if row.experiment is not None]


def _kind(spec: Spec, row: Row) -> tuple[object, ...]:
    """Rows of one kind differ in numbers and names only."""
    return spec.name, row.experiment, *sorted(text.partition("=")[0] for text in row.overrides)


KINDS = {_kind(spec, row): row for spec, row in RUN}


def test_there_are_tables() -> None:
    assert len(SPECS) > 4


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        pytest.param(
            spec,
            row,
            marks=[] if KINDS[_kind(spec, row)] is row else [pytest.mark.slow],
            id=f"{spec.name}-{row.name}",
        )
        for spec, row in RUN
    ],
)
def test_a_run_of_the_row_is_its_record(spec: Spec, row: Row) -> None:
    seed = row.seeds[0]
    config = compose([f"experiment={row.experiment}", *spec.overrides, *row.overrides, f"seed={seed}"])
    assert config["evaluate_test"], "a column of the test split has no number"
    record = Record(row.name, seed, "done", config["name"], {}, {}, config, {}, 0.0)
    assert stale(record, row, spec.overrides) == []
